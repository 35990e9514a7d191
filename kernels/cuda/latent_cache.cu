// Writing to and reading from the paged cache: latent norm + key rotation + record in one pass, baselines' keys and
// values, and records back as numbers. One block a token; the numbers pass through shared memory as floats.
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_ahead.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 128;

// numbers[0 .. latent + rope) in shared memory -> record. All threads of the block take part.
__device__ void WriteRecord(const DeviceCache& cache, char* record, const float* numbers) {
  const int total = cache.latent + cache.rope;
  if (cache.format == CacheFormat::kF32) {
    for (int i = threadIdx.x; i < total; i += kThreads) reinterpret_cast<float*>(record)[i] = numbers[i];
    return;
  }
  if (cache.format == CacheFormat::kBF16) {
    for (int i = threadIdx.x; i < total; i += kThreads)
      reinterpret_cast<bf16*>(record)[i] = FromFloat<bf16>(numbers[i]);
    return;
  }
  const int groups = (cache.latent + kScaleGroup - 1) / kScaleGroup;
  for (int group = threadIdx.x / 32; group < groups; group += kThreads / 32)
    WriteLatentGroup(cache, record, group, numbers);
  for (int i = threadIdx.x; i < cache.rope; i += kThreads) {
    reinterpret_cast<bf16*>(record + cache.rope_begin)[i] = FromFloat<bf16>(numbers[cache.latent + i]);
  }
}

struct LatentWriteArgs {
  const void* kv_a;
  int64_t kv_stride;
  const float* norm_weight;
  float eps;
  const int32_t* positions;
  const float* cos_sin;
  int64_t cos_stride;
  bool interleaved;
  const int64_t* slots;
  DeviceCache cache;
};

template <typename T>
__global__ void LatentWriteKernel(LatentWriteArgs p) {
  extern __shared__ float numbers[];
  __shared__ float scratch[32];
  const int64_t slot = p.slots[blockIdx.x];
  if (slot < 0) return;
  const int latent = p.cache.latent, half = p.cache.rope / 2;
  const T* row = static_cast<const T*>(p.kv_a) + blockIdx.x * p.kv_stride;
  float squares = 0;
  for (int i = threadIdx.x; i < latent; i += kThreads) {
    const float value = ToFloat(row[i]);
    numbers[i] = value;
    squares += value * value;
  }
  const float* angles = p.cos_sin + p.positions[blockIdx.x] * p.cos_stride;
  for (int pair = threadIdx.x; pair < half; pair += kThreads) {
    const int first = latent + (p.interleaved ? 2 * pair : pair),
              second = latent + (p.interleaved ? 2 * pair + 1 : pair + half);
    const float a = ToFloat(row[first]), b = ToFloat(row[second]), c = angles[pair], s = angles[half + pair];
    numbers[first] = a * c - b * s;
    numbers[second] = a * s + b * c;
  }
  const float scale = rsqrtf(BlockReduce<SumOp>(squares, scratch) / latent + p.eps);
  for (int i = threadIdx.x; i < latent; i += kThreads) numbers[i] *= scale * p.norm_weight[i];
  __syncthreads();
  WriteRecord(p.cache, p.cache.Slot(slot), numbers);
}

// The models' shape, 512 + 64 in bf16: one warp a token, everything in registers. Lane l holds latent numbers 16 l .. +
// 15, so that eight lanes share a scale, and rope numbers 2 l, 2 l + 1 (one pair when interleaved).
constexpr int kLatent = 512, kRope = 64, kLaneNumbers = 16;

__device__ __forceinline__ void WriteLatentLane(const DeviceCache& cache, char* record,
                                                const float (&v)[kLaneNumbers]) {
  const int lane = threadIdx.x % 32;
  if (cache.format == CacheFormat::kBF16) {
    Pack<bf16, 8> pack[2];
#pragma unroll
    for (int i = 0; i < kLaneNumbers; ++i) pack[i / 8].v[i % 8] = FromFloat<bf16>(v[i]);
    StorePack<bf16, 8>(reinterpret_cast<bf16*>(record) + lane * kLaneNumbers, pack[0]);
    StorePack<bf16, 8>(reinterpret_cast<bf16*>(record) + lane * kLaneNumbers + 8, pack[1]);
    return;
  }
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kLaneNumbers; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  const float forward = largest > 0 ? __fdiv_rn(448.f, largest) : 0.f;
  Pack<f8, kLaneNumbers> codes;
#pragma unroll
  for (int i = 0; i < kLaneNumbers; ++i) codes.v[i] = FromFloat<f8>(__fmul_rn(v[i], forward));
  StorePack<f8, kLaneNumbers>(reinterpret_cast<f8*>(record) + lane * kLaneNumbers, codes);
  if (lane % 8 == 0) reinterpret_cast<float*>(record + cache.scales)[lane / 8] = __fdiv_rn(largest, 448.f);
}

__global__ void __launch_bounds__(kThreads) LatentWriteWarpKernel(LatentWriteArgs p, int64_t tokens) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  const int64_t token = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  if (token >= tokens) return;
  const int64_t slot = p.slots[token];  // looked at when everything else is on its way
  const int lane = threadIdx.x % 32, first = p.interleaved ? 2 * lane : lane,
            second = p.interleaved ? 2 * lane + 1 : lane + 32;
  const bf16* row = static_cast<const bf16*>(p.kv_a) + token * p.kv_stride;
  const Pack<bf16, 8> low = LoadPack<bf16, 8>(row + lane * kLaneNumbers),
                      high = LoadPack<bf16, 8>(row + lane * kLaneNumbers + 8);
  const float* angles = p.cos_sin + p.positions[token] * p.cos_stride;
  const float a = ToFloat(row[kLatent + first]), b = ToFloat(row[kLatent + second]), c = angles[lane],
              s = angles[32 + lane];
  float4 weights[kLaneNumbers / 4];
