// Choice of tokens on the card: the likeliest of each row over many blocks, then one block a row for greedy answers and
// draws. Thresholds of top_k and top_p are found by narrowing a range of logits sixteenfold a pass; sums are made in one
// fixed order, so that a seed gives the same token every time.
#include <algorithm>
#include <cfloat>
#include <climits>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/token_sampler.h"

namespace latentmesh {
namespace cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32, kBins = 16;

// Floats as integers of the same order, 0 for NaN; -0 is 0.
__device__ __forceinline__ uint32_t Key(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  if (logit != logit) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float LogitOf(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
__device__ __forceinline__ uint64_t PackBest(float logit, int64_t id) {
  const uint32_t key = Key(logit);
  return key == 0 ? 0 : uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

struct RowArgs {
  const float* logits;
  int64_t stride, rows, first_row, vocab, vocab_begin, count;
  const SampleSpec* specs;

  // The row of a sample, or nullptr when it is not among these.
  __device__ const float* Row(int64_t sample) const {
    const int64_t row = specs[sample].row - first_row;
    return specs[sample].row < 0 || row < 0 || row >= rows ? nullptr : logits + row * stride;
  }
};

__device__ __forceinline__ uint64_t WarpMax(uint64_t v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}
__device__ __forceinline__ double WarpSum(double v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

constexpr int kBestThreads = 256;
__global__ void __launch_bounds__(kBestThreads) BestKernel(RowArgs p, unsigned long long* best) {
  const int64_t sample = blockIdx.y;
  const float* row = p.Row(sample);
  if (row == nullptr) return;
  uint64_t mine = 0;
  const int64_t each = (p.vocab + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each, end = min(begin + each, p.vocab);
#pragma unroll 4
  for (int64_t id = begin + threadIdx.x; id < end; id += kBestThreads) mine = max(mine, PackBest(row[id], p.vocab_begin + id));
  mine = WarpMax(mine);
  if (threadIdx.x % 32 == 0 && mine != 0) atomicMax(best + sample, mine);
}

// The tokens that may still be drawn: those above a key, and of those at it the first by id.
struct Kept {
  uint32_t key;
  int32_t last_id;
};

struct DrawShared {
  double sums[kWarps];
  double bins[kWarps][kBins];
  int counts[kWarps];
  double total, base;
  uint32_t low;
  int bin, found;
  uint64_t high;
};

class Drawing {
 public:
  __device__ Drawing(const float* row, int64_t vocab, const SampleSpec& spec, uint32_t best_key, int32_t best_id, DrawShared& s)
      : row_(row), vocab_(vocab), s_(s), best_key_(best_key), best_id_(best_id), best_(LogitOf(best_key)),
        scale_(1.0 / spec.temperature), min_p_(spec.min_p) {
    const double least = max(-50.0, log(static_cast<double>(spec.min_p)));
    floor_ = best_ + static_cast<double>(spec.temperature) * least * (1 + 1e-9) - 1e-30;
  }

  __device__ int32_t Run(const SampleSpec& spec) {
    Kept kept{1, INT_MAX};
    if (spec.top_k > 0 && spec.top_k < vocab_) kept = Shrink(kept, spec.top_k, false);
    if (spec.top_p < 1) {
      SumByWarp(kept);
      kept = Shrink(kept, static_cast<double>(spec.top_p) * s_.total, true);
    }
    SumByWarp(kept);
    return Walk(kept, spec.uniform * s_.total);
  }

 private:
  __device__ double Weight(float logit) const { return exp((static_cast<double>(logit) - best_) * scale_); }
  __device__ bool Inside(const Kept& kept, uint32_t key, int32_t id) const {
    return key > kept.key || (key == kept.key && id <= kept.last_id);
  }
  // What a token weighs in the draw; 0: it cannot be drawn.
  __device__ double DrawWeight(const Kept& kept, int32_t id) const {
    const float logit = row_[id];
    const uint32_t key = Key(logit);
    if (key == 0 || logit < floor_ || !Inside(kept, key, id)) return 0;
    const double weight = Weight(logit);
    return weight < min_p_ && id != best_id_ ? 0 : weight;
  }

  // Warp w looks after ids [w, w + 1) x chunk.
  __device__ int64_t Chunk() const { return (vocab_ + kWarps - 1) / kWarps; }

  // Weights of each warp's run of ids into s_.sums, their sum into s_.total.
  __device__ void SumByWarp(const Kept& kept) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t begin = warp * Chunk(), end = min(begin + Chunk(), vocab_);
    double sum = 0;
#pragma unroll 4
    for (int64_t id = begin + lane; id < end; id += 32) sum += DrawWeight(kept, static_cast<int32_t>(id));
    sum = WarpSum(sum);
    __syncthreads();
    if (lane == 0) s_.sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      s_.total = 0;
      for (int w = 0; w < kWarps; ++w) s_.total += s_.sums[w];
    }
    __syncthreads();
  }

  // The fewest of the likeliest kept tokens whose number, or weight, reaches `target`.
  __device__ Kept Shrink(const Kept& kept, double target, bool weigh) {
    uint64_t low = 1, high = uint64_t{best_key_} + 1;   // the threshold's key lies in [low, high)
    double base = 0;                                    // of the keys from `high` on
    double at_low = 0;
    if (weigh) low = max(Key(static_cast<float>(floor_)), 1u) - 1;
    while (true) {
      int shift = 0;
      while ((high - low - 1) >> shift >= kBins) ++shift;
      Histogram(kept, low, high, shift, weigh);
      if (threadIdx.x == 0) {
        int bin = kBins - 1;
        double sum = base;
        while (bin > 0 && sum + s_.bins[0][bin] < target) sum += s_.bins[0][bin--];
        s_.bin = bin;
        s_.base = sum;
        s_.total = s_.bins[0][bin];
      }
      __syncthreads();
      base = s_.base;
      at_low = s_.total;
      low += uint64_t{static_cast<uint32_t>(s_.bin)} << shift;
      high = min(high, low + (uint64_t{1} << shift));
      __syncthreads();
      if (shift == 0) break;
    }
    return Ties(kept, static_cast<uint32_t>(low), base, at_low, target, weigh);
  }

  // Sums over bins of 2^shift keys of [low, high) into s_.bins[0].
  __device__ void Histogram(const Kept& kept, uint64_t low, uint64_t high, int shift, bool weigh) {
    double mine[kBins] = {};
    for (int64_t id = threadIdx.x; id < vocab_; id += kThreads) {
      const uint32_t key = Key(row_[id]);
      if (key < low || key >= high || key == 0) continue;
      const double weight = weigh ? DrawWeight(kept, static_cast<int32_t>(id)) : 1.0;
      const int bin = static_cast<int>((key - low) >> shift);
#pragma unroll
      for (int b = 0; b < kBins; ++b) mine[b] += b == bin ? weight : 0.0;
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < kBins; ++b) {
      const double sum = WarpSum(mine[b]);
      if (lane == 0) s_.bins[warp][b] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kBins) {
      double sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += s_.bins[w][threadIdx.x];
      s_.bins[0][threadIdx.x] = sum;
    }
    __syncthreads();
  }

  // Of equal tokens at the threshold as many as are needed, those with small ids.
  __device__ Kept Ties(const Kept& kept, uint32_t key, double base, double at_key, double target, bool weigh) {
    const double each = weigh ? Weight(LogitOf(key)) : 1.0;
    const int64_t equal = llrint(at_key / each);
    int64_t needed = max(1LL, static_cast<long long>(ceil((target - base) / each)));
    while (needed > 1 && base + (needed - 1) * each >= target) --needed;
    const Kept all{key, key == kept.key ? kept.last_id : INT_MAX};
    if (needed >= equal) return all;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t seen = 0;
    for (int64_t begin = 0; begin < vocab_; begin += kThreads) {
      const int64_t id = begin + threadIdx.x;
      const bool here = id < vocab_ && Key(row_[id]) == key && id <= all.last_id;
      const unsigned mask = __ballot_sync(0xffffffffu, here);
      if (lane == 0) s_.counts[warp] = __popc(mask);
      __syncthreads();
      int64_t before = seen, sum = 0;
      for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? s_.counts[w] : 0;
        sum += s_.counts[w];
      }
      if (here && before + __popc(mask & ((2u << lane) - 1)) == needed) s_.found = static_cast<int>(id);
      __syncthreads();
      seen += sum;
      if (seen >= needed) break;
    }
    return {key, s_.found};
  }

  // The token where the sum over ids passes `left`; s_.sums are those of `kept`.
  __device__ int32_t Walk(const Kept& kept, double left) {
    int chunk = 0, last = 0;
    for (int w = 0; w < kWarps; ++w) last = s_.sums[w] > 0 ? w : last;
    while (chunk < last && left >= s_.sums[chunk]) left -= s_.sums[chunk++];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp != chunk) return -1;
    const int64_t begin = warp * Chunk(), end = min(begin + Chunk(), vocab_);
    int32_t candidate = best_id_;
    for (int64_t at = begin; at < end; at += 32) {
      const int64_t id = at + lane;
      const double weight = id < end ? DrawWeight(kept, static_cast<int32_t>(id)) : 0;
      double sum = weight;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += other;
      }
      const unsigned hit = __ballot_sync(0xffffffffu, weight > 0 && left < sum);
      if (hit != 0) return static_cast<int32_t>(at + __ffs(hit) - 1);
      const unsigned possible = __ballot_sync(0xffffffffu, weight > 0);
      if (possible != 0) candidate = static_cast<int32_t>(at + 31 - __clz(possible));
      left -= __shfl_sync(0xffffffffu, sum, 31);
    }
    return candidate;   // rounding only
  }

  const float* row_;
  int64_t vocab_;
  DrawShared& s_;
  uint32_t best_key_;
  int32_t best_id_;
  double best_, scale_, floor_;
  float min_p_;
};

__global__ void __launch_bounds__(kThreads) ChooseKernel(RowArgs p, const BestToken* best, int parts, int32_t* ids) {
  __shared__ DrawShared shared;
  const int64_t sample = blockIdx.x;
  const float* row = p.Row(sample);
  if (row == nullptr) return;
  uint64_t first = 0;
  for (int part = 0; part < parts; ++part) first = max(first, best[part * p.count + sample].packed);
  const uint32_t key = static_cast<uint32_t>(first >> 32);
  const int32_t id = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(first));
  const SampleSpec spec = p.specs[sample];
  if (key < Key(-FLT_MAX) || spec.temperature < kGreedyTemperature || key > Key(FLT_MAX)) {
    if (threadIdx.x == 0) ids[sample] = key < Key(-FLT_MAX) ? -1 : id;
    return;
  }
  Drawing drawing(row, p.vocab, spec, key, id, shared);
  const int32_t drawn = drawing.Run(spec);
  if (drawn >= 0 && threadIdx.x % 32 == 0) ids[sample] = drawn;
}

