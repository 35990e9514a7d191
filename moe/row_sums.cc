#include "moe/row_sums.h"

#include <algorithm>

#include "kernels/cpu/wire_rows.h"

namespace latentmesh {

void RowSums::Clear() {
  sums_.clear();
  rows_.clear();
}

void RowSums::Begin(void* out) { sums_.push_back({rows_.size(), 0, out}); }

void RowSums::Add(const void* row) {
  rows_.push_back(row);
  ++sums_.back().count;
}

void RowSums::Run(Device& device, int64_t hidden, const Types& types) {
  int most = 0;
  for (const Sum& sum : sums_) most = std::max(most, sum.count);
  ones_.assign(static_cast<size_t>(most), 1.0f);
  ForWireRows(device, static_cast<int64_t>(sums_.size()), hidden, [&](int64_t i) {
    const Sum& sum = sums_[static_cast<size_t>(i)];
    SumWireRows({rows_.data() + sum.begin, ones_.data(), sum.count, types.rows, types.out, sum.out, hidden, types.accumulate});
  });
}

}  // namespace latentmesh
