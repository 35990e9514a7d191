// ModelCost: what the parts of a model hold, and what a token costs, on one rank of a layout. Pure arithmetic on the
// config; nothing is hard-coded for a model. The memory plan itself comes from PlanRank; a test holds the two together.
#pragma once

#include <cstdint>

#include "runtime/model/model_shard.h"
#include "runtime/model/weights.h"

namespace latentmesh {

enum class WeightsAs {
  kPublished,  // as the checkpoint stores them: FP8 kv_b_proj, router in its own dtype
  kKept,       // as a rank keeps them (LayOutWeights): kv_b_proj dequantised, router and norms f32
};

struct WeightPart {
  int64_t params = 0;
  uint64_t bytes = 0;  // block scales included
  void Add(const WeightPart& other) { params += other.params, bytes += other.bytes; }
};

// One rank's weights, all its layers together.
struct RankWeights {
  WeightPart embedding;  // only rows of the tokens at hand are read
  WeightPart attention;
  WeightPart dense;   // MLPs of layers without experts
  WeightPart shared;  // shared experts
  WeightPart router;
  WeightPart norms;
  WeightPart head;
  WeightPart experts;  // all routed experts this rank holds
  int64_t moe_layers = 0;
  int64_t local_experts = 0;  // a layer
  WeightPart kv_b;            // part of `attention`: what expanded attention multiplies each cached token by

  WeightPart EveryToken() const;  // what every step reads: all but embedding and routed experts
  WeightPart Total() const;
};

struct WeightFormats {
  StoredDType stored;
  WeightsAs as = WeightsAs::kKept;
  bool round_to_bf16 = false;
  WeightFormat format = WeightFormat::kAuto;
};
// kInvalidModel when a dtype cannot be told.
Result<RankWeights> CountWeights(const ModelConfig& config, const ModelShard& shard, const WeightFormats& formats);

// The whole model on one rank: 671 B parameters for DeepSeek-V3 without its MTP layer.
Result<RankWeights> CountModel(const ModelConfig& config, const WeightFormats& formats);
// Parameters one token is multiplied by (the embedding is a lookup): 37 B for DeepSeek-V3.
int64_t ActiveParams(const ModelConfig& config, const RankWeights& model);

// Expected share of the experts that `tokens` tokens touch when each draws k of E evenly: 1 - (1 - k/E)^tokens.
double TouchedShare(const ModelConfig& config, double tokens);
// Weight bytes a decode step of `batch` tokens reads over all ranks: EveryToken + experts x TouchedShare.
double DecodeWeightBytes(const ModelConfig& config, const RankWeights& model, double batch);

// Multiply-adds times two of one (query, key) pair, one head and one layer (DeepSeek-V2, section 2.1.3).
int64_t ExpandedPairFlops(const ModelConfig& config);  // 2 (nope + rope + v); Llama: 4 head_dim
int64_t AbsorbedPairFlops(const ModelConfig& config);  // 2 (2 kv_lora_rank + rope); Llama: the same as expanded
// n* over `cached` tokens: expanding is cheaper for more queries; infinite where it never is. See ExpandIsCheaper.
double CrossoverQueries(const ModelConfig& config, double cached);

}  // namespace latentmesh
