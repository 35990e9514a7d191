// LaunchedJob: the ranks, started by mpirun (launch/mpirun.sh), srun or a launcher of the user's, over the hosts that answer
// and in a layout that their number allows.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "launch/resilient/child_process.h"
#include "launch/resilient/fitting_layout.h"
#include "launch/resilient/host_list.h"
#include "launch/resilient/restartable_job.h"

namespace latentmesh {

struct LaunchOptions {
  std::string launcher;                // shell words before the program; {ranks} {hosts} {nodes} are filled in; empty: chosen
  std::string hosts;                   // "a,b,c"; empty: of the Slurm allocation, or this machine alone
  int ranks = 0;                       // on all hosts; 0: the allocation's, or what the launcher chooses (this machine alone)
  std::string probe;                   // shell command that succeeds when {host} answers; empty: ssh or srun
  int host_failures = 2;               // ranks killed on a host before it is left out
};

// The command line that a rank gets.
struct RankCommand {
  std::string program;                 // absolute path
  std::vector<std::string> arguments;  // "serve", flags of the front end's own command line
};

class LaunchedJob : public RestartableJob {
 public:
  // `model`: config, dtypes and engine options with the layout the user asked for (0: choose). kInvalidArgument: hosts or
  // ranks make no sense.
  static Result<std::unique_ptr<LaunchedJob>> Create(const LaunchOptions& options, RankCommand command, PlanRequest model);

  Status Start(const std::string& rendezvous) override;
  std::optional<int> ExitCode() override { return process_ == nullptr ? last_code_ : process_->ExitCode(); }
  void End(bool broken) override;
  void Serves(const Ready& ready) override { memory_ = {ready.available, ready.gpu, ready.max_model_len}; }
  bool local_only() const { return hosts_.all().empty() && !slurm_ && options_.launcher.empty(); }

 private:
  LaunchedJob(const LaunchOptions& options, RankCommand command, PlanRequest model, std::vector<std::string> hosts);
  std::vector<std::string> Answering();
  std::vector<std::string> LauncherWords(const std::vector<std::string>& hosts, int ranks) const;
  // Of `ranks` ranks, or fewer where only they have a layout that fits.
  Result<RankLayout> ChooseRanks(int ranks, bool all_hosts) const;
  std::vector<std::string> ProgramWords(const RankLayout& chosen) const;

  LaunchOptions options_;
  RankCommand command_;
  PlanRequest model_;
  RankMemory memory_;                  // of the last start
  bool slurm_ = false;
  bool started_ = false;
  std::mutex hosts_mutex_;             // the reader of the job's messages notes deaths
  HostList hosts_;
  std::unique_ptr<ChildProcess> process_;
  std::optional<int> last_code_;
};

// `arguments` without the flags of these names and their values ("--tp 4", "--tp=4").
std::vector<std::string> WithoutFlags(const std::vector<std::string>& arguments, const std::vector<std::string>& names);

}  // namespace latentmesh
