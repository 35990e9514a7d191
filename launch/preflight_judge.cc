#include "launch/preflight_judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "launch/flags.h"

namespace latentmesh {
namespace {

std::vector<LinkProbe> AllLinks(const std::vector<RankProbe>& probes) {
  std::vector<LinkProbe> links;
  for (const RankProbe& probe : probes) links.insert(links.end(), probe.links.begin(), probe.links.end());
  return links;
}

std::vector<double> Bandwidths(const std::vector<LinkProbe>& links, bool same_host) {
  std::vector<double> values;
  for (const LinkProbe& link : links)
    if (link.same_host == same_host) values.push_back(link.bandwidth);
  return values;
}

std::string Name(const std::vector<RankProbe>& probes, int rank) {
  return fmt::format("rank {} on {}", rank, probes[static_cast<size_t>(rank)].host);
}

class Judgement {
 public:
  Judgement(const std::vector<RankProbe>& probes, const PreflightBounds& bounds) : probes_(probes), bounds_(bounds) {}

  Verdict Run() {
    Versions();
    FindSharedCores();
    Rates("reads weights at", &RankProbe::memory_bandwidth, [](double rate) { return FormatSize(rate) + "/s"; });
    Rates("multiplies at", &RankProbe::flops, [](double rate) { return fmt::format("{:.3g} GFLOP/s", rate / 1e9); });
    Rates("reads the checkpoint at", &RankProbe::file_bandwidth, [](double rate) { return FormatSize(rate) + "/s"; });
    Links();
    Cores();
    Transport();
    v_.slow_ranks.assign(slow_.begin(), slow_.end());
    return std::move(v_);
  }

 private:
  void Versions() {
    using Field = std::string RankProbe::*;
    for (auto [what, field] :
         {std::pair<const char*, Field>{"latentmesh", &RankProbe::version}, {"MPI", &RankProbe::mpi}})
      for (const RankProbe& probe : probes_)
        if (probe.*field != probes_.front().*field) {
          v_.problems.push_back(fmt::format("{} runs {} {}, {} runs {}", Name(probes_, probe.rank), what, probe.*field,
                                            Name(probes_, 0), probes_.front().*field));
          break;
        }
  }

  template <typename Format>
  void Rates(const char* what, double RankProbe::*field, const Format& format) {
    std::vector<double> rates;
    for (const RankProbe& probe : probes_)
      if (probe.*field > 0) rates.push_back(probe.*field);
    double usual = ReachedBy(rates, 0.5);
    for (const RankProbe& probe : probes_) {
      if (!(probe.*field > 0) || probe.*field * bounds_.slow_factor >= usual) continue;
      slow_.insert(probe.rank);
      v_.problems.push_back(fmt::format("{} is slow: it {} {}, usual are {}", Name(probes_, probe.rank), what,
                                        format(probe.*field), format(usual)));
    }
  }

  void Links() {
    std::vector<LinkProbe> links = AllLinks(probes_), slow;
    double usual[2] = {ReachedBy(Bandwidths(links, false), 0.25), ReachedBy(Bandwidths(links, true), 0.25)};
    std::map<int, int> all, bad;
    for (const LinkProbe& link : links) {
      bool is_slow = link.bandwidth * bounds_.slow_factor < usual[link.same_host];
      // Ranks that take turns on a core wait for each other now and then: that is no fault of the link.
      if (is_slow && link.same_host && Shared(link)) {
        v_.notes.push_back(LinkText(link, usual[1]) + "; its ranks share cores");
        continue;
      }
      if (is_slow) slow.push_back(link);
      for (int rank : {link.from, link.to}) all[rank] += 1, bad[rank] += is_slow;
    }
    std::set<int> by_links;
    for (auto [rank, count] : bad)
      if (count >= 2 && count * 2 >= all[rank] && IsWorst(rank, bad, all, links)) by_links.insert(rank);
    for (int rank : by_links)
      v_.problems.push_back(
          fmt::format("{} is slow: {} of its {} measured links are", Name(probes_, rank), bad[rank], all[rank]));
    slow_.insert(by_links.begin(), by_links.end());
    for (const LinkProbe& link : slow) {
      if (slow_.count(link.from) > 0 || slow_.count(link.to) > 0) continue;
      v_.slow_links.push_back(link);
      v_.problems.push_back(LinkText(link, usual[link.same_host]));
    }
  }

  std::string LinkText(const LinkProbe& link, double usual) const {
    return fmt::format("the link from {} to {} is slow: {}/s, usual are {}/s", Name(probes_, link.from),
                       Name(probes_, link.to), FormatSize(link.bandwidth), FormatSize(usual));
  }

  bool Shared(const LinkProbe& link) const {
    return shared_hosts_.count(probes_[static_cast<size_t>(link.from)].host) > 0;
  }

  // Of two ranks that share slow links the one with the larger share of slow ones is to blame.
  bool IsWorst(int rank, std::map<int, int>& bad, std::map<int, int>& all, const std::vector<LinkProbe>& links) {
    double mine = static_cast<double>(bad[rank]) / all[rank];
    for (const LinkProbe& link : links) {
      int other = link.from == rank ? link.to : link.to == rank ? link.from : rank;
      if (other != rank && bad[other] >= 2 && static_cast<double>(bad[other]) / all[other] > mine) return false;
    }
    return true;
  }

