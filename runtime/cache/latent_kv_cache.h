// LatentKvCache: the memory behind the block ids, [layers, num_blocks, block_size, record]. Which sequence owns a block is
// the scheduler's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "kernels/views.h"

namespace latentmesh {

struct CacheShape {
  int64_t layers = 0;            // of this rank
  int64_t num_blocks = 0;
  int32_t block_size = 64;       // tokens of a block on this rank
  int32_t latent = 0;            // numbers a token and layer, see CacheView
  int32_t rope = 0;
  CacheFormat format = CacheFormat::kF32;

  uint64_t BytesPerToken() const;   // all layers
  uint64_t BytesPerBlock() const { return BytesPerToken() * static_cast<uint64_t>(block_size); }
  uint64_t Bytes() const { return BytesPerBlock() * static_cast<uint64_t>(num_blocks); }
};

class LatentKvCache {
 public:
  // Throws Error(kResourceExhausted) when the device has no room. The device outlives the cache.
  LatentKvCache(Device& device, const CacheShape& shape);
  const CacheShape& shape() const { return shape_; }
  // Layer index within this rank.
  const CacheView& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }

  // One block of one layer, on the device: [block_size, record].
  struct Slice {
    char* data = nullptr;
    size_t bytes = 0;
  };
  Slice SliceOf(int64_t layer, int32_t block) const;

  // A block of all this rank's layers, one after the other, in the stored format: shape().BytesPerBlock() bytes of host
  // memory. Both wait for the work queued on `stream` before, so `to` is filled and `from` free to be reused on return.
  void ExportBlock(int32_t block, std::span<char> to, Stream& stream) const;
  void ImportBlock(int32_t block, std::span<const char> from, Stream& stream);

 private:
  Device& device_;
  CacheShape shape_;
  Buffer memory_;
  std::vector<CacheView> layers_;
};

}  // namespace latentmesh
