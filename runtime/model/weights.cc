#include "runtime/model/weights.h"

#include <fmt/format.h>

#include "runtime/model/weight_filler.h"

namespace latentmesh {
namespace {

// Walks a model and lays out one weight after the other; one object a call of LayOutWeights.
class Layouter {
 public:
  Layouter(const ModelConfig& config, const ModelShard& shard, const ExpertPlacement& placement,
           const WeightLayoutOptions& options, WeightFiller& filler)
      : c_(config), s_(shard), placement_(placement), mtp_(options.mtp), expert_slots_(options.expert_slots), fill_(filler) {}

  ModelWeights Model() {
    ModelWeights w;
    bool head_here = s_.last_stage();
    if (s_.first_stage() || (head_here && (c_.tie_word_embeddings || mtp_)))
      w.embed = fill_.Matrix("model.embed_tokens.weight", {c_.vocab_size, c_.hidden_size}, s_.vocab, AllColumns());
    for (int64_t i = s_.layers.begin; i < s_.layers.end(); ++i) w.layers.push_back(Layer(i));
    if (!head_here) return w;
    w.final_norm = fill_.Vector("model.norm.weight", c_.hidden_size);
    if (c_.tie_word_embeddings) {
      w.head = {w.embed.dtype, w.embed.data, w.embed.dim(0), w.embed.dim(1)};
    } else {
      w.head = fill_.Linear("lm_head", {c_.vocab_size, c_.hidden_size}, s_.vocab, AllColumns(), WeightUse::kHead);
    }
    if (mtp_) w.mtp = Mtp();
    return w;
  }

 private:
  Range AllColumns() const { return {0, c_.hidden_size}; }

  // Stands behind the decoder layers in the checkpoint.
  MtpWeights Mtp() {
    MtpWeights w;
    std::string p = fmt::format("model.layers.{}.", c_.num_hidden_layers);
    w.enorm = fill_.Vector(p + "enorm.weight", c_.hidden_size);
    w.hnorm = fill_.Vector(p + "hnorm.weight", c_.hidden_size);
    w.eh_proj = fill_.Linear(p + "eh_proj", {c_.hidden_size, 2 * c_.hidden_size}, {0, c_.hidden_size}, {0, 2 * c_.hidden_size});
    w.layer = Layer(c_.num_hidden_layers);
    w.head_norm = fill_.Vector(p + "shared_head.norm.weight", c_.hidden_size);
    return w;
  }

  LayerWeights Layer(int64_t i) {
    LayerWeights w;
    std::string p = fmt::format("model.layers.{}.", i);
    w.input_norm = fill_.Vector(p + "input_layernorm.weight", c_.hidden_size);
    w.post_attention_norm = fill_.Vector(p + "post_attention_layernorm.weight", c_.hidden_size);
    if (c_.is_mla()) w.mla = Mla(p + "self_attn.");
    else w.gqa = Gqa(p + "self_attn.");
    w.is_moe = c_.is_moe_layer(i);
    if (!w.is_moe) {
      w.dense = Mlp(p + "mlp.", c_.intermediate_size, s_.dense_width);
      return w;
    }
    w.moe = Moe(p + "mlp.", expert_slots_);
    if (c_.n_shared_experts > 0)
      w.shared = Mlp(p + "mlp.shared_experts.", c_.moe_intermediate_size * c_.n_shared_experts, s_.shared_width);
    return w;
  }

  MlaWeights Mla(const std::string& p) {
    MlaWeights w;
    int64_t head_q = c_.qk_nope_head_dim + c_.qk_rope_head_dim, head_kv = c_.qk_nope_head_dim + c_.v_head_dim;
    int64_t heads = c_.num_attention_heads, hidden = c_.hidden_size, rank = c_.kv_lora_rank;
    Range q_rows{s_.heads.begin * head_q, s_.heads.count * head_q};
    if (c_.q_lora_rank > 0) {
      w.q_a.w = fill_.Linear(p + "q_a_proj", {c_.q_lora_rank, hidden}, {0, c_.q_lora_rank}, AllColumns());
      if (c_.attention_bias) w.q_a.bias = fill_.Vector(p + "q_a_proj.bias", c_.q_lora_rank);
      w.q_a_norm = fill_.Vector(p + "q_a_layernorm.weight", c_.q_lora_rank);
      w.q.w = fill_.Linear(p + "q_b_proj", {heads * head_q, c_.q_lora_rank}, q_rows, {0, c_.q_lora_rank});
    } else {
      w.q.w = fill_.Linear(p + "q_proj", {heads * head_q, hidden}, q_rows, AllColumns());
    }
    int64_t kv_a_rows = rank + c_.qk_rope_head_dim;
    w.kv_a.w = fill_.Linear(p + "kv_a_proj_with_mqa", {kv_a_rows, hidden}, {0, kv_a_rows}, AllColumns());
    if (c_.attention_bias) w.kv_a.bias = fill_.Vector(p + "kv_a_proj_with_mqa.bias", kv_a_rows);
    w.kv_a_norm = fill_.Vector(p + "kv_a_layernorm.weight", rank);
    w.kv_b = fill_.Linear(p + "kv_b_proj", {heads * head_kv, rank}, {s_.heads.begin * head_kv, s_.heads.count * head_kv},
                          {0, rank}, WeightUse::kAbsorbed);
    w.o = Output(p, heads * c_.v_head_dim, {s_.heads.begin * c_.v_head_dim, s_.heads.count * c_.v_head_dim});
    return w;
  }

