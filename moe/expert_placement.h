// ExpertPlacement: which rank of the ep group holds which routed experts. Pure arithmetic, immutable once made.
//
// A *logical* expert is one of the model's E routed experts; a *site* is one copy of it on one rank. By default every
// logical expert has one site and ranks hold contiguous runs (E need not divide the number of ranks; ranks may hold
// none). A table may give hot experts redundant sites (DeepSeek-V3 report, section 3.4), at most one on a rank.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// One copy of an expert: the `local`-th expert of `rank`.
struct ExpertSite {
  int32_t rank = 0;
  int32_t local = 0;
  bool operator==(const ExpertSite&) const = default;
};

class ExpertPlacement {
 public:
  // SplitRange(experts, ranks, r) on rank r.
  static ExpertPlacement Contiguous(int experts, int ranks);
  // table[r] lists the logical experts of rank r in local order. kInvalidArgument names the rank and expert when an
  // expert is out of range, stands twice on one rank, or has no site at all.
  static Result<ExpertPlacement> FromTable(int experts, const std::vector<std::vector<int32_t>>& table);

  int experts() const { return static_cast<int>(site_begin_.size()) - 1; }
  int ranks() const { return static_cast<int>(rank_begin_.size()) - 1; }
  int sites() const { return static_cast<int>(sites_.size()); }       // experts() plus the redundant ones
  bool has_replicas() const { return sites() > experts(); }

  // The logical experts a rank holds, in local order.
  std::span<const int32_t> LocalExperts(int rank) const {
    return {local_experts_.data() + rank_begin_[rank], static_cast<size_t>(LocalCount(rank))};
  }
  int LocalCount(int rank) const { return rank_begin_[rank + 1] - rank_begin_[rank]; }
  int MaxLocalCount() const;

  // All sites of an expert, by rising rank.
  std::span<const ExpertSite> Sites(int expert) const {
    return {sites_.data() + site_begin_[expert], static_cast<size_t>(Replicas(expert))};
  }
  int Replicas(int expert) const { return site_begin_[expert + 1] - site_begin_[expert]; }
  // The site that serves a token. `salt` spreads tokens evenly over replicas: site salt % Replicas(expert).
  ExpertSite SiteOf(int expert, uint64_t salt = 0) const {
    int replicas = Replicas(expert);
    return sites_[site_begin_[expert] + (replicas == 1 ? 0 : static_cast<int>(salt % replicas))];
  }
  int RankOf(int expert, uint64_t salt = 0) const { return SiteOf(expert, salt).rank; }

  bool operator==(const ExpertPlacement&) const = default;
  std::string DebugString() const;      // "64 experts over 8 ranks, 8 each, no replicas"

 private:
  ExpertPlacement(int experts, const std::vector<std::vector<int32_t>>& table);
  std::vector<int32_t> rank_begin_;      // [ranks + 1] into local_experts_
  std::vector<int32_t> local_experts_;   // [sites]
  std::vector<int32_t> site_begin_;      // [experts + 1] into sites_
  std::vector<ExpertSite> sites_;        // [sites]
};

}  // namespace latentmesh
