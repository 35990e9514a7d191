#include <fmt/format.h>

#include <cstdio>

#include "kernels/device.h"
#include "launch/command.h"

namespace latentmesh {
namespace {

class VersionCommand : public Command {
 public:
  std::string name() const override { return "version"; }
  std::string help() const override { return "Version, transport and devices of this build"; }
  void Register(FlagSet&) override {}
  Status Run(Job& job) override {
    if (job.rank() == 0) {
      std::fputs(fmt::format("latentmesh {}\ntransport: {}\nranks: {}\ncuda: {}\n", LATENTMESH_VERSION, job.transport(),
                             job.size(), CudaAvailable() ? "available" : "not available").c_str(), stdout);
    }
    return Status::Ok();
  }
};

}  // namespace

std::unique_ptr<Command> MakeVersionCommand() { return std::make_unique<VersionCommand>(); }

}  // namespace latentmesh
