// What `plan` says a rank needs, against what its device really hands out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/device.h"
#include "parallel/local_communicator.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/worker.h"
#include "runtime/plan/layout_plan.h"
#include "runtime/model/stored_formats.h"

namespace latentmesh {
namespace {

constexpr std::chrono::milliseconds kTimeout{60'000};
constexpr double kBound = 0.05;
constexpr uint64_t kRankMemory = 1'000'000'000;

// The engine's ranks keep as many blocks as the poorest.
int64_t FewestBlocks(const ModelConfig& config, const EngineOptions& resolved, const StoredDType& stored) {
  const ParallelConfig& layout = resolved.layout;
  int size = layout.tp * layout.dp * layout.pp;
  int64_t fewest = INT64_MAX;
  for (int rank = 0; rank < size; ++rank) {
    ProcessMesh mesh = ProcessMesh::Create(layout, size, rank).value();
    fewest = std::min(fewest, PlanRank(config, resolved, mesh, stored, kRankMemory).value().plan.cache_blocks);
  }
  return fewest;
}

// What the ranks' devices have handed out once a worker stands, by rank.
std::vector<uint64_t> Allocated(const std::string& folder, const EngineOptions& options, const ParallelConfig& layout) {
  int size = layout.tp * layout.dp * layout.pp;
  auto controls = CreateLocalControl(size, kTimeout);
  auto meshes = CreateLocalMesh(layout, kTimeout);
  std::vector<uint64_t> bytes(static_cast<size_t>(size));
  RunLocalRanks(size, [&](int rank) {
    ModelConfig config = LoadModelConfig(folder).value();
    Checkpoint checkpoint = Checkpoint::Open(folder).value();
    StoredDType stored = [&](const std::string& name) { return checkpoint.StoredDType(name); };
    auto device = CreateDevice(DeviceKind::kCpu, {.threads = 1, .local_size = size}).value();
    EngineOptions resolved = ResolveOptions(options, config, size, DeviceKind::kCpu).value();
    ProcessMesh mesh = ProcessMesh::Create(layout, size, rank).value();
    RankSetup setup = PlanRank(config, resolved, mesh, stored, kRankMemory).value();
    setup.SetBlocks(FewestBlocks(config, resolved, stored));
    uint64_t before = device->free_memory();
    auto worker = Worker::Create(std::move(setup), checkpoint, *device, meshes[static_cast<size_t>(rank)],
                                 *controls[static_cast<size_t>(rank)]);
    ASSERT_TRUE(worker.ok()) << worker.status().message();
    bytes[static_cast<size_t>(rank)] = before - device->free_memory();
  });
  return bytes;
}

// Told from config.json alone.
LayoutPlan Predict(const std::string& folder, const EngineOptions& options, const ParallelConfig& layout) {
  PlanRequest request;
  request.config = LoadModelConfig(folder).value();
  request.stored = PublishedFormats(request.config).value();
  request.hardware = CpuRank();
  request.hardware.ranks = layout.tp * layout.dp * layout.pp;
  request.hardware.memory = kRankMemory;
  request.engine = options;
  request.input_len = request.output_len = 16;
  if (options.max_model_len == 0)
    request.engine.max_model_len = static_cast<int>(request.config.max_position_embeddings);
  return PlanLayout(request, layout).value();
}

void ExpectPredicted(const std::string& folder, const EngineOptions& options, const ParallelConfig& layout) {
  SCOPED_TRACE(folder + " " + ToString(layout));
  EngineOptions with_layout = options;
  with_layout.layout = layout;
  // The same nodes for both: from two nodes on CPU ranks keep buffers of a second micro-batch.
  with_layout.ranks_per_node = std::min(2, layout.tp * layout.dp * layout.pp);
  std::vector<uint64_t> actual = Allocated(folder, with_layout, layout);
  LayoutPlan plan = Predict(folder, with_layout, layout);
  for (size_t pp = 0; pp < plan.stages.size(); ++pp) {
    uint64_t most = 0;
    for (int r = 0; r < layout.dp * layout.tp; ++r)
      most = std::max(most, actual[pp * static_cast<size_t>(layout.dp * layout.tp) + static_cast<size_t>(r)]);
    double predicted = static_cast<double>(plan.stages[pp].setup.plan.total()), real = static_cast<double>(most);
    EXPECT_NEAR(predicted / real, 1, kBound) << "stage " << pp << ": predicted " << predicted << ", allocated " << real;
    testing::Test::RecordProperty(ToString(layout) + " stage " + std::to_string(pp), std::to_string(predicted / real));
  }
}

// The demo on 1, 2 and 4 ranks, in all the ways a layout splits it.
TEST(PlanMemory, IsWhatTheDemoAllocates) {
  EngineOptions options;
  options.device = "cpu";
  options.kv_memory = 64'000'000;
  for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1},
                                {2, 1, 1, 1},
                                {1, 2, 1, 1},
                                {1, 1, 2, 1},
                                {4, 1, 1, 2},
                                {2, 2, 1, 1},
                                {1, 4, 1, 1},
                                {2, 1, 2, 2}})
    ExpectPredicted("launch/demo", options, layout);
}

