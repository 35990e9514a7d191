// Attention for any shape, type and cache format on the ordinary cores: one block keeps up to kRows query vectors in
// shared memory, brings kKeys keys at a time, and runs the online softmax (Milakov and Gimelshein 2018;
// FlashAttention). The three uses (latent, expanded, grouped-query) differ only in a Problem:
//   int rows, d_qk, d_v;  static constexpr bool kSharedValues (values are the first d_v numbers of the keys)
//   float Q(row, i);  float Key(j, i);  float Value(j, i);  bool Visible(row, j)
#pragma once

#include "kernels/cuda/device_math.cuh"

namespace latentmesh::cuda {

constexpr int kAttentionThreads = 256;
constexpr int kAttentionRows = 8;
constexpr int kAttentionKeys = 16;

inline int AttentionSharedBytes(int d_qk, int d_v, bool shared_values) {
  const int floats = kAttentionRows * (d_qk + 1) + kAttentionKeys * (d_qk + 1) +
                     (shared_values ? 0 : kAttentionKeys * d_v) + kAttentionRows * d_v +
                     kAttentionRows * kAttentionKeys + 3 * kAttentionRows;
  return floats * static_cast<int>(sizeof(float));
}

struct AttentionShared {
  float *q, *keys, *values, *acc, *p, *largest, *sum, *correction;
  int qk_pitch, v_pitch;

  __device__ AttentionShared(float* memory, int d_qk, int d_v, bool shared_values) {
    qk_pitch = d_qk + 1;  // odd for the usual even sizes, so that keys fall into different banks
    q = memory;
    keys = q + kAttentionRows * qk_pitch;
    values = shared_values ? keys : keys + kAttentionKeys * qk_pitch;
    v_pitch = shared_values ? qk_pitch : d_v;
    acc = keys + kAttentionKeys * qk_pitch + (shared_values ? 0 : kAttentionKeys * d_v);
    p = acc + kAttentionRows * d_v;
    largest = p + kAttentionRows * kAttentionKeys;
    sum = largest + kAttentionRows;
    correction = sum + kAttentionRows;
  }
};

template <typename Problem>
__device__ void LoadKeys(const Problem& problem, const AttentionShared& s, int begin, int count) {
  for (int i = threadIdx.x; i < count * problem.d_qk; i += kAttentionThreads) {
    s.keys[i / problem.d_qk * s.qk_pitch + i % problem.d_qk] = problem.Key(begin + i / problem.d_qk, i % problem.d_qk);
  }
  if constexpr (!Problem::kSharedValues) {
    for (int i = threadIdx.x; i < count * problem.d_v; i += kAttentionThreads) {
      s.values[i / problem.d_v * s.v_pitch + i % problem.d_v] = problem.Value(begin + i / problem.d_v, i % problem.d_v);
    }
  }
}

// One warp a (row, key) pair at a time, then one thread a row updates the running maximum and sum.
template <typename Problem>
__device__ void ScoreKeys(const Problem& problem, const AttentionShared& s, int begin, int count, float scale) {
  const int lane = threadIdx.x % 32;
  for (int pair = threadIdx.x / 32; pair < problem.rows * count; pair += kAttentionThreads / 32) {
    const int row = pair / count, j = pair % count;
    float dot = 0;
    for (int i = lane; i < problem.d_qk; i += 32) dot += s.q[row * s.qk_pitch + i] * s.keys[j * s.qk_pitch + i];
    dot = WarpReduce<SumOp>(dot);
    if (lane == 0) s.p[row * kAttentionKeys + j] = problem.Visible(row, begin + j) ? dot * scale : -INFINITY;
  }
  __syncthreads();
  const int row = threadIdx.x;
  if (row < problem.rows) {
    float largest = s.largest[row];
    for (int j = 0; j < count; ++j) largest = fmaxf(largest, s.p[row * kAttentionKeys + j]);
    const float base = largest == -INFINITY ? 0.f : largest;
    const float correction = __expf(s.largest[row] - base);
    float sum = s.sum[row] * correction;
    for (int j = 0; j < count; ++j) {
      float& p = s.p[row * kAttentionKeys + j];
      p = __expf(p - base);
      sum += p;
    }
    s.largest[row] = largest;
    s.sum[row] = sum;
    s.correction[row] = correction;
  }
  __syncthreads();
}

template <typename Problem>
__device__ void AddValues(const Problem& problem, const AttentionShared& s, int count) {
  for (int col = threadIdx.x; col < problem.d_v; col += kAttentionThreads) {
    float acc[kAttentionRows];
#pragma unroll
    for (int row = 0; row < kAttentionRows; ++row) {
      acc[row] = row < problem.rows ? s.acc[row * problem.d_v + col] * s.correction[row] : 0.f;
    }
    for (int j = 0; j < count; ++j) {
      const float value = s.values[j * s.v_pitch + col];
#pragma unroll
      for (int row = 0; row < kAttentionRows; ++row) {
        if (row < problem.rows) acc[row] += s.p[row * kAttentionKeys + j] * value;
      }
    }
#pragma unroll
    for (int row = 0; row < kAttentionRows; ++row) {
      if (row < problem.rows) s.acc[row * problem.d_v + col] = acc[row];
    }
  }
}

// Leaves unnormalised sums in s.acc, and s.largest and s.sum of every row.
template <typename Problem>
__device__ void Attend(const Problem& problem, const AttentionShared& s, int key_begin, int key_end, float scale) {
  for (int i = threadIdx.x; i < problem.rows * problem.d_qk; i += kAttentionThreads) {
    s.q[i / problem.d_qk * s.qk_pitch + i % problem.d_qk] = problem.Q(i / problem.d_qk, i % problem.d_qk);
  }
  for (int i = threadIdx.x; i < problem.rows * problem.d_v; i += kAttentionThreads) s.acc[i] = 0;
  if (threadIdx.x < problem.rows) {
    s.largest[threadIdx.x] = -INFINITY;
    s.sum[threadIdx.x] = 0;
  }
  for (int begin = key_begin; begin < key_end; begin += kAttentionKeys) {
    const int count = min(kAttentionKeys, key_end - begin);
    __syncthreads();
    LoadKeys(problem, s, begin, count);
    __syncthreads();
    ScoreKeys(problem, s, begin, count, scale);
    AddValues(problem, s, count);
  }
  __syncthreads();
}

// The row's result: 0 and -inf where no key was visible.
__device__ __forceinline__ float Normaliser(const AttentionShared& s, int row) {
  return s.sum[row] > 0 ? 1.f / s.sum[row] : 0.f;
}
__device__ __forceinline__ float LogSum(const AttentionShared& s, int row) {
  return s.sum[row] > 0 ? s.largest[row] + logf(s.sum[row]) : -INFINITY;
}

// The device's copies of ContextShard's arithmetic.
struct DeviceShard {
  int size, rank, block_size;
  __device__ int GlobalPosition(int local) const {
    return ((local / block_size) * size + rank) * block_size + local % block_size;
  }
  __device__ int LocalLength(int length) const {
    const int span = block_size * size, rest = length % span - rank * block_size;
    return length / span * block_size + min(max(rest, 0), block_size);
  }
};

}  // namespace latentmesh::cuda
