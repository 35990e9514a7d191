// kernels/cpu/cache_record.h on the device: single numbers of any record, whole groups of quantised ones.
#pragma once

#include "kernels/cuda/device_math.cuh"
#include "kernels/views.h"

namespace latentmesh::cuda {

constexpr int kScaleGroup = 128;

// A cache as kernels see it; `scales` and `rope_begin` are byte offsets inside a quantised record.
struct DeviceCache {
  char* data;
  CacheFormat format;
  int block_size;
  int latent;
  int rope;
  int record_bytes;
  int scales;
  int rope_begin;

  __device__ char* Slot(int64_t slot) const { return data + slot * record_bytes; }
  __device__ int64_t SlotOf(const int32_t* block_table, int index) const {
    return static_cast<int64_t>(block_table[index / block_size]) * block_size + index % block_size;
  }
};

inline DeviceCache MakeDeviceCache(const CacheView& cache) {
  const int bytes = static_cast<int>(cache.record_bytes());
  const int rope_begin = static_cast<int>(CacheRecordBytes(cache.format, cache.latent, 0));
  const int groups = (cache.latent + kScaleGroup - 1) / kScaleGroup;
  const bool quantised = cache.format == CacheFormat::kF8 || cache.format == CacheFormat::k6Bit;
  LM_CHECK_MSG(!quantised || bytes % 4 == 0, "a quantised cache needs an even rope dimension");
  return {static_cast<char*>(cache.data), cache.format, cache.block_size, cache.latent, cache.rope, bytes,
          rope_begin - groups * 4,        rope_begin};
}

__device__ __forceinline__ int SixBitCode(const uint8_t* codes, int i) {
  const uint8_t* group = codes + i / 4 * 3;
  const uint32_t packed = group[0] | group[1] << 8 | group[2] << 16;
  return static_cast<int>(packed >> (6 * (i % 4)) & 63u) - 32;
}

// Number i of [latent, rope key].
__device__ __forceinline__ float RecordNumber(const DeviceCache& cache, const char* record, int i) {
  switch (cache.format) {
    case CacheFormat::kF32:
      return reinterpret_cast<const float*>(record)[i];
    case CacheFormat::kBF16:
      return ToFloat(reinterpret_cast<const bf16*>(record)[i]);
    default:
      break;
  }
  if (i >= cache.latent) return ToFloat(reinterpret_cast<const bf16*>(record + cache.rope_begin)[i - cache.latent]);
  const float scale = reinterpret_cast<const float*>(record + cache.scales)[i / kScaleGroup];
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(record);
  if (cache.format == CacheFormat::kF8) return ToFloat(f8{codes[i]}) * scale;
  return static_cast<float>(SixBitCode(codes, i)) * scale;
}

// One warp writes latent group `group`, whose number i is numbers[i]; numbers beyond the latent are not touched.
__device__ inline void WriteLatentGroup(const DeviceCache& cache, char* record, int group, const float* numbers) {
  const int lane = threadIdx.x % 32, begin = group * kScaleGroup, count = min(kScaleGroup, cache.latent - begin);
  float largest = 0;
  for (int i = lane; i < count; i += 32) largest = fmaxf(largest, fabsf(numbers[begin + i]));
  largest = WarpReduce<MaxOp>(largest);
  const bool fp8 = cache.format == CacheFormat::kF8;
  const float limit = fp8 ? 448.f : 31.f;
  const float forward = largest > 0 ? __fdiv_rn(limit, largest) : 0.f;
  if (lane == 0) reinterpret_cast<float*>(record + cache.scales)[group] = __fdiv_rn(largest, limit);
  uint8_t* codes = reinterpret_cast<uint8_t*>(record);
  if (fp8) {
    const int padded = min(kScaleGroup, cache.scales - begin);
    for (int i = lane; i < padded; i += 32) {
      codes[begin + i] = i < count ? FromFloat<f8>(__fmul_rn(numbers[begin + i], forward)).bits : uint8_t{0};
    }
    return;
  }
  for (int i = lane * 4; i < count; i += 128) {
    uint32_t packed = 0;
    for (int j = 0; j < 4; ++j) {
      const float x = i + j < count ? __fmul_rn(numbers[begin + i + j], forward) : 0.f;
      packed |= static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(x, -31.f), 31.f)) + 32) << (6 * j);
    }
    for (int j = 0; j < 3; ++j) codes[(begin + i) / 4 * 3 + j] = packed >> (8 * j);
  }
}

}  // namespace latentmesh::cuda
