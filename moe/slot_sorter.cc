#include "moe/slot_sorter.h"

#include <algorithm>

namespace latentmesh {
namespace {

int64_t MaxPaddedSlots(const DispatchLimits& l) {
  return l.max_rows * std::max(1, l.fixed_capacity ? l.top_k : std::min(l.top_k, l.max_local_experts));
}

}  // namespace

SlotSorter::SlotSorter(Ops& ops, const DispatchLimits& l)
    : ops_(ops),
      sorted_(&ops.device(), l.activation, {l.max_slots, l.hidden}),
      expert_(&ops.device(), DType::kI32, {MaxPaddedSlots(l)}),
      weight_(&ops.device(), DType::kF32, {MaxPaddedSlots(l)}),
      row_(&ops.device(), DType::kI32, {MaxPaddedSlots(l)}),
      source_(&ops.device(), DType::kI32, {MaxPaddedSlots(l)}),
      offsets_(&ops.device(), DType::kI32, {int64_t{l.max_local_experts} + 1}) {}

size_t SlotSorter::Bytes(const DispatchLimits& l) {
  return static_cast<size_t>(l.max_slots * l.hidden) * DTypeSize(l.activation) +
         4 * static_cast<size_t>(4 * MaxPaddedSlots(l) + l.max_local_experts + 1);
}

void SlotSorter::Begin(int32_t slots_per_row) {
  slots_per_row_ = slots_per_row;
  slots_ = 0;
  host_expert_.clear();
  host_weight_.clear();
}

void SlotSorter::AddRow(std::span<const int32_t> experts, std::span<const float> weights) {
  LM_CHECK(static_cast<int32_t>(experts.size()) <= slots_per_row_);
  size_t end = host_expert_.size() + slots_per_row_;
  host_expert_.insert(host_expert_.end(), experts.begin(), experts.end());
  host_weight_.insert(host_weight_.end(), weights.begin(), weights.end());
  host_expert_.resize(end, -1);
  host_weight_.resize(end, 0.0f);
  slots_ += static_cast<int64_t>(experts.size());
}

DispatchHandle SlotSorter::Handle(const TensorView& rows, int64_t slots, int32_t local_experts) const {
  DispatchHandle handle;
  handle.x = rows;
  handle.sorted = sorted_.view.Rows(0, slots);
  handle.offsets = offsets_.view.i32();
  handle.experts = local_experts;
  handle.rows = slots;
  handle.slots_per_row = slots_per_row_;
  handle.sorted_row = row_.view.i32();
  handle.weights = weight_.view.f32();
  return handle;
}

DispatchHandle SlotSorter::Sort(const TensorView& rows, int32_t local_experts, Stream& stream) {
  int64_t padded = static_cast<int64_t>(host_expert_.size());
  LM_CHECK(padded == rows.dim(0) * slots_per_row_ && padded <= expert_.view.size() && slots_ <= sorted_.view.dim(0));
  DispatchHandle handle = Handle(rows, slots_, local_experts);
  if (slots_ == 0) return handle;
  Device& device = ops_.device();
  device.CopyToDevice(expert_.view.data, host_expert_.data(), padded * sizeof(int32_t), stream);
  device.CopyToDevice(weight_.view.data, host_weight_.data(), padded * sizeof(float), stream);
  ops_.SortByExpert({expert_.view.i32(), padded, local_experts, offsets_.view.i32(), source_.view.i32(),
                     row_.view.i32()}, stream);
  ops_.GatherRows({rows, source_.view.i32(), slots_, slots_per_row_, handle.sorted}, stream);
  return handle;
}

int64_t SlotSorter::RoutedCapacity(int32_t k, int32_t local_experts) const {
  int64_t rows = sorted_.view.dim(0) / std::max(1, std::min(k, local_experts));
  return std::min(rows, source_.view.size() / std::max(1, k));
}

DispatchHandle SlotSorter::SortRouted(const DispatchParams& params, int32_t first, int32_t local_experts, Stream& stream) {
  int64_t tokens = params.x.dim(0);
  LM_CHECK(tokens <= RoutedCapacity(params.k, local_experts));
  slots_per_row_ = params.k;
  DispatchHandle handle = Handle(params.x, tokens * std::min(params.k, local_experts), local_experts);
  handle.weights = params.weights;
  if (handle.rows == 0) return handle;
  SortByExpertParams sort{params.ids, tokens * params.k, local_experts, offsets_.view.i32(), source_.view.i32(),
                          row_.view.i32()};
  sort.first = first;
  sort.live_tokens = params.live_tokens;
  sort.slots_per_token = params.k;
  sort.tokens_per_source = params.tokens_per_source;
  if (params.device_loads != nullptr) sort.loads = params.device_loads + first;
  ops_.SortByExpert(sort, stream);
  if (tokens == 1) {   // every row is the token itself
    handle.sorted.data = params.x.data;
    handle.sorted.row_stride = 0;
    return handle;
  }
  ops_.GatherRows({params.x, source_.view.i32(), handle.rows, params.k, handle.sorted}, stream);
  return handle;
}

}  // namespace latentmesh