// The second micro-batch has exchange buffers of its own: what they add to the plan they add to what is allocated.
TEST(PlanMemory, CountsTheSecondMicroBatch) {
  EngineOptions one;
  one.device = "cpu";
  one.kv_memory = 16'000'000;
  one.max_batch_tokens = 1024;       // no buffer of the second is large enough for huge pages, to which sizes are rounded
  one.max_model_len = 1024;
  one.check_collectives = true;      // by messages, as two are
  one.micro_batches = 1;
  EngineOptions two = one;
  two.micro_batches = 2;
  for (ParallelConfig layout : {ParallelConfig{1, 2, 1, 1}, {2, 2, 1, 1}}) {
    two.layout = one.layout = layout;
    std::vector<uint64_t> with = Allocated("launch/demo", two, layout), without = Allocated("launch/demo", one, layout);
    double added = static_cast<double>(Predict("launch/demo", two, layout).memory().communication) -
                   static_cast<double>(Predict("launch/demo", one, layout).memory().communication);
    EXPECT_GT(added, 5e6);
    EXPECT_NEAR(static_cast<double>(with[0] - without[0]) / added, 1, 1e-3);     // buffers begin on lines of 64 bytes
  }
}

TEST(PlanMemory, IsWhatOtherFormatsAllocate) {
  EngineOptions options;
  options.device = "cpu";
  options.kv_memory = 32'000'000;
  options.dtype = "bf16";
  options.max_model_len = 1000;
  options.max_batch_tokens = 300;
  for (const char* kv : {"auto", "fp8"}) {
    options.kv_dtype = kv;
    ExpectPredicted("launch/demo", options, {2, 2, 1, 1});
  }
  options.kv_dtype = "f32";
  ExpectPredicted("tests/golden/v2-tiny", options, {2, 1, 2, 1});
}

TEST(PlanMemory, IsWhatAModelWithoutExpertsAllocates) {
  EngineOptions options;
  options.device = "cpu";
  options.kv_memory = 32'000'000;
  ExpectPredicted("tests/golden/llama-gqa", options, {2, 2, 1, 1});
}

// Without --kv-memory the cache takes its share of what is free: still what is planned.
TEST(PlanMemory, IsWhatAFreeCacheAllocates) {
  EngineOptions options;
  options.device = "cpu";
  options.max_model_len = 2048;
  options.max_seqs = 32;
  ExpectPredicted("launch/demo", options, {2, 1, 1, 1});
}

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * 4096;
}

// Long prompts fill the cache; then resident memory has grown by no more than was planned (and a tenth for tokenizer,
// loader and the allocator's own books), and by most of it: not every page of every buffer is touched.
TEST(PlanMemory, BoundsWhatTheOperatingSystemSees) {
  EngineOptions options;
  options.model = "launch/demo";
  options.device = "cpu";
  options.kv_memory = 50'000'000;
  options.max_batch_tokens = 2048;
  options.prefix_caching = false;
  uint64_t before = ResidentBytes();
  auto runtime = Runtime::CreateLocal(options);
  ASSERT_TRUE(runtime.ok()) << runtime.status().message();
  int64_t tokens = (*runtime)->memory_plan().cache_blocks * 64;
  uint64_t most = 0;
  Status status = (*runtime)->Run([&](Engine& engine) {
    for (int64_t filled = 0; filled + 4000 <= tokens; filled += 4000) {
      Request request;
      request.id = std::to_string(filled);
      for (int i = 0; i < 3900; ++i) request.prompt_ids.push_back(static_cast<int32_t>(2 + (i * 7 + filled) % 4000));
      request.sampling.max_tokens = 2;
      LM_RETURN_IF_ERROR(engine.Submit(request));
    }
    while (engine.Step()) most = std::max(most, ResidentBytes());
    return Status::Ok();
  });
  ASSERT_TRUE(status.ok()) << status.message();
  double planned = static_cast<double>((*runtime)->memory_plan().total()), grown = static_cast<double>(most - before);
  RecordProperty("grown_over_planned", std::to_string(grown / planned));
  EXPECT_LT(grown / planned, 1.1) << "planned " << planned << ", resident memory grew by " << grown;
  EXPECT_GT(grown / planned, 0.6) << "planned " << planned << ", resident memory grew by " << grown;
}

}  // namespace
}  // namespace latentmesh
