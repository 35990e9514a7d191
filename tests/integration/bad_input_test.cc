// Bad input: one message from one rank that names the place, the documented exit code, and every rank ends within 5 s.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "launch/files.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/integration/program.h"

namespace latentmesh {
namespace {

using testing::HasSubstr;

constexpr double kSecondsToEnd = 5;

void ExpectRefused(int ranks, const std::string& arguments, int exit_code, const std::vector<std::string>& names) {
  Outcome run = RunProgram(ranks, arguments);
  std::string context = arguments + "\nstdout: " + run.out + "\nstderr: " + run.err;
  EXPECT_EQ(run.exit_code, exit_code) << context;
  EXPECT_EQ(run.Count("latentmesh: error:"), 1) << context;
  for (const std::string& name : names) EXPECT_THAT(run.err, HasSubstr(name)) << context;
  EXPECT_LT(run.seconds, kSecondsToEnd) << context;
}

// Alone and on two ranks: the message comes once from either.
void ExpectRefusedEverywhere(const std::string& arguments, int exit_code, const std::vector<std::string>& names) {
  ExpectRefused(1, arguments, exit_code, names);
  ExpectRefused(2, arguments + " --tp 2", exit_code, names);
}

// A copy of a golden checkpoint that a test damages.
class DamagedModel : public testing::Test {
 protected:
  void Copy(const std::string& golden) { std::filesystem::copy("tests/golden/" + golden, model_); }
  std::string Generate() const { return "generate --prompt-ids 1,2,3 --max-tokens 2 --model " + model_; }

  void ReplaceInConfig(const std::string& from, const std::string& to) {
    std::string text = *ReadFile(model_ + "/config.json");
    size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    ASSERT_TRUE(WriteFile(model_ + "/config.json", text.replace(at, from.size(), to)).ok());
  }

  // Rewrites a shard with one tensor changed by `change`.
  template <typename Change>
  void ChangeTensor(const std::string& shard, const std::string& name, Change change) {
    std::string path = model_ + "/" + shard;
    SafetensorsWriter writer;
    {
      auto file = SafetensorsFile::Open(path);
      ASSERT_TRUE(file.ok());
      ASSERT_NE(file->Find(name), nullptr) << name;
      for (const TensorInfo& info : file->tensors()) {
        auto tensor = file->ReadTensor(info.name);
        ASSERT_TRUE(tensor.ok());
        if (info.name == name) change(*tensor);
        writer.Add(tensor->name, tensor->dtype, tensor->shape, tensor->bytes.data());
      }
    }
    ASSERT_TRUE(writer.Write(path).ok());
  }

