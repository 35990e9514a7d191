// Random weights for measuring without a checkpoint. A number depends only on its tensor's name and its position in the
// whole tensor, so every layout of ranks holds the same model.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/checkpoint/weight_loader.h"

namespace latentmesh {

// Answers every request with numbers in the dtype that `stored` says. Matrices are uniform with standard deviation
// 1/sqrt(columns), so that activations keep their size; norms are 1, biases 0; FP8 codes and weight_scale_inv together
// give the same deviation. Reads and sends nothing: each rank works alone. Fails when a consumer does.
Result<LoadProgress> MakeDummyWeights(const std::vector<TensorRequest>& requests,
                                      const std::function<Result<DType>(const std::string&)>& stored);

}  // namespace latentmesh
