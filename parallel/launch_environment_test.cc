#include "parallel/launch_environment.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

namespace latentmesh {
namespace {

// Each case starts from an environment without any launcher.
LaunchEnvironment Detect(const std::map<std::string, std::string>& variables) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PMI_SIZE",
                           "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS",
                           "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND"})
    unsetenv(name);
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  return DetectLaunch();
}

TEST(LaunchEnvironment, StartedAloneAlsoInsideABatchScript) {
  EXPECT_FALSE(Detect({}).launched);
  EXPECT_FALSE(Detect({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}}).launched);
  EXPECT_FALSE(Detect({{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}).launched);
}

TEST(LaunchEnvironment, Mpirun) {
  LaunchEnvironment e = Detect({{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "2"}, {"SLURM_STEP_ID", "0"},
                                {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_TRUE(e.launched && e.mpi_support);
  EXPECT_EQ(e.rank, 2);
  EXPECT_EQ(e.size, 4);
}

TEST(LaunchEnvironment, SrunWithAndWithoutPmix) {
  std::map<std::string, std::string> step{{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}};
  LaunchEnvironment without = Detect(step);
  EXPECT_TRUE(without.launched);
  EXPECT_FALSE(without.mpi_support);
  EXPECT_EQ(without.size, 2);
  step["PMIX_RANK"] = "1";
  LaunchEnvironment with = Detect(step);
  EXPECT_TRUE(with.launched && with.mpi_support);
  EXPECT_EQ(with.launcher, "srun --mpi=pmix");
  EXPECT_EQ(with.rank, 1);
}

int Gpu(std::map<std::string, std::string> variables, bool srun) {
  if (srun) variables.insert({{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "7"}, {"PMIX_RANK", "7"}});
  Detect(variables);
  return GpuOfRank(3);
}

TEST(LaunchEnvironment, AGpuIsChosenByLocalRankUnlessSrunDealsThemOut) {
  EXPECT_EQ(Gpu({}, false), 3);
  EXPECT_EQ(Gpu({}, true), 3);
  EXPECT_EQ(Gpu({{"SLURM_GPUS_PER_TASK", "1"}}, true), 0);
  EXPECT_EQ(Gpu({{"SLURM_TRES_PER_TASK", "gres/gpu:1"}}, true), 0);
  EXPECT_EQ(Gpu({{"SLURM_GPU_BIND", "single:1"}}, true), 0);
  EXPECT_EQ(Gpu({{"SLURM_GPU_BIND", "per_task:2"}}, true), 0);
  EXPECT_EQ(Gpu({{"SLURM_TRES_PER_TASK", "cpu:4"}}, true), 3);
  EXPECT_EQ(Gpu({{"SLURM_GPUS_PER_TASK", "1"}, {"SLURM_GPU_BIND", "none"}}, true), 3) << "all tasks see all GPUs";
  EXPECT_EQ(Gpu({{"SLURM_GPUS_PER_TASK", "1"}, {"OMPI_COMM_WORLD_SIZE", "8"}}, true), 3)
      << "mpirun's ranks are not srun's tasks";
}

TEST(LaunchEnvironment, HydraStartsMpich) {
  LaunchEnvironment e = Detect({{"PMI_RANK", "3"}, {"PMI_SIZE", "8"}});
  EXPECT_TRUE(e.launched && e.mpi_support);
  EXPECT_EQ(e.rank, 3);
  EXPECT_EQ(e.size, 8);
}

}  // namespace
}  // namespace latentmesh
