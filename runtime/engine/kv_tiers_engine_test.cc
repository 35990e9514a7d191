// Host memory and disk below the cache, through the whole engine: the same tokens whatever was evicted, stored, lost or
// damaged, on every layout. Ranks are threads.
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/engine/kv_mover.h"
#include "runtime/engine/local_job_for_test.h"

namespace latentmesh {
namespace {

namespace fs = std::filesystem;

const std::vector<ParallelConfig> kLayouts = {{1, 1, 1, 1}, {2, 1, 1, 1}, {2, 2, 1, 1}, {1, 1, 2, 1}, {2, 1, 1, 2}};
constexpr int kPromptTokens = 45;

EngineOptions Options(const std::string& model = "tests/golden/v3-tiny") {
  EngineOptions options;
  options.model = model;
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;
  options.max_seqs = 4;
  options.max_model_len = 64;
  options.block_size = 4;
  return options;
}

std::vector<int32_t> Prompt(int which) {
  std::vector<int32_t> ids;
  for (int i = 0; i < kPromptTokens; ++i) ids.push_back((which * 37 + i * 11 + i * i * which) % 200 + 1);
  return ids;
}

struct Outcome {
  std::vector<std::vector<int32_t>> outputs;
  std::vector<int32_t> cached;             // prompt tokens found, by prompt
  EngineStats stats;
  std::vector<std::string> warnings;
};

// The prompts one after the other, greedy.
Outcome Serve(const ParallelConfig& layout, EngineOptions options, const std::vector<int>& prompts) {
  Outcome outcome;
  outcome.outputs.resize(prompts.size());
  outcome.cached.resize(prompts.size());
  options.warn = [&](const std::string& warning) { outcome.warnings.push_back(warning); };
  Status status = RunOnThreads(layout, options, [&](Engine& engine) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      Request request;
      request.id = std::to_string(i);
      request.prompt_ids = Prompt(prompts[i]);
      request.sampling.temperature = 0;
      request.sampling.max_tokens = 8;
      request.sampling.ignore_eos = true;
      request.on_output = [&outcome, i](const RequestOutput& output) {
        outcome.cached[i] = output.cached_tokens;
        for (const ChoiceDelta& c : output.choices)
          outcome.outputs[i].insert(outcome.outputs[i].end(), c.token_ids.begin(), c.token_ids.end());
      };
      LM_RETURN_IF_ERROR(engine.Submit(std::move(request)));
      engine.RunUntilIdle();
    }
    outcome.stats = engine.Stats();
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return outcome;
}

uint64_t BlockBytes(const ParallelConfig& layout) {   // of the rank with most layers: v3-tiny has 3, latent 32, rope 8
  return static_cast<uint64_t>(layout.pp == 1 ? 3 : 2) * 4 * 40 * sizeof(float);
}

std::string NameOf(const testing::TestParamInfo<ParallelConfig>& info) {
  const ParallelConfig& l = info.param;
  return "tp" + std::to_string(l.tp) + "dp" + std::to_string(l.dp) + "pp" + std::to_string(l.pp) + "cp" +
         std::to_string(l.cp);
}

class KvTiersEngineTest : public testing::TestWithParam<ParallelConfig> {
 protected:
  void SetUp() override { fs::remove_all(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  EngineOptions WithStore() const {
    EngineOptions options = Options();
    options.kv_store = folder_.string();
    return options;
  }
  // Full blocks of a prompt; a block spans cp ranks.
  int32_t CachedTokens() const {
    int32_t span = 4 * GetParam().cp;
    return (kPromptTokens - 1) / span * span;
  }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder_))
      if (entry.is_regular_file()) files.push_back(entry.path());
    return files;
  }

