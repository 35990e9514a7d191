// dispatch_bench [TOKENS HIDDEN TOP_K EXPERTS [RANKS_PER_NODE]]: under mpirun, dispatch and combine of TOKENS tokens a rank, by
// messages and by nodes, in each type of rows. Checks the result and the bytes moved against the formula first; then times it
// in turn with all ranks copying, each, the bytes that it gets from others.
//
// Inside the time of a dispatch and combine are the choices and their exchange, tokens encoded, barriers, the experts' side and
// the sums added to the output. The experts' side by nodes is a stand-in for what the fused operations do to rows: each row
// received is decoded once, from where it lies, its sum over its experts is taken from the cache, and is written once into the
// window. By messages experts are nothing: the rows come sorted, and are taken for results as they are.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cpu/wire_rows.h"
#include "kernels/device.h"
#include "moe/dispatcher.h"
#include "parallel/bootstrap.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr int kRepeats = 7, kInner = 10;

// Memory as the program's tensors have it: at the beginning of a cache line.
template <typename T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const { return true; }
};
template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

struct Problem {
  int64_t tokens = 128, hidden = 7168;
  int32_t top_k = 8, experts = 256;
};

struct Rank {
  Job& job;
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Stream> stream;
  CommunicatorSet comms;
};

// Milliseconds of each body until all ranks are done, on rank 0: medians over rounds that run one after the other. kInner times
// between two barriers, because ranks leave a barrier at different times: where they share cores, all ranks' work counts in
// all things compared.
std::vector<double> Measure(Rank& rank, const std::vector<std::function<void()>>& bodies) {
  std::vector<std::vector<double>> times(bodies.size());
  for (int round = 0; round < kRepeats + 1; ++round) {
    for (size_t b = 0; b < bodies.size(); ++b) {
      rank.comms.world->Barrier(*rank.stream);
      int64_t begin = TraceClock();
      for (int n = 0; n < kInner; ++n) bodies[b]();
      rank.comms.world->Barrier(*rank.stream);
      if (round >= 1) times[b].push_back(static_cast<double>(TraceClock() - begin) / 1e6 / kInner);   // the first touches fresh memory
    }
  }
  std::vector<double> medians;
  for (std::vector<double>& t : times) {
    std::sort(t.begin(), t.end());
    medians.push_back(t[t.size() / 2]);
  }
  return medians;
}

// This rank's tokens and their experts: each token with top_k different ones, evenly drawn.
struct Tokens {
  Tokens(const Problem& problem, int seed) {
    std::mt19937 random(17 + static_cast<unsigned>(seed));
    x.resize(static_cast<size_t>(problem.tokens * problem.hidden));
    for (float& v : x) v = static_cast<float>(random() % 1000) / 1000;
    std::vector<int32_t> all(static_cast<size_t>(problem.experts));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < problem.tokens; ++t) {
      std::shuffle(all.begin(), all.end(), random);
      ids.insert(ids.end(), all.begin(), all.begin() + problem.top_k);
    }
    weights.assign(ids.size(), 1.0f / static_cast<float>(problem.top_k));
  }
  Lines<float> x;
  std::vector<float> weights;
  std::vector<int32_t> ids;
};

struct Mode {
  DType payload;
  int per_node;                            // 0: messages only
};

int64_t Formula(const TokenDispatcher& dispatcher, const Mode& mode, int ranks) {
  DispatchVolume volume = dispatcher.last_volume();
  if (mode.per_node == 0) return DispatchBytes(volume, dispatcher.limits(), ranks).total();
  return NodeDispatchBytes(volume, dispatcher.limits(), ranks).total() + NodeSharedBytes(volume, dispatcher.limits());
}

// What experts do to rows in place, without the multiplication: they return their input.
class StandIn {
 public:
  explicit StandIn(int64_t hidden) : row_(static_cast<size_t>(hidden)) {}

