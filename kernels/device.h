// Device: memory, copies and the stream that work is ordered on. One Device per rank.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "kernels/status.h"

namespace latentmesh {

enum class DeviceKind { kCpu, kCuda };

// A queue of work in order. On the CPU every call has finished when it returns, so a Stream is only a name.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void Synchronize() = 0;            // host waits for all work queued so far; throws Error
  virtual void* native() const = 0;          // cudaStream_t, or nullptr on the CPU
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  virtual std::string name() const = 0;      // "AMD EPYC ..., 2 threads", "NVIDIA H200"
  virtual size_t total_memory() const = 0;   // bytes; on the CPU what this process may use (cgroup or MemAvailable)
  virtual size_t free_memory() const = 0;
  virtual void* Allocate(size_t bytes) = 0;  // 256-byte aligned (CPU: 64); nullptr when out of memory
  virtual void Free(void* memory) = 0;
  virtual std::unique_ptr<Stream> CreateStream() = 0;
  // Copies are ordered on `stream`; host memory need not be pinned. Host and device pointers may both be host on the CPU.
  virtual void CopyToDevice(void* device_to, const void* host_from, size_t bytes, Stream& stream) = 0;
  virtual void CopyToHost(void* host_to, const void* device_from, size_t bytes, Stream& stream) = 0;
  virtual void CopyOnDevice(void* to, const void* from, size_t bytes, Stream& stream) = 0;
  virtual void Fill(void* device_to, int byte, size_t bytes, Stream& stream) = 0;
};

struct DeviceOptions {
  int threads = 0;        // CPU: worker threads of this rank; 0 = the cores this rank is bound to
  int local_rank = 0;     // CUDA: index among the ranks of this host
  int local_size = 1;     // CPU: ranks on this host, to share cores and memory when unbound
  bool share_gpu = false; // CUDA: several ranks may use one GPU
};

// kUnavailable when this build or machine lacks the kind. The CPU device also owns the rank's thread pool.
Result<std::unique_ptr<Device>> CreateDevice(DeviceKind kind, const DeviceOptions& options);
bool CudaAvailable();     // built in, and at least one GPU answers

// What CreateDevice calls; CMake links either the implementation or *_unavailable.cc.
Result<std::unique_ptr<Device>> CreateCpuDevice(const DeviceOptions& options);
Result<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions& options);

}  // namespace latentmesh
