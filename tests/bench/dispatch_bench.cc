// dispatch_bench [TOKENS HIDDEN TOP_K EXPERTS [RANKS_PER_NODE]]: under mpirun, dispatch and combine of TOKENS tokens a rank, by
// messages and by nodes, in each type of rows. Checks the result and the bytes moved against the formula first; then times it
// against all ranks copying, each, (1) the bytes that it gets from others, (2) the bytes that any way must write.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/cpu/wire_rows.h"
#include "kernels/device.h"
#include "moe/dispatcher.h"
#include "parallel/bootstrap.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr int kRepeats = 7, kInner = 10;

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

// Milliseconds until all ranks are done, on rank 0; best of the repeats, and their median. kInner times between two barriers,
// because ranks leave a barrier at different times: where they share cores, all ranks' work counts in both things compared.
struct Times { double best, median; };

template <typename Body>
Times Measure(Rank& rank, Body body) {
  std::vector<double> times;
  for (int i = 0; i < kRepeats + 2; ++i) {
    rank.comms.world->Barrier(*rank.stream);
    int64_t begin = TraceClock();
    for (int n = 0; n < kInner; ++n) body();
    rank.comms.world->Barrier(*rank.stream);
    if (i >= 2) times.push_back(static_cast<double>(TraceClock() - begin) / 1e6 / kInner);   // the first ones touch fresh memory
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
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
  std::vector<float> x, weights;
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

// Bytes that a dispatch and combine with f32 activations writes at the least: tokens in the wire's type, a row for each
// (token, expert) before the experts, a result for each row received, and the sum of each token.
int64_t LeastBytesWritten(const Problem& p, DType payload, int64_t rows, int64_t slots) {
  auto out = static_cast<int64_t>(WireRowBytes({payload, p.hidden})), back = static_cast<int64_t>(WireRowBytes({ReturnType(payload), p.hidden}));
  return p.tokens * out + slots * p.hidden * 4 + rows * back + p.tokens * p.hidden * 4;
}

// The experts return their input, and weights sum to 1: the output is the input, up to the rounding of the payload.
double WorstError(const std::vector<float>& out, const std::vector<float>& x) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(out[i]) - x[i]));
  return worst;
}

double CopyTime(Rank& rank, int64_t bytes) {
  std::vector<char> from(static_cast<size_t>(std::max<int64_t>(bytes, 1)), 1), to(from.size());
  return Measure(rank, [&] { std::memcpy(to.data(), from.data(), from.size()); }).median;
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
  std::vector<float> out(tokens.x.size(), 0.0f);
  TensorView in(tokens.x.data(), DType::kF32, {problem.tokens, problem.hidden}), sum(out.data(), DType::kF32, {problem.tokens, problem.hidden});
  int64_t slots = 0;
  auto once = [&] {
    int rounds = dispatcher->Plan({in, tokens.ids.data(), tokens.weights.data(), problem.top_k, &placement}, *rank.stream);
    slots = 0;
    for (int round = 0; round < rounds; ++round) {
      DispatchHandle handle = dispatcher->Dispatch(round, *rank.stream);
      slots += handle.rows;
      dispatcher->Combine(handle, handle.sorted, sum, *rank.stream);
    }
  };
  TrafficCounters before = rank.comms.ep->traffic();
  once();
  TrafficCounters after = rank.comms.ep->traffic();
  auto moved = static_cast<int64_t>(after.bytes_sent - before.bytes_sent + after.bytes_shared - before.bytes_shared);
  int64_t formula = Formula(*dispatcher, mode, ranks), rows = dispatcher->last_volume().rows_sent + problem.tokens * problem.top_k / ranks;
  double error = WorstError(out, tokens.x), bound = mode.payload == DType::kF32 ? 1e-5 : mode.payload == DType::kBF16 ? 0.02 : 0.08;
  double exchange = Measure(rank, once).median, nothing = Measure(rank, [] {}).median;
  double copy = CopyTime(rank, moved), floor = CopyTime(rank, LeastBytesWritten(problem, mode.payload, rows, slots));
  if (rank.job.rank() != 0) return;
  std::printf("check %s (largest difference %.1e), bytes of rank 0 %.2f MB (formula %s) | %s %s, %d a node: %.2f ms; copy of these bytes %.2f ms, "
              "ratio %.2f; copy of the least bytes written %.2f ms, ratio %.2f; barriers %.2f ms\n",
              error <= bound ? "ok" : "FAILED", error, static_cast<double>(moved) / 1e6, moved == formula ? "equal" : "DIFFERENT",
              mode.per_node > 0 ? "by nodes" : "messages", DTypeName(mode.payload), mode.per_node, exchange, copy, exchange / copy, floor,
              exchange / floor, nothing);
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
