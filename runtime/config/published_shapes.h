// config.json texts of well-known shapes, so that a model with random weights can be made from a name alone.
#pragma once

#include <string>

#include "kernels/status.h"

namespace latentmesh {

// mini (a small DeepSeek-V2 class model for comparisons on CPUs), v2-lite, v3: a text for ParseModelConfig.
// kInvalidArgument names the flag --shape for another name.
Result<std::string> PublishedShape(const std::string& name);

}  // namespace latentmesh
