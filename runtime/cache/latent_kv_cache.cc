#include "runtime/cache/latent_kv_cache.h"

namespace latentmesh {

uint64_t CacheShape::BytesPerToken() const {
  return static_cast<uint64_t>(layers) * static_cast<uint64_t>(CacheRecordBytes(format, latent, rope));
}

LatentKvCache::LatentKvCache(Device& device, const CacheShape& shape) : shape_(shape), memory_(&device, shape.Bytes()) {
  uint64_t per_layer = shape.layers == 0 ? 0 : shape.Bytes() / static_cast<uint64_t>(shape.layers);
  for (int64_t i = 0; i < shape.layers; ++i)
    layers_.push_back({static_cast<char*>(memory_.data()) + i * per_layer, shape.format, shape.num_blocks, shape.block_size,
                       shape.latent, shape.rope});
}

}  // namespace latentmesh
