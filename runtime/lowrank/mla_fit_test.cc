// On the weights and hidden states of the goldens' Llama models.
#include "runtime/lowrank/mla_fit.h"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/config/model_config.h"

namespace latentmesh {
namespace {

// Layer 0 of a golden: embeddings in, the residual stream after the layer as the reference saw it.
struct GoldenLayer {
  ModelConfig config;
  SafetensorsFile weights;
  AttentionWeights attention;
  Matrix before, after;              // [T, hidden]

  explicit GoldenLayer(const std::string& name)
      : config(LoadModelConfig("tests/golden/" + name).value()),
        weights(SafetensorsFile::Open("tests/golden/" + name + "/model.safetensors").value()) {
    const auto expected = SafetensorsFile::Open("tests/golden/" + name + "/expected.safetensors");
    const HostTensor states = expected->ReadTensor("hidden_states").value();
    const Matrix all = Matrix::FromFloats(states.shape[0] * states.shape[1], states.shape[2], states.ToFloat().value());
    before = RowRange(all, 0, states.shape[1]);
    after = RowRange(all, states.shape[1], states.shape[1]);
    attention = {config.num_attention_heads, config.num_key_value_heads, config.head_dim, Weight("self_attn.q_proj"),
                 Weight("self_attn.k_proj"), Weight("self_attn.v_proj"), Weight("self_attn.o_proj"),
                 MakeCosSinTable(config, states.shape[1])};
  }

  Matrix Weight(const std::string& name) const {
    const HostTensor t = weights.ReadTensor("model.layers.0." + name + ".weight").value();
    return Matrix::FromFloats(t.shape.size() == 2 ? t.shape[0] : 1, t.shape.back(), t.ToFloat().value());
  }

  Matrix Normalised(const Matrix& x, const std::string& name) const {
    const Matrix weight = Weight(name);
    Matrix out = x;
    for (int64_t t = 0; t < x.rows; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < x.cols; ++i) sum += x.at(t, i) * x.at(t, i);
      const double factor = 1 / std::sqrt(sum / static_cast<double>(x.cols) + config.rms_norm_eps);
      for (int64_t i = 0; i < x.cols; ++i) out.at(t, i) *= factor * weight.at(0, i);
    }
    return out;
  }
  Matrix Input() const { return Normalised(before, "input_layernorm"); }
};

Matrix Sum(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

class Goldens : public testing::TestWithParam<const char*> {};

// The layer's output from this attention and a plain SwiGLU is the reference's.
TEST_P(Goldens, AttentionIsThatOfTheModel) {
  const GoldenLayer layer(GetParam());
  const Matrix middle = Sum(layer.before, AttentionOutput(layer.attention, layer.Input()));
  const Matrix x = layer.Normalised(middle, "post_attention_layernorm");
  Matrix gate = TimesTransposed(x, layer.Weight("mlp.gate_proj"));
  const Matrix up = TimesTransposed(x, layer.Weight("mlp.up_proj"));
  for (size_t i = 0; i < gate.values.size(); ++i) gate.values[i] *= up.values[i] / (1 + std::exp(-gate.values[i]));
  EXPECT_LT(RelativeError(Sum(middle, TimesTransposed(gate, layer.Weight("mlp.down_proj"))), layer.after), 1e-6);
}

TEST_P(Goldens, ErrorFallsWithRankToNothing) {
  const GoldenLayer layer(GetParam());
  const FitCurve curve = FitRotated(layer.attention, layer.Input(), {8, 32, 64, 96, 1000});
  const int64_t full = std::min(2 * layer.attention.k.rows, layer.config.hidden_size);
  EXPECT_EQ(curve.points.back().rank, full);
  EXPECT_LT(curve.points.back().output_error, 1e-10);
  EXPECT_LT(curve.points.back().weights_error, 1e-12);
  for (size_t i = 1; i < curve.points.size(); ++i) {
    if (curve.points[i].rank == curve.points[i - 1].rank) continue;
    EXPECT_LT(curve.points[i].weights_error, curve.points[i - 1].weights_error);
    EXPECT_LT(curve.points[i].output_error, curve.points[i - 1].output_error);
  }
  EXPECT_GT(curve.points.front().output_error, 1e-2);
}

INSTANTIATE_TEST_SUITE_P(All, Goldens, testing::Values("llama-mha", "llama-gqa", "llama-mqa"), [](const auto& info) {
  return std::string(info.param).replace(5, 1, "_");
});

TEST(MlaFit, DecoupledKeepsWhatItRotates) {
  const GoldenLayer layer("llama-mha");
  const Matrix x = layer.Input();
  const int64_t all = layer.attention.head_dim / 2;
  // With every pair kept only values are in the latent: exact at full rank, and the cache holds all keys.
  const FitCurve kept = FitDecoupled(layer.attention, x, all, {1000});
  EXPECT_LT(kept.points[0].output_error, 1e-10);
  EXPECT_EQ(kept.points[0].cache_numbers, kept.points[0].rank + layer.attention.k.rows);
  // Without any rotation the output is wrong even at full rank, and less so the more pairs keep theirs.
  const double none = FitDecoupled(layer.attention, x, 0, {1000}).points[0].output_error;
  const double half = FitDecoupled(layer.attention, x, all / 2, {1000}).points[0].output_error;
  EXPECT_GT(none, 1e-3);
  EXPECT_GT(half, 1e-6);
  EXPECT_LT(half, none);
}

TEST(MlaFit, StrongestPairsAreThoseThatCarryTheScores) {
  AttentionWeights w{1, 1, 6, Matrix(6, 4), Matrix(6, 4), Matrix(6, 4), Matrix(4, 6), {}};
  for (int64_t i = 0; i < 6; ++i)
    w.q.at(i, 0) = w.k.at(i, 0) = i % 3 == 1 ? 5 : i % 3 == 2 ? 2 : 0.1;  // pairs (i, i + 3)
  Matrix x(2, 4);
  x.at(0, 0) = x.at(1, 0) = 1;
  EXPECT_EQ(StrongestPairs(w, x, 1), (std::vector<int64_t>{1}));
  EXPECT_EQ(StrongestPairs(w, x, 2), (std::vector<int64_t>{1, 2}));
}

}  // namespace
}  // namespace latentmesh
