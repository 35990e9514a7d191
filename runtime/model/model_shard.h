// ModelShard: the part of a model that one rank holds, and the rules a layout must keep. Pure arithmetic.
#pragma once

#include <string>

#include "kernels/status.h"
#include "moe/expert_placement.h"
#include "parallel/process_mesh.h"
#include "runtime/config/model_config.h"

namespace latentmesh {

struct ModelShard {
  ParallelConfig layout;
  int tp_rank = 0;
  int cp_rank = 0;
  int dp_rank = 0;
  int pp_rank = 0;
  int ep_rank = 0;
  Range layers;          // decoder layers of this pipeline stage
  Range heads;           // query heads
  Range kv_heads;        // Llama: key-value heads those query heads need (two ranks may hold the same one)
  Range vocab;           // rows of embedding and head
  Range dense_width;     // of intermediate_size, in whole quantisation blocks where the checkpoint has them
  Range shared_width;    // of moe_intermediate_size * n_shared_experts

  bool first_stage() const { return pp_rank == 0; }
  bool last_stage() const { return pp_rank == layout.pp - 1; }
  int ep_size() const { return layout.dp * layout.tp; }
  ContextShard context(int block_size) const { return {layout.cp, cp_rank, block_size}; }
  // This rank's share of the routing work of a step in which its dp group has `tokens` tokens.
  Range RoutedTokens(int64_t tokens) const { return SplitRange(tokens, layout.tp, tp_rank); }
};

// kInvalidArgument when the layout does not divide the model: names the flag, the field and values that would do.
Status ValidateLayout(const ModelConfig& config, const ParallelConfig& layout);

// Fills the zeros of `wanted` for `world` ranks: heads over as many ranks as divide, the rest by sequence (dp).
// kInvalidArgument when the given values leave no layout.
Result<ParallelConfig> ChooseLayout(const ModelConfig& config, const ParallelConfig& wanted, int world);

// Widths are split in units of `width_unit` columns, or of the blocks of an FP8 checkpoint where those are larger.
ModelShard MakeShard(const ModelConfig& config, const ProcessMesh& mesh, int64_t width_unit = 1);

}  // namespace latentmesh
