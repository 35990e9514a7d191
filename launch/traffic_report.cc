#include "launch/traffic_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "launch/flags.h"
#include "runtime/model/cp_exchange.h"

namespace latentmesh {
namespace {

int64_t AbsorbedBytes(const Runtime& runtime) {
  const EngineOptions& options = runtime.options();
  bool half = options.device == "cuda" && options.dtype == "bf16";       // as activations are
  int64_t layers = SplitRange(runtime.config().num_hidden_layers, runtime.layout().pp, 0).count;
  return AbsorbedCpBytes(runtime.config(), runtime.layout(), layers, half ? 2 : 4);
}

}  // namespace

TrafficReport TrafficBetween(const TrafficReport& before, const TrafficReport& after) {
  TrafficReport spent = after;
  spent.steps -= before.steps;
  spent.tokens -= before.tokens;
  spent.halved_steps -= before.halved_steps;
  for (GroupTraffic& group : spent.groups) {
    for (const GroupTraffic& old : before.groups) {
      if (old.group != group.group) continue;
      group.counters.calls -= old.counters.calls;
      group.counters.bytes_sent -= old.counters.bytes_sent;
      group.counters.bytes_received -= old.counters.bytes_received;
      group.counters.seconds -= old.counters.seconds;
    }
  }
  std::erase_if(spent.groups, [](const GroupTraffic& group) { return group.counters.calls == 0; });
  return spent;
}

std::string TrafficText(const TrafficReport& traffic, const Runtime& runtime) {
  std::string text;
  double steps = static_cast<double>(std::max<int64_t>(traffic.steps, 1));
  for (const GroupTraffic& group : traffic.groups) {
    const TrafficCounters& c = group.counters;
    text += fmt::format("traffic of rank 0, a step: {} ({} ranks) {:.1f} calls, {} sent, {} received, {:.3f} ms\n",
                        group.group, group.ranks, static_cast<double>(c.calls) / steps,
                        FormatSize(static_cast<double>(c.bytes_sent) / steps),
                        FormatSize(static_cast<double>(c.bytes_received) / steps), 1e3 * c.seconds / steps);
    if (group.group == "cp" && traffic.tokens > 0)
      text += fmt::format("context parallel: {:.1f} bytes sent by rank 0 for each token computed (formula, absorbed: {})\n",
                          static_cast<double>(c.bytes_sent) / static_cast<double>(traffic.tokens), AbsorbedBytes(runtime));
  }
  if (traffic.halved_steps > 0)
    text += fmt::format("two micro-batches in {} of {} steps\n", traffic.halved_steps, traffic.steps);
  return text;
}

std::string TrafficJson(const TrafficReport& traffic) {
  boost::json::array groups;
  for (const GroupTraffic& group : traffic.groups) {
    const TrafficCounters& c = group.counters;
    groups.push_back({{"group", group.group},
                      {"ranks", group.ranks},
                      {"calls", c.calls},
                      {"bytes_sent", c.bytes_sent},
                      {"bytes_received", c.bytes_received},
                      {"seconds", c.seconds}});
  }
  return boost::json::serialize(
      boost::json::object{{"steps", traffic.steps},
                         {"tokens", traffic.tokens},
                         {"halved_steps", traffic.halved_steps},
                         {"groups", std::move(groups)}});
}

}  // namespace latentmesh
