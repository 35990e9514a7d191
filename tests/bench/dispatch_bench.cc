// dispatch_bench [TOKENS HIDDEN TOP_K EXPERTS]: under mpirun, dispatch and combine of TOKENS tokens a rank, against the time
// of copying the bytes that this moves. Counts the bytes on the wire and compares them with the formula.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

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

void Run(Rank& rank, const Problem& problem, DType payload) {
  int ranks = rank.job.size();
  DispatchLimits limits;
  limits.max_tokens = problem.tokens;
  limits.hidden = problem.hidden;
  limits.top_k = problem.top_k;
  ExpertPlacement placement = ExpertPlacement::Contiguous(problem.experts, ranks);
  limits.max_local_experts = placement.MaxLocalCount();
  limits.payload = payload;
  auto dispatcher = CreateExactDispatcher(*rank.ops, *rank.comms.ep, limits);
  std::mt19937 random(17 + static_cast<unsigned>(rank.job.rank()));
  std::vector<float> x(static_cast<size_t>(problem.tokens * problem.hidden)), out(x.size());
  for (float& v : x) v = static_cast<float>(random() % 1000) / 1000;
  std::vector<int32_t> ids, all(static_cast<size_t>(problem.experts));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < problem.tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + problem.top_k);
  }
  std::vector<float> weights(ids.size(), 1.0f / static_cast<float>(problem.top_k));
  TensorView in(x.data(), DType::kF32, {problem.tokens, problem.hidden}), sum(out.data(), DType::kF32, {problem.tokens, problem.hidden});
  auto once = [&] {
    int rounds = dispatcher->Plan({in, ids.data(), weights.data(), problem.top_k, &placement}, *rank.stream);
    for (int round = 0; round < rounds; ++round) {
      DispatchHandle handle = dispatcher->Dispatch(round, *rank.stream);
      dispatcher->Combine(handle, handle.sorted, sum, *rank.stream);
    }
  };
  uint64_t before = rank.comms.ep->traffic().bytes_sent;
  once();
  auto sent = static_cast<int64_t>(rank.comms.ep->traffic().bytes_sent - before);
  int64_t formula = DispatchBytes(dispatcher->last_volume(), dispatcher->limits(), ranks).total();
  Times exchange = Measure(rank, once);
  std::vector<char> from(static_cast<size_t>(std::max<int64_t>(sent, 1)), 1), to(from.size());
  Times nothing = Measure(rank, [] {});
  Times copy = Measure(rank, [&] { std::memcpy(to.data(), from.data(), from.size()); });
  if (rank.job.rank() != 0) return;
  std::printf("%s payload: %lld bytes sent by rank 0 (formula %lld, %s); dispatch + combine %.3f ms (median %.3f), "
              "all ranks copying their bytes %.3f ms (median %.3f), ratio %.2f (median %.2f); barriers alone %.3f ms\n",
              DTypeName(payload), static_cast<long long>(sent), static_cast<long long>(formula),
              sent == formula ? "equal" : "DIFFERENT", exchange.best, exchange.median, copy.best, copy.median,
              exchange.best / copy.best, exchange.median / copy.median, nothing.median);
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
  for (DType payload : {DType::kF32, DType::kBF16}) Run(rank, problem, payload);
  return 0;
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Main(argc, argv); }
