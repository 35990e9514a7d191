#include "kernels/cpu/kernel_table.h"

#include <atomic>

namespace latentmesh {
namespace {

#if defined(__x86_64__)
bool RunsAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool RunsAvx512() {
  return RunsAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#else
bool RunsAvx2() { return false; }
bool RunsAvx512() { return false; }
#endif

struct Runnable {
  const KernelTable* tables[3];
  int count = 0;
  Runnable() {
    tables[count++] = &PortableKernels();
    if (RunsAvx2() && Avx2Kernels() != nullptr) tables[count++] = Avx2Kernels();
    if (RunsAvx512() && Avx512Kernels() != nullptr) tables[count++] = Avx512Kernels();
  }
};

const Runnable& AllRunnable() {
  static const Runnable runnable;
  return runnable;
}

std::atomic<const KernelTable*> current{nullptr};

}  // namespace

const KernelTable* const* RunnableKernels(int* count) {
  *count = AllRunnable().count;
  return AllRunnable().tables;
}

const KernelTable& Kernels() {
  const KernelTable* table = current.load(std::memory_order_relaxed);
  return table != nullptr ? *table : *AllRunnable().tables[AllRunnable().count - 1];
}

void SetKernels(const KernelTable* table) { current = table; }

}  // namespace latentmesh
