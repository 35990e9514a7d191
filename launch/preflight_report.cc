#include "launch/preflight_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "launch/flags.h"
#include "launch/plan_report.h"

namespace latentmesh {
namespace {

std::string PerSecond(double rate) { return rate > 0 ? FormatSize(rate) + "/s" : "-"; }

std::string Duration(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  return seconds < 1 ? fmt::format("{:.2f} ms", seconds * 1e3) : fmt::format("{:.2f} s", seconds);
}

std::string Head(const PreflightAnswer& a) {
  const RankProbe& first = a.probes.front();
  std::set<std::string> hosts;
  for (const RankProbe& probe : a.probes) hosts.insert(probe.host);
  std::string text =
      fmt::format("latentmesh {}, {}, {}, {}\n{} rank{} on {} host{}; transport: {}\n", first.version, first.mpi,
                  first.compiler, first.kernel, a.probes.size(), a.probes.size() == 1 ? "" : "s", hosts.size(),
                  hosts.size() == 1 ? "" : "s", a.verdict.transport);
  if (!first.settings.empty()) text += fmt::format("settings: {}\n", fmt::join(first.settings, " "));
  return text;
}

std::string Hosts(const PreflightAnswer& a) {
  std::string text;
  for (const RankProbe& probe : a.probes) {
    if (probe.local_rank != 0) continue;
    std::vector<std::string> ports;
    for (const NetworkPort& port : probe.ports)
      ports.push_back(fmt::format("{} {}{}{}", port.kind, port.name,
                                  port.gigabits > 0 ? fmt::format(" {:.4g} Gbit/s", port.gigabits) : "",
                                  port.active ? "" : " (down)"));
    text += fmt::format("{}: {}; huge pages {}; ports: {}\n", probe.host, probe.device, probe.huge_pages,
                        ports.empty() ? "none" : fmt::format("{}", fmt::join(ports, ", ")));
  }
  return text;
}

std::string Ranks(const PreflightAnswer& a) {
  std::vector<std::vector<std::string>> rows = {
      {"rank", "host", "cores", "NUMA", "MHz", "memory free", "weights read", "GFLOP/s", "checkpoint read", ""}};
  for (const RankProbe& p : a.probes) {
    bool slow =
        std::find(a.verdict.slow_ranks.begin(), a.verdict.slow_ranks.end(), p.rank) != a.verdict.slow_ranks.end();
    rows.push_back({std::to_string(p.rank), p.host, FormatRanges(p.cores), FormatRanges(p.numa_nodes),
                    fmt::format("{:.0f}", p.clock_mhz), FormatSize(p.memory_free), PerSecond(p.memory_bandwidth),
                    fmt::format("{:.1f}", p.flops / 1e9), PerSecond(p.file_bandwidth), slow ? "SLOW" : ""});
  }
  return "\n" + FormatTable(rows);
}

// The least, the usual and the most of the links of a kind.
std::string Links(const PreflightAnswer& a) {
  std::vector<std::vector<std::string>> rows = {
      {"links", "measured", "slowest", "from-to", "usual", "fastest", "exchange of 8 B"}};
  for (bool same_host : {true, false}) {
    std::vector<LinkProbe> links;
    for (const RankProbe& probe : a.probes)
      for (const LinkProbe& link : probe.links)
        if (link.same_host == same_host) links.push_back(link);
    if (links.empty()) continue;
    std::sort(links.begin(), links.end(),
              [](const LinkProbe& x, const LinkProbe& y) { return x.bandwidth < y.bandwidth; });
    std::vector<double> latencies;
    for (const LinkProbe& link : links) latencies.push_back(link.latency);
    rows.push_back({same_host ? "within a host" : "between hosts", std::to_string(links.size()),
                    PerSecond(links.front().bandwidth), fmt::format("{}-{}", links.front().from, links.front().to),
                    PerSecond(links[links.size() / 2].bandwidth), PerSecond(links.back().bandwidth),
                    Duration(ReachedBy(latencies, 0.5))});
  }
  return rows.size() > 1 ? "\n" + FormatTable(rows) : "";
}

std::string Collectives(const PreflightAnswer& a) {
  std::vector<std::vector<std::string>> rows = {{"collective", "for", "a rank", "time", "bytes/time"}};
  for (const CollectiveProbe& c : a.probes.front().collectives)
    rows.push_back({c.operation, c.purpose, FormatSize(c.bytes), Duration(c.seconds), PerSecond(c.bytes / c.seconds)});
  return rows.size() > 1 ? "\n" + FormatTable(rows) : "";
}

}  // namespace

std::string FormatRanges(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(numbers[i]);
    if (last > i) text += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return text.empty() ? "-" : text;
}

std::string PreflightText(const PreflightAnswer& a) {
  std::string text = Head(a) + Hosts(a) + Ranks(a) + Links(a) + Collectives(a) + "\n";
  for (const std::string& note : a.verdict.notes) text += "note: " + note + "\n";
  for (const std::string& problem : a.verdict.problems) text += "problem: " + problem + "\n";
  return text + fmt::format("{} in {:.1f} s\n", a.verdict.problems.empty() ? "ready" : "NOT ready", a.seconds);
}

}  // namespace latentmesh