  GqaWeights Gqa(const std::string& p) {
    GqaWeights w;
    int64_t d = c_.head_dim;
    w.q = Projection(p + "q_proj", c_.num_attention_heads * d, {s_.heads.begin * d, s_.heads.count * d});
    Range kv{s_.kv_heads.begin * d, s_.kv_heads.count * d};
    w.k = Projection(p + "k_proj", c_.num_key_value_heads * d, kv);
    w.v = Projection(p + "v_proj", c_.num_key_value_heads * d, kv);
    w.o = Output(p, c_.num_attention_heads * d, {s_.heads.begin * d, s_.heads.count * d});
    return w;
  }

  LinearWeights Projection(const std::string& name, int64_t out, Range rows) {
    LinearWeights w;
    w.w = fill_.Linear(name, {out, c_.hidden_size}, rows, AllColumns());
    if (c_.attention_bias) w.bias = fill_.VectorPart(name + ".bias", out, rows);
    return w;
  }

  // o_proj sums over the ranks of a tp group, so its bias is added on one of them.
  LinearWeights Output(const std::string& p, int64_t in, Range columns) {
    LinearWeights w;
    w.w = fill_.Linear(p + "o_proj", {c_.hidden_size, in}, {0, c_.hidden_size}, columns);
    if (c_.attention_bias && s_.tp_rank == 0) w.bias = fill_.Vector(p + "o_proj.bias", c_.hidden_size);
    return w;
  }

  MlpWeights Mlp(const std::string& p, int64_t width, Range part) {
    MlpWeights w;
    w.gate = fill_.Linear(p + "gate_proj", {width, c_.hidden_size}, part, AllColumns());
    w.up = fill_.Linear(p + "up_proj", {width, c_.hidden_size}, part, AllColumns());
    w.down = fill_.Linear(p + "down_proj", {c_.hidden_size, width}, {0, c_.hidden_size}, part);
    return w;
  }

  MoeWeights Moe(const std::string& p, int32_t slots) {
    MoeWeights w;
    TensorView router = fill_.Float(p + "gate.weight", {c_.n_routed_experts, c_.hidden_size});
    w.router = {DType::kF32, router.data, c_.n_routed_experts, c_.hidden_size};
    if (c_.topk_method == TopkMethod::kNoAuxTc)
      w.bias = fill_.Vector(p + "gate.e_score_correction_bias", c_.n_routed_experts);
    std::vector<std::string> names;
    for (int32_t e : placement_.LocalExperts(s_.ep_rank)) names.push_back(p + fmt::format("experts.{}.", e));
    // Every expert of a layer is stored alike, so the first says what a slot takes, also on a rank that starts without.
    ExpertSlots room{p + "experts.0.", slots};
    w.experts.gate = fill_.Experts(names, "gate_proj", {c_.moe_intermediate_size, c_.hidden_size}, room);
    w.experts.up = fill_.Experts(names, "up_proj", {c_.moe_intermediate_size, c_.hidden_size}, room);
    w.experts.down = fill_.Experts(names, "down_proj", {c_.hidden_size, c_.moe_intermediate_size}, room);
    return w;
  }

  const ModelConfig& c_;
  const ModelShard& s_;
  const ExpertPlacement& placement_;
  bool mtp_;
  int32_t expert_slots_;
  WeightFiller& fill_;
};

}  // namespace

Result<ModelWeights> LayOutWeights(const ModelConfig& config, const ModelShard& shard, const ExpertPlacement& placement,
                                   const WeightLayoutOptions& options, const StoredDType& stored, Arena& arena,
                                   std::vector<TensorRequest>* requests) {
  WeightFiller filler(config.quantization, options, stored, arena, requests);
  ModelWeights weights = Layouter(config, shard, placement, options, filler).Model();
  if (!filler.status().ok()) return filler.status();
  return weights;
}

}  // namespace latentmesh
