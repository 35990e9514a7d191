#include "launch/bench_attention_fit.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <random>

#include <fmt/format.h>

#include "launch/log.h"
#include "launch/reference_tensors.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/config/model_config.h"
#include "runtime/engine/engine.h"

namespace latentmesh {
namespace {

constexpr int kRandomTokens = 64;
constexpr int64_t kMostHidden = 2048;      // one-sided Jacobi takes minutes a layer beyond

Status CheckModel(const ModelConfig& config, const std::string& model) {
  auto refuse = [&](const std::string& why) { return InvalidArgument(fmt::format("--fit {}: {}", model, why)); };
  if (config.is_mla())
    return refuse("has latent attention already; name a model with keys and values (LlamaForCausalLM)");
  if (config.attention_bias) return refuse("attention_bias is set, and the fit is for attention without biases");
  if (config.quantization.fp8) return refuse("the weights are FP8; name a bf16, f16 or f32 checkpoint");
  if (config.hidden_size > kMostHidden)
    return refuse(fmt::format("hidden_size {} is more than {}: the decomposition would take hours", config.hidden_size,
                              kMostHidden));
  return Status::Ok();
}

Result<std::vector<int32_t>> TextFor(const ModelConfig& config, FitResults& results) {
  const std::string expected = results.model + "/expected.safetensors";
  results.golden_text = std::filesystem::exists(expected);
  if (results.golden_text) {
    LM_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(expected));
    return ReadTokenIds(file, "input_ids");
  }
  std::mt19937 random(1);
  std::vector<int32_t> ids(static_cast<size_t>(std::min<int64_t>(kRandomTokens, config.max_position_embeddings)));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(config.vocab_size));
  return ids;
}

// [layers + 1][T, hidden]
Result<ScoreResult> HiddenStates(const std::string& model, const std::vector<int32_t>& ids) {
  EngineOptions options;
  options.model = model;
  options.device = "cpu";
  options.dtype = options.kv_dtype = "f32";
  options.max_seqs = 1;
  options.max_model_len = static_cast<int>(ids.size());
  LM_ASSIGN_OR_RETURN(auto runtime, Runtime::CreateLocal(options));
  ScoreResult scores;
  LM_RETURN_IF_ERROR(runtime->Run([&](Engine& engine) {
    ScoreOptions score;
    score.hidden_states = true;
    score.logits_from = static_cast<int32_t>(ids.size()) - 1;
    LM_ASSIGN_OR_RETURN(scores, engine.Score(ids, score));
    return Status::Ok();
  }));
  return scores;
}

Result<Matrix> ReadMatrix(const Checkpoint& checkpoint, const std::string& name) {
  LM_ASSIGN_OR_RETURN(HostTensor tensor, checkpoint.ReadTensor(name));
  LM_ASSIGN_OR_RETURN(std::vector<float> numbers, tensor.ToFloat());
  return Matrix::FromFloats(tensor.shape.size() == 2 ? tensor.shape[0] : 1, tensor.shape.back(), numbers);
}

Result<AttentionWeights> ReadWeights(const Checkpoint& checkpoint, const ModelConfig& config,
                                     const std::string& prefix) {
  AttentionWeights w;
  w.heads = config.num_attention_heads;
  w.kv_heads = config.num_key_value_heads;
  w.head_dim = config.head_dim;
  LM_ASSIGN_OR_RETURN(w.q, ReadMatrix(checkpoint, prefix + "self_attn.q_proj.weight"));
  LM_ASSIGN_OR_RETURN(w.k, ReadMatrix(checkpoint, prefix + "self_attn.k_proj.weight"));
  LM_ASSIGN_OR_RETURN(w.v, ReadMatrix(checkpoint, prefix + "self_attn.v_proj.weight"));
  LM_ASSIGN_OR_RETURN(w.o, ReadMatrix(checkpoint, prefix + "self_attn.o_proj.weight"));
  return w;
}

