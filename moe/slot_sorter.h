// SlotSorter: turns rows and their (local expert, weight) pairs into rows sorted by expert. Shared by the dispatchers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"
#include "moe/dispatcher.h"

namespace latentmesh {

class SlotSorter {
 public:
  // Buffers for resolved limits; `ops` outlives this.
  SlotSorter(Ops& ops, const DispatchLimits& limits);
  static size_t Bytes(const DispatchLimits& limits);

  // Start of a round whose rows have at most `slots_per_row` experts each.
  void Begin(int32_t slots_per_row);
  // The next row's experts on this rank and their weights; may be empty.
  void AddRow(std::span<const int32_t> experts, std::span<const float> weights);
  // rows [N, H], N = rows added. The handle's views are valid until the next Sort.
  DispatchHandle Sort(const TensorView& rows, int32_t local_experts, Stream& stream);
  // Without the host: params' tokens [T, H] and choices as they are, of which this rank serves experts [first, first +
  // local_experts). The handle's rows are a capacity.
  DispatchHandle SortRouted(const DispatchParams& params, int32_t first, int32_t local_experts, Stream& stream);
  // Tokens that SortRouted can take.
  int64_t RoutedCapacity(int32_t k, int32_t local_experts) const;

 private:
  DispatchHandle Handle(const TensorView& rows, int64_t slots, int32_t local_experts) const;

  Ops& ops_;
  int32_t slots_per_row_ = 1;
  int64_t slots_ = 0;                // real ones, without padding
  std::vector<int32_t> host_expert_; // [N, slots_per_row], -1 pads
  std::vector<float> host_weight_;
  Tensor sorted_;                    // [max_slots, H] activation
  Tensor expert_;                    // [max_rows, slots_per_row] local expert or -1
  Tensor weight_;                    // [max_rows, slots_per_row]
  Tensor row_;                       // [max_rows, slots_per_row] row of sorted_ or -1
  Tensor source_;                    // [max_rows x slots_per_row] row of sorted_ -> slot
  Tensor offsets_;                   // [max_local_experts + 1]
};

}  // namespace latentmesh
