// LaunchEnvironment: what the environment says about how this process was started. The only file of the project that
// reads or writes environment variables; whoever needs another one adds a function here.
#pragma once

#include <string>

namespace latentmesh {

struct LaunchEnvironment {
  bool launched = false;         // one of several ranks, or started by mpirun or srun with MPI support
  std::string launcher;          // "mpirun", "srun --mpi=pmix", "PMI", "srun without MPI support"; empty: started alone
  bool mpi_support = false;      // the launcher offers MPI_Init what it needs
  int rank = 0;                  // as the launcher counts; 0 where it does not say
  int size = 0;                  // 0 where it does not say
};

LaunchEnvironment DetectLaunch();

// The variable's value, or `otherwise` when it is unset or empty.
std::string EnvironmentVariable(const char* name, const std::string& otherwise = "");

// Which of the GPUs that this rank sees is its own. srun shows a task nothing but its own GPUs where it deals them out by
// task (--gpus-per-task, --tres-per-task, --gpu-bind=single or per_task): then it is the first. Everywhere else all ranks
// of a host see all GPUs, and the local rank chooses.
int GpuOfRank(int local_rank);

// Lets NCCL take each rank of a host for a host of its own, so that several ranks may use one GPU (tests of
// correctness; slow). Before the first NCCL call, and before other threads run.
void ShareGpuBetweenRanks(int rank);

}  // namespace latentmesh
