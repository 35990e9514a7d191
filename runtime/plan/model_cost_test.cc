#include "runtime/plan/model_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/step_batch.h"
#include "runtime/plan/plan_test_util.h"
#include "runtime/model/stored_formats.h"

namespace latentmesh {
namespace {

using plan_testing::V2Lite;
using plan_testing::V3;

RankWeights Published(const ModelConfig& config) {
  return CountModel(config, {PublishedFormats(config).value(), WeightsAs::kPublished}).value();
}

// Published figures: 671 B parameters, 37 B used by a token (DeepSeek-V3 report); 15.7 B and 2.4 B (DeepSeek-V2
// report).
TEST(ModelCost, ParametersOfPublishedModels) {
  RankWeights v3 = Published(V3());
  EXPECT_NEAR(static_cast<double>(v3.Total().params), 671e9, 0.1e9);
  EXPECT_NEAR(static_cast<double>(ActiveParams(V3(), v3)), 37e9, 0.5e9);
  RankWeights lite = Published(V2Lite());
  EXPECT_NEAR(static_cast<double>(lite.Total().params), 15.7e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(ActiveParams(V2Lite(), lite)), 2.4e9, 0.1e9);
}

// FACTS: 17.2 GB + 2.554 GB x 256 (1 - (31/32)^B).
TEST(ModelCost, WeightBytesOfADecodeStep) {
  ModelConfig config = V3();
  RankWeights model = Published(config);
  EXPECT_NEAR(static_cast<double>(model.EveryToken().bytes), 17.2e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(model.experts.bytes) / 256, 2.554e9, 0.001e9);
  for (double batch : {1.0, 2.0, 7.0, 64.0, 1000.0}) {
    double expected = 17.2e9 + 2.554e9 * 256 * (1 - std::pow(31.0 / 32, batch));
    EXPECT_NEAR(DecodeWeightBytes(config, model, batch), expected, 0.003 * expected) << batch;
  }
  EXPECT_DOUBLE_EQ(TouchedShare(config, 1), 8.0 / 256);
}

// FACTS: 640 and 2176; 1/n* = 1/S + 1/170.7.
TEST(ModelCost, AttentionWorkAndCrossover) {
  ModelConfig config = V3();
  EXPECT_EQ(ExpandedPairFlops(config), 640);
  EXPECT_EQ(AbsorbedPairFlops(config), 2176);
  EXPECT_NEAR(CrossoverQueries(config, 1e12), 170.7, 0.05);
  EXPECT_NEAR(CrossoverQueries(config, 4096), 1 / (1 / 4096.0 + 1 / 170.67), 0.05);
  for (int64_t context : {16, 200, 4096, 100000})
    for (int64_t queries : {1, 20, 100, 160, 170, 171, 200})
      EXPECT_EQ(static_cast<double>(queries) > CrossoverQueries(config, static_cast<double>(context)),
                ExpandIsCheaper(config, queries, context))
          << queries << " of " << context;
}

TEST(ModelCost, PartsOfALayoutAddUpToTheModel) {
  ModelConfig config = V2Lite();
  WeightFormats formats{PublishedFormats(config).value(), WeightsAs::kPublished};
  RankWeights whole = CountModel(config, formats).value();
  ParallelConfig layout{2, 2, 3, 1};
  RankWeights sum;
  for (int r = 0; r < 12; ++r) {
    ModelShard shard = MakeShard(config, ProcessMesh::Create(layout, 12, r).value());
    RankWeights part = CountWeights(config, shard, formats).value();
    sum.experts.Add(part.experts);
    if (shard.dp_rank == 0) {
      sum.dense.Add(part.dense);
      sum.shared.Add(part.shared);
      sum.head.Add(part.head);
    }
  }
  EXPECT_EQ(sum.experts.bytes, whole.experts.bytes);
  EXPECT_EQ(sum.dense.params, whole.dense.params);
  EXPECT_EQ(sum.shared.params, whole.shared.params);
  EXPECT_EQ(sum.head.bytes, whole.head.bytes);
}

// What the counter says is what LayOutWeights lays out, but for alignment to 256 bytes.
void ExpectCountsAsLaidOut(const ModelConfig& config, const StoredDType& stored, ParallelConfig layout, bool bf16,
                           WeightFormat format = WeightFormat::kAuto) {
  int ranks = layout.tp * layout.dp * layout.pp;
  for (int r = 0; r < ranks; ++r) {
    ModelShard shard = MakeShard(config, ProcessMesh::Create(layout, ranks, r).value(), WidthUnit(format));
    auto placement =
        ExpertPlacement::Contiguous(std::max(1, static_cast<int>(config.n_routed_experts)), shard.ep_size());
    Arena arena;
    auto laid_out = LayOutWeights(config, shard, placement, {bf16, false, 0, format}, stored, arena, nullptr);
    ASSERT_TRUE(laid_out.ok()) << laid_out.status().message();
    auto counted = CountWeights(config, shard, {stored, WeightsAs::kKept, bf16, format});
    ASSERT_TRUE(counted.ok());
    double bytes = static_cast<double>(counted->Total().bytes);
    if (config.tie_word_embeddings && shard.last_stage()) bytes -= static_cast<double>(counted->head.bytes);
    EXPECT_GE(static_cast<double>(arena.used()), bytes) << ToString(layout) << " rank " << r;
    EXPECT_LE(static_cast<double>(arena.used()), bytes * 1.03 + 40000) << ToString(layout) << " rank " << r;
  }
}

TEST(ModelCost, CountsWhatIsLaidOut) {
  for (bool bf16 : {false, true})
    for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 1, 2, 1}, {2, 2, 1, 2}})
      for (const char* name : {"v2-tiny", "v2-lite-tiny", "v3-tiny", "v3-tiny-fp8", "llama-gqa"}) {
        SCOPED_TRACE(name);
        ModelConfig config = LoadModelConfig(std::string("tests/golden/") + name).value();
        ExpectCountsAsLaidOut(config, PublishedFormats(config).value(), layout, bf16);
      }
  ExpectCountsAsLaidOut(V3(), PublishedFormats(V3()).value(), {8, 2, 1, 1}, true);
}