  // Ranks of one host that may run on the same cores slow each other down.
  void FindSharedCores() {
    for (const RankProbe& probe : probes_) {
      hosts_[probe.host].first += 1;
      hosts_[probe.host].second.insert(probe.cores.begin(), probe.cores.end());
    }
    for (const auto& [host, use] : hosts_)
      if (use.first > static_cast<int>(use.second.size()) && !use.second.empty()) shared_hosts_.insert(host);
  }

  void Cores() {
    for (const std::string& host : shared_hosts_)
      v_.notes.push_back(
          fmt::format("{}: {} ranks share {} cores", host, hosts_[host].first, hosts_[host].second.size()));
    for (const RankProbe& probe : probes_)
      if (probe.numa_nodes.size() > 1 && hosts_[probe.host].first > 1) {
        v_.notes.push_back(
            fmt::format("{} may run on {} NUMA nodes: bind ranks (mpirun --map-by numa --bind-to core, srun "
                        "--cpu-bind=cores)",
                        Name(probes_, probe.rank), probe.numa_nodes.size()));
        break;
      }
  }

  static bool RdmaOff(const RankProbe& probe) {
    for (const std::string& setting : probe.settings) {
      if (setting == "NCCL_IB_DISABLE=1" || setting == "OMPI_MCA_pml=ob1" || setting == "UCX_TLS=tcp" ||
          setting == "FI_PROVIDER=tcp" || setting == "FI_PROVIDER=sockets")
        return true;
    }
    return false;
  }

  static const NetworkPort* BestPort(const RankProbe& probe, bool rdma) {
    const NetworkPort* best = nullptr;
    for (const NetworkPort& port : probe.ports)
      if (port.active && (port.kind != "Ethernet") == rdma && (best == nullptr || port.gigabits > best->gigabits))
        best = &port;
    return best;
  }

  void Transport() {
    const RankProbe* without = nullptr;
    for (const RankProbe& probe : probes_)
      if (BestPort(probe, true) == nullptr || RdmaOff(probe)) without = without == nullptr ? &probe : without;
    v_.rdma = without == nullptr;
    bool one_host =
        std::all_of(probes_.begin(), probes_.end(), [&](const RankProbe& p) { return p.host == probes_[0].host; });
    const NetworkPort* port = BestPort(probes_.front(), v_.rdma);
    std::string rate = port != nullptr && port->gigabits > 0 ? fmt::format(" ({:.4g} Gbit/s)", port->gigabits) : "";
    if (one_host)
      v_.transport = probes_.size() == 1 ? "none: one rank" : "within one host";
    else if (v_.rdma)
      v_.transport = fmt::format("RDMA over {} {}{}", port->kind, port->name, rate);
    else
      v_.transport = fmt::format("TCP over {}{}", port == nullptr ? "an unknown port" : port->name, rate);
    if (!v_.rdma && !one_host && !bounds_.require_rdma)
      v_.notes.push_back("no RDMA: messages between hosts go over TCP");
    if (bounds_.require_rdma && !v_.rdma)
      v_.problems.push_back(fmt::format("--require-rdma: {} has no active InfiniBand or RoCE port{}",
                                        Name(probes_, without->rank),
                                        RdmaOff(*without) ? " in use: a setting turns it off" : ""));
  }

  const std::vector<RankProbe>& probes_;
  std::map<std::string, std::pair<int, std::set<int>>> hosts_;   // ranks and the cores they may use
  std::set<std::string> shared_hosts_;                            // with more ranks than cores
  const PreflightBounds& bounds_;
  std::set<int> slow_;
  Verdict v_;
};

double SmallestCollective(const std::vector<RankProbe>& probes) {
  const CollectiveProbe* smallest = nullptr;
  for (const CollectiveProbe& c : probes.front().collectives)
    if (smallest == nullptr || c.bytes < smallest->bytes) smallest = &c;
  return smallest == nullptr ? 0 : smallest->seconds;
}

}  // namespace

double ReachedBy(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  size_t index = static_cast<size_t>(static_cast<double>(values.size()) * (1 - share));
  return values[std::min(index, values.size() - 1)];
}

Verdict Judge(const std::vector<RankProbe>& probes, const PreflightBounds& bounds) {
  return Judgement(probes, bounds).Run();
}

MeasuredRates Summarize(const std::vector<RankProbe>& probes) {
  MeasuredRates rates;
  rates.memory_bandwidth = probes.front().memory_bandwidth;
  rates.flops = probes.front().flops;
  for (const RankProbe& probe : probes) {
    rates.memory_bandwidth = std::min(rates.memory_bandwidth, probe.memory_bandwidth);
    rates.flops = std::min(rates.flops, probe.flops);
  }
  std::vector<LinkProbe> links = AllLinks(probes);
  rates.link_bandwidth = ReachedBy(Bandwidths(links, true), 0.5);
  rates.node_bandwidth = ReachedBy(Bandwidths(links, false), 0.5);
  double collective = SmallestCollective(probes);
  for (const LinkProbe& link : links)
    if (link.same_host) rates.link_latency = std::max(rates.link_latency, link.latency);
  if (rates.node_bandwidth > 0)
    rates.node_latency = collective;
  else if (rates.link_bandwidth > 0)
    rates.link_latency = collective;
  return rates;
}

}  // namespace latentmesh
