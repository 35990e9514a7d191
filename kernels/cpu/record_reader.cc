#include "kernels/cpu/record_reader.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cache_record.h"

namespace latentmesh {
namespace {

void Decode6BitPart(const uint8_t* codes, int64_t begin, int64_t n, float scale, float* numbers) {
  int64_t i = begin % 4 == 0 ? Kernels().six_bit_to_float(codes + begin / 4 * 3, numbers, n, scale) : 0;
  for (; i < n; ++i) {
    const int64_t at = begin + i;
    const uint8_t* group = codes + at / 4 * 3;
    const uint32_t packed = group[0] | static_cast<uint32_t>(group[1]) << 8 | static_cast<uint32_t>(group[2]) << 16;
    numbers[i] = static_cast<float>(static_cast<int>((packed >> (6 * (at % 4))) & 63u) - 32) * scale;
  }
}

// Numbers [begin, end) of the quantised latent, scale group by scale group.
void DecodeLatentPart(const CacheView& cache, const char* record, int64_t begin, int64_t end, float* numbers) {
  const CacheRecordLayout layout = QuantisedRecordLayout(cache.format, cache.latent);
  while (begin < end) {
    const int64_t group = begin / kCacheScaleGroup, n = std::min(end, (group + 1) * kCacheScaleGroup) - begin;
    float scale;
    std::memcpy(&scale, record + layout.scales + group * 4, sizeof scale);
    if (cache.format == CacheFormat::kF8) {
      Kernels().to_float[static_cast<int>(WeightKind::kF8)](record + begin, numbers, n, scale);
    } else {
      Decode6BitPart(reinterpret_cast<const uint8_t*>(record), begin, n, scale, numbers);
    }
    begin += n;
    numbers += n;
  }
}

}  // namespace

void DecodeRecordPart(const CacheView& cache, const char* record, int64_t begin, int64_t n, float* numbers) {
  if (n == 0) return;
  const auto bf16 = Kernels().to_float[static_cast<int>(WeightKind::kBF16)];
  if (cache.format == CacheFormat::kF32) {
    std::memcpy(numbers, record + begin * 4, n * sizeof(float));
  } else if (cache.format == CacheFormat::kBF16) {
    bf16(record + begin * 2, numbers, n, 1.0f);
  } else {
    const int64_t in_latent = std::clamp<int64_t>(cache.latent - begin, 0, n), rope = begin + in_latent - cache.latent;
    DecodeLatentPart(cache, record, begin, begin + in_latent, numbers);
    const int64_t rope_at = QuantisedRecordLayout(cache.format, cache.latent).rope;
    if (in_latent < n) bf16(record + rope_at + rope * 2, numbers + in_latent, n - in_latent, 1.0f);
  }
}

int64_t RecordReader::ScratchFloats(const RecordPart& key, const RecordPart& value) {
  return kTileKeys * (key.dim + value.dim + 16);
}

RecordReader::RecordReader(const CacheView& cache, RecordPart key, RecordPart value, float* scratch)
    : cache_(cache), key_(key), value_(value), scratch_(scratch) {
  shared_ = value.begin >= key.begin && value.begin + value.dim <= key.begin + key.dim;
  value_base_ = shared_ ? value.begin - key.begin : key.dim;
  // Row lengths that are multiples of 1 KiB would put all keys into few cache sets.
  stride_ = ((shared_ ? key.dim : key.dim + value.dim) + 15) / 16 * 16;
  if (stride_ % 256 == 0) stride_ += 16;
}

void RecordReader::CopyRecord(const char* record, int64_t i) {
  float* row = scratch_ + i * stride_;
  DecodeRecordPart(cache_, record, key_.begin, key_.dim, row);
  if (!shared_) DecodeRecordPart(cache_, record, value_.begin, value_.dim, row + key_.dim);
}

KeyBlock RecordReader::Read(const int32_t* block_table, int64_t begin, int64_t count) {
  KeyBlock block;
  block.keys = std::min(count, kTileKeys);
  if (cache_.format == CacheFormat::kF32) {
    block.keys = std::min(block.keys, cache_.block_size - begin % cache_.block_size);
    const float* record = reinterpret_cast<const float*>(CacheSlot(cache_, SlotOfToken(cache_, block_table, begin)));
    const int64_t stride = cache_.latent + cache_.rope;
    block.parts[0] = {record + key_.begin, stride, key_.dim};
    block.values = {record + value_.begin, stride, value_.dim};
    return block;
  }
  for (int64_t i = 0; i < block.keys; ++i)
    CopyRecord(CacheSlot(cache_, SlotOfToken(cache_, block_table, begin + i)), i);
  block.parts[0] = {scratch_, stride_, key_.dim};
  block.values = {scratch_ + value_base_, stride_, value_.dim};
  return block;
}

}  // namespace latentmesh
