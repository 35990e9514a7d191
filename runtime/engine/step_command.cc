#include "runtime/engine/step_command.h"

namespace latentmesh {

std::string EncodeCommand(const StepCommand& command) {
  std::string bytes{static_cast<char>(command.attention), static_cast<char>(command.capture_hidden)};
  return bytes + SerializePlan(command.plan);
}

Result<StepCommand> DecodeCommand(const std::string& bytes) {
  if (bytes.size() < 2 || bytes[0] > static_cast<char>(AttentionMode::kExpanded) || bytes[0] < 0)
    return Status(StatusCode::kCommunication, "a step command of " + std::to_string(bytes.size()) + " bytes is damaged");
  StepCommand command;
  command.attention = static_cast<AttentionMode>(bytes[0]);
  command.capture_hidden = bytes[1] != 0;
  LM_ASSIGN_OR_RETURN(command.plan, ParsePlan(bytes.substr(2)));
  return command;
}

}  // namespace latentmesh
