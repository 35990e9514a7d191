// What the machine can do at best, measured before anything is set against it.
#pragma once

#include <functional>

#include "kernels/ops.h"

namespace latentmesh {

// Where a benchmark runs. Nothing is owned.
struct BenchDevice {
  Device* device = nullptr;
  Ops* ops = nullptr;
  Stream* stream = nullptr;
  DType activation = DType::kF32;    // bf16 on a GPU
};

struct MachineLimits {
  double bytes_per_second = 0;  // CPU: reading 256 MiB with all threads; GPU: copying, read and written bytes counted
  double flops = 0;                  // CPU: f32 multiply-adds in registers; GPU: a bf16 matrix product of 4096^3
  const char* bandwidth_of = "";     // what was done, for the report
  const char* flops_of = "";
};
MachineLimits MeasureMachine(const BenchDevice& bench, double seconds);
// Of a CPU only its bytes_per_second: the best of the passes that fit into `seconds`.
double MeasureRead(const BenchDevice& bench, double seconds);

struct Timing {
  double median = 0;                 // seconds
  double best = 0;
  int runs = 0;                      // 0: nothing was measured
};
// One run to warm up, then up to `repeat` runs, stopped when `seconds` are used up. A warm-up that alone takes that
// long is the one run. Each run is awaited on the stream.
Timing TimeRuns(const BenchDevice& bench, int repeat, double seconds, const std::function<void()>& run);

}  // namespace latentmesh
