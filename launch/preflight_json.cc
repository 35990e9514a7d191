#include <boost/json.hpp>
#include <map>

#include "launch/preflight_report.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

json::array PortsJson(const std::vector<NetworkPort>& ports) {
  json::array list;
  for (const NetworkPort& p : ports)
    list.push_back({{"name", p.name}, {"kind", p.kind}, {"gigabits", p.gigabits}, {"active", p.active}});
  return list;
}

json::array LinksJson(const std::vector<LinkProbe>& links) {
  json::array list;
  for (const LinkProbe& l : links)
    list.push_back({{"from", l.from},
                    {"to", l.to},
                    {"same_host", l.same_host},
                    {"latency", l.latency},
                    {"bandwidth", l.bandwidth}});
  return list;
}

json::array CollectivesJson(const std::vector<CollectiveProbe>& collectives) {
  json::array list;
  for (const CollectiveProbe& c : collectives)
    list.push_back({{"operation", c.operation}, {"purpose", c.purpose}, {"bytes", c.bytes}, {"seconds", c.seconds}});
  return list;
}

json::object ProbeJson(const RankProbe& p) {
  return {{"rank", p.rank},
          {"host", p.host},
          {"local_rank", p.local_rank},
          {"version", p.version},
          {"mpi", p.mpi},
          {"compiler", p.compiler},
          {"kernel", p.kernel},
          {"device", p.device},
          {"cores", json::value_from(p.cores)},
          {"numa_nodes", json::value_from(p.numa_nodes)},
          {"clock_mhz", p.clock_mhz},
          {"memory_free", p.memory_free},
          {"huge_pages", p.huge_pages},
          {"ports", PortsJson(p.ports)},
          {"settings", json::value_from(p.settings)},
          {"memory_bandwidth", p.memory_bandwidth},
          {"flops", p.flops},
          {"file_bandwidth", p.file_bandwidth},
          {"links", LinksJson(p.links)},
          {"collectives", CollectivesJson(p.collectives)}};
}

double Number(const json::value& v, const char* key) { return v.at(key).to_number<double>(); }
int Integer(const json::value& v, const char* key) { return v.at(key).to_number<int>(); }
std::string Text(const json::value& v, const char* key) { return std::string(v.at(key).as_string()); }

RankProbe ProbeOf(const json::value& v) {
  RankProbe p;
  p.rank = Integer(v, "rank");
  p.local_rank = Integer(v, "local_rank");
  const std::pair<const char*, std::string*> texts[] = {{"host", &p.host},
                                                        {"version", &p.version},
                                                        {"mpi", &p.mpi},
                                                        {"compiler", &p.compiler},
                                                        {"kernel", &p.kernel},
                                                        {"device", &p.device},
                                                        {"huge_pages", &p.huge_pages}};
  for (auto [key, target] : texts) *target = Text(v, key);
  const std::pair<const char*, double*> numbers[] = {{"clock_mhz", &p.clock_mhz},
                                                     {"memory_free", &p.memory_free},
                                                     {"memory_bandwidth", &p.memory_bandwidth},
                                                     {"flops", &p.flops},
                                                     {"file_bandwidth", &p.file_bandwidth}};
  for (auto [key, target] : numbers) *target = Number(v, key);
  p.cores = json::value_to<std::vector<int>>(v.at("cores"));
  p.numa_nodes = json::value_to<std::vector<int>>(v.at("numa_nodes"));
  p.settings = json::value_to<std::vector<std::string>>(v.at("settings"));
  for (const json::value& port : v.at("ports").as_array())
    p.ports.push_back({Text(port, "name"), Text(port, "kind"), Number(port, "gigabits"), port.at("active").as_bool()});
  for (const json::value& l : v.at("links").as_array())
    p.links.push_back({Integer(l, "from"), Integer(l, "to"), l.at("same_host").as_bool(), Number(l, "latency"),
                       Number(l, "bandwidth")});
  for (const json::value& c : v.at("collectives").as_array())
    p.collectives.push_back({Text(c, "operation"), Text(c, "purpose"), Number(c, "bytes"), Number(c, "seconds")});
  return p;
}

json::object MeasuredJson(const std::vector<RankProbe>& probes) {
  MeasuredRates rates = Summarize(probes);
  json::object measured{{"memory_bandwidth", rates.memory_bandwidth}, {"flops", rates.flops}};
  const std::pair<const char*, double> links[] = {{"link_bandwidth", rates.link_bandwidth},
                                                  {"link_latency", rates.link_latency},
                                                  {"node_bandwidth", rates.node_bandwidth},
                                                  {"node_latency", rates.node_latency}};
  for (auto [key, value] : links)
    if (value > 0) measured[key] = value;  // absent: there is no such link
  return measured;
}

}  // namespace

std::string EncodeProbe(const RankProbe& probe) { return json::serialize(ProbeJson(probe)); }

RankProbe DecodeProbe(const std::string& text) {
  try {
    return ProbeOf(json::parse(text));
  } catch (const std::exception& error) {
    throw Error(StatusCode::kCommunication, std::string("a rank's preflight answer is damaged: ") + error.what());
  }
}

std::string PreflightJson(const PreflightAnswer& a) {
  std::map<std::string, int> hosts;
  json::array ranks;
  int most = 0;
  for (const RankProbe& probe : a.probes) {
    ranks.push_back(ProbeJson(probe));
    most = std::max(most, ++hosts[probe.host]);
  }
  json::object answer{{"ok", a.verdict.problems.empty()},
                      {"seconds", a.seconds},
                      {"ranks", a.probes.size()},
                      {"hosts", hosts.size()},
                      {"ranks_per_host", most},
                      {"transport", a.verdict.transport},
                      {"rdma", a.verdict.rdma},
                      {"measured", MeasuredJson(a.probes)},
                      {"slow_ranks", json::value_from(a.verdict.slow_ranks)},
                      {"slow_links", LinksJson(a.verdict.slow_links)},
                      {"problems", json::value_from(a.verdict.problems)},
                      {"notes", json::value_from(a.verdict.notes)},
                      {"rank_probes", std::move(ranks)}};
  return json::serialize(answer) + "\n";
}

}  // namespace latentmesh
