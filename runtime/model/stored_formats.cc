#include "runtime/model/stored_formats.h"

#include <algorithm>

#include <fmt/format.h>

namespace latentmesh {
namespace {

Result<DType> TorchDType(const std::string& name) {
  if (name == "bfloat16" || name.empty()) return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  return InvalidModel(fmt::format("torch_dtype '{}': must be bfloat16, float16 or float32", name));
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool IsProjection(const std::string& name) {
  bool inside = name.find(".self_attn.") != std::string::npos || name.find(".mlp.") != std::string::npos;
  return inside && (EndsWith(name, "_proj.weight") || EndsWith(name, "_proj_with_mqa.weight"));
}

// A module of the list, or one inside it: "lm_head", "model.layers.3.mlp", "self_attn.q_a_proj".
bool IsListed(const std::string& tensor, const std::vector<std::string>& modules) {
  std::string name = "." + tensor;
  return std::any_of(modules.begin(), modules.end(),
                     [&](const std::string& module) { return name.find("." + module + ".") != std::string::npos; });
}

}  // namespace

Result<StoredDType> PublishedFormats(const ModelConfig& config) {
  LM_ASSIGN_OR_RETURN(DType plain, TorchDType(config.torch_dtype));
  QuantizationConfig quantization = config.quantization;
  return StoredDType([plain, quantization](const std::string& name) -> Result<DType> {
    if (EndsWith(name, "weight_scale_inv") || EndsWith(name, "e_score_correction_bias")) return DType::kF32;
    if (quantization.fp8 && IsProjection(name) && !IsListed(name, quantization.modules_to_not_convert))
      return DType::kF8E4M3;
    return plain;
  });
}

}  // namespace latentmesh
