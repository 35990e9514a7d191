#include "runtime/plan/model_cost.h"

#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace latentmesh {
namespace {

// Walks the layers of a shard as LayOutWeights does, with one line a tensor.
class Counter {
 public:
  Counter(const ModelConfig& config, const ModelShard& shard, const WeightFormats& formats)
      : c_(config), s_(shard), formats_(formats) {}

  RankWeights Count() {
    if (s_.first_stage() || (s_.last_stage() && c_.tie_word_embeddings))
      w_.embedding = Linear("model.embed_tokens", s_.vocab.count, c_.hidden_size, WeightUse::kEmbedding);
    if (s_.last_stage()) {
      w_.norms.Add(Vector("model.norm.weight", c_.hidden_size));
      bool tied = c_.tie_word_embeddings;
      w_.head = Linear(tied ? "model.embed_tokens" : "lm_head", s_.vocab.count, c_.hidden_size,
                       tied ? WeightUse::kEmbedding : WeightUse::kHead);
    }
    for (int64_t i = s_.layers.begin; i < s_.layers.end(); ++i)
      Layer(fmt::format("model.layers.{}.", i), c_.is_moe_layer(i));
    return w_;
  }
  const Status& status() const { return status_; }

 private:
  DType Stored(const std::string& tensor) {
    Result<DType> dtype = formats_.stored(tensor);
    if (dtype.ok()) return *dtype;
    if (status_.ok()) status_ = dtype.status();
    return DType::kF32;
  }

  WeightPart Linear(const std::string& name, int64_t rows, int64_t cols, WeightUse use = WeightUse::kProjection) {
    DType stored = Stored(name + ".weight");
    KeptWeight kept{stored};
    if (formats_.as == WeightsAs::kKept) kept = KeepWeight(formats_.format, use, stored, formats_.round_to_bf16);
    WeightPart part{rows * cols, kept.Bytes(rows, cols)};
    int64_t br = c_.quantization.block_rows, bc = c_.quantization.block_cols;
    if (kept.dtype == DType::kF8E4M3)
      part.bytes += static_cast<uint64_t>((rows + br - 1) / br * ((cols + bc - 1) / bc)) * 4;
    return part;
  }

  WeightPart Vector(const std::string& tensor, int64_t size) {
    size_t bytes = formats_.as == WeightsAs::kKept ? 4 : DTypeSize(Stored(tensor));
    return {size, static_cast<uint64_t>(size) * bytes};
  }

  WeightPart Biased(const std::string& name, int64_t rows, int64_t cols) {
    WeightPart part = Linear(name, rows, cols);
    if (c_.attention_bias) part.Add(Vector(name + ".bias", rows));
    return part;
  }

  WeightPart KvB(const std::string& p) {
    return Linear(p + "kv_b_proj", s_.heads.count * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank,
                  WeightUse::kAbsorbed);
  }

  void Mla(const std::string& p) {
    int64_t head_q = c_.qk_nope_head_dim + c_.qk_rope_head_dim, hidden = c_.hidden_size;
    if (c_.q_lora_rank > 0) {
      w_.attention.Add(Biased(p + "q_a_proj", c_.q_lora_rank, hidden));
      w_.attention.Add(Linear(p + "q_b_proj", s_.heads.count * head_q, c_.q_lora_rank));
      w_.norms.Add(Vector(p + "q_a_layernorm.weight", c_.q_lora_rank));
    } else {
      w_.attention.Add(Linear(p + "q_proj", s_.heads.count * head_q, hidden));
    }
    w_.attention.Add(Biased(p + "kv_a_proj_with_mqa", c_.kv_lora_rank + c_.qk_rope_head_dim, hidden));
    w_.norms.Add(Vector(p + "kv_a_layernorm.weight", c_.kv_lora_rank));
    WeightPart kv_b = KvB(p);
    w_.kv_b.Add(kv_b);
    w_.attention.Add(kv_b);
    Output(p, s_.heads.count * c_.v_head_dim);
  }

  void Gqa(const std::string& p) {
    w_.attention.Add(Biased(p + "q_proj", s_.heads.count * c_.head_dim, c_.hidden_size));
    w_.attention.Add(Biased(p + "k_proj", s_.kv_heads.count * c_.head_dim, c_.hidden_size));
    w_.attention.Add(Biased(p + "v_proj", s_.kv_heads.count * c_.head_dim, c_.hidden_size));
    Output(p, s_.heads.count * c_.head_dim);
  }

