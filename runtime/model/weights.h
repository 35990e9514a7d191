// The weights one rank holds, laid out in an Arena, and the requests that fill them from a checkpoint.
//
// Formats: see weight_format.h. By default FP8 stays FP8 with its block scales; f32, bf16 and f16 stay as they are (with
// dtype bf16, f32 and f16 become bf16). Norms, router, biases are f32. kv_b_proj is dequantised, because absorbing it
// multiplies by parts of it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/views.h"
#include "moe/moe_layer.h"
#include "runtime/checkpoint/weight_loader.h"
#include "runtime/config/model_config.h"
#include "runtime/model/arena.h"
#include "runtime/model/model_shard.h"
#include "runtime/model/weight_format.h"
#include "runtime/model/weight_store.h"

namespace latentmesh {

struct LinearWeights {
  WeightView w;          // [out, in] of this rank
  TensorView bias;       // optional [out] f32
};

struct MlaWeights {
  LinearWeights q_a;     // [q_lora_rank, hidden]; empty when q_lora_rank is 0
  TensorView q_a_norm;   // [q_lora_rank]
  LinearWeights q;       // q_b_proj or q_proj: [heads * (nope + rope), q_lora_rank or hidden]
  LinearWeights kv_a;    // [kv_lora_rank + rope, hidden], the same on all tp ranks
  TensorView kv_a_norm;  // [kv_lora_rank]
  WeightView kv_b;       // [heads * (nope + v), kv_lora_rank], unquantised
  LinearWeights o;       // [hidden, heads * v]
};

struct GqaWeights {
  LinearWeights q;       // [heads * head_dim, hidden]
  LinearWeights k;       // [kv_heads * head_dim, hidden]
  LinearWeights v;
  LinearWeights o;       // [hidden, heads * head_dim]
};

struct MlpWeights {
  WeightView gate;       // [width, hidden] of this rank; width may be 0
  WeightView up;
  WeightView down;       // [hidden, width]
};

struct LayerWeights {
  TensorView input_norm;           // [hidden] f32
  TensorView post_attention_norm;  // [hidden] f32
  MlaWeights mla;                  // one of mla and gqa
  GqaWeights gqa;
  bool is_moe = false;
  MlpWeights dense;                // one of dense and (moe, shared)
  MoeWeights moe;                  // router and the routed experts of this rank
  MlpWeights shared;               // shared experts as one MLP, its width split over tp
};

// The multi-token-prediction layer (DeepSeek-V3 report, section 2.2). Embedding and head are the main model's.
struct MtpWeights {
  TensorView enorm;                // [hidden] f32
  TensorView hnorm;                // [hidden] f32
  WeightView eh_proj;              // [hidden, 2 * hidden], the same on all tp ranks
  LayerWeights layer;
  TensorView head_norm;            // [hidden] f32, shared_head.norm
};

struct ModelWeights {
  TensorView embed;                // [vocab of this rank, hidden]; first stage; last stage when tied or drafting
  std::vector<LayerWeights> layers;  // of this stage
  TensorView final_norm;           // last stage
  WeightView head;                 // [vocab of this rank, hidden], last stage; shares embed's memory when tied
  std::optional<MtpWeights> mtp;   // last stage, when drafting
};

// What the layout code needs to know of a checkpoint: the dtype a tensor is stored in.
using StoredDType = std::function<Result<DType>(const std::string& name)>;

struct WeightLayoutOptions {
  bool round_to_bf16 = false;      // dtype bf16
  bool mtp = false;                // load the first multi-token-prediction layer, too
  int32_t expert_slots = 0;        // room for so many experts in each decoder layer with experts; 0: for those placed here
  WeightFormat format = WeightFormat::kAuto;
  std::shared_ptr<std::vector<WeightError>> errors;   // optional: of the matrices that were not kept as stored
};

// Lays the shard's weights out in `arena`. When `requests` is given (and the arena has memory), appends the requests whose
// consumers fill the weights; they refer to the arena's memory only. kInvalidModel when a tensor is missing.
Result<ModelWeights> LayOutWeights(const ModelConfig& config, const ModelShard& shard, const ExpertPlacement& placement,
                                   const WeightLayoutOptions& options, const StoredDType& stored, Arena& arena,
                                   std::vector<TensorRequest>* requests);

}  // namespace latentmesh
