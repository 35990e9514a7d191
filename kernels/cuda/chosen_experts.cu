// Experts of one token or two (kernels/chosen_experts.h): the time is that of reading the chosen experts' weights once.
// Each multiprocessor runs one block: a warp that brings 16 weight rows at a time to a ring in shared memory with the
// bulk copy engine, and eight that multiply, sharing the columns out. The shared expert's weights, which no router
// decides about, fill the ring while earlier kernels still run, and the second launch's while the first one ends
// (programmatic dependent launch). Inputs are brought to shared memory first: read where they are needed they would put
// the L2's latency between one stage and the next.
#include <algorithm>

#include "kernels/chosen_experts.h"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/sm90.cuh"

namespace latentmesh {
namespace cuda {
namespace {

constexpr int kMostTokens = 2;                    // beyond, tokens share experts and rows are worth sorting
constexpr int kRows = 16, kPairRows = kRows / 2;  // weight rows of a unit: 8 of gate and 8 of up, or 16 of down
constexpr int kWarps = 8, kConsumers = kWarps * 32, kThreads = kConsumers + 32;
constexpr int kMostStages = 6, kLeastStages = 3, kStep = 32, kMaxColumns = 1024;
constexpr int kSteps = kMaxColumns / kStep / kWarps;  // of a warp in a stage
constexpr int kPitch = kMaxColumns * 2 + 64;          // bytes: neighbouring rows begin 16 banks apart
constexpr int kStageBytes = kRows * kPitch;
constexpr int kTokens = 8;                 // columns of the mma's result
constexpr int kSharedBudget = 216 * 1024;  // of stages and inputs; three stages of 768 columns, which let both launches share a multiprocessor, were slower
constexpr int kSumsReady = 1, kInputsReady = 2;  // named barriers

struct ExpertMatrices {
  const bf16 *gate, *up, *down;
  int64_t gate_stride, up_stride, down_stride;  // elements from expert to expert
  int width;
};

struct ChosenArgs {
  const bf16* x;
  int64_t x_stride;
  const int32_t* ids;
  const float* weights;
  const int32_t* live;
  ExpertMatrices routed, shared;
  int tokens, k, first, experts, hidden;
  bf16* inner;  // [tokens * k][width], then [tokens][shared width]
  bf16* out;
  int64_t out_stride;
  int64_t* loads;
  int stages[2];  // of either launch
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// 16 weight rows from one expert: rows[0] and rows[1] are eight each, `columns` numbers long.
struct Segment {
  int slot = -1;  // token * k + choice; -1: the shared expert
  int token = 0, expert = 0;
  const bf16* rows[2];
  int columns = 0;
};

// Whether the slot's expert is one of ours.
__device__ __forceinline__ bool Find(const ChosenArgs& p, int slot, Segment& s) {
  s.slot = slot;
  s.token = slot / p.k;
  s.expert = __ldcg(p.ids + slot) - p.first;
  return s.expert >= 0 && s.expert < p.experts && (p.live == nullptr || s.token < *p.live);
}

// Copies numbers that earlier kernels wrote to shared memory, by all consumers.
__device__ __forceinline__ void Bring(bf16* to, const bf16* from, int count) {
#pragma unroll 4
  for (int i = threadIdx.x; i < count / 8; i += kConsumers)
    reinterpret_cast<uint4*>(to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
}

// A unit: eight columns of one expert's hidden layer.
struct GateUpWalk {
  const ChosenArgs& p;
  int shared_units, each, units, unit, column = 0;
  Segment s;

  __device__ explicit GateUpWalk(const ChosenArgs& args)
      : p(args),
        shared_units(args.shared.width / kPairRows),
        each(args.routed.width / kPairRows),
        units(shared_units + args.tokens * args.k * each),
        unit(static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x)) {}
  __device__ bool NeedsIds() const { return unit + static_cast<int>(gridDim.x) >= shared_units; }  // for the next unit
  // The next unit that is ours.
  __device__ bool NextUnit() {
    for (unit += gridDim.x; unit < units; unit += gridDim.x) {
      s.slot = -1;
      const bool is_shared = unit < shared_units;
      const int rest = unit - shared_units;
      if (!is_shared && !Find(p, rest / each, s)) continue;
      const ExpertMatrices& m = is_shared ? p.shared : p.routed;
      column = (is_shared ? unit : rest % each) * kPairRows;
      const int64_t expert = is_shared ? 0 : s.expert, place = column * int64_t{p.hidden};
      s.rows[0] = m.gate + expert * m.gate_stride + place;
      s.rows[1] = m.up + expert * m.up_stride + place;
      s.columns = p.hidden;
      return true;
    }
    return false;
  }
  __device__ bool FirstSegment() { return true; }
  __device__ bool NextSegment() { return false; }
  __device__ void BringInputs(bf16* to) const {
    for (int t = 0; t < p.tokens; ++t) Bring(to + t * p.hidden, p.x + t * p.x_stride, p.hidden);
  }
  __device__ const bf16* Input(const bf16* inputs, int token) const {
    const bool mine = s.slot < 0 ? token < p.tokens : token == s.token;
    return mine ? inputs + token * p.hidden : nullptr;
  }
  __device__ float Weight() const { return 1.f; }
};

// A unit: sixteen columns of the result, one segment for each expert.
struct DownWalk {
  const ChosenArgs& p;
  int unit;
  Segment s;

