// Writing to and reading from the paged cache: latent norm + key rotation + record in one pass, baselines' keys and values,
// and records back as numbers. One block a token; the numbers pass through shared memory as floats.
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"

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
    for (int i = threadIdx.x; i < total; i += kThreads) reinterpret_cast<bf16*>(record)[i] = FromFloat<bf16>(numbers[i]);
    return;
  }
  const int groups = (cache.latent + kScaleGroup - 1) / kScaleGroup;
  for (int group = threadIdx.x / 32; group < groups; group += kThreads / 32) WriteLatentGroup(cache, record, group, numbers);
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
    const int first = latent + (p.interleaved ? 2 * pair : pair), second = latent + (p.interleaved ? 2 * pair + 1 : pair + half);
    const float a = ToFloat(row[first]), b = ToFloat(row[second]), c = angles[pair], s = angles[half + pair];
    numbers[first] = a * c - b * s;
    numbers[second] = a * s + b * c;
  }
  const float scale = rsqrtf(BlockReduce<SumOp>(squares, scratch) / latent + p.eps);
  for (int i = threadIdx.x; i < latent; i += kThreads) numbers[i] *= scale * p.norm_weight[i];
  __syncthreads();
  WriteRecord(p.cache, p.cache.Slot(slot), numbers);
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
    numbers[i] = ToFloat(static_cast<const T*>(from.data)[blockIdx.x * from.token_stride + j / dim * from.head_stride + j % dim]);
  }
  __syncthreads();
  WriteRecord(cache, cache.Slot(slot), numbers);
}

template <typename T>
__global__ void LatentGatherKernel(DeviceCache cache, const int32_t* block_table, int64_t begin, T* out, int64_t out_stride) {
  const char* record = cache.Slot(cache.SlotOf(block_table, static_cast<int>(begin + blockIdx.x)));
  T* row = out + blockIdx.x * out_stride;
  for (int i = threadIdx.x; i < cache.latent + cache.rope; i += kThreads) row[i] = FromFloat<T>(RecordNumber(cache, record, i));
}

int RecordSharedBytes(const CacheView& cache) {
  const int bytes = (cache.latent + cache.rope) * static_cast<int>(sizeof(float));
  LM_CHECK_MSG(bytes <= 48 * 1024, "cache records of " + std::to_string(cache.latent + cache.rope) + " numbers");
  return bytes;
}

}  // namespace

void LaunchLatentWrite(const LatentWriteParams& p, cudaStream_t stream) {
  const LatentWriteArgs args{p.kv_a.data, p.kv_a.row_stride, p.norm_weight.f32(), p.eps, p.positions, p.cos_sin.f32(),
                             p.cos_sin.row_stride, p.interleaved, p.slots, MakeDeviceCache(p.cache)};
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
