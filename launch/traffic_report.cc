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

void Subtract(CallCounters& counters, const CallCounters& before) {
  counters.calls -= before.calls;
  counters.bytes_sent -= before.bytes_sent;
  counters.bytes_received -= before.bytes_received;
  counters.seconds -= before.seconds;
}

// "24.0 calls, 1.5 MiB sent, 1.5 MiB received, 0.310 ms"
std::string CountsText(const CallCounters& c, double steps) {
  return fmt::format("{:.1f} calls, {} sent, {} received, {:.3f} ms", static_cast<double>(c.calls) / steps,
                     FormatSize(static_cast<double>(c.bytes_sent) / steps),
                     FormatSize(static_cast<double>(c.bytes_received) / steps), 1e3 * c.seconds / steps);
}

boost::json::object CountsJson(const CallCounters& c) {
  return {{"calls", c.calls},
          {"bytes_sent", c.bytes_sent},
          {"bytes_received", c.bytes_received},
          {"seconds", c.seconds}};
}

boost::json::object CollectivesJson(const TrafficCounters& counters) {
  boost::json::object collectives;
  for (size_t i = 0; i < kCollectives; ++i) {
    const CallCounters& c = counters.by_collective[i];
    if (c.calls > 0) collectives[CollectiveName(static_cast<Collective>(i))] = CountsJson(c);
  }
  return collectives;
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
      Subtract(group.counters, old.counters);
      group.counters.bytes_shared -= old.counters.bytes_shared;
      for (size_t i = 0; i < kCollectives; ++i)
        Subtract(group.counters.by_collective[i], old.counters.by_collective[i]);
    }
  }
  std::erase_if(spent.groups, [](const GroupTraffic& group) {
    return group.counters.calls == 0 && group.counters.bytes_shared == 0;
  });
  return spent;
}

std::string TrafficText(const TrafficReport& traffic, const Runtime& runtime) {
  std::string text;
  double steps = static_cast<double>(std::max<int64_t>(traffic.steps, 1));
  for (const GroupTraffic& group : traffic.groups) {
    const TrafficCounters& c = group.counters;
    text += fmt::format("traffic of rank 0, a step: {} ({} ranks) {}", group.group, group.ranks,
                        CountsText(c, steps));
    if (c.bytes_shared > 0)
      text += fmt::format(", {} read in place", FormatSize(static_cast<double>(c.bytes_shared) / steps));
    text += "\n";
    for (size_t i = 0; i < kCollectives; ++i) {
      const CallCounters& one = c.by_collective[i];
      if (one.calls == 0) continue;
      text += fmt::format("  {}: {}\n", CollectiveName(static_cast<Collective>(i)), CountsText(one, steps));
    }
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
    boost::json::object object = CountsJson(group.counters);
    object["group"] = group.group;
    object["ranks"] = group.ranks;
    object["bytes_shared"] = group.counters.bytes_shared;
    object["collectives"] = CollectivesJson(group.counters);
    groups.push_back(std::move(object));
  }
  return boost::json::serialize(
      boost::json::object{{"steps", traffic.steps},
                         {"tokens", traffic.tokens},
                         {"halved_steps", traffic.halved_steps},
                         {"groups", std::move(groups)}});
}

}  // namespace latentmesh