  fs::path folder_ = fs::temp_directory_path() / ("latentmesh_kv_tiers_test." + std::to_string(getpid()));
};

INSTANTIATE_TEST_SUITE_P(Layouts, KvTiersEngineTest, testing::ValuesIn(kLayouts), NameOf);

TEST_P(KvTiersEngineTest, EvictedPrefixesComeBackFromHostMemory) {
  const ParallelConfig layout = GetParam();
  const std::vector<int> prompts = {1, 2, 3, 4, 1, 2, 3, 4, 1};
  EngineOptions options = Options();
  options.prefix_caching = false;
  const Outcome plain = Serve(layout, options, prompts);
  options.prefix_caching = true;
  options.kv_memory = 17 * BlockBytes(layout);             // one prompt and its output: each evicts the one before
  EXPECT_EQ(Serve(layout, options, prompts).stats.kv.restored, 0);
  options.kv_offload = 80 * BlockBytes(layout);
  const Outcome offloaded = Serve(layout, options, prompts);
  EXPECT_EQ(offloaded.outputs, plain.outputs);
  EXPECT_GT(offloaded.stats.kv.offloaded, 0);
  EXPECT_GT(offloaded.stats.kv.restored, 0);
  EXPECT_EQ(offloaded.stats.kv.stored, 0);
  for (size_t i = 4; i < prompts.size(); ++i) EXPECT_EQ(offloaded.cached[i], CachedTokens()) << i;
  EXPECT_EQ(offloaded.stats.prefix_hits, 5 * CachedTokens());
}

TEST_P(KvTiersEngineTest, PrefixesOutliveTheJobOnDisk) {
  const Outcome plain = Serve(GetParam(), Options(), {1, 2, 5});
  const Outcome first = Serve(GetParam(), WithStore(), {1, 2});
  EXPECT_EQ(first.stats.kv.fetched, 0);
  const Outcome second = Serve(GetParam(), WithStore(), {1, 2, 5, 1});
  EXPECT_EQ(std::vector(second.outputs.begin(), second.outputs.begin() + 3), plain.outputs);
  EXPECT_EQ(second.outputs[3], plain.outputs[0]);
  EXPECT_EQ(second.cached[0], CachedTokens());
  EXPECT_EQ(second.cached[1], CachedTokens());
  EXPECT_EQ(second.cached[2], 0);
  EXPECT_GT(second.stats.kv.fetched, 0);
  EXPECT_EQ(second.stats.kv.failed, 0);
  EXPECT_TRUE(second.warnings.empty()) << second.warnings[0];
}

TEST_P(KvTiersEngineTest, DamagedFilesCostTimeOnly) {
  const Outcome plain = Serve(GetParam(), WithStore(), {1, 2, 3});
  int n = 0;
  for (const fs::path& path : Files()) {
    if (n % 3 == 0) {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(200);
      char byte = static_cast<char>(file.get() ^ 1);
      file.seekp(200);
      file.put(byte);
    } else if (n % 3 == 1) {
      fs::resize_file(path, fs::file_size(path) / 2);
    }
    ++n;
  }
  ASSERT_GT(n, 10);
  Outcome again = Serve(GetParam(), WithStore(), {1, 2, 3});
  EXPECT_EQ(again.outputs, plain.outputs);
  EXPECT_FALSE(again.warnings.empty());
  // What is found damaged is written anew; a run may end before it has seen all.
  for (int run = 0; run < 20 && again.stats.kv.failed > 0; ++run) {
    again = Serve(GetParam(), WithStore(), {1, 2, 3});
    EXPECT_EQ(again.outputs, plain.outputs);
  }
  EXPECT_EQ(again.stats.kv.failed, 0);
  for (int32_t cached : again.cached) EXPECT_EQ(cached, CachedTokens());
}

TEST_P(KvTiersEngineTest, SmallTiersAndManyRequestsAtOnce) {
  const ParallelConfig layout = GetParam();
  EngineOptions options = WithStore();
  options.kv_memory = 20 * BlockBytes(layout);
  options.kv_offload = 10 * BlockBytes(layout);
  options.kv_store_size = 20 * (BlockBytes(layout) + 100);
  std::vector<std::vector<int32_t>> want = Serve(layout, Options(), {1, 2, 3, 4, 5}).outputs, got(15);
  Status status = RunOnThreads(layout, options, [&](Engine& engine) {
    for (int i = 0; i < 15; ++i) {
      Request request;
      request.id = std::to_string(i);
      request.prompt_ids = Prompt(i % 5 + 1);
      request.sampling.temperature = 0;
      request.sampling.max_tokens = 8;
      request.sampling.ignore_eos = true;
      request.on_output = [&got, i](const RequestOutput& output) {
        for (const ChoiceDelta& c : output.choices) got[i].insert(got[i].end(), c.token_ids.begin(), c.token_ids.end());
      };
      LM_RETURN_IF_ERROR(engine.Submit(std::move(request)));
      if (i == 9) engine.Cancel("7");
      if (i % 4 == 3) engine.Step();
    }
    engine.RunUntilIdle();
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  got[7] = want[7 % 5];                                    // cancelled
  for (int i = 0; i < 15; ++i) EXPECT_EQ(got[i], want[i % 5]) << i;
}

// Two jobs use one folder at the same time and remove what the other has counted on: tokens stay, nobody complains.
TEST_P(KvTiersEngineTest, TwoJobsShareAFolderAtTheSameTime) {
  EngineOptions options = WithStore();
  options.kv_memory = 20 * BlockBytes(GetParam());
  options.kv_store_size = 24 * (BlockBytes(GetParam()) + 100);
  const std::vector<int> prompts = {1, 2, 3, 1, 2, 3, 4, 1, 4, 2};
  const Outcome plain = Serve(GetParam(), Options(), prompts);
  Outcome shared[2];
  {
    std::thread other([&] { shared[1] = Serve(GetParam(), options, prompts); });
    shared[0] = Serve(GetParam(), options, prompts);
    other.join();
  }
  for (const Outcome& outcome : shared) {
    EXPECT_EQ(outcome.outputs, plain.outputs);
    EXPECT_THAT(outcome.warnings, testing::IsEmpty());
  }
  EXPECT_FALSE(Files().empty());   // who wrote which is open, and the engine may end before it hears of the last writes
}

// A limit on the size of files stands in for a full disk.
TEST_P(KvTiersEngineTest, AFullDiskIsAWarning) {
  const Outcome plain = Serve(GetParam(), Options(), {1, 2, 1});
  auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 500;
  setrlimit(RLIMIT_FSIZE, &small);
  const Outcome full = Serve(GetParam(), WithStore(), {1, 2, 1});
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(full.outputs, plain.outputs);
  EXPECT_EQ(full.stats.kv.stored, 0);
  EXPECT_THAT(full.warnings, testing::Contains(testing::HasSubstr("not stored for now")));
  EXPECT_TRUE(Files().empty());
}

class KvStoreTest : public KvTiersEngineTest {};
INSTANTIATE_TEST_SUITE_P(OneRank, KvStoreTest, testing::Values(ParallelConfig{1, 1, 1, 1}), NameOf);

TEST_P(KvStoreTest, OtherModelsFormatsAndLayoutsAreNotMixedUp) {
  Serve({1, 1, 1, 1}, WithStore(), {1});
  fs::path copy = folder_.string() + ".model";
  fs::remove_all(copy);
  fs::copy("tests/golden/v3-tiny", copy, fs::copy_options::recursive);
  {                                        // as many bytes, other weights: a fine-tuned model
    std::fstream file(copy / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-4000, std::ios::end);
    file.write(std::string(400, 60).data(), 400);
  }
  std::vector<EngineOptions> others(4, WithStore());
  others[0].model = copy.string();
  others[1].kv_dtype = "bf16";
  others[2].block_size = 8;
  others[3].dtype = "bf16";
  for (const EngineOptions& other : others) {
    EngineOptions without = other;
    without.kv_store.clear();
    const Outcome got = Serve({1, 1, 1, 1}, other, {1});
    EXPECT_EQ(got.stats.kv.fetched, 0);
    EXPECT_EQ(got.outputs, Serve({1, 1, 1, 1}, without, {1}).outputs);
    EXPECT_TRUE(got.warnings.empty());
  }
  EXPECT_EQ(Serve({2, 1, 1, 2}, WithStore(), {1}).stats.kv.fetched, 0);
  EXPECT_GT(Serve({2, 1, 1, 1}, WithStore(), {1}).stats.kv.fetched, 0);   // latents are the same for every tp
  fs::remove_all(copy);
}

TEST_P(KvStoreTest, RefusesWhatCannotWork) {
  auto refusal = [](const EngineOptions& options) {
    auto runtime = Runtime::CreateLocal(options);
    EXPECT_FALSE(runtime.ok());
    return runtime.ok() ? std::string() : runtime.status().message();
  };
  EngineOptions options = WithStore();
  options.prefix_caching = false;
  EXPECT_THAT(refusal(options), testing::HasSubstr("--no-prefix-caching"));
  options = Options();
  options.kv_offload = 100;
  EXPECT_THAT(refusal(options), testing::HasSubstr("--kv-offload 100 bytes: one cache block takes 1920"));
  options = WithStore();
  options.kv_store_size = 1000;
  EXPECT_THAT(refusal(options), testing::HasSubstr("--kv-store-size 1000 bytes"));
  std::ofstream(folder_) << "a file";
  EXPECT_THAT(refusal(WithStore()), testing::HasSubstr("--kv-store: cannot create"));
}

TEST(KvReport, SurvivesItsWireFormAndDamageIsNoticed) {
  KvReport report{{{KvEventKind::kReady, {1, 2}}, {KvEventKind::kGone, {3, 4}}}, {"a warning", "another"}};
  std::string bytes = EncodeKvReport(report);
  auto got = DecodeKvReport(bytes);
  ASSERT_TRUE(got.ok());
  ASSERT_EQ(got->events.size(), 2u);
  EXPECT_EQ(got->events[1].key, (BlockKey{3, 4}));
  EXPECT_EQ(got->warnings, report.warnings);
  EXPECT_FALSE(DecodeKvReport(bytes.substr(0, 20)).ok());
  bytes[4] = 50;
  EXPECT_FALSE(DecodeKvReport(bytes).ok());
}

}  // namespace
}  // namespace latentmesh
