// ChosenExperts: the whole MLP of a layer of experts for one token or two. Their rows need no sorting: each (token,
// choice) reads its expert's weights, and the shared expert is one more that everybody chose, so that two launches read
// all weights once and add everything up. On Hopper GPUs; elsewhere, and for more tokens, the operations of ops.h do
// the same in more steps.
#pragma once

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "kernels/views.h"

namespace latentmesh {

// out[t] = down_s(silu(gate_s x[t]) * up_s x[t]) + sum over j of weights[t][j] down_e(silu(gate_e x[t]) * up_e x[t]),
// s the shared expert, e = ids[t][j] - first; choices of experts outside [0, gate.count), and of tokens from
// *live_tokens on, add nothing.
struct ChosenExpertsParams {
  TensorView x;                    // [T, H], rows may be strided
  const int32_t* ids = nullptr;    // [T, k]; written by the kernel queued last or earlier
  const float* weights = nullptr;  // [T, k]
  int32_t k = 0;
  int32_t first = 0;
  ExpertWeightsView gate, up;            // [W, H] each
  ExpertWeightsView down;                // [H, W] each
  WeightView shared_gate, shared_up;     // [S, H], S may be 0
  WeightView shared_down;                // [H, S]
  TensorView scratch;                    // at least T (k W + S) numbers, overwritten
  TensorView out;                        // [T, H], rows may be strided; may not alias x
  const int32_t* live_tokens = nullptr;  // optional, on the device
  int64_t* loads = nullptr;              // optional [gate.count], on the device: += tokens of each expert
};

// Whether RunChosenExperts takes such shapes and types on this device; ids and weights are not looked at.
bool ServesChosenExperts(const Device& device, const ChosenExpertsParams& p);
// Queues the work on the device's stream. Programmer error where ServesChosenExperts says no.
void RunChosenExperts(const ChosenExpertsParams& p, Stream& stream);

}  // namespace latentmesh