Matrix Normalised(Matrix x, const Matrix& weight, double eps) {
  for (int64_t t = 0; t < x.rows; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < x.cols; ++i) sum += x.at(t, i) * x.at(t, i);
    const double factor = 1 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
    for (int64_t i = 0; i < x.cols; ++i) x.at(t, i) *= factor * weight.at(0, i);
  }
  return x;
}

// Sixteenths of the full rank, then eighths.
std::vector<int64_t> RanksUpTo(int64_t full) {
  std::vector<int64_t> ranks;
  for (int64_t sixteenths : {1, 2, 3, 4, 6, 8, 10, 12, 14, 16})
    ranks.push_back(std::max<int64_t>(1, full * sixteenths / 16));
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

FitLayer FitOne(const AttentionWeights& w, const Matrix& x, int64_t layer) {
  const int64_t pairs = w.head_dim / 2, kept = std::max<int64_t>(1, pairs / 2);
  // Full rank of the latent: rows of unrotated keys and values, or the width of x.
  auto full = [&](int64_t key_rows) { return std::min(key_rows + w.v.rows, x.cols); };
  FitLayer fit{layer, {}};
  fit.curves.push_back(FitRotated(w, x, RanksUpTo(full(w.k.rows))));
  for (int64_t rotated : {kept, int64_t{0}})
    fit.curves.push_back(FitDecoupled(w, x, rotated, RanksUpTo(full(w.k.rows - 2 * rotated * w.kv_heads))));
  return fit;
}

std::vector<FitCurve> MeanOver(const std::vector<FitLayer>& layers) {
  std::vector<FitCurve> mean = layers.front().curves;
  const double n = static_cast<double>(layers.size());
  for (size_t c = 0; c < mean.size(); ++c) {
    for (size_t p = 0; p < mean[c].points.size(); ++p) {
      mean[c].points[p].weights_error = mean[c].points[p].output_error = 0;
      for (const FitLayer& layer : layers) {
        mean[c].points[p].weights_error += layer.curves[c].points[p].weights_error / n;
        mean[c].points[p].output_error += layer.curves[c].points[p].output_error / n;
      }
    }
  }
  return mean;
}

}  // namespace

std::string CurveName(const FitCurve& curve) {
  if (curve.rope_pairs < 0) return "rotated";
  if (curve.rope_pairs == 0) return "decoupled, no RoPE kept";
  return fmt::format("decoupled, {} pairs keep RoPE", curve.rope_pairs);
}

Result<FitResults> FitModel(const std::string& model) {
  FitResults results;
  results.model = model;
  LM_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(model));
  LM_RETURN_IF_ERROR(CheckModel(config, model));
  results.architecture = config.architecture_name;
  results.heads = config.num_attention_heads;
  results.kv_heads = config.num_key_value_heads;
  results.head_dim = config.head_dim;
  results.hidden = config.hidden_size;
  LM_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TextFor(config, results));
  LM_ASSIGN_OR_RETURN(ScoreResult states, HiddenStates(model, ids));
  LM_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(model));
  results.tokens = states.tokens;
  const int64_t size = states.tokens * states.hidden;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    LogInfo(fmt::format("fitting layer {} of {}", layer + 1, config.num_hidden_layers));
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    LM_ASSIGN_OR_RETURN(AttentionWeights w, ReadWeights(checkpoint, config, prefix));
    LM_ASSIGN_OR_RETURN(Matrix norm, ReadMatrix(checkpoint, prefix + "input_layernorm.weight"));
    w.cos_sin = MakeCosSinTable(config, states.tokens);
    const auto begin = states.hidden_states.begin() + layer * size;
    const Matrix x = Matrix::FromFloats(states.tokens, states.hidden, {begin, begin + size});
    results.layers.push_back(FitOne(w, Normalised(x, norm, config.rms_norm_eps), layer));
  }
  results.mean = MeanOver(results.layers);
  return results;
}

}  // namespace latentmesh