TEST(ModelCost, CountsWhatIsLaidOutInEveryFormat) {
  for (WeightFormat format : kWeightFormats)
    for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 2, 1, 1}})
      for (const char* name : {"v2-lite-tiny", "v3-tiny-fp8", "llama-gqa"}) {
        SCOPED_TRACE(std::string(name) + " " + WeightFormatName(format));
        ModelConfig config = LoadModelConfig(std::string("tests/golden/") + name).value();
        ExpectCountsAsLaidOut(config, PublishedFormats(config).value(), layout, false, format);
      }
}

// Every tensor of a real checkpoint has the dtype told from its config.
TEST(StoredFormats, AreThoseOfRealCheckpoints) {
  for (std::string folder :
       {"launch/demo", "tests/golden/v3-tiny-fp8", "tests/golden/v2-tiny", "tests/golden/llama-gqa"}) {
    SCOPED_TRACE(folder);
    ModelConfig config = LoadModelConfig(folder).value();
    auto checkpoint = Checkpoint::Open(folder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    StoredDType formats = PublishedFormats(config).value();
    int different = 0;
    for (const TensorInfo& tensor : checkpoint->tensors())
      if (formats(tensor.name).value() != checkpoint->StoredDType(tensor.name).value()) {
        ADD_FAILURE() << tensor.name << ": told " << DTypeName(formats(tensor.name).value()) << ", stored "
                      << DTypeName(checkpoint->StoredDType(tensor.name).value());
        if (++different == 5) break;
      }
  }
}

TEST(StoredFormats, HonourModulesNotConverted) {
  ModelConfig config = V3();
  config.quantization.modules_to_not_convert = {"q_a_proj", "model.layers.3.mlp", "lm_head"};
  StoredDType stored = PublishedFormats(config).value();
  EXPECT_EQ(stored("model.layers.0.self_attn.q_a_proj.weight").value(), DType::kBF16);
  EXPECT_EQ(stored("model.layers.0.self_attn.q_b_proj.weight").value(), DType::kF8E4M3);
  EXPECT_EQ(stored("model.layers.3.mlp.experts.1.up_proj.weight").value(), DType::kBF16);
  EXPECT_EQ(stored("model.layers.30.mlp.experts.1.up_proj.weight").value(), DType::kF8E4M3);
  EXPECT_EQ(stored("lm_head.weight").value(), DType::kBF16);
  EXPECT_EQ(stored("model.layers.4.mlp.gate.weight").value(), DType::kBF16);
  config.torch_dtype = "int8";
  EXPECT_EQ(PublishedFormats(config).status().code(), StatusCode::kInvalidModel);
}

}  // namespace
}  // namespace latentmesh