  // With `each`, a row is first read again for each of its experts, as the fused operation does.
  TensorView Run(const DispatchHandle& handle, bool each) {
    if (!handle.in_place()) return handle.sorted;
    const WireFormat format{handle.scattered.dtype, handle.scattered.cols};
    auto at = [&](int64_t row) { return static_cast<const char*>(handle.scattered.rows[row]); };
    for (int64_t i = 0; each && i < handle.rows; ++i)
      DecodeWireRow(at(handle.source[i]), format, row_.data(), i + 1 < handle.rows ? at(handle.source[i + 1]) : nullptr);
    GroupByRow(handle);
    const std::vector<const void*> rows(static_cast<size_t>(handle.experts), row_.data());
    const TensorView& out = handle.results;
    const bool stream = OutgrowsCaches(out);
    for (int64_t r = 0; r < out.dim(0); ++r) {
      DecodeWireRow(at(r), format, row_.data(), r + 1 < out.dim(0) ? at(r + 1) : nullptr);
      auto begin = static_cast<size_t>(begin_[static_cast<size_t>(r)]);
      int count = begin_[static_cast<size_t>(r) + 1] - begin_[static_cast<size_t>(r)];
      SumWireRows({rows.data(), weight_.data() + begin, count, DType::kF32, out.dtype,
                   out.as<char>() + static_cast<size_t>(r * out.row_stride) * DTypeSize(out.dtype), format.hidden, false, stream});
    }
    EndStreamedSums();
    return out;
  }

 private:
  void GroupByRow(const DispatchHandle& handle) {
    begin_.assign(static_cast<size_t>(handle.results.dim(0)) + 1, 0);
    for (int64_t i = 0; i < handle.rows; ++i) ++begin_[static_cast<size_t>(handle.source[i]) + 1];
    std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
    std::vector<int32_t> next(begin_);
    weight_.resize(static_cast<size_t>(handle.rows));
    for (int64_t i = 0; i < handle.rows; ++i)
      weight_[static_cast<size_t>(next[static_cast<size_t>(handle.source[i])]++)] = handle.slot_weights[i];
  }
  Lines<float> row_;
  std::vector<float> weight_;
  std::vector<int32_t> begin_;
};

// Bytes that any way by nodes reads and writes at the least: tokens read and encoded, rows read and results written, results
// read, outputs read and written.
int64_t LeastBytes(const Problem& p, DType payload, int64_t rows) {
  auto out = static_cast<int64_t>(WireRowBytes({payload, p.hidden})), back = static_cast<int64_t>(WireRowBytes({ReturnType(payload), p.hidden}));
  return p.tokens * (p.hidden * 4 + out) + rows * (out + back) + rows * back + p.tokens * p.hidden * 8;
}

// Copies so many bytes from one place to another; Next takes other places each time, so that they come from memory and not,
// with little to copy, from the caches.
class Copies {
 public:
  explicit Copies(int64_t bytes) : bytes_(static_cast<size_t>(bytes)), memory_(std::max(size_t{1} << 27, 2 * bytes_), 1) {}
  void Again() { std::memcpy(memory_.data() + memory_.size() - bytes_, memory_.data(), bytes_); }
  void Next() {
    if (at_ + 2 * bytes_ > memory_.size()) at_ = 0;
    std::memcpy(memory_.data() + at_ + bytes_, memory_.data() + at_, bytes_);
    at_ += 2 * bytes_;
  }

 private:
  size_t bytes_, at_ = 0;
  Lines<char> memory_;
};

// The experts return their input, and weights sum to 1: the output is the input, up to the rounding of the payload.
double WorstError(const Lines<float>& out, const Lines<float>& x) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(out[i]) - x[i]));
  return worst;
}

