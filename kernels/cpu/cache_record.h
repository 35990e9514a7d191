// One token's record in a cache block: how numbers become bytes and back.
//
//   kF32, kBF16   latent + rope numbers, nothing else
//   kF8           latent e4m3 codes, padded to 4 bytes | ceil(latent / 128) f32 scales | rope bf16 numbers
//   k6Bit         codes of 4 numbers in 3 bytes, little-endian: c0 | c1 << 6 | c2 << 12 | c3 << 18, code = q + 32 with
//                 q in [-31, 31], padded to 4 bytes | ceil(latent / 128) f32 scales | rope bf16 numbers
//
// A group of 128 latent numbers with largest magnitude a has scale a / 448 (kF8) or a / 31 (k6Bit), and a number x is
// coded as round(x * (448 / a)) or round(x * (31 / a)), to nearest even; a group with a up to 2^-100 has scale 0.
#pragma once

#include <cstdint>

#include "kernels/views.h"

namespace latentmesh {

constexpr int64_t kCacheScaleGroup = 128;

// Where the parts of a quantised record begin, in bytes; the codes begin at 0.
struct CacheRecordLayout {
  int64_t scales;
  int64_t rope;
};
CacheRecordLayout QuantisedRecordLayout(CacheFormat format, int64_t latent);

// numbers: latent + rope floats. record: CacheRecordBytes(format, latent, rope) bytes.
void EncodeCacheRecord(CacheFormat format, int64_t latent, int64_t rope, const float* numbers, void* record);
void DecodeCacheRecord(CacheFormat format, int64_t latent, int64_t rope, const void* record, float* numbers);

// Address of a slot's record, and of local token `index` of a sequence.
inline char* CacheSlot(const CacheView& cache, int64_t slot) {
  return static_cast<char*>(cache.data) + slot * cache.record_bytes();
}
inline int64_t SlotOfToken(const CacheView& cache, const int32_t* block_table, int64_t index) {
  return static_cast<int64_t>(block_table[index / cache.block_size]) * cache.block_size + index % cache.block_size;
}

}  // namespace latentmesh