  void Output(const std::string& p, int64_t columns) {
    w_.attention.Add(Linear(p + "o_proj", c_.hidden_size, columns));
    if (c_.attention_bias && s_.tp_rank == 0) w_.attention.Add(Vector(p + "o_proj.bias", c_.hidden_size));
  }

  WeightPart Mlp(const std::string& p, int64_t width) {
    WeightPart part = Linear(p + "gate_proj", width, c_.hidden_size);
    part.Add(Linear(p + "up_proj", width, c_.hidden_size));
    part.Add(Linear(p + "down_proj", c_.hidden_size, width));
    return part;
  }

  void Moe(const std::string& p) {
    w_.router.Add(Router(p + "gate.weight"));
    if (c_.topk_method == TopkMethod::kNoAuxTc)
      w_.router.Add(Vector(p + "gate.e_score_correction_bias", c_.n_routed_experts));
    Range local = SplitRange(c_.n_routed_experts, s_.ep_size(), s_.ep_rank);
    for (int64_t e = local.begin; e < local.end(); ++e)
      w_.experts.Add(Mlp(fmt::format("{}experts.{}.", p, e), c_.moe_intermediate_size));
    w_.local_experts = local.count;
    ++w_.moe_layers;
    if (c_.n_shared_experts > 0) w_.shared.Add(Mlp(p + "shared_experts.", s_.shared_width.count));
  }

  WeightPart Router(const std::string& tensor) { return Vector(tensor, c_.n_routed_experts * c_.hidden_size); }

  void Layer(const std::string& p, bool is_moe) {
    w_.norms.Add(Vector(p + "input_layernorm.weight", c_.hidden_size));
    w_.norms.Add(Vector(p + "post_attention_layernorm.weight", c_.hidden_size));
    if (c_.is_mla())
      Mla(p + "self_attn.");
    else
      Gqa(p + "self_attn.");
    if (is_moe)
      Moe(p + "mlp.");
    else
      w_.dense.Add(Mlp(p + "mlp.", s_.dense_width.count));
  }

  const ModelConfig& c_;
  const ModelShard& s_;
  const WeightFormats& formats_;
  RankWeights w_;
  Status status_;
};

}  // namespace

WeightPart RankWeights::EveryToken() const {
  WeightPart sum = attention;
  for (const WeightPart& part : {dense, shared, router, norms, head}) sum.Add(part);
  return sum;
}

WeightPart RankWeights::Total() const {
  WeightPart sum = EveryToken();
  sum.Add(embedding);
  sum.Add(experts);
  return sum;
}

Result<RankWeights> CountWeights(const ModelConfig& config, const ModelShard& shard, const WeightFormats& formats) {
  Counter counter(config, shard, formats);
  RankWeights weights = counter.Count();
  LM_RETURN_IF_ERROR(counter.status());
  return weights;
}

Result<RankWeights> CountModel(const ModelConfig& config, const WeightFormats& formats) {
  LM_ASSIGN_OR_RETURN(ProcessMesh alone, ProcessMesh::Create({}, 1, 0));
  return CountWeights(config, MakeShard(config, alone), formats);
}

int64_t ActiveParams(const ModelConfig& config, const RankWeights& model) {
  if (config.n_routed_experts == 0) return model.EveryToken().params;
  return model.EveryToken().params + model.experts.params / config.n_routed_experts * config.num_experts_per_tok;
}

double TouchedShare(const ModelConfig& config, double tokens) {
  if (config.n_routed_experts == 0) return 0;
  double used = static_cast<double>(config.num_experts_per_tok) / static_cast<double>(config.n_routed_experts);
  return 1 - std::pow(1 - used, tokens);
}

double DecodeWeightBytes(const ModelConfig& config, const RankWeights& model, double batch) {
  return static_cast<double>(model.EveryToken().bytes) +
         static_cast<double>(model.experts.bytes) * TouchedShare(config, batch);
}

int64_t ExpandedPairFlops(const ModelConfig& c) {
  return c.is_mla() ? 2 * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim) : 4 * c.head_dim;
}

int64_t AbsorbedPairFlops(const ModelConfig& c) {
  return c.is_mla() ? 2 * (2 * c.kv_lora_rank + c.qk_rope_head_dim) : 4 * c.head_dim;
}

double CrossoverQueries(const ModelConfig& c, double cached) {
  double expand = static_cast<double>(c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim));
  double saved = static_cast<double>(AbsorbedPairFlops(c) - ExpandedPairFlops(c)) / 2;
  double inverse = (expand > 0 ? saved / expand : 0) + 1 / cached;
  return inverse > 0 ? 1 / inverse : std::numeric_limits<double>::infinity();
}

}  // namespace latentmesh