class CudaTokenSampler : public TokenSampler {
 public:
  explicit CudaTokenSampler(CudaDevice& device) : device_(device) {}

  void Best(const SampleRows& rows, BestToken* best, Stream& stream) override {
    if (rows.count == 0) return;
    const RowArgs args = Args(rows);
    device_.MakeCurrent();
    Check(cudaMemsetAsync(best, 0, static_cast<size_t>(rows.count) * sizeof(BestToken), Native(stream)), "cudaMemsetAsync");
    if (args.vocab == 0) return;
    const int64_t splits = std::clamp<int64_t>(CeilDiv(int64_t{CurrentCard().multiprocessors} * 4, rows.count), 1,
                                               CeilDiv(args.vocab, 4 * kBestThreads));
    const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(rows.count));
    BestKernel<<<grid, kBestThreads, 0, Native(stream)>>>(args, reinterpret_cast<unsigned long long*>(best));
    CheckLaunch("Best");
  }

  void Choose(const SampleRows& rows, const BestToken* best, int parts, int32_t* ids, Stream& stream) override {
    if (rows.count == 0) return;
    device_.MakeCurrent();
    ChooseKernel<<<static_cast<unsigned>(rows.count), kThreads, 0, Native(stream)>>>(Args(rows), best, parts, ids);
    CheckLaunch("Choose");
  }

 private:
  static RowArgs Args(const SampleRows& p) {
    LM_CHECK(p.logits.dtype == DType::kF32 && p.count <= 65535);
    return {p.logits.f32(), p.logits.row_stride, p.logits.dim(0), p.first_row, p.logits.cols(), p.vocab_begin, p.count,
            p.specs};
  }

  CudaDevice& device_;
};

}  // namespace
}  // namespace cuda

std::unique_ptr<TokenSampler> CreateCudaTokenSampler(Device& device) {
  LM_CHECK(device.kind() == DeviceKind::kCuda);
  return std::make_unique<cuda::CudaTokenSampler>(static_cast<cuda::CudaDevice&>(device));
}

}  // namespace latentmesh
