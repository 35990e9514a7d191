#include "kernels/cpu/cpu_device.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/host_limits.h"

namespace latentmesh {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kHugePage = size_t{2} << 20;

class CpuStream : public Stream {
 public:
  void Synchronize() override {}
  void* native() const override { return nullptr; }
};

size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

CpuDevice::CpuDevice(int threads, bool spin, size_t memory_limit) : pool_(threads, spin), memory_limit_(memory_limit) {}

CpuDevice::~CpuDevice() {
  for (auto& [memory, bytes] : sizes_) std::free(memory);
}

std::string CpuDevice::name() const {
  const int threads = pool_.threads();
  return CpuModelName() + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

size_t CpuDevice::free_memory() const {
  std::lock_guard lock(mutex_);
  return memory_limit_ - std::min(memory_limit_, allocated_);
}

void* CpuDevice::Allocate(size_t bytes) {
  // Huge pages spare most of the page walks of a pass over the weights.
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t size = RoundUp(bytes == 0 ? 1 : bytes, alignment);
  std::lock_guard lock(mutex_);
  if (size < bytes || size > memory_limit_ - std::min(memory_limit_, allocated_)) return nullptr;
  void* memory = std::aligned_alloc(alignment, size);
  if (memory == nullptr) return nullptr;
  if (alignment == kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // only advice: failure changes nothing
  sizes_.emplace(memory, size);
  allocated_ += size;
  return memory;
}

void CpuDevice::Free(void* memory) {
  if (memory == nullptr) return;
  std::lock_guard lock(mutex_);
  const auto found = sizes_.find(memory);
  LM_CHECK_MSG(found != sizes_.end(), "freed memory that is not from this device");
  allocated_ -= found->second;
  sizes_.erase(found);
  std::free(memory);
}

std::unique_ptr<Stream> CpuDevice::CreateStream() { return std::make_unique<CpuStream>(); }

void CpuDevice::CopyToDevice(void* device_to, const void* host_from, size_t bytes, Stream&) {
  if (bytes > 0) std::memmove(device_to, host_from, bytes);
}
void CpuDevice::CopyToHost(void* host_to, const void* device_from, size_t bytes, Stream&) {
  if (bytes > 0) std::memmove(host_to, device_from, bytes);
}
void CpuDevice::CopyOnDevice(void* to, const void* from, size_t bytes, Stream&) {
  if (bytes > 0) std::memmove(to, from, bytes);
}
void CpuDevice::Fill(void* device_to, int byte, size_t bytes, Stream&) {
  if (bytes > 0) std::memset(device_to, byte, bytes);
}

Result<std::unique_ptr<Device>> CreateCpuDevice(const DeviceOptions& options) {
  if (options.threads < 0 || options.threads > 4096) {
    return InvalidArgument("--threads " + std::to_string(options.threads) +
                           ": give 0 (the cores this rank is bound to) to 4096");
  }
  const int usable = UsableThreads(options.local_size);
  const int threads = options.threads > 0 ? options.threads : usable;
  std::unique_ptr<Device> device =
      std::make_unique<CpuDevice>(threads, threads <= usable, UsableMemory(options.local_size));
  return device;
}

}  // namespace latentmesh
