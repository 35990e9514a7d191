// Which dtype each tensor of a checkpoint has, told from config.json alone, so that a plan needs no weights.
#pragma once

#include "runtime/model/weights.h"

namespace latentmesh {

// The formats in which DeepSeek and Llama checkpoints are published: with `quantization_config` the projections of
// attention and MLPs are FP8 (but for modules_to_not_convert); embedding, head, norms, router and biases have
// torch_dtype, e_score_correction_bias is f32. kInvalidModel for a torch_dtype that is no dtype of weights.
Result<StoredDType> PublishedFormats(const ModelConfig& config);

}  // namespace latentmesh
