#include "parallel/launch_environment.h"

#include <cstdlib>

namespace latentmesh {
namespace {

bool IsSet(const char* name) { return std::getenv(name) != nullptr; }
int Number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::atoi(text);
}

}  // namespace

std::string EnvironmentVariable(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

// mpirun first: inside a Slurm allocation both kinds of variables are there. The script of sbatch itself is not a step,
// so a program started by it directly is alone.
LaunchEnvironment DetectLaunch() {
  if (IsSet("OMPI_COMM_WORLD_SIZE"))
    return {true, "mpirun", true, Number("OMPI_COMM_WORLD_RANK", 0), Number("OMPI_COMM_WORLD_SIZE", 0)};
  bool slurm_step = IsSet("SLURM_STEP_ID") && IsSet("SLURM_PROCID");
  int rank = slurm_step ? Number("SLURM_PROCID", 0) : 0;
  int size = slurm_step ? Number("SLURM_STEP_NUM_TASKS", Number("SLURM_NTASKS", 1)) : 0;
  if (IsSet("PMIX_RANK"))
    return {true, slurm_step ? "srun --mpi=pmix" : "PMIx", true, Number("PMIX_RANK", rank), size};
  if (IsSet("PMI_RANK") || IsSet("PMI_SIZE"))
    return {true, slurm_step ? "srun --mpi=pmi2" : "PMI", true, Number("PMI_RANK", rank), Number("PMI_SIZE", size)};
  if (slurm_step && size > 1) return {true, "srun without MPI support", false, rank, size};
  return {};
}

int GpuOfRank(int local_rank) {
  std::string bind = EnvironmentVariable("SLURM_GPU_BIND");
  bool by_task = IsSet("SLURM_GPUS_PER_TASK") ||
                 EnvironmentVariable("SLURM_TRES_PER_TASK").find("gpu") != std::string::npos ||
                 bind.find("single") != std::string::npos || bind.find("per_task") != std::string::npos;
  bool from_srun = DetectLaunch().launcher.rfind("srun", 0) == 0;
  return by_task && from_srun && bind.find("none") == std::string::npos ? 0 : local_rank;
}

void ShareGpuBetweenRanks(int rank) {
  std::string id = "latentmesh-" + std::to_string(rank);
  setenv("NCCL_HOSTID", id.c_str(), 0);
}

}  // namespace latentmesh