  TempFolder folder_;
  std::string model_ = folder_ / "model";
};

TEST_F(DamagedModel, MissingFolderAndConfig) {
  ExpectRefusedEverywhere("generate --prompt-ids 1 --model /no/such/model", 3, {"/no/such/model"});
  Copy("v3-tiny");
  std::filesystem::remove(model_ + "/config.json");
  ExpectRefused(2, Generate(), 3, {"config.json"});
}

TEST_F(DamagedModel, BadConfig) {
  Copy("v3-tiny");
  std::string good = *ReadFile(model_ + "/config.json");
  ASSERT_TRUE(WriteFile(model_ + "/config.json", good.substr(0, good.size() / 2)).ok());
  ExpectRefused(2, Generate(), 3, {"config.json"});
  ASSERT_TRUE(WriteFile(model_ + "/config.json", good).ok());
  ReplaceInConfig("\"kv_lora_rank\"", "\"kv_lora_rnk\"");
  ExpectRefused(2, Generate(), 3, {"config.json", "kv_lora_rank"});
}

TEST_F(DamagedModel, UnsupportedArchitecturesAreRefusedByName) {
  for (const char* name : {"DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "MixtralForCausalLM"}) {
    std::filesystem::remove_all(model_);
    Copy("v3-tiny");
    ReplaceInConfig("DeepseekV3ForCausalLM", name);
    ExpectRefused(1, Generate(), 3, {name});
  }
}

TEST_F(DamagedModel, MissingShard) {
  Copy("v3-tiny");
  std::filesystem::remove(model_ + "/model-00002-of-00002.safetensors");
  ExpectRefusedEverywhere(Generate(), 3, {"model-00002-of-00002.safetensors"});
}

TEST_F(DamagedModel, TruncatedShard) {
  Copy("v3-tiny");
  std::string shard = model_ + "/model-00001-of-00002.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 100);
  ExpectRefusedEverywhere(Generate(), 3, {"model-00001-of-00002.safetensors"});
}

TEST_F(DamagedModel, WrongShape) {
  Copy("v2-tiny");
  ChangeTensor("model.safetensors", "model.norm.weight", [](HostTensor& tensor) {
    tensor.shape = {1, tensor.shape[0]};
  });
  ExpectRefusedEverywhere(Generate(), 3, {"model.norm.weight"});
}

TEST_F(DamagedModel, WrongDtype) {
  Copy("v2-tiny");
  ChangeTensor("model.safetensors", "model.embed_tokens.weight", [](HostTensor& tensor) {
    tensor.dtype = DType::kI32;
    tensor.bytes.resize(tensor.shape[0] * tensor.shape[1] * 4);
  });
  ExpectRefusedEverywhere(Generate(), 3, {"model.embed_tokens.weight"});
}

TEST_F(DamagedModel, IntegerScales) {
  Copy("v3-tiny-fp8");
  std::string name = "model.layers.1.self_attn.kv_b_proj.weight_scale_inv";
  ChangeTensor("model.safetensors", name, [](HostTensor& tensor) { tensor.dtype = DType::kI32; });
  ExpectRefused(2, Generate() + " --tp 2", 3, {name});
}

TEST_F(DamagedModel, NanScale) {
  Copy("v3-tiny-fp8");
  std::string name = "model.layers.1.self_attn.o_proj.weight_scale_inv";
  ChangeTensor("model.safetensors", name, [](HostTensor& tensor) {
    float nan = std::nanf("");
    std::memcpy(tensor.bytes.data(), &nan, sizeof nan);
  });
  ExpectRefusedEverywhere(Generate(), 3, {name});
}

TEST_F(DamagedModel, BadTokenizer) {
  std::filesystem::copy("launch/demo", model_);
  ASSERT_TRUE(WriteFile(model_ + "/tokenizer.json", "{\"model\": ").ok());
  ExpectRefusedEverywhere("generate --prompt a --model " + model_, 3, {"tokenizer.json"});
}

TEST(BadArguments, OneMessageNamesTheFlag) {
  ExpectRefused(2, "generate --model tests/golden/v3-tiny", 2, {"--prompt"});
  ExpectRefused(2, "generate --prompt-ids 1", 2, {"--model"});
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --prompt-ids 1 --tp two", 2, {"--tp"});
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --prompt-ids 1,x", 2, {"--prompt-ids"});
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --prompt-ids 1 --kv-memory lots", 2, {"--kv-memory"});
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --prompts-file /no/such/file", 7, {"/no/such/file"});
  ExpectRefused(1, "generate --model tests/golden/v3-tiny --prompt-ids 1 --dedicated-scheduler", 2,
                {"--dedicated-scheduler"});
  ExpectRefused(2, "nonsense", 2, {"nonsense"});
}

TEST(BadArguments, LayoutsThatDoNotDivide) {
  std::string base = "generate --model tests/golden/v3-tiny --prompt-ids 1 ";
  ExpectRefused(2, base + "--tp 3", 2, {"3"});
  ExpectRefused(2, base + "--tp 2 --dp 2", 2, {"2"});
  ExpectRefused(4, base + "--tp 4 --cp 3", 2, {"cp"});
  ExpectRefused(8, base + "--pp 8", 2, {"pp"});
}

TEST(BadArguments, PromptsTheModelCannotTake) {
  std::string ids = "1";
  for (int i = 0; i < 3000; ++i) ids += ",1";
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --tp 2 --max-model-len 64 --max-tokens 4 --prompt-ids " + ids,
                2, {"3001", "64"});
  ExpectRefused(1, "generate --model tests/golden/v3-tiny --prompt-ids 1,100000", 2, {"100000"});
  ExpectRefused(1, "generate --model tests/golden/v3-tiny --prompt text", 3, {"tokenizer"});
}

TEST(BadArguments, TooLittleMemoryForOneSequence) {
  ExpectRefused(1, "generate --model tests/golden/v3-tiny --prompt-ids 1 --kv-memory 1kB", 4, {"memory"});
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --prompt-ids 1 --tp 2 --kv-memory 1kB", 4, {"memory"});
}

TEST(BadArguments, NoGpuHere) {
  Outcome version = RunProgram(1, "version");
  if (version.out.find("cuda: available") != std::string::npos) GTEST_SKIP() << "this machine has a GPU";
  ExpectRefused(2, "generate --model tests/golden/v3-tiny --prompt-ids 1 --device cuda", 6, {"cuda"});
}

}  // namespace
}  // namespace latentmesh
