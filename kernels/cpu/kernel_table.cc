#include "kernels/cpu/kernel_table.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace latentmesh {
namespace {

#if defined(__x86_64__)
bool RunsAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
// Not every compiler's __builtin_cpu_supports knows the name: bit 4 of EAX of leaf 7.1.
bool RunsAvxVnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return RunsAvx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
bool RunsAvx512() {
  return RunsAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#if defined(__linux__) && defined(SYS_arch_prctl)
// Linux gives a process the tiles' memory only when asked (Documentation/arch/x86/xstate.rst); all its threads then have it.
bool MayUseTiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool MayUseTiles() { return false; }
#endif
// Bits 22 (AMX-BF16) and 24 (AMX-TILE) of EDX of leaf 7.0.
bool RunsAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return RunsAvx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0 && (d >> 24 & 1) != 0 &&
         MayUseTiles();
}
#else
bool RunsAvx2() { return false; }
bool RunsAvxVnni() { return false; }
bool RunsAvx512() { return false; }
bool RunsAmx() { return false; }
#endif

struct Runnable {
  const KernelTable* tables[5];
  int count = 0;
  Runnable() {
    tables[count++] = &PortableKernels();
    if (RunsAvx2() && Avx2Kernels() != nullptr) tables[count++] = Avx2Kernels();
    if (RunsAvxVnni() && AvxVnniKernels() != nullptr) tables[count++] = AvxVnniKernels();
    if (RunsAvx512() && Avx512Kernels() != nullptr) tables[count++] = Avx512Kernels();
    if (AmxKernels() != nullptr && Avx512Kernels() != nullptr && RunsAmx()) tables[count++] = AmxKernels();
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
