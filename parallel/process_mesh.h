// ProcessMesh: which rank does what. Pure arithmetic, no communication.
//
//   world = pp x dp x tp,   rank = (pp_index * dp + dp_index) * tp + tp_index
//   ep    = dp x tp ranks of one pp stage share the routed experts
//   cp    divides tp: runs of `cp` neighbours in a tp group deal each sequence's cache blocks among themselves
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct ParallelConfig {
  int tp = 1;
  int dp = 1;
  int pp = 1;
  int cp = 1;
  bool operator==(const ParallelConfig&) const = default;
};
std::string ToString(const ParallelConfig& config);    // "tp2 dp2 pp1 cp1"

class ProcessMesh {
 public:
  // kInvalidArgument if a size is below 1, pp x dp x tp differs from world_size, or cp does not divide tp.
  static Result<ProcessMesh> Create(const ParallelConfig& config, int world_size, int rank);

  const ParallelConfig& config() const { return config_; }
  int rank() const { return rank_; }
  int world_size() const { return config_.pp * config_.dp * config_.tp; }
  int tp_rank() const { return rank_ % config_.tp; }
  int dp_rank() const { return rank_ / config_.tp % config_.dp; }
  int pp_rank() const { return rank_ / (config_.tp * config_.dp); }
  int cp_rank() const { return tp_rank() % config_.cp; }
  int ep_rank() const { return rank_ % ep_size(); }
  int ep_size() const { return config_.dp * config_.tp; }
  bool first_stage() const { return pp_rank() == 0; }
  bool last_stage() const { return pp_rank() == config_.pp - 1; }
  int RankOf(int pp, int dp, int tp) const { return (pp * config_.dp + dp) * config_.tp + tp; }

  // World ranks of the groups this rank belongs to, rising.
  std::vector<int> TpGroup() const;
  std::vector<int> CpGroup() const;
  std::vector<int> DpGroup() const;
  std::vector<int> EpGroup() const;
  std::vector<int> PpGroup() const;

 private:
  ProcessMesh(const ParallelConfig& config, int rank) : config_(config), rank_(rank) {}
  ParallelConfig config_;
  int rank_ = 0;
};

// [begin, begin + count)
struct Range {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t end() const { return begin + count; }
  bool operator==(const Range&) const = default;
};

// Part `index` of `total` split into `parts` runs of whole `unit`s that differ by at most one unit; earlier parts are
// longer, and the last non-empty part takes the ragged end. Parts may be empty.
Range SplitRange(int64_t total, int parts, int index, int64_t unit = 1);

}  // namespace latentmesh
