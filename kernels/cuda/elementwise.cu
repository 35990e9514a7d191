// Embedding look-up, addition, casts, bias, SiLU: one thread a pack of numbers, 16 bytes where alignment allows.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256;

bool RowsAligned(const TensorView& t, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(DTypeSize(t.dtype));
  return IsAligned(t.data, bytes) && t.row_stride % count == 0 && t.cols() % count == 0;
}

// Calls f(row, first column) for every pack of V columns of a [rows, cols] matrix.
template <int V, typename F>
__global__ void EachPack(int64_t rows, int64_t cols, F f) {
  const int64_t packs = cols / V, total = rows * packs;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += gridDim.x * int64_t{kThreads}) {
    f(i / packs, i % packs * V);
  }
}

template <int V, typename F>
void LaunchEachPack(int64_t rows, int64_t cols, F f, cudaStream_t stream) {
  const int64_t blocks = CeilDiv(rows * (cols / V), kThreads);
  const int64_t most = int64_t{CurrentCard().multiprocessors} * 16;
  EachPack<V, F><<<static_cast<unsigned>(std::min(blocks, most)), kThreads, 0, stream>>>(rows, cols, f);
}

template <typename A, typename B, int V>
struct EmbedRow {
  const int32_t* ids;
  const A* table;
  int64_t table_stride, vocab_begin, vocab_rows;
  B* out;
  int64_t out_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const int64_t id = ids[row] - vocab_begin;
    Pack<B, V> to{};
    if (id >= 0 && id < vocab_rows) {
      const Pack<A, V> from = LoadPack<A, V>(table + id * table_stride + col);
#pragma unroll
      for (int i = 0; i < V; ++i) to.v[i] = FromFloat<B>(ToFloat(from.v[i]));
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) to.v[i] = FromFloat<B>(0.f);
    }
    StorePack<B, V>(out + row * out_stride + col, to);
  }
};

// out = f(out, x), or f(x) alone when Op ignores its second argument.
struct AddNumbers {
  __device__ float operator()(float inout, float x) const { return inout + x; }
};
struct TakeNumber {
  __device__ float operator()(float, float x) const { return x; }
};
struct SiluTimes {
  __device__ float operator()(float inout, float x) const { return Silu(inout) * x; }
};

template <typename A, typename B, int V, typename Op>
struct CombineInto {
  const A* x;
  int64_t x_stride;
  B* inout;
  int64_t inout_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const Pack<A, V> from = LoadPack<A, V>(x + row * x_stride + col);
    B* place = inout + row * inout_stride + col;
    Pack<B, V> to = LoadPack<B, V>(place);
#pragma unroll
    for (int i = 0; i < V; ++i) to.v[i] = FromFloat<B>(Op()(ToFloat(to.v[i]), ToFloat(from.v[i])));
    StorePack<B, V>(place, to);
  }
};

template <typename Op>
void LaunchCombineInto(const TensorView& x, int64_t x_stride, const TensorView& inout, cudaStream_t stream) {
  DispatchActivation(x.dtype, [&](auto a) {
    DispatchActivation(inout.dtype, [&](auto b) {
      using A = typename decltype(a)::type;
      using B = typename decltype(b)::type;
      constexpr int kV = sizeof(A) == 2 && sizeof(B) == 2 ? 8 : 4;
      const bool wide = RowsAligned(x, kV) && RowsAligned(inout, kV) && x_stride % kV == 0;
      if (wide) {
        LaunchEachPack<kV>(inout.rows(), inout.cols(),
                           CombineInto<A, B, kV, Op>{x.as<A>(), x_stride, inout.as<B>(), inout.row_stride}, stream);
      } else {
        LaunchEachPack<1>(inout.rows(), inout.cols(),
                          CombineInto<A, B, 1, Op>{x.as<A>(), x_stride, inout.as<B>(), inout.row_stride}, stream);
      }
    });
  });
}

}  // namespace

void LaunchEmbed(const EmbedParams& p, cudaStream_t stream) {
  DispatchWeight(p.table.dtype, [&](auto a) {
    DispatchActivation(p.out.dtype, [&](auto b) {
      using A = typename decltype(a)::type;
      using B = typename decltype(b)::type;
      if constexpr (sizeof(A) > 1) {
        constexpr int kV = sizeof(A) == 2 && sizeof(B) == 2 ? 8 : 4;
        const int64_t rows = p.table.rows();
        if (RowsAligned(p.table, kV) && RowsAligned(p.out, kV)) {
          EmbedRow<A, B, kV> f{p.ids, p.table.as<A>(), p.table.row_stride, p.vocab_begin,
                               rows,  p.out.as<B>(),   p.out.row_stride};
          LaunchEachPack<kV>(p.tokens, p.out.cols(), f, stream);
        } else {
          EmbedRow<A, B, 1> f{p.ids, p.table.as<A>(), p.table.row_stride, p.vocab_begin,
                              rows,  p.out.as<B>(),   p.out.row_stride};
          LaunchEachPack<1>(p.tokens, p.out.cols(), f, stream);
        }
      } else {
        CheckFailed(__FILE__, __LINE__, "embedding table",
                    "FP8 tables have no scales here: convert the table when loading");
      }
    });
  });
  CheckLaunch("Embed");
}

void LaunchAdd(const AddParams& p, cudaStream_t stream) {
  LaunchCombineInto<AddNumbers>(p.x, p.x.row_stride, p.inout, stream);
  CheckLaunch("Add");
}

void LaunchCast(const CastParams& p, cudaStream_t stream) {
  LaunchCombineInto<TakeNumber>(p.x, p.x.row_stride, p.out, stream);
  CheckLaunch("Cast");
}

void LaunchAddBias(const TensorView& bias, const TensorView& inout, cudaStream_t stream) {
  LaunchCombineInto<AddNumbers>(bias, 0, inout, stream);
  CheckLaunch("AddBias");
}

void LaunchSiluMul(const TensorView& up, const TensorView& inout, cudaStream_t stream) {
  LaunchCombineInto<SiluTimes>(up, up.row_stride, inout, stream);
  CheckLaunch("SiluMul");
}

}  // namespace latentmesh::cuda