#pragma unroll
  for (int i = 0; i < kLaneNumbers / 4; ++i)
    weights[i] = *reinterpret_cast<const float4*>(p.norm_weight + lane * kLaneNumbers + i * 4);
  if (slot < 0) return;
  float v[kLaneNumbers], squares = 0;
#pragma unroll
  for (int i = 0; i < kLaneNumbers; ++i) {
    v[i] = ToFloat(i < 8 ? low.v[i] : high.v[i - 8]);
    squares += v[i] * v[i];
  }
  const float scale = rsqrtf(WarpReduce<SumOp>(squares) / kLatent + p.eps);
#pragma unroll
  for (int i = 0; i < kLaneNumbers; i += 4) {
    const float4 weight = weights[i / 4];
    v[i] *= scale * weight.x, v[i + 1] *= scale * weight.y, v[i + 2] *= scale * weight.z, v[i + 3] *= scale * weight.w;
  }
  char* record = p.cache.Slot(slot);
  WriteLatentLane(p.cache, record, v);
  bf16* key =
      reinterpret_cast<bf16*>(record + (p.cache.format == CacheFormat::kBF16 ? kLatent * 2 : p.cache.rope_begin));
  key[first] = FromFloat<bf16>(a * c - b * s);
  key[second] = FromFloat<bf16>(a * s + b * c);
}

template <typename T>
__global__ void GqaWriteKernel(HeadsView k, HeadsView v, const int64_t* slots, DeviceCache cache) {
  extern __shared__ float numbers[];
  const int64_t slot = slots[blockIdx.x];
  if (slot < 0) return;
  const int width = cache.latent / 2, dim = static_cast<int>(k.dim);
  for (int i = threadIdx.x; i < cache.latent; i += kThreads) {
    const HeadsView& from = i < width ? k : v;
    const int j = i < width ? i : i - width;
    numbers[i] = ToFloat(
        static_cast<const T*>(from.data)[blockIdx.x * from.token_stride + j / dim * from.head_stride + j % dim]);
  }
  __syncthreads();
  WriteRecord(cache, cache.Slot(slot), numbers);
}

template <typename T>
__global__ void LatentGatherKernel(DeviceCache cache, const int32_t* block_table, int64_t begin, T* out,
                                   int64_t out_stride) {
  const char* record = cache.Slot(cache.SlotOf(block_table, static_cast<int>(begin + blockIdx.x)));
  T* row = out + blockIdx.x * out_stride;
  for (int i = threadIdx.x; i < cache.latent + cache.rope; i += kThreads)
    row[i] = FromFloat<T>(RecordNumber(cache, record, i));
}

int RecordSharedBytes(const CacheView& cache) {
  const int bytes = (cache.latent + cache.rope) * static_cast<int>(sizeof(float));
  LM_CHECK_MSG(bytes <= 48 * 1024, "cache records of " + std::to_string(cache.latent + cache.rope) + " numbers");
  return bytes;
}

}  // namespace

void LaunchLatentWrite(const LatentWriteParams& p, cudaStream_t stream) {
  const LatentWriteArgs args{p.kv_a.data, p.kv_a.row_stride,       p.norm_weight.f32(),  p.eps,
                             p.positions, p.cos_sin.f32(),         p.cos_sin.row_stride, p.interleaved,
                             p.slots,     MakeDeviceCache(p.cache)};
  const bool usual = p.cache.latent == kLatent && p.cache.rope == kRope && p.kv_a.dtype == DType::kBF16 &&
                     (p.cache.format == CacheFormat::kBF16 || p.cache.format == CacheFormat::kF8) &&
                     IsAligned(p.kv_a.data, 16) && p.kv_a.row_stride % 8 == 0 && IsAligned(p.cache.data, 16) &&
                     IsAligned(p.norm_weight.data, 16);
  if (usual) {
    const int64_t tokens = p.kv_a.rows();
    LaunchAhead(LatentWriteWarpKernel, static_cast<unsigned>(CeilDiv(tokens, kThreads / 32)), kThreads, 0, stream, args, tokens);
    return CheckLaunch("LatentWrite");
  }
  DispatchActivation(p.kv_a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    LatentWriteKernel<T><<<static_cast<unsigned>(p.kv_a.rows()), kThreads, RecordSharedBytes(p.cache), stream>>>(args);
  });
  CheckLaunch("LatentWrite");
}

void LaunchGqaWrite(const GqaWriteParams& p, cudaStream_t stream) {
  DispatchActivation(p.k.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    GqaWriteKernel<T><<<static_cast<unsigned>(p.k.tokens), kThreads, RecordSharedBytes(p.cache), stream>>>(
        p.k, p.v, p.slots, MakeDeviceCache(p.cache));
  });
  CheckLaunch("GqaWrite");
}

void LaunchLatentGather(const LatentGatherParams& p, cudaStream_t stream) {
  DispatchActivation(p.out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    LatentGatherKernel<T><<<static_cast<unsigned>(p.count), kThreads, 0, stream>>>(
        MakeDeviceCache(p.cache), p.block_table, p.begin, p.out.as<T>(), p.out.row_stride);
  });
  CheckLaunch("LatentGather");
}

}  // namespace latentmesh::cuda
