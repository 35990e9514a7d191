// Any bytes as config.json and generation_config.json: either refused with a message, or usable without traps.
#include <cmath>
#include <cstdint>
#include <string>

#include "runtime/config/generation_config.h"
#include "runtime/config/model_config.h"

namespace {

void Use(const latentmesh::ModelConfig& config) {
  LM_CHECK(config.vocab_size > 0 && config.hidden_size > 0 && config.num_hidden_layers > 0);
  LM_CHECK(config.rope_dim() % 2 == 0);
  LM_CHECK(std::isfinite(config.softmax_scale()) && config.softmax_scale() > 0);
  LM_CHECK(config.cache_latent() > 0 && config.cache_rope() >= 0);
  for (int64_t layer = 0; layer < 4; ++layer) (void)config.is_moe_layer(layer);
  (void)config.is_moe_layer(config.num_hidden_layers + config.num_nextn_predict_layers);
  if (config.n_routed_experts > 0) LM_CHECK(config.num_experts_per_tok <= config.n_routed_experts);
  if (config.rope_dim() > 4096) return;  // legal, but slow to fill
  for (const float value : latentmesh::MakeCosSinTable(config, 3)) LM_CHECK(std::isfinite(value));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const latentmesh::Result<latentmesh::ModelConfig> config = latentmesh::ParseModelConfig(text, "config.json");
  if (config.ok())
    Use(*config);
  else
    LM_CHECK(!config.status().message().empty());
  (void)latentmesh::ParseGenerationConfig(text, "generation_config.json");
  return 0;
}
