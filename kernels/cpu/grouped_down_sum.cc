// The experts' last product with the sum over experts in it. A work item is a block of columns: all experts add their
// weighted results for it to one accumulator [rows, columns] that stays in the thread's second-level cache, and each sum
// goes to memory once, in the type of the result.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/wire_rows.h"

namespace latentmesh::cpu {
namespace {

constexpr int64_t kSumBytes = 512 << 10;     // of the accumulator
constexpr int64_t kLeastCols = 64, kMostCols = 512;
constexpr int64_t kPartial = kProductTokens * 64;  // floats: one product before it is added

// All of x passes once for each block, so that blocks are wide: with many rows no less than 128 columns, even if the sums
// then lie in the last-level cache.
int64_t BlockCols(int64_t rows, int64_t cols, int threads) {
  int64_t fits = std::max<int64_t>(128, kSumBytes / 4 / std::max<int64_t>(1, rows));
  if (threads > 1) fits = std::min(fits, cols / (4 * threads));
  return std::clamp(fits / kLeastCols * kLeastCols, kLeastCols, kMostCols);
}

struct Columns {
  int64_t begin, end;
  float* sums;               // [rows, end - begin]
  int64_t cols() const { return end - begin; }
};

// Adds one expert's results for its slots [slot, slot + slots).
void AddProduct(const GroupedDownSumParams& p, const Product& product, int64_t slot, const Columns& c, float* scratch) {
  float* partial = scratch + kProductScratch;
  const int64_t grain = ProductRowGrain(product.tokens, product.w);
  for (int64_t col = c.begin; col < c.end; col += grain) {
    const int64_t end = std::min(col + grain, c.end), n = end - col;
    Product part = product;
    part.out = partial - col, part.out_stride = n;
    MultiplyRows(part, col, end, scratch);
    for (int64_t i = 0; i < product.tokens; ++i) {
      float* to = c.sums + p.source[slot + i] * c.cols() + col - c.begin;
      Kernels().axpy(p.weights[slot + i], partial + i * n, to, n);
    }
  }
}

void WriteColumns(const TensorView& out, const Columns& c) {
  const float one = 1;
  const bool stream = OutgrowsCaches(out);
  for (int64_t r = 0; r < out.rows(); ++r) {
    const void* sums = c.sums + r * c.cols();
    char* to = out.as<char>() + static_cast<size_t>(r * out.row_stride + c.begin) * DTypeSize(out.dtype);
    SumWireRows({&sums, &one, 1, DType::kF32, out.dtype, to, c.cols(), false, stream});
  }
  if (stream) EndStreamedSums();
}

}  // namespace

void GroupedDownSum(CpuContext& context, const GroupedDownSumParams& p) {
  const int64_t rows = p.out.rows(), cols = p.out.cols();
  if (rows == 0 || cols == 0) return;
  const ProductInput x = ReadProductInput(context, p.x, p.w.first);
  const int64_t block = BlockCols(rows, cols, context.pool().threads());
  const auto scratch = context.ThreadScratch(kProductScratch + kPartial + rows * block);
  context.pool().ParallelFor((cols + block - 1) / block, 1, [&](int64_t i, int64_t, int thread) {
    float* mine = scratch.Of(thread);
    const Columns c{i * block, std::min((i + 1) * block, cols), mine + kProductScratch + kPartial};
    std::memset(c.sums, 0, static_cast<size_t>(rows * c.cols()) * sizeof(float));
    for (int32_t e = 0; e < p.w.count; ++e) {
      for (int64_t slot = p.offsets[e]; slot < p.offsets[e + 1]; slot += kProductTokens) {
        const int64_t slots = std::min<int64_t>(kProductTokens, p.offsets[e + 1] - slot);
        AddProduct(p, {x.From(slot), slots, p.w.At(e), nullptr, nullptr, 0, false}, slot, c, mine);
      }
    }
    WriteColumns(p.out, c);
  });
}

}  // namespace latentmesh::cpu
