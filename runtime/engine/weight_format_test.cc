// --weights: what the formats do to logits and to the perplexity of the demo model, on one rank and over layouts.
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/local_job_for_test.h"

namespace latentmesh {
namespace {

EngineOptions Options(const std::string& model, const std::string& weights) {
  EngineOptions options;
  options.model = model;
  options.weights = weights;
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 64;
  options.max_seqs = 8;
  options.kv_memory = 64 << 20;
  return options;
}

using Ids = std::vector<int32_t>;

Result<ScoreResult> Score(const EngineOptions& options, const ParallelConfig& layout, const Ids& ids) {
  ScoreResult result;
  Status status = RunOnThreads(layout, options, [&](Engine& engine) -> Status {
    LM_ASSIGN_OR_RETURN(result, engine.Score(ids, {}));
    return Status::Ok();
  });
  LM_RETURN_IF_ERROR(status);
  return result;
}

// Of the median token: the goldens' random weights send single tokens to other experts after any rounding, and then
// their logits are others altogether.
double MedianError(const ScoreResult& got, const std::vector<float>& want) {
  std::vector<double> errors;
  for (int64_t row = 0; row < got.rows; ++row) {
    double error = 0, norm = 0;
    for (int64_t i = row * got.vocab; i < (row + 1) * got.vocab; ++i) {
      error += std::pow(double{got.logits[i]} - want[i], 2);
      norm += std::pow(double{want[i]}, 2);
    }
    errors.push_back(std::sqrt(error / norm));
  }
  std::nth_element(errors.begin(), errors.begin() + errors.size() / 2, errors.end());
  return errors[errors.size() / 2];
}

struct FormatBound {
  const char* weights;
  double logits;      // relative error of the median token
  double perplexity;  // of the demo, relative to that of `auto`
};
const FormatBound kBounds[] = {
    {"f32", 1e-5, 1e-5}, {"bf16", 0.03, 0.001}, {"fp8", 0.5, 0.01}, {"int8", 0.12, 0.003}, {"int4", 1.0, 0.025}};

TEST(WeightFormats, GoldensStayWithinTheirBounds) {
  for (const char* name : {"v3-tiny", "v3-tiny-fp8", "v2-lite-tiny", "odd-v3", "odd-v3-fp8", "odd-bias", "odd-llama"}) {
    const std::string folder = std::string("tests/golden/") + name;
    auto file = SafetensorsFile::Open(folder + "/expected.safetensors");
    ASSERT_TRUE(file.ok());
    const std::vector<int32_t> ids = file->ReadTensor("input_ids")->ToInt32().value();
    const std::vector<float> logits = file->ReadTensor("logits")->ToFloat().value();
    for (const FormatBound& bound : kBounds) {
      for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 2, 1, 1}}) {
        auto scores = Score(Options(folder, bound.weights), layout, ids);
        ASSERT_TRUE(scores.ok()) << scores.status().message();
        const double error = MedianError(*scores, logits);
        EXPECT_LT(error, bound.logits) << name << " " << bound.weights << " " << ToString(layout);
        RecordProperty(std::string(name) + "_" + bound.weights, std::to_string(error));
      }
    }
  }
}

double LogLoss(const ScoreResult& scores, const Ids& ids) {
  double sum = 0;
  for (int64_t row = 0; row + 1 < scores.rows; ++row) {
    const float* logits = scores.logits.data() + row * scores.vocab;
    const double largest = *std::max_element(logits, logits + scores.vocab);
    double exponentials = 0;
    for (int64_t i = 0; i < scores.vocab; ++i) exponentials += std::exp(logits[i] - largest);
    sum += std::log(exponentials) + largest - logits[ids[row + 1]];
  }
  return sum / static_cast<double>(scores.rows - 1);
}

// Over two windows of 512 tokens.
double Perplexity(const EngineOptions& options, const ParallelConfig& layout) {
  auto file = SafetensorsFile::Open("tests/golden/validation_ids.safetensors");
  const Ids all = file.value().ReadTensor("input_ids")->ToInt32().value();
  double loss = 0;
  for (int window = 0; window < 2; ++window) {
    const Ids ids(all.begin() + window * 512, all.begin() + (window + 1) * 512);
    auto scores = Score(options, layout, ids);
    LM_CHECK_MSG(scores.ok(), scores.status().message());
    loss += LogLoss(*scores, ids) / 2;
  }
  return std::exp(loss);
}

TEST(WeightFormats, PerplexityOfTheDemoStaysWithinItsBound) {
  const double expected = Perplexity(Options("launch/demo", "auto"), {1, 1, 1, 1});
  for (const FormatBound& bound : kBounds) {
    for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 1, 1, 1}}) {
      const double got = Perplexity(Options("launch/demo", bound.weights), layout);
      EXPECT_NEAR(got / expected, 1, bound.perplexity) << bound.weights << " " << ToString(layout);
      RecordProperty(bound.weights, std::to_string(got / expected));
    }
  }
}

TEST(WeightFormats, ErrorsAreReportedAndMemoryShrinks) {
  uint64_t before = UINT64_MAX;
  for (const char* weights : {"f32", "bf16", "int8", "int4"}) {
    auto runtime = Runtime::CreateLocal(Options("tests/golden/v3-tiny", weights));
    ASSERT_TRUE(runtime.ok()) << runtime.status().message();
    EXPECT_LT((*runtime)->memory_plan().weights, before) << weights;
    before = (*runtime)->memory_plan().weights;
    if (std::string(weights) != "int8") continue;
    ASSERT_FALSE((*runtime)->weight_errors().empty());
    for (const WeightError& e : (*runtime)->weight_errors()) {
      EXPECT_LT(std::sqrt(e.error / e.norm), 0.01) << e.name;
      EXPECT_GT(e.norm, 0) << e.name;
    }
  }
}

TEST(WeightFormats, UnknownNamesAreRefused) {
  auto runtime = Runtime::CreateLocal(Options("tests/golden/v3-tiny", "int3"));
  EXPECT_EQ(runtime.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(runtime.status().message().find("--weights int3"), std::string::npos) << runtime.status().message();
}

}  // namespace
}  // namespace latentmesh
