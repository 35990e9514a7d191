// Every golden checkpoint on every layout: logits and hidden states within 1e-5, greedy ids equal, in f32.
#include <gtest/gtest.h>

#include "tests/integration/program.h"

namespace latentmesh {
namespace {

constexpr const char* kGoldens[] = {"v3-tiny", "v3-tiny-yarn", "v3-tiny-fp8", "v2-tiny", "v2-lite-tiny",
                                    "llama-mha", "llama-gqa", "llama-mqa"};
constexpr Layout kLayouts[] = {{}, {.tp = 2}, {.dp = 2}, {.pp = 2}, {.tp = 2, .dp = 2}, {.dp = 2, .pp = 2},
                               {.tp = 4, .cp = 2}, {.tp = 2, .dp = 2, .pp = 2}};

using VerifyCase = std::tuple<Layout, const char*>;
class Verify : public testing::TestWithParam<VerifyCase> {};

TEST_P(Verify, GoldenWithinTolerance) {
  auto [layout, golden] = GetParam();
  std::string folder = std::string("tests/golden/") + golden;
  bool llama = folder.find("llama") != std::string::npos;
  if (llama) layout.cp = 1;      // the baselines have no latent cache to deal out
  Outcome run = RunProgram(layout, "verify --dtype f32 --kv-dtype f32 --threads 1 --model " + folder + " --expected " +
                                       folder + "/expected.safetensors");
  EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_NE(run.out.find("logits: relative error"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("(100.0 %)"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("greedy: 36 ids equal"), std::string::npos) << run.out;
}

std::string NameOf(const testing::TestParamInfo<VerifyCase>& info) {
  std::string name = std::get<0>(info.param).name() + "_" + std::get<1>(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Goldens, Verify, testing::Combine(testing::ValuesIn(kLayouts), testing::ValuesIn(kGoldens)),
                         NameOf);

TEST(VerifyFails, WhenTheReferenceIsAnotherModels) {
  Outcome run = RunProgram(
      1, "verify --dtype f32 --model tests/golden/v2-tiny --expected tests/golden/v3-tiny/expected.safetensors");
  EXPECT_EQ(run.exit_code, 5) << run.out << run.err;
  EXPECT_EQ(run.Count("latentmesh: error:"), 1) << run.err;
  EXPECT_NE(run.out.find("FAILED"), std::string::npos);
}

TEST(VerifyFails, BelowAnImpossibleTolerance) {
  Outcome run = RunProgram(2, "verify --tolerance 1e-12 --tp 2 --model tests/golden/v3-tiny --expected "
                              "tests/golden/v3-tiny/expected.safetensors");
  EXPECT_EQ(run.exit_code, 5) << run.out << run.err;
}

TEST(VerifyForms, AbsorbedAndExpandedBothMatch) {
  for (const char* form : {"absorbed", "expanded"}) {
    Outcome run = RunProgram(1, std::string("verify --dtype f32 --model tests/golden/v3-tiny-yarn --expected "
                                            "tests/golden/v3-tiny-yarn/expected.safetensors --attention ") + form);
    EXPECT_EQ(run.exit_code, 0) << form << run.out << run.err;
  }
}

TEST(VerifyForms, BF16StaysWithinItsBound) {
  Outcome run = RunProgram(2, "verify --dtype bf16 --kv-dtype bf16 --tp 2 --model launch/demo --tokens 32");
  EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
}

// Two ranks a node: tokens cross nodes and are read in place within one. bf16 rounds what it carries: measured 2.4e-3.
TEST(VerifyDispatch, ByNodesExactAndInBF16) {
  for (const char* flags : {"--dispatch-dtype f32 --tolerance 1e-5", "--dispatch-dtype bf16 --tolerance 0.02"}) {
    Outcome run = RunProgram({.tp = 2, .dp = 2}, std::string("verify --dtype f32 --kv-dtype f32 --threads 1 --ranks-per-node 2 "
                             "--model tests/golden/v3-tiny --expected tests/golden/v3-tiny/expected.safetensors ") + flags);
    EXPECT_EQ(run.exit_code, 0) << flags << run.out << run.err;
  }
}

TEST(VerifyItself, ComparesFormsAndLayouts) {
  Outcome run =
      RunProgram(4, "verify --dtype f32 --kv-dtype f32 --tp 2 --dp 2 --model tests/golden/v3-tiny --tokens 40");
  EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_NE(run.out.find("absorbed against expanded"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("decode on the cache"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("this layout against one rank"), std::string::npos) << run.out;
}

}  // namespace
}  // namespace latentmesh
