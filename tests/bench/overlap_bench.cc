// overlap_bench prefill|decode TOKENS [CONTEXT LAYERS SHAPE REPEATS TRACE DEVICE]: under mpirun, one step of TOKENS tokens on each of as many
// dp ranks as there are processes, over and over: whole and as two micro-batches, each with the experts' exchange and with
// the exchange left out (what was received once is played back). Checks first that all four give the same logits. Then
//
//   exchange   = whole, on  - whole, off          what the exchange costs when nothing hides it
//   exposed    = halves, on - halves, off         what is left of it
//   hidden     = 1 - exposed / exchange
//
// prefill: one prompt of TOKENS a rank; decode: TOKENS sequences with CONTEXT cached tokens each. Random weights.
// TRACE: a file for a timeline of one step of each of the four kinds, "" for none. DEVICE cuda: on GPUs in bf16, over NCCL; ranks may
// share one, which then says that the mechanics work, and nothing about speed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "parallel/bootstrap.h"
#include "parallel/trace.h"
#include "runtime/config/published_shapes.h"
#include "runtime/engine/trace_file.h"
#include "runtime/engine/worker.h"
#include "runtime/model/stored_formats.h"
#include "tests/bench/played_communicator.h"

namespace latentmesh {
namespace {

using Mode = PlayedCommunicator::Mode;

struct Case {
  bool prefill = true;
  int tokens = 512, context = 512, layers = 0, repeats = 7;
  std::string shape = "mini", trace;
  DeviceKind device = DeviceKind::kCpu;
  int cached() const { return prefill ? 0 : context; }
  bool cuda() const { return device == DeviceKind::kCuda; }
};

struct Rank {
  Job& job;
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
  CommunicatorSet comms;
  PlayedCommunicator* ep = nullptr;
  std::unique_ptr<Worker> worker;
};

EngineOptions OptionsOf(const Case& c, const Job& job) {
  int ranks = job.size();
  EngineOptions options;
  options.ranks_per_node = job.local_size();
  options.layout = {1, ranks, 1, 1};
  options.max_batch_tokens = c.tokens;
  options.max_seqs = c.prefill ? 1 : c.tokens;
  options.max_model_len = c.prefill ? c.tokens : c.context + 1;
  options.threads = 1;
  options.micro_batches = 2;
  return options;
}

// Throws what goes wrong: this is a program to measure with.
template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) throw Error(result.status().code(), result.status().message());
  return std::move(result).value();
}

void Load(const Case& c, Rank& rank) {
  ModelConfig config = Must(ParseModelConfig(Must(PublishedShape(c.shape)), c.shape));
  if (c.layers > 0) config.num_hidden_layers = c.layers;
  StoredDType stored = Must(PublishedFormats(config));
  int ranks = rank.job.size();
  EngineOptions options = Must(ResolveOptions(OptionsOf(c, rank.job), config, ranks, c.device));
  ProcessMesh mesh = Must(ProcessMesh::Create(options.layout, ranks, rank.job.rank()));
  rank.comms = Must(rank.job.CreateCommunicators(mesh, *rank.device));
  auto played = std::make_unique<PlayedCommunicator>(std::move(rank.comms.ep), *rank.device);
  rank.ep = played.get();
  rank.comms.ep = std::move(played);
  RankSetup setup = Must(PlanRank(config, options, mesh, stored, rank.device->free_memory() / static_cast<uint64_t>(rank.job.local_size())));
  Status fits = CheckMemory(setup);
  if (!fits.ok()) throw Error(fits.code(), fits.message());
  rank.worker = Must(Worker::Create(std::move(setup), WeightSource(stored), *rank.device, rank.comms, rank.job.control()));
}

// Each sequence in blocks of its own, with `cached` tokens before; logits of each last token where asked for.
StepPlan MakePlan(const Case& c, const RankSetup& setup, bool logits, int cached) {
  StepPlan plan;
  int32_t per_sequence = static_cast<int32_t>(setup.blocks_per_sequence()), vocab = static_cast<int32_t>(setup.config.vocab_size);
  int sequences = c.prefill ? 1 : c.tokens, each = c.prefill ? c.tokens : 1;
  for (int dp = 0; dp < setup.shard.layout.dp; ++dp) {
    ShardStep& shard = plan.shards.emplace_back();
    for (int s = 0; s < sequences; ++s) {
      SequenceStep step;
      step.sequence_id = dp * sequences + s;
      step.start = cached;
      for (int t = 0; t < each; ++t) step.tokens.push_back((7919 * (step.start + t) + 104729 * (dp * sequences + s)) % vocab);
      for (int32_t b = 0; b < per_sequence; ++b) step.blocks.push_back(s * per_sequence + b);
      step.logits_from = each - (logits ? 1 : 0);
      shard.sequences.push_back(std::move(step));
    }
  }
  return plan;
}

struct Kind {
  const char* name;
  int micro_batches;
  bool on;
};
constexpr Kind kKinds[] = {{"whole, on", 1, true}, {"whole, off", 1, false}, {"halves, on", 2, true}, {"halves, off", 2, false}};

StepResult RunStep(Rank& rank, const StepPlan& plan, const Kind& kind, Mode mode) {
  StepCommand command;
  command.micro_batches = static_cast<uint8_t>(kind.micro_batches);
  command.plan = plan;
  rank.ep->Begin(mode, kind.micro_batches);
  return rank.worker->Execute(command);
}

// Seconds until all ranks are done, without what playing took on this rank.
double TimeStep(Rank& rank, const StepPlan& plan, const Kind& kind) {
  rank.comms.world->Barrier(*rank.stream);
  int64_t begin = TraceClock();
  RunStep(rank, plan, kind, kind.on ? Mode::kPass : Mode::kPlay);
  rank.comms.world->Barrier(*rank.stream);
  return static_cast<double>(TraceClock() - begin) / 1e9 - rank.ep->copy_seconds();
}

