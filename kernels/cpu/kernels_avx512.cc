// The kernels compiled for AVX-512; an empty table where the compiler's target has no such thing.
#include "kernels/cpu/kernel_table.h"

#ifdef __AVX512F__
// gcc 12 warns about its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "kernels/cpu/simd_avx512.h"
#define LM_ISA avx512
#define LM_ISA_NAME "avx512"
#include "kernels/cpu/kernel_table.inl"
#include "kernels/cpu/pair_kernels_avx512.h"

namespace latentmesh {
const KernelTable* Avx512Kernels() {
  static const KernelTable table = [] {
    KernelTable with_pairs = avx512::kTable;
    with_pairs.to_pairs = avx512::ToPairs;
    with_pairs.pair_dot = avx512::PairDot;
    return with_pairs;
  }();
  return &table;
}
}  // namespace latentmesh
#else
namespace latentmesh {
const KernelTable* Avx512Kernels() { return nullptr; }
}  // namespace latentmesh
#endif
