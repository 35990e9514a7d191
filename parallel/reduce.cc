#include "parallel/reduce.h"

#include <cstdint>

#include "kernels/status.h"

namespace latentmesh {
namespace {

constexpr size_t kBlock = 1024;            // elements summed at a time: the running sums stay in the first cache

// Load and store know the element type; the sums of a block are kept in `Sum`.
template <typename Sum, typename T, typename Load, typename Store>
inline void SumBlock(std::span<const void* const> sources, T* target, size_t begin, size_t n, Load load, Store store) {
  Sum sums[kBlock];
  const T* first = static_cast<const T*>(sources[0]) + begin;
  for (size_t i = 0; i < n; ++i) sums[i] = load(first[i]);
  for (const void* other : sources.subspan(1)) {
    const T* source = static_cast<const T*>(other) + begin;
    for (size_t i = 0; i < n; ++i) sums[i] += load(source[i]);
  }
  for (size_t i = 0; i < n; ++i) target[begin + i] = store(sums[i]);
}

// Whole blocks have a constant length: at -O2 gcc vectorises only such loops.
template <typename Sum, typename T, typename Load, typename Store>
void SumBlocks(std::span<const void* const> sources, T* target, size_t count, Load load, Store store) {
  size_t begin = 0;
  for (; begin + kBlock <= count; begin += kBlock) SumBlock<Sum>(sources, target, begin, kBlock, load, store);
  if (begin < count) SumBlock<Sum>(sources, target, begin, count - begin, load, store);
}

}  // namespace

void SumInOrder(std::span<const void* const> sources, void* target, DType dtype, size_t count) {
  auto same = [](auto x) { return x; };
  switch (dtype) {
    case DType::kF32: return SumBlocks<float>(sources, static_cast<float*>(target), count, same, same);
    case DType::kI32: return SumBlocks<uint32_t>(sources, static_cast<uint32_t*>(target), count, same, same);
    case DType::kBF16:
      return SumBlocks<float>(sources, static_cast<uint16_t*>(target), count, BF16ToFloat, FloatToBF16);
    default: LM_CHECK_MSG(false, DTypeName(dtype));
  }
}

}  // namespace latentmesh
