// What one token costs in the cache, against other attention forms with the same heads. Arithmetic on the config only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config/model_config.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

struct CacheCost {
  std::string form;                 // "MLA", "MHA", "GQA-8", "MQA"
  int64_t bytes_per_token = 0;      // all layers, unsharded
};

// The first entry is the model's own form. Per layer and in numbers of `element_bytes`:
//   MLA    kv_lora_rank + rope                              (DeepSeek-V2 section 2.1)
//   MHA    heads x (nope + rope + v)                        keys and values as this model would expand them
//   GQA-g  2 x g x v_head_dim, MQA 2 x v_head_dim           (left out where the model has fewer heads)
std::vector<CacheCost> CompareCacheCost(const ModelConfig& config, int64_t element_bytes);

// "cache: 70272 bytes/token (MLA, bf16); MHA 4997120 (98.6 % less); ..." `saved` is against each other form.
std::string CacheReport(const ModelConfig& config, const std::string& kv_dtype);
// "cache tiers: ...\n": blocks written to host memory and disk and read back; empty when there was none.
std::string TierReport(const EngineStats& stats);
// What moved between dp ranks, one line; empty where nothing did.
std::string MoveReport(const EngineStats& stats);
int64_t ElementBytes(const std::string& kv_dtype);     // of "f32" or "bf16"

}  // namespace latentmesh
