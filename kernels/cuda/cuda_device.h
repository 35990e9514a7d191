// One GPU as a Device: cudaMalloc, streams, and copies of pageable host memory through a ring of pinned slots.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>
#include <string>

#include "kernels/device.h"

namespace latentmesh::cuda {

class CudaStream : public Stream {
 public:
  explicit CudaStream(int device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  void Synchronize() override;
  void* native() const override { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A ring of pinned slots. A slot is taken again only after the copy that used it has finished, so that callers may
// reuse their host memory as soon as a copy to the device returns.
class StagingRing {
 public:
  static constexpr size_t kSlotBytes = size_t{1} << 20;
  static constexpr int kSlots = 32;

  StagingRing();
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  void ToDevice(void* to, const void* from, size_t bytes, cudaStream_t stream);
  void ToHost(void* to, const void* from, size_t bytes, cudaStream_t stream);  // returns when the data is there

 private:
  char* Slot(int i) { return memory_ + static_cast<size_t>(i) * kSlotBytes; }
  int Take();  // next slot, free again

  char* memory_ = nullptr;
  std::array<cudaEvent_t, kSlots> done_{};
  int next_ = 0;
  std::mutex mutex_;
};

// Thread-safe; every call makes its GPU the current one of the calling thread.
class CudaDevice : public Device {
 public:
  explicit CudaDevice(int index);

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string name() const override { return name_; }
  size_t total_memory() const override;
  size_t free_memory() const override;
  void* Allocate(size_t bytes) override;
  void Free(void* memory) override;
  std::unique_ptr<Stream> CreateStream() override;
  void CopyToDevice(void* device_to, const void* host_from, size_t bytes, Stream& stream) override;
  // Into pinned memory the copy is asynchronous; into pageable memory the call returns when the data is there.
  void CopyToHost(void* host_to, const void* device_from, size_t bytes, Stream& stream) override;
  void CopyOnDevice(void* to, const void* from, size_t bytes, Stream& stream) override;
  void Fill(void* device_to, int byte, size_t bytes, Stream& stream) override;

  int index() const { return index_; }
  void MakeCurrent() const;

 private:
  int index_;
  std::string name_;
  std::unique_ptr<StagingRing> staging_;
};

}  // namespace latentmesh::cuda
