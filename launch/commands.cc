#include "launch/command.h"

namespace latentmesh {

std::vector<std::unique_ptr<Command>> MakeAllCommands() {
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeGenerateCommand());
  commands.push_back(MakeBatchCommand());
  commands.push_back(MakeServeCommand());
  commands.push_back(MakeVerifyCommand());
  commands.push_back(MakeEvalCommand());
  commands.push_back(MakeBenchThroughputCommand());
  commands.push_back(MakeBenchLatencyCommand());
  commands.push_back(MakeBenchServeCommand());
  commands.push_back(MakeBenchBalanceCommand());
  commands.push_back(MakeBenchAttentionCommand());
  commands.push_back(MakeBenchOpsCommand());
  commands.push_back(MakeScalingReportCommand());
  commands.push_back(MakePlanCommand());
  commands.push_back(MakePreflightCommand());
  commands.push_back(MakeVersionCommand());
  return commands;
}

}  // namespace latentmesh
