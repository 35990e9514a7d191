#include "runtime/cache/latent_kv_cache.h"

namespace latentmesh {

uint64_t CacheShape::BytesPerToken() const {
  return static_cast<uint64_t>(layers) * static_cast<uint64_t>(CacheRecordBytes(format, latent, rope));
}

LatentKvCache::LatentKvCache(Device& device, const CacheShape& shape)
    : device_(device), shape_(shape), memory_(&device, shape.Bytes()) {
  uint64_t per_layer = shape.layers == 0 ? 0 : shape.Bytes() / static_cast<uint64_t>(shape.layers);
  for (int64_t i = 0; i < shape.layers; ++i)
    layers_.push_back({static_cast<char*>(memory_.data()) + i * per_layer, shape.format, shape.num_blocks, shape.block_size,
                       shape.latent, shape.rope});
}

LatentKvCache::Slice LatentKvCache::SliceOf(int64_t layer, int32_t block) const {
  LM_CHECK(layer >= 0 && layer < shape_.layers && block >= 0 && block < shape_.num_blocks);
  const CacheView& view = layers_[static_cast<size_t>(layer)];
  size_t bytes = static_cast<size_t>(view.record_bytes()) * static_cast<size_t>(view.block_size);
  return {static_cast<char*>(view.data) + static_cast<size_t>(block) * bytes, bytes};
}

void LatentKvCache::ExportBlock(int32_t block, std::span<char> to, Stream& stream) const {
  LM_CHECK(to.size() == shape_.BytesPerBlock());
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    Slice slice = SliceOf(layer, block);
    device_.CopyToHost(to.data() + static_cast<size_t>(layer) * slice.bytes, slice.data, slice.bytes, stream);
  }
  stream.Synchronize();
}

void LatentKvCache::ImportBlock(int32_t block, std::span<const char> from, Stream& stream) {
  LM_CHECK(from.size() == shape_.BytesPerBlock());
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    Slice slice = SliceOf(layer, block);
    device_.CopyToDevice(slice.data, from.data() + static_cast<size_t>(layer) * slice.bytes, slice.bytes, stream);
  }
  stream.Synchronize();
}

}  // namespace latentmesh
