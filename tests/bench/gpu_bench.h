// Shared parts of the GPU benchmark: random device data, timing by graph replay, the table.
//
// Every row says what it took, what that is in TFLOP/s or TB/s, and the fraction of what this card did in the same run:
// the copy bandwidth or the bf16 matrix rate (twice that for FP8). Outputs are compared with the plain kernels.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_util.h"

namespace latentmesh::bench {

struct Row {
  std::string name;
  double microseconds = 0;
  double tflops = 0;  // the larger fraction of the two counts
  double tbytes = 0;
  double fraction = 0;
  double error = 0;  // relative, against the plain kernel; -1: not compared
};

class Bench {
 public:
  Bench();
  Device& device() { return *device_; }
  cuda::CudaOps& ops() { return *ops_; }
  Stream& stream() { return *stream_; }
  cudaStream_t native() { return cuda::Native(*stream_); }
  const cuda::Workspace& workspace() const { return workspace_; }

  Tensor Random(DType dtype, std::initializer_list<int64_t> dims, float scale);
  Tensor Ints(const std::vector<int32_t>& values);
  Tensor Longs(const std::vector<int64_t>& values);
  Tensor Poisoned(DType dtype, std::initializer_list<int64_t> dims);
  double Difference(const TensorView& a, const TensorView& b);  // relative, of contiguous tensors

  // One call each and no timing, for profilers.
  void set_profiling(bool on) { profiling_ = on; }
  bool profiling() const { return profiling_; }
  // Median time of one call; call i works on data set i % sets, so that the sets together exceed the L2.
  double Time(const std::function<void(int)>& call, int calls);
  void MeasureCeilings();
  // flops and bytes: what the operation has to do and to move. peak: FP8 or bf16 rate.
  void Report(const std::string& name, double microseconds, double flops, double bytes, double error, bool fp8 = false);
  void PrintTable() const;

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<cuda::CudaOps> ops_;
  std::unique_ptr<Stream> stream_;
  Buffer scratch_;
  cuda::Workspace workspace_;
  std::vector<Row> rows_;
  double copy_tbytes_ = 0, bf16_tflops_ = 0;
  uint32_t seed_ = 1;
  bool profiling_ = false;
};

void BenchAttention(Bench& bench);
void BenchPrefill(Bench& bench);
void BenchMatmul(Bench& bench);
void BenchRows(Bench& bench);

}  // namespace latentmesh::bench
