// Where a worker's weights come from: a checkpoint, or random numbers (--load-format dummy).
#pragma once

#include <vector>

#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/dummy_weights.h"
#include "runtime/model/weights.h"

namespace latentmesh {

struct WeightSource {
  const Checkpoint* checkpoint = nullptr;   // nullptr: random numbers in the formats that `stored` says
  StoredDType stored;

  WeightSource(const Checkpoint& c)  // NOLINT: a checkpoint is a source
      : checkpoint(&c), stored([&c](const std::string& name) { return c.StoredDType(name); }) {}
  explicit WeightSource(StoredDType formats) : stored(std::move(formats)) {}

  // Collective, see LoadWeights.
  Result<LoadProgress> Load(std::vector<TensorRequest> requests, Communicator& host, ControlChannel& control,
                            const LoadOptions& options) const {
    if (checkpoint != nullptr) return LoadWeights(*checkpoint, std::move(requests), host, control, options);
    Result<LoadProgress> made = MakeDummyWeights(requests, stored);
    LM_RETURN_IF_ERROR(control.Agree(made.status()));
    return made;
  }
};

}  // namespace latentmesh
