// The kernels of AVX-512 with the matrix products of AMX; an empty table where the compiler's target has no such thing.
#include "kernels/cpu/kernel_table.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__)
// gcc 12 warns about its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "kernels/cpu/packed_kernels_amx.h"
#include "kernels/cpu/pair_kernels_amx.h"

namespace latentmesh {
const KernelTable* AmxKernels() {
  static const KernelTable table = [] {
    KernelTable kernels = *Avx512Kernels();
    kernels.name = "amx";
    kernels.to_pairs = amx::ToPairs;
    kernels.pair_dot = amx::PairDot;
    kernels.packed_dot8 = amx::PackedDot<8>;
    kernels.packed_dot4 = amx::PackedDot<4>;
    return kernels;
  }();
  return &table;
}
}  // namespace latentmesh
#else
namespace latentmesh {
const KernelTable* AmxKernels() { return nullptr; }
}  // namespace latentmesh
#endif
