#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_util.h"

namespace latentmesh {
namespace cuda {

CudaStream::CudaStream(int device) {
  Check(cudaSetDevice(device), "cudaSetDevice");
  Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

CudaStream::~CudaStream() { cudaStreamDestroy(stream_); }

void CudaStream::Synchronize() { Check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

StagingRing::StagingRing() {
  Check(cudaMallocHost(reinterpret_cast<void**>(&memory_), kSlotBytes * kSlots), "cudaMallocHost");
  for (cudaEvent_t& event : done_) {
    Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
}

StagingRing::~StagingRing() {
  for (cudaEvent_t event : done_) {
    cudaEventSynchronize(event);
    cudaEventDestroy(event);
  }
  cudaFreeHost(memory_);
}

int StagingRing::Take() {
  const int slot = next_;
  next_ = (next_ + 1) % kSlots;
  Check(cudaEventSynchronize(done_[slot]), "cudaEventSynchronize(staging)");
  return slot;
}

void StagingRing::ToDevice(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  for (size_t begin = 0; begin < bytes; begin += kSlotBytes) {
    const size_t count = std::min(kSlotBytes, bytes - begin);
    const int slot = Take();
    std::memcpy(Slot(slot), static_cast<const char*>(from) + begin, count);
    Check(cudaMemcpyAsync(static_cast<char*>(to) + begin, Slot(slot), count, cudaMemcpyHostToDevice, stream),
          "cudaMemcpyAsync(to device)");
    Check(cudaEventRecord(done_[slot], stream), "cudaEventRecord");
  }
}

void StagingRing::ToHost(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  constexpr size_t kAhead = 8;  // slots in flight: the card copies while the host empties earlier ones
  const size_t chunks = (bytes + kSlotBytes - 1) / kSlotBytes;
  std::array<int, kAhead> slots{};
  for (size_t step = 0; step < chunks + kAhead; ++step) {
    if (step >= kAhead) {
      const size_t begin = (step - kAhead) * kSlotBytes;
      const int slot = slots[(step - kAhead) % kAhead];
      if (begin < bytes) {
        Check(cudaEventSynchronize(done_[slot]), "cudaEventSynchronize(to host)");
        std::memcpy(static_cast<char*>(to) + begin, Slot(slot), std::min(kSlotBytes, bytes - begin));
      }
    }
    if (step < chunks) {
      const size_t begin = step * kSlotBytes;
      const int slot = slots[step % kAhead] = Take();
      Check(cudaMemcpyAsync(Slot(slot), static_cast<const char*>(from) + begin, std::min(kSlotBytes, bytes - begin),
                            cudaMemcpyDeviceToHost, stream),
            "cudaMemcpyAsync(to host)");
      Check(cudaEventRecord(done_[slot], stream), "cudaEventRecord");
    }
  }
}

CudaDevice::CudaDevice(int index) : index_(index) {
  MakeCurrent();
  cudaDeviceProp properties{};
  Check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  name_ = properties.name;
  staging_ = std::make_unique<StagingRing>();
}

void CudaDevice::MakeCurrent() const { Check(cudaSetDevice(index_), "cudaSetDevice"); }

size_t CudaDevice::total_memory() const {
  MakeCurrent();
  size_t free = 0, total = 0;
  Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return total;
}

size_t CudaDevice::free_memory() const {
  MakeCurrent();
  size_t free = 0, total = 0;
  Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

void* CudaDevice::Allocate(size_t bytes) {
  MakeCurrent();
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clear it: running out is an answer here, not a fault
    return nullptr;
  }
  Check(error, "cudaMalloc");
  return memory;
}

void CudaDevice::Free(void* memory) {
  if (memory == nullptr) return;
  MakeCurrent();
  Check(cudaFree(memory), "cudaFree");
}

std::unique_ptr<Stream> CudaDevice::CreateStream() { return std::make_unique<CudaStream>(index_); }

void CudaDevice::CopyToDevice(void* device_to, const void* host_from, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  MakeCurrent();
  staging_->ToDevice(device_to, host_from, bytes, Native(stream));
}

void CudaDevice::CopyToHost(void* host_to, const void* device_from, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  MakeCurrent();
  cudaPointerAttributes attributes{};
  const bool known = cudaPointerGetAttributes(&attributes, host_to) == cudaSuccess;
  if (known && attributes.type == cudaMemoryTypeHost) {
    Check(cudaMemcpyAsync(host_to, device_from, bytes, cudaMemcpyDeviceToHost, Native(stream)),
          "cudaMemcpyAsync(to host)");
    return;
  }
  staging_->ToHost(host_to, device_from, bytes, Native(stream));
}

void CudaDevice::CopyOnDevice(void* to, const void* from, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  MakeCurrent();
  Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, Native(stream)), "cudaMemcpyAsync(on device)");
}

void CudaDevice::Fill(void* device_to, int byte, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  MakeCurrent();
  Check(cudaMemsetAsync(device_to, byte, bytes, Native(stream)), "cudaMemsetAsync");
}

namespace {

// cudaGetDeviceCount leaves the count unwritten where there is no driver.
int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

}  // namespace
}  // namespace cuda

bool CudaAvailable() { return cuda::DeviceCount() > 0; }

Result<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions& options) {
  const int count = cuda::DeviceCount();
  if (count == 0)
    return Unavailable("--device cuda: no GPU answers on this host; check nvidia-smi, or use --device cpu");
  if (options.local_rank >= count && !options.share_gpu) {
    return Unavailable("--device cuda: local rank " + std::to_string(options.local_rank) + " finds only " +
                       std::to_string(count) +
                       " GPU(s) on this host; start at most one rank a GPU, or pass --share-gpu");
  }
  const int index = options.local_rank % count;
  try {
    std::unique_ptr<Device> device = std::make_unique<cuda::CudaDevice>(index);
    const cuda::CardInfo& card = cuda::CurrentCard();
    if (card.major < 8) {
      return Unavailable("--device cuda: " + device->name() + " has compute capability " + std::to_string(card.major) +
                         "." + std::to_string(card.minor) + "; 8.0 or later is needed");
    }
    return device;
  } catch (const Error& error) {
    return Status(error.code(), error.what());
  }
}

}  // namespace latentmesh
