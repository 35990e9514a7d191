// The kernels of AVX-512 with AMX's products of bf16. (Its products of bytes were tried: a group of 32 columns with scales of
// its own fills a tile by half and each tile's whole numbers must leave the tiles to be scaled; slower than VNNI at 8 and 32
// tokens, equal at 512. tests/bench/RESULTS.md.) An empty table where the compiler's target has no such thing.
#include "kernels/cpu/kernel_table.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
// gcc 12 warns about its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "kernels/cpu/pair_kernels_amx.h"

namespace latentmesh {
const KernelTable* AmxKernels() {
  static const KernelTable table = [] {
    KernelTable kernels = *Avx512Kernels();
    kernels.name = "amx";
    kernels.to_pairs = amx::ToPairs;
    kernels.pair_dot = amx::PairDot;
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
