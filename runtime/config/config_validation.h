// Checks between the fields of a ModelConfig, so that later code may divide and index without asking.
#pragma once

#include <string>

#include "runtime/config/model_config.h"

namespace latentmesh {

// kInvalidModel names file, field, value and rule. First failure only.
Status ValidateModelConfig(const ModelConfig& config, const std::string& file_name);

}  // namespace latentmesh
