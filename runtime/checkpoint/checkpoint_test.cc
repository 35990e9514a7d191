#include "runtime/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/local_communicator.h"
#include "runtime/checkpoint/checkpoint_test_util.h"

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::chrono::milliseconds kTimeout{20'000};

void WriteShard(const std::string& path, const std::string& tensor, float value) {
  SafetensorsWriter writer;
  writer.Add(tensor, DType::kF32, {1}, &value);
  writer.Add("unlisted." + tensor, DType::kF32, {1}, &value);
  ASSERT_TRUE(writer.Write(path).ok());
}

class ShardedCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteShard(folder_.File("b.safetensors"), "x", 1);
    WriteShard(folder_.File("a.safetensors"), "y", 2);
    WriteIndex(R"({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}})");
  }
  void WriteIndex(const std::string& text) { WriteFile(folder_.File("model.safetensors.index.json"), text); }
  std::string Refusal() {
    const Status status = Checkpoint::Open(folder_.path()).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidModel);
    return status.message();
  }
  TempFolder folder_;
};

TEST_F(ShardedCheckpointTest, FilesInOrderAndListedTensorsOnly) {
  Result<Checkpoint> checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_THAT(checkpoint->files(), ElementsAre("a.safetensors", "b.safetensors"));
  ASSERT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(checkpoint->tensors()[0].name, "y");
  EXPECT_EQ(checkpoint->Find("unlisted.x"), nullptr);
  EXPECT_EQ(checkpoint->total_bytes(), 8u);
  EXPECT_THAT(*checkpoint->ReadTensor("x")->ToFloat(), ElementsAre(1.0f));
  EXPECT_THAT(*checkpoint->ReadTensor("y")->ToFloat(), ElementsAre(2.0f));
  EXPECT_THAT(checkpoint->ReadTensor("z").status().message(), HasSubstr("'z'"));
}

TEST_F(ShardedCheckpointTest, DamageIsNamed) {
  WriteIndex(R"({"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}})");
  EXPECT_THAT(Refusal(), ::testing::AllOf(HasSubstr("b.safetensors"), HasSubstr("'y'")));
  WriteIndex(R"({"weight_map": {"x": "../b.safetensors"}})");
  EXPECT_THAT(Refusal(), HasSubstr("'x'"));
  WriteIndex(R"({"weight_map": {"x": 3}})");
  EXPECT_THAT(Refusal(), HasSubstr("'x'"));
  WriteIndex(R"({"weight_map": {}})");
  EXPECT_THAT(Refusal(), HasSubstr("index.json"));
  WriteIndex(R"({})");
  EXPECT_THAT(Refusal(), HasSubstr("weight_map"));
  WriteIndex(R"({"weight_map": )");
  EXPECT_THAT(Refusal(), HasSubstr("index.json"));
}

TEST_F(ShardedCheckpointTest, MissingAndTruncatedShardsAreNamed) {
  std::filesystem::resize_file(folder_.File("b.safetensors"),
                               std::filesystem::file_size(folder_.File("b.safetensors")) - 1);
  EXPECT_THAT(Refusal(), ::testing::AllOf(HasSubstr("b.safetensors"), HasSubstr("truncated"), HasSubstr("again")));
  std::filesystem::remove(folder_.File("b.safetensors"));
  EXPECT_THAT(Refusal(), HasSubstr("b.safetensors"));
}

TEST(CheckpointTest, FoldersWithoutWeights) {
  TempFolder folder;
  EXPECT_THAT(Checkpoint::Open(folder.path()).status().message(), HasSubstr("model.safetensors"));
  WriteFile(folder.File("pytorch_model.bin"), "x");
  EXPECT_THAT(Checkpoint::Open(folder.path()).status().message(), HasSubstr("pytorch_model.bin"));
  EXPECT_THAT(Checkpoint::Open(folder.File("none")).status().message(), HasSubstr("folder"));
}

TEST(CheckpointTest, GoldensAndDemo) {
  Result<Checkpoint> golden = Checkpoint::Open("tests/golden/v3-tiny");
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  EXPECT_EQ(golden->files().size(), 2u);
  EXPECT_EQ(*golden->StoredDType("model.embed_tokens.weight"), DType::kBF16);
  EXPECT_THAT(golden->Find("model.embed_tokens.weight")->shape, ElementsAre(512, 64));
  Result<Checkpoint> demo = Checkpoint::Open("launch/demo");
  ASSERT_TRUE(demo.ok()) << demo.status().message();
  EXPECT_EQ(*demo->StoredDType("model.layers.1.self_attn.o_proj.weight"), DType::kF8E4M3);
  EXPECT_EQ(*demo->StoredDType("model.layers.1.self_attn.o_proj.weight_scale_inv"), DType::kF32);
}

TEST(CheckpointTest, SharedByAllRanks) {
  auto control = CreateLocalControl(3, kTimeout);
  std::vector<std::string> seen(3);
  RunLocalRanks(3, [&](int rank) {
    Result<Checkpoint> checkpoint = Checkpoint::OpenShared("tests/golden/v3-tiny", *control[rank]);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    EXPECT_NE(checkpoint->Find("lm_head.weight"), nullptr);
    seen[rank] = checkpoint->Serialize();
  });
  EXPECT_EQ(seen[0], Checkpoint::Open("tests/golden/v3-tiny")->Serialize());
  EXPECT_EQ(seen[1], seen[0]);
  EXPECT_EQ(seen[2], seen[0]);
}

TEST(CheckpointTest, OpeningFailsOnAllRanksAlike) {
  auto control = CreateLocalControl(3, kTimeout);
  std::vector<std::string> messages(3);
  RunLocalRanks(3, [&](int rank) {
    messages[rank] = Checkpoint::OpenShared("tests/golden/nowhere", *control[rank]).status().message();
  });
  EXPECT_THAT(messages[0], HasSubstr("tests/golden/nowhere"));
  EXPECT_EQ(messages[1], messages[0]);
  EXPECT_EQ(messages[2], messages[0]);
}

TEST(CheckpointTest, DamagedMessagesThrow) {
  const std::string bytes = Checkpoint::Open("tests/golden/llama-mha")->Serialize();
  EXPECT_THROW(Checkpoint::Deserialize(bytes.substr(0, bytes.size() - 1)), Error);
}

}  // namespace
}  // namespace latentmesh
