// Command: one subcommand of latentmesh. It declares its flags and runs on every rank.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "launch/flags.h"
#include "parallel/bootstrap.h"

namespace latentmesh {

class Command {
 public:
  virtual ~Command() = default;
  virtual std::string name() const = 0;                     // "generate", "bench latency"
  virtual std::string help() const = 0;                     // one line
  virtual std::string group_help() const { return ""; }     // of the part before the space
  virtual void Register(FlagSet& flags) = 0;
  // Called on all ranks. The same Status on all ranks, except that ranks may differ where rank 0 alone has read a file.
  virtual Status Run(Job& job) = 0;
};

std::unique_ptr<Command> MakeGenerateCommand();
std::unique_ptr<Command> MakeServeCommand();
std::unique_ptr<Command> MakeVerifyCommand();
std::unique_ptr<Command> MakeEvalCommand();
std::unique_ptr<Command> MakeBatchCommand();
std::unique_ptr<Command> MakeBenchThroughputCommand();
std::unique_ptr<Command> MakeBenchLatencyCommand();
std::unique_ptr<Command> MakeBenchServeCommand();
std::unique_ptr<Command> MakeBenchBalanceCommand();
std::unique_ptr<Command> MakeBenchAttentionCommand();
std::unique_ptr<Command> MakeBenchOpsCommand();
std::unique_ptr<Command> MakeScalingReportCommand();
std::unique_ptr<Command> MakePlanCommand();
std::unique_ptr<Command> MakePreflightCommand();
std::unique_ptr<Command> MakeVersionCommand();

std::vector<std::unique_ptr<Command>> MakeAllCommands();    // in the order of --help

}  // namespace latentmesh
