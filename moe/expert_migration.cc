#include "moe/expert_migration.h"

#include <algorithm>
#include <tuple>

namespace latentmesh {
namespace {

ExpertSite ChooseSource(std::span<const ExpertSite> sites, int rank, std::vector<int64_t>& sends) {
  for (const ExpertSite& site : sites)
    if (site.rank == rank) return site;
  const ExpertSite* best = &sites.front();
  for (const ExpertSite& site : sites)
    if (sends[site.rank] < sends[best->rank]) best = &site;
  ++sends[best->rank];
  return *best;
}

int Overlap(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<int>(
      std::count_if(a.begin(), a.end(), [&](int32_t e) { return std::find(b.begin(), b.end(), e) != b.end(); }));
}

// Names for the ranks [begin, end) of `to`: name[i] is the rank that takes over what `to` gives to begin + i. The pair
// with most experts in common first.
std::vector<int> MatchRanks(const ExpertPlacement& from, const ExpertPlacement& to, int begin, int end) {
  std::vector<std::tuple<int, int, int>> pairs;        // (-overlap, new rank, old rank): ties by rising ranks
  for (int n = begin; n < end; ++n)
    for (int o = begin; o < end; ++o) pairs.push_back({-Overlap(to.LocalExperts(n), from.LocalExperts(o)), n, o});
  std::sort(pairs.begin(), pairs.end());
  std::vector<int> name(end - begin, -1);
  std::vector<bool> taken(end - begin, false);
  for (auto [overlap, n, o] : pairs) {
    if (name[n - begin] >= 0 || taken[o - begin]) continue;
    name[n - begin] = o;
    taken[o - begin] = true;
  }
  return name;
}

// The transfers between this rank and every other, in the order of the plan; the k-th of a pair goes in wave k, so that
// each wave is one all-to-all straight from and to the arrays.
struct Waves {
  Waves(std::span<const ExpertMove> moves, int rank, int ranks) : send(ranks), recv(ranks) {
    std::vector<size_t> of_pair(size_t{1} * ranks * ranks, 0);
    for (const ExpertMove& move : moves) {
      if (move.from.rank == move.to.rank) continue;
      count = std::max(count, ++of_pair[size_t{1} * move.from.rank * ranks + move.to.rank]);
      if (move.from.rank == rank) send[move.to.rank].push_back(move.from.local);
      if (move.to.rank == rank) recv[move.from.rank].push_back(move.to.local);
    }
  }
  size_t count = 0;                                    // the same on all ranks
  std::vector<std::vector<int32_t>> send, recv;        // [peer] local expert of each wave
};

void FillWave(const std::vector<std::vector<int32_t>>& locals, size_t wave, size_t bytes, std::vector<size_t>& counts,
              std::vector<size_t>& offsets) {
  for (size_t peer = 0; peer < locals.size(); ++peer) {
    bool has = wave < locals[peer].size();
    counts[peer] = has ? bytes : 0;
    offsets[peer] = has ? static_cast<size_t>(locals[peer][wave]) * bytes : 0;
  }
}

void ExchangeArray(const Waves& waves, const ExpertArray& array, Communicator& ep, Stream& stream) {
  std::vector<size_t> send_bytes(ep.size()), send_offsets(ep.size()), recv_bytes(ep.size()), recv_offsets(ep.size());
  for (size_t wave = 0; wave < waves.count; ++wave) {
    FillWave(waves.send, wave, array.bytes, send_bytes, send_offsets);
    FillWave(waves.recv, wave, array.bytes, recv_bytes, recv_offsets);
    ep.AllToAllV({array.from, send_bytes, send_offsets, array.to, recv_bytes, recv_offsets}, stream);
  }
}

void CopyKept(std::span<const ExpertMove> moves, const ExpertArray& array, int rank, Device& device, Stream& stream) {
  for (const ExpertMove& move : moves) {
    if (move.from.rank != rank || move.to.rank != rank) continue;
    device.CopyOnDevice(static_cast<char*>(array.to) + move.to.local * array.bytes,
                        static_cast<const char*>(array.from) + move.from.local * array.bytes, array.bytes, stream);
  }
}

}  // namespace

std::vector<ExpertMove> PlanMigration(const ExpertPlacement& from, const ExpertPlacement& to) {
  LM_CHECK(from.experts() == to.experts() && from.ranks() == to.ranks());
  std::vector<ExpertMove> moves;
  std::vector<int64_t> sends(from.ranks(), 0);
  for (int32_t rank = 0; rank < to.ranks(); ++rank) {
    auto experts = to.LocalExperts(rank);
    for (int32_t i = 0; i < static_cast<int32_t>(experts.size()); ++i)
      moves.push_back({experts[i], ChooseSource(from.Sites(experts[i]), rank, sends), {rank, i}});
  }
  return moves;
}

int64_t CountTransfers(std::span<const ExpertMove> moves) {
  return std::count_if(moves.begin(), moves.end(), [](const ExpertMove& m) { return m.from.rank != m.to.rank; });
}

ExpertPlacement AlignPlacement(const ExpertPlacement& from, const ExpertPlacement& to, const BalanceShape& shape) {
  LM_CHECK(from.experts() == to.experts() && from.ranks() == to.ranks() && to.ranks() == shape.ranks);
  int node = UsesHierarchy(shape) ? shape.ranks / shape.nodes : shape.ranks;
  std::vector<std::vector<int32_t>> table(to.ranks());
  for (int begin = 0; begin < to.ranks(); begin += node) {
    std::vector<int> name = MatchRanks(from, to, begin, begin + node);
    for (int i = 0; i < node; ++i) {
      auto experts = to.LocalExperts(begin + i);
      table[name[i]].assign(experts.begin(), experts.end());
    }
  }
  return ExpertPlacement::FromTable(to.experts(), table).value();
}

ExpertPlacement KeepPlaces(const ExpertPlacement& from, const ExpertPlacement& to) {
  LM_CHECK(from.experts() == to.experts() && from.ranks() == to.ranks());
  std::vector<std::vector<int32_t>> table(to.ranks());
  for (int rank = 0; rank < to.ranks(); ++rank) {
    auto before = from.LocalExperts(rank), after = to.LocalExperts(rank);
    std::vector<int32_t>& slots = table[rank];
    slots.assign(after.size(), -1);
    std::vector<int32_t> others;
    for (int32_t expert : after) {
      size_t at = std::find(before.begin(), before.end(), expert) - before.begin();
      if (at < before.size() && at < slots.size()) slots[at] = expert;
      else others.push_back(expert);
    }
    auto next = others.begin();
    for (int32_t& slot : slots)
      if (slot < 0) slot = *next++;
  }
  return ExpertPlacement::FromTable(to.experts(), table).value();
}

void MigrateExperts(std::span<const ExpertMove> moves, std::span<const ExpertArray> arrays, Communicator& ep,
                    Device& device, Stream& stream) {
  Waves waves(moves, ep.rank(), ep.size());
  for (const ExpertArray& array : arrays) {
    CopyKept(moves, array, ep.rank(), device, stream);
    ExchangeArray(waves, array, ep, stream);
  }
}

}  // namespace latentmesh