// Largest difference of logits from the first kind's, relative to the largest logit. Records what the other steps play.
bool Check(const Case& c, Rank& rank) {
  StepPlan plan = MakePlan(c, rank.worker->setup(), true, c.cached());
  std::vector<float> want;
  double worst = 0, largest = 0;
  for (const Kind& kind : kKinds) {
    StepResult result = RunStep(rank, plan, kind, kind.on ? Mode::kRecord : Mode::kPlay);
    std::vector<float> got;
    for (const StepResult::Shard& shard : result.shards) got.insert(got.end(), shard.logits.begin(), shard.logits.end());
    if (want.empty()) want = got;
    for (size_t i = 0; i < want.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(want[i])));
      worst = std::max(worst, std::abs(static_cast<double>(want[i]) - got.at(i)));
    }
  }
  // In bf16 products of other sizes round otherwise, and routers flip between experts that are nearly as good.
  bool ok = rank.job.rank() != 0 || (largest > 0 && worst <= (c.cuda() ? 0.15 : 1e-3) * largest);
  if (rank.job.rank() == 0) std::printf("check %s: logits differ by %.1e of the largest\n", ok ? "ok" : "FAILED", worst / largest);
  return ok;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Report(const std::vector<std::vector<double>>& times, double bytes) {
  double t[4];
  for (int k = 0; k < 4; ++k) {
    t[k] = Median(times[static_cast<size_t>(k)]);
    auto [least, most] = std::minmax_element(times[static_cast<size_t>(k)].begin(), times[static_cast<size_t>(k)].end());
    std::printf("%-12s median %8.2f ms (%.2f to %.2f)\n", kKinds[k].name, 1e3 * t[k], 1e3 * *least, 1e3 * *most);
  }
  double exchange = t[0] - t[1], exposed = t[2] - t[3];
  std::printf("sent by rank 0 a step: %.3f MB\n", bytes / 1e6);
  std::printf("exchange %.2f ms, exposed with two micro-batches %.2f ms: hidden %.1f %%\n", 1e3 * exchange, 1e3 * exposed,
              100 * (1 - exposed / exchange));
  std::printf("halves cost %.1f %% of computation; the step takes %.3f of its time in one part\n", 100 * (t[3] / t[1] - 1), t[2] / t[0]);
}

void Trace(const Case& c, Rank& rank, const StepPlan& plan) {
  int64_t ahead = MeasureClockAhead(rank.job.control());
  TraceBuffer buffer;
  {
    TraceScope scope(&buffer);
    for (const Kind& kind : kKinds) {
      TraceSpan span(kind.name);
      TimeStep(rank, plan, kind);
    }
  }
  Status written = WriteTrace(buffer, ahead, c.trace, rank.job.control());
  if (!written.ok()) throw Error(written.code(), written.message());
}

// Memory of a GPU holds anything at first; that of the host zeros, with which attention counts as well.
void FillCache(const Case& c, Rank& rank) {
  for (int t = 0; c.cuda() && t < c.cached(); ++t)
    RunStep(rank, MakePlan(c, rank.worker->setup(), false, t), kKinds[0], Mode::kPass);
}

int Measure(const Case& c, Rank& rank) {
  Load(c, rank);
  FillCache(c, rank);
  if (!Check(c, rank)) return 5;
  StepPlan plan = MakePlan(c, rank.worker->setup(), false, c.cached());
  std::vector<std::vector<double>> times(4);
  double bytes = 0;
  for (int i = 0; i < c.repeats + 1; ++i)
    for (size_t k = 0; k < 4; ++k) {
      uint64_t before = rank.ep->traffic().bytes_sent;
      double seconds = TimeStep(rank, plan, kKinds[k]);
      if (kKinds[k].on) bytes = static_cast<double>(rank.ep->traffic().bytes_sent - before);
      if (i > 0) times[k].push_back(seconds);
    }
  if (!c.trace.empty()) Trace(c, rank, plan);
  if (rank.job.rank() != 0) return 0;
  std::printf("%s, %d ranks, dp, %s %d tokens a rank%s\n", c.shape.c_str(), rank.job.size(), c.prefill ? "prefill" : "decode", c.tokens,
              c.prefill ? "" : (", context " + std::to_string(c.context)).c_str());
  Report(times, bytes);
  return 0;
}

int Main(int argc, char** argv) {
  auto job = Job::Join(&argc, &argv);
  if (!job.ok() || argc < 3) return 2;
  Case c;
  c.prefill = std::string(argv[1]) == "prefill";
  c.tokens = std::atoi(argv[2]);
  if (argc > 3) c.context = std::atoi(argv[3]);
  if (argc > 4) c.layers = std::atoi(argv[4]);
  if (argc > 5) c.shape = argv[5];
  if (argc > 6) c.repeats = std::atoi(argv[6]);
  if (argc > 7) c.trace = argv[7];
  if (argc > 8 && std::string(argv[8]) == "cuda") c.device = DeviceKind::kCuda;
  (*job)->SetOptions({.share_gpu = c.cuda()});
  DeviceOptions options;
  options.local_rank = (*job)->local_rank();
  options.share_gpu = c.cuda();
  options.threads = 1;
  options.local_size = (*job)->local_size();
  Rank rank{**job, Must(CreateDevice(c.device, options)), nullptr, {}, nullptr, nullptr};
  rank.stream = rank.device->CreateStream();
  try {
    return Measure(c, rank);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    (*job)->Abort(StatusCode::kInternal);
  }
  return 1;
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Main(argc, argv); }