void Run(Rank& rank, const Problem& problem, const Mode& mode) {
  int ranks = rank.job.size();
  ExpertPlacement placement = ExpertPlacement::Contiguous(problem.experts, ranks);
  DispatchLimits limits;
  limits.max_tokens = problem.tokens;
  limits.hidden = problem.hidden;
  limits.top_k = problem.top_k;
  limits.max_local_experts = placement.MaxLocalCount();
  limits.payload = mode.payload;
  limits.ranks_per_node = mode.per_node;
  auto dispatcher = mode.per_node > 0 ? CreateNodeDispatcher(*rank.ops, *rank.comms.ep, limits)
                                      : CreateExactDispatcher(*rank.ops, *rank.comms.ep, limits);
  Tokens tokens(problem, rank.job.rank());
  Lines<float> out(tokens.x.size(), 0.0f);
  TensorView in(tokens.x.data(), DType::kF32, {problem.tokens, problem.hidden}), sum(out.data(), DType::kF32, {problem.tokens, problem.hidden});
  StandIn experts(problem.hidden);
  auto exchange = [&](bool each) {
    int rounds = dispatcher->Plan({in, tokens.ids.data(), tokens.weights.data(), problem.top_k, &placement}, *rank.stream);
    for (int round = 0; round < rounds; ++round) {
      DispatchHandle handle = dispatcher->Dispatch(round, *rank.stream);
      dispatcher->Combine(handle, experts.Run(handle, each), sum, *rank.stream);
    }
  };
  TrafficCounters before = rank.comms.ep->traffic();
  exchange(false);
  TrafficCounters after = rank.comms.ep->traffic();
  auto moved = static_cast<int64_t>(after.bytes_sent - before.bytes_sent + after.bytes_shared - before.bytes_shared);
  int64_t formula = Formula(*dispatcher, mode, ranks);
  double error = WorstError(out, tokens.x), bound = mode.payload == DType::kF32 ? 1e-5 : mode.payload == DType::kBF16 ? 0.02 : 0.08;
  Copies copies(moved);
  std::vector<double> ms = Measure(rank, {[&] { exchange(false); }, [&] { copies.Next(); }, [&] { exchange(true); },
                                          [&] { copies.Again(); }});
  if (rank.job.rank() != 0) return;
  std::printf("check %s (largest difference %.1e), bytes of rank 0 %.2f MB (formula %s) | %s %s, %d a node: %.2f ms; copy %.2f ms, "
              "ratio %.2f; of the same bytes again %.2f ms",
              error <= bound ? "ok" : "FAILED", error, static_cast<double>(moved) / 1e6, moved == formula ? "equal" : "DIFFERENT",
              mode.per_node > 0 ? "by nodes" : "messages", DTypeName(mode.payload), mode.per_node, ms[0], ms[1], ms[0] / ms[1], ms[3]);
  if (mode.per_node == ranks) {
    int64_t rows = dispatcher->last_volume().shared_rows_read + problem.tokens * problem.top_k / ranks;
    std::printf("; least bytes over the copy's %.2f; rows read again for each expert %.2f ms, ratio %.2f",
                static_cast<double>(LeastBytes(problem, mode.payload, rows)) / (2.0 * static_cast<double>(moved)), ms[2], ms[2] / ms[1]);
  }
  std::printf("\n");
}

int Main(int argc, char** argv) {
  auto job = Job::Join(&argc, &argv);
  if (!job.ok()) return 2;
  Problem problem;
  if (argc > 4) problem = {std::atoll(argv[1]), std::atoll(argv[2]), std::atoi(argv[3]), std::atoi(argv[4])};
  DeviceOptions options;
  options.threads = 1;
  Rank rank{**job, CreateDevice(DeviceKind::kCpu, options).value(), nullptr, nullptr, {}};
  rank.ops = CreateOps(*rank.device);
  rank.stream = rank.device->CreateStream();
  int size = rank.job.size();
  ParallelConfig layout{1, size, 1, 1};
  auto mesh = ProcessMesh::Create(layout, size, rank.job.rank());
  rank.comms = rank.job.CreateCommunicators(mesh.value(), *rank.device).value();
  if (rank.job.rank() == 0)
    std::printf("%d ranks, %lld tokens each, hidden %lld, %d of %d experts\n", size, static_cast<long long>(problem.tokens),
                static_cast<long long>(problem.hidden), problem.top_k, problem.experts);
  for (DType payload : {DType::kF32, DType::kBF16}) Run(rank, problem, {payload, 0});
  int per_node = argc > 5 ? std::atoi(argv[5]) : rank.job.local_size();
  if (per_node < 1 || size % per_node != 0) per_node = 1;
  for (DType payload : {DType::kF32, DType::kBF16, DType::kF8E4M3}) Run(rank, problem, {payload, per_node});
  return 0;
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Main(argc, argv); }
