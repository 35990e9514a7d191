#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/preflight_judge.h"
#include "launch/preflight_report.h"

namespace latentmesh {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Ranks with equal rates and a link from each to each; two ranks a host.
std::vector<RankProbe> EqualRanks(int count) {
  std::vector<RankProbe> probes;
  for (int r = 0; r < count; ++r) {
    RankProbe p;
    p.rank = r;
    p.host = "node" + std::to_string(r / 2);
    p.local_rank = r % 2;
    p.version = "1";
    p.mpi = "MPI";
    p.cores = {4 * (r % 2), 4 * (r % 2) + 1};
    p.memory_bandwidth = 20e9;
    p.flops = 100e9;
    p.ports = {{"eth0", "Ethernet", 10, true}};
    for (int to = r + 1; to < count; ++to) {
      bool near = to / 2 == r / 2;
      p.links.push_back({r, to, near, 1e-6, near ? 8e9 : 1e9});
    }
    probes.push_back(p);
  }
  return probes;
}

TEST(Judge, AcceptsEqualRanks) {
  Verdict verdict = Judge(EqualRanks(8), {});
  EXPECT_THAT(verdict.problems, IsEmpty());
  EXPECT_THAT(verdict.slow_ranks, IsEmpty());
  EXPECT_EQ(verdict.transport, "TCP over eth0 (10 Gbit/s)");
  EXPECT_FALSE(verdict.rdma);
}

TEST(Judge, NamesARankThatComputesSlowly) {
  auto probes = EqualRanks(4);
  probes[2].flops = 40e9;
  Verdict verdict = Judge(probes, {});
  EXPECT_THAT(verdict.slow_ranks, ElementsAre(2));
  EXPECT_THAT(verdict.problems,
              ElementsAre(HasSubstr("rank 2 on node1 is slow: it multiplies at 40 GFLOP/s, usual are 100")));
  EXPECT_THAT(Judge(probes, {.slow_factor = 3}).problems, IsEmpty());
  auto two = EqualRanks(2);
  two[1].memory_bandwidth = 1e9;
  EXPECT_THAT(Judge(two, {}).slow_ranks, ElementsAre(1));
}

TEST(Judge, NamesARankAllOfWhoseLinksAreSlow) {
  for (int slow = 0; slow < 6; ++slow) {
    auto probes = EqualRanks(6);
    for (RankProbe& p : probes)
      for (LinkProbe& link : p.links)
        if (link.from == slow || link.to == slow) link.bandwidth /= 10;
    Verdict verdict = Judge(probes, {});
    EXPECT_THAT(verdict.slow_ranks, ElementsAre(slow));
    EXPECT_THAT(verdict.slow_links, IsEmpty());
  }
}

TEST(Judge, NamesASingleSlowLink) {
  auto probes = EqualRanks(8);
  probes[1].links[3].bandwidth /= 5;  // to rank 5
  Verdict verdict = Judge(probes, {});
  EXPECT_THAT(verdict.slow_ranks, IsEmpty());
  ASSERT_EQ(verdict.slow_links.size(), 1u);
  EXPECT_EQ(verdict.slow_links[0].to, 5);
  EXPECT_THAT(verdict.problems,
              ElementsAre(HasSubstr("the link from rank 1 on node0 to rank 5 on node2 is slow: 200.00 MB/s")));
}

TEST(Judge, RequiresRdmaOnEveryHost) {
  auto probes = EqualRanks(4);
  for (RankProbe& p : probes) p.ports.push_back({"mlx5_0/1", "InfiniBand", 200, true});
  PreflightBounds bounds{.require_rdma = true};
  EXPECT_THAT(Judge(probes, bounds).problems, IsEmpty());
  EXPECT_EQ(Judge(probes, bounds).transport, "RDMA over InfiniBand mlx5_0/1 (200 Gbit/s)");
  probes[2].ports.back().active = false;
  EXPECT_THAT(Judge(probes, bounds).problems, ElementsAre(HasSubstr("--require-rdma: rank 2 on node1")));
  probes[2].ports.back().active = true;
  probes[3].settings = {"NCCL_IB_DISABLE=1"};
  EXPECT_THAT(Judge(probes, bounds).problems, ElementsAre(HasSubstr("a setting turns it off")));
}

TEST(Judge, NamesDifferentVersionsAndSharedCores) {
  auto probes = EqualRanks(4);
  probes[3].version = "2";
  for (RankProbe& p : probes) p.cores = {0};
  Verdict verdict = Judge(probes, {});
  EXPECT_THAT(verdict.problems, ElementsAre(HasSubstr("rank 3 on node1 runs latentmesh 2")));
  EXPECT_THAT(verdict.notes, testing::Contains(HasSubstr("node0: 2 ranks share 1 cores")));
}

TEST(Judge, SlowLinksBetweenRanksThatTakeTurnsAreNoted) {
  auto probes = EqualRanks(4);
  for (RankProbe& p : probes) p.cores = {0};
  probes[0].links[0].bandwidth /= 50;              // to rank 1, of the same host
  Verdict verdict = Judge(probes, {});
  EXPECT_THAT(verdict.problems, IsEmpty());
  EXPECT_THAT(verdict.notes, testing::Contains(HasSubstr("to rank 1 on node0 is slow: 160.00 MB/s")));
}

TEST(Summarize, TakesTheSlowestRankAndTheUsualLink) {
  auto probes = EqualRanks(4);
  probes[1].flops = 90e9;
  probes[0].collectives = {{"all-reduce", "8 B", 8, 5e-5}};
  MeasuredRates rates = Summarize(probes);
  EXPECT_EQ(rates.flops, 90e9);
  EXPECT_EQ(rates.link_bandwidth, 8e9);
  EXPECT_EQ(rates.node_bandwidth, 1e9);
  EXPECT_EQ(rates.node_latency, 5e-5);
  EXPECT_EQ(Summarize(EqualRanks(1)).link_bandwidth, 0);
}

TEST(Probe, TravelsAsText) {
  RankProbe probe = EqualRanks(3)[0];
  probe.settings = {"A=\"b\"\n"};
  probe.collectives = {{"all-to-all", "1 MB", 1e6, 0.25}};
  RankProbe back = DecodeProbe(EncodeProbe(probe));
  EXPECT_EQ(EncodeProbe(back), EncodeProbe(probe));
  EXPECT_EQ(back.links[1].bandwidth, probe.links[1].bandwidth);
  EXPECT_THROW(DecodeProbe("{\"rank\": 1}"), Error);
}

TEST(HostFacts, AreReadHere) {
  RankProbe probe;
  ReadHostFacts(probe);
  EXPECT_FALSE(probe.cores.empty());
  EXPECT_THAT(probe.kernel, HasSubstr("Linux"));
  EXPECT_EQ(FormatRanges({0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
}

}  // namespace
}  // namespace latentmesh
