// The CPU as a Device: aligned host memory within the limits of this job, and the rank's thread pool.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "kernels/cpu/thread_pool.h"
#include "kernels/device.h"

namespace latentmesh {

class CpuDevice : public Device {
 public:
  CpuDevice(int threads, bool spin, size_t memory_limit);
  ~CpuDevice() override;

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string name() const override;
  size_t total_memory() const override { return memory_limit_; }
  size_t free_memory() const override;
  void* Allocate(size_t bytes) override;  // thread-safe
  void Free(void* memory) override;
  std::unique_ptr<Stream> CreateStream() override;
  void CopyToDevice(void* device_to, const void* host_from, size_t bytes, Stream& stream) override;
  void CopyToHost(void* host_to, const void* device_from, size_t bytes, Stream& stream) override;
  void CopyOnDevice(void* to, const void* from, size_t bytes, Stream& stream) override;
  void Fill(void* device_to, int byte, size_t bytes, Stream& stream) override;

  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool pool_;
  size_t memory_limit_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;
  size_t allocated_ = 0;
};

}  // namespace latentmesh
