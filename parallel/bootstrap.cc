#include "parallel/bootstrap.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "parallel/launch_environment.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_bootstrap.h"

namespace latentmesh {
namespace {

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

class SingleProcessJob : public Job {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& host() const override { return host_; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  std::string transport() const override { return "single process"; }
  void SetOptions(const JobOptions& options) override {
    if (options.share_gpu) ShareGpuBetweenRanks(0);
  }
  ControlChannel& control() override { return *control_; }

  Result<CommunicatorSet> CreateCommunicators(const ProcessMesh& mesh, Device& device) override {
    if (mesh.world_size() != 1)
      return InvalidArgument("layout " + ToString(mesh.config()) + " needs " + std::to_string(mesh.world_size()) +
                             " ranks, but this process was started alone: use mpirun or srun");
    return CreateSingleRankCommunicators(&device);
  }

  void Abort(StatusCode code) override {
    std::fflush(nullptr);
    _exit(ExitCode(code));
  }

 private:
  std::string host_ = HostName();
  std::unique_ptr<ControlChannel> control_ = std::move(CreateLocalControl(1, std::chrono::hours(1))[0]);
};

}  // namespace

Result<std::unique_ptr<Job>> Job::Join(int* argc, char*** argv) {
  LaunchEnvironment launch = DetectLaunch();
  if (!launch.launched) return std::unique_ptr<Job>(std::make_unique<SingleProcessJob>());
  if (!launch.mpi_support)
    return Unavailable("srun started " + std::to_string(launch.size) +
                       " tasks without MPI support, so that each would run alone: use srun --mpi=pmix");
  return JoinMpi(argc, argv, launch);
}

}  // namespace latentmesh
