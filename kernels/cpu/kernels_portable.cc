// The kernels in portable C++.
#include "kernels/cpu/simd_portable.h"
#define LM_ISA portable
#define LM_ISA_NAME "portable"
#include "kernels/cpu/kernel_table.inl"

namespace latentmesh {
const KernelTable& PortableKernels() { return portable::kTable; }
}  // namespace latentmesh