  __device__ explicit DownWalk(const ChosenArgs& args)
      : p(args), unit(static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x)) {}
  __device__ bool NeedsIds() const { return false; }  // they are there: see Kernel
  __device__ bool NextUnit() { return (unit += gridDim.x) < p.hidden / kRows; }
  __device__ bool FirstSegment() {
    s.slot = -1;
    return p.shared.width > 0 ? Place(p.shared, 0) : NextSegment();
  }
  __device__ bool NextSegment() {
    for (int slot = s.slot + 1; slot < p.tokens * p.k; ++slot) {
      if (Find(p, slot, s)) return Place(p.routed, s.expert);
    }
    return false;
  }
  __device__ bool Place(const ExpertMatrices& m, int64_t expert) {
    s.rows[0] = m.down + expert * m.down_stride + unit * int64_t{kRows} * m.width;
    s.rows[1] = s.rows[0] + kPairRows * int64_t{m.width};
    s.columns = m.width;
    return true;
  }
  __device__ void BringInputs(bf16* to) const {  // those of choices that are not ours stay unwritten and unused
    Bring(to, p.inner, p.tokens * (p.k * p.routed.width + p.shared.width));
  }
  __device__ const bf16* Input(const bf16* inputs, int token) const {
    if (s.slot >= 0) return token == s.token ? inputs + s.slot * p.routed.width : nullptr;
    return token < p.tokens ? inputs + p.tokens * p.k * p.routed.width + token * p.shared.width : nullptr;
  }
  __device__ float Weight() const { return s.slot < 0 ? 1.f : __ldcg(p.weights + s.slot); }
};

struct Ring {
  uint64_t *full, *empty;
  char* memory;
  int stages;
  int stage = 0;
  uint32_t parity = 0;
  __device__ char* Memory() const { return memory + stage * kStageBytes; }
  __device__ void Next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Columns of a stage: a segment's in equal parts.
__device__ __forceinline__ int StageColumns(int columns) {
  const int parts = (columns + kMaxColumns - 1) / kMaxColumns;
  return ((columns + parts - 1) / parts + kStep - 1) / kStep * kStep;
}

// By one warp: lane r copies row r.
template <typename Walk>
__device__ void CopySegment(const Segment& s, Ring& ring) {
  const int lane = threadIdx.x % 32, most = StageColumns(s.columns);
  // not s.rows[...]: an index that is not known when compiling would move the whole walk to local memory
  const bf16* row = (lane / kPairRows % 2 == 0 ? s.rows[0] : s.rows[1]) + lane % kPairRows * int64_t{s.columns};
  for (int begin = 0; begin < s.columns; begin += most) {
    const int bytes = min(most, s.columns - begin) * 2;
    BarrierWait(&ring.empty[ring.stage], ring.parity ^ 1);
    if (lane == 0) BarrierExpect(&ring.full[ring.stage], kRows * bytes);
    __syncwarp();
    if (lane < kRows) CopyBytes(ring.Memory() + lane * kPitch, row + begin, bytes, &ring.full[ring.stage]);
    ring.Next();
  }
}

template <typename Walk>
__device__ void RunCopies(const ChosenArgs& p, Ring ring) {
  Walk walk(p);
  bool waited = false;
  while (true) {
    if (!waited && walk.NeedsIds()) {
      WaitForEarlierKernels();
      waited = true;
    }
    if (!walk.NextUnit()) return;
    for (bool more = walk.FirstSegment(); more; more = walk.NextSegment()) CopySegment<Walk>(walk.s, ring);
  }
}

// sums += weights x inputs over this warp's columns. A lane's 16 bytes of a row serve two mma steps, the inputs being
// read in the same order.
__device__ __forceinline__ void MultiplySegment(const Segment& s, const bf16* input, Ring& ring, float (&sums)[4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4,
            most = StageColumns(s.columns);
  for (int begin = 0; begin < s.columns; begin += most) {
    const int columns = min(most, s.columns - begin);
    BarrierWait(&ring.full[ring.stage], ring.parity);
    const char* memory = ring.Memory() + g * kPitch + c * 16;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int column = (warp + i * kWarps) * kStep;
      if (column >= columns) continue;
      const uint4 upper = *reinterpret_cast<const uint4*>(memory + column * 2),
                  lower = *reinterpret_cast<const uint4*>(memory + kPairRows * kPitch + column * 2);
      uint4 x = make_uint4(0, 0, 0, 0);
      if (input != nullptr) x = *reinterpret_cast<const uint4*>(input + begin + column + c * 8);
      const uint32_t a[4] = {upper.x, lower.x, upper.y, lower.y}, b[4] = {upper.z, lower.z, upper.w, lower.w};
      MmaBF16(sums, a, x.x, x.y);
      MmaBF16(sums, b, x.z, x.w);
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(&ring.empty[ring.stage]);
    ring.Next();
  }
}

using Sums = float[kWarps][kRows][kTokens];

__device__ __forceinline__ float Total(const Sums& sums, int row, int token) {
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][row][token];
  return total;
}

__device__ __forceinline__ void Store(const GateUpWalk& walk, const Sums& sums) {
  const ChosenArgs& p = walk.p;
  const Segment& s = walk.s;
  const int row = threadIdx.x % kPairRows, token = threadIdx.x / kPairRows;
  if (threadIdx.x == 0 && s.slot >= 0 && walk.column == 0 && p.loads != nullptr)
    atomicAdd(reinterpret_cast<unsigned long long*>(p.loads + s.expert), 1ull);
  if (token >= p.tokens || (s.slot >= 0 && token != s.token)) return;
  const float value = Silu(Total(sums, row, token)) * Total(sums, row + kPairRows, token);
  bf16* to = s.slot >= 0 ? p.inner + s.slot * int64_t{p.routed.width}
                         : p.inner + p.tokens * p.k * int64_t{p.routed.width} + token * int64_t{p.shared.width};
  to[walk.column + row] = FromFloat<bf16>(value);
}
__device__ __forceinline__ void Store(const DownWalk& walk, const Sums& sums) {
  const int row = threadIdx.x % kRows, token = threadIdx.x / kRows;
  if (token < walk.p.tokens)
    walk.p.out[token * walk.p.out_stride + walk.unit * kRows + row] = FromFloat<bf16>(Total(sums, row, token));
}

template <typename Walk>
__device__ void RunProducts(const ChosenArgs& p, Ring ring, bf16* inputs, Sums (&sums)[2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  Walk walk(p);
  walk.BringInputs(inputs);
  NamedSync(kInputsReady, kConsumers);
  for (int turn = 0; walk.NextUnit(); turn ^= 1) {  // while one unit's sums are read, the next one's are written
    float total[4] = {};
    for (bool more = walk.FirstSegment(); more; more = walk.NextSegment()) {
      float part[4] = {};
      const float weight = walk.Weight();
      MultiplySegment(walk.s, walk.Input(inputs, g), ring, part);
#pragma unroll
      for (int e = 0; e < 4; ++e) total[e] += weight * part[e];
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[turn][warp][g + e / 2 * kPairRows][c * 2 + e % 2] = total[e];
    NamedSync(kSumsReady, kConsumers);
    Store(walk, sums[turn]);
  }
}

#endif

// The next kernel is let go only when this one's wait is over: the second launch thereby finds ids and weights complete
// before its own wait, and copies chosen experts' weights.
template <bool kDown>
__global__ void __launch_bounds__(kThreads, 1) ChosenExpertsKernel(const __grid_constant__ ChosenArgs p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Walk = std::conditional_t<kDown, DownWalk, GateUpWalk>;
  extern __shared__ __align__(128) char memory[];
  __shared__ uint64_t full[kMostStages], empty[kMostStages];
  __shared__ Sums sums[2];
  if (threadIdx.x < kMostStages) {
    BarrierInit(&full[threadIdx.x], 1);
    BarrierInit(&empty[threadIdx.x], kWarps);
    BarrierInitFence();
  }
  __syncthreads();
  const Ring ring{full, empty, memory, p.stages[kDown]};
  if (threadIdx.x >= kConsumers) return RunCopies<Walk>(p, ring);
  WaitForEarlierKernels();
  LetNextKernelStart();
  RunProducts<Walk>(p, ring, reinterpret_cast<bf16*>(memory + p.stages[kDown] * kStageBytes), sums);
#endif
}

bool Dense(const WeightView& w, int64_t rows, int64_t cols) {
  return w.dtype == DType::kBF16 && w.rows == rows && w.cols == cols && IsAligned(w.data, 16);
}
bool Dense(const ExpertWeightsView& w, int64_t rows, int64_t cols) {
  return Dense(w.first, rows, cols) && w.data_stride % 16 == 0;
}
bool RowsAligned(const TensorView& t) {
  return t.dtype == DType::kBF16 && IsAligned(t.data, 16) && t.row_stride % 8 == 0;
}

ExpertMatrices Matrices(const ExpertWeightsView& gate, const ExpertWeightsView& up, const ExpertWeightsView& down) {
  auto data = [](const ExpertWeightsView& w) { return static_cast<const bf16*>(w.first.data); };
  return {data(gate),
          data(up),
          data(down),
          gate.data_stride / 2,
          up.data_stride / 2,
          down.data_stride / 2,
          static_cast<int>(gate.first.rows)};
}

// Of the inputs of either launch.
int64_t InputBytes(const ChosenExpertsParams& p, bool down) {
  return 2 * p.x.rows() * (down ? p.k * p.gate.first.rows + p.shared_gate.rows : p.x.cols());
}
int Stages(const ChosenExpertsParams& p, bool down) {
  return static_cast<int>(std::clamp<int64_t>((kSharedBudget - InputBytes(p, down)) / kStageBytes, 0, kMostStages));
}

template <bool kDown>
void Launch(const ChosenExpertsParams& p, const ChosenArgs& args, int64_t units, cudaStream_t stream) {
  const auto kernel = ChosenExpertsKernel<kDown>;
  const int bytes = args.stages[kDown] * kStageBytes + static_cast<int>(InputBytes(p, kDown));
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "ChosenExperts");
  LaunchAhead(kernel, static_cast<unsigned>(std::min<int64_t>(units, CurrentCard().multiprocessors)), kThreads,
              static_cast<size_t>(bytes), stream, args);
  CheckLaunch("ChosenExperts");
}

}  // namespace
}  // namespace cuda

bool ServesChosenExperts(const Device& device, const ChosenExpertsParams& p) {
  using namespace cuda;  // NOLINT: of this room
  if (device.kind() != DeviceKind::kCuda || !CurrentCard().hopper) return false;
  const int64_t tokens = p.x.rows(), hidden = p.x.cols(), width = p.gate.first.rows, shared = p.shared_gate.rows;
  const bool shape = tokens >= 1 && tokens <= kMostTokens && p.k >= 1 && p.gate.count >= 1 && hidden % kStep == 0 &&
                     width > 0 && width % kStep == 0 && shared % kStep == 0;
  if (!shape || !RowsAligned(p.x) || !RowsAligned(p.out) || !RowsAligned(p.scratch)) return false;
  if (!Dense(p.gate, width, hidden) || !Dense(p.up, width, hidden) || !Dense(p.down, hidden, width)) return false;
  if (shared > 0 && !(Dense(p.shared_gate, shared, hidden) && Dense(p.shared_up, shared, hidden) &&
                      Dense(p.shared_down, hidden, shared)))
    return false;
  return p.scratch.size() >= tokens * (p.k * width + shared) &&
         std::min(Stages(p, false), Stages(p, true)) >= kLeastStages;
}

void RunChosenExperts(const ChosenExpertsParams& p, Stream& stream) {
  using namespace cuda;  // NOLINT: of this room
  const int64_t tokens = p.x.rows(), width = p.gate.first.rows;
  const ExpertWeightsView shared[3] = {{p.shared_gate, 1, 0, 0}, {p.shared_up, 1, 0, 0}, {p.shared_down, 1, 0, 0}};
  const ChosenArgs args{p.x.as<bf16>(),
                        p.x.row_stride,
                        p.ids,
                        p.weights,
                        p.live_tokens,
                        Matrices(p.gate, p.up, p.down),
                        Matrices(shared[0], shared[1], shared[2]),
                        static_cast<int>(tokens),
                        p.k,
                        p.first,
                        p.gate.count,
                        static_cast<int>(p.x.cols()),
                        p.scratch.as<bf16>(),
                        p.out.as<bf16>(),
                        p.out.row_stride,
                        p.loads,
                        {Stages(p, false), Stages(p, true)}};
  Launch<false>(p, args, p.shared_gate.rows / kPairRows + tokens * p.k * width / kPairRows, Native(stream));
  Launch<true>(p, args, p.x.cols() / kRows, Native(stream));
}

}  // namespace latentmesh
