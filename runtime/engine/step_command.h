// StepCommand: what the control channel carries to every rank before a step.
#pragma once

#include <string>

#include "kernels/status.h"
#include "runtime/model/step_batch.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

struct StepCommand {
  AttentionMode attention = AttentionMode::kAuto;
  bool capture_hidden = false;   // ranks send the hidden states of the step's tokens to rank 0
  StepPlan plan;
};

std::string EncodeCommand(const StepCommand& command);
Result<StepCommand> DecodeCommand(const std::string& bytes);   // kCommunication when damaged

}  // namespace latentmesh
