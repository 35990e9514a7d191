#include "launch/resilient/launched_job.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "launch/log.h"
#include "parallel/launch_environment.h"
#include "runtime/model/model_shard.h"

namespace latentmesh {
namespace {

constexpr double kSelfEndSeconds = 10;       // a broken job ends by itself within that
constexpr double kSoftSeconds = 6;
constexpr double kHardSeconds = 12;
constexpr double kProbeSeconds = 12;         // its own limit is 8
constexpr const char* kAnswered = "latentmesh-answers ";

std::filesystem::path LaunchFolder(const std::string& program) {
  return std::filesystem::path(program).parent_path().parent_path() / "launch";
}

// launch/rank.sh beside the build folder, which says on which host a rank was killed; else nothing.
std::vector<std::string> RankScript(const std::string& program) {
  std::filesystem::path script = LaunchFolder(program) / "rank.sh";
  if (!std::filesystem::exists(script)) return {};
  return {script.string()};
}

std::vector<std::string> AllocationHosts() {
  std::vector<std::string> hosts;
  auto read = [&](const std::string& line) { hosts.push_back(line); };
  auto child = ChildProcess::Start({"scontrol", "show", "hostnames", EnvironmentVariable("SLURM_JOB_NODELIST")}, "", read);
  if (!child.ok() || !(*child)->WaitAll(kProbeSeconds) || (*child)->ExitCode() != 0) return {};
  (*child).reset();                          // its reader has ended
  return hosts;
}

int Rounded(int ranks, size_t hosts) { return (ranks + static_cast<int>(hosts) - 1) / static_cast<int>(hosts); }

}  // namespace

std::vector<std::string> WithoutFlags(const std::vector<std::string>& arguments, const std::vector<std::string>& names) {
  std::vector<std::string> kept;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    auto matches = [&](const std::string& name) { return word == name || word.rfind(name + "=", 0) == 0; };
    if (std::none_of(names.begin(), names.end(), matches)) kept.push_back(word);
    else if (word.find('=') == std::string::npos) ++i;
  }
  return kept;
}

Result<std::unique_ptr<LaunchedJob>> LaunchedJob::Create(const LaunchOptions& options, RankCommand command,
                                                         PlanRequest model) {
  LaunchOptions filled = options;
  bool slurm = !EnvironmentVariable("SLURM_JOB_ID").empty();
  std::vector<std::string> hosts = SplitHosts(options.hosts);
  if (hosts.empty() && slurm) hosts = AllocationHosts();
  if (slurm && filled.ranks == 0) filled.ranks = std::atoi(EnvironmentVariable("SLURM_NTASKS", "0").c_str());
  if (!hosts.empty() && filled.ranks == 0)
    return InvalidArgument("--ranks: say how many ranks run on all of --hosts together");
  if (filled.ranks > 0 && hosts.size() > static_cast<size_t>(filled.ranks))
    return InvalidArgument(fmt::format("--ranks {}: fewer than the {} hosts", filled.ranks, hosts.size()));
  if (filled.launcher.empty() && !slurm && !std::filesystem::exists(LaunchFolder(command.program) / "mpirun.sh"))
    return InvalidArgument("--launcher: is needed, as launch/mpirun.sh does not stand beside the folder of this program");
  if (filled.probe.empty())
    filled.probe = slurm ? "srun --overlap --immediate=5 --quiet -N1 -n1 -w {host} true"
                         : "ssh -o BatchMode=yes -o ConnectTimeout=5 {host} true";
  std::unique_ptr<LaunchedJob> job(new LaunchedJob(filled, std::move(command), std::move(model), std::move(hosts)));
  job->slurm_ = slurm;
  return job;
}

LaunchedJob::LaunchedJob(const LaunchOptions& options, RankCommand command, PlanRequest model,
                         std::vector<std::string> hosts)
    : options_(options), command_(std::move(command)), model_(std::move(model)),
      hosts_(std::move(hosts), options.host_failures) {}

// All at once, by one shell. This host is not asked.
std::vector<std::string> LaunchedJob::Answering() {
  char own[256] = "";
  gethostname(own, sizeof own - 1);
  std::vector<std::string> answering;
  std::string script = fmt::format("while [ $# -gt 0 ]; do (timeout -k 1 8 sh -c \"$2\" > /dev/null 2>&1 < /dev/null && "
                                   "echo \"{}$1\") & shift 2; done; wait", kAnswered);
  std::vector<std::string> words = {"sh", "-c", script, "sh"};
  std::string short_name = std::string(own).substr(0, std::string(own).find('.'));
  for (const std::string& host : hosts_.all()) {
    if (host.substr(0, host.find('.')) == short_name) answering.push_back(host);
    else words.insert(words.end(), {host, FillIn(options_.probe, "host", host)});
  }
  if (words.size() == 4) return answering;
  auto read = [&](const std::string& line) {
    if (line.rfind(kAnswered, 0) == 0) answering.push_back(line.substr(std::string(kAnswered).size()));
  };
  auto child = ChildProcess::Start(words, "", read);
  if (child.ok()) {
    (*child)->WaitAll(kProbeSeconds);
    (*child).reset();                        // its reader has ended
  }
  return answering;
}

std::vector<std::string> LaunchedJob::LauncherWords(const std::vector<std::string>& hosts, int ranks) const {
  std::vector<std::string> words;
  size_t nodes = std::max<size_t>(hosts.size(), 1);
  if (!options_.launcher.empty()) {
    std::string launcher = FillIn(options_.launcher, "ranks", std::to_string(ranks));
    launcher = FillIn(FillIn(launcher, "hosts", JoinHosts(hosts)), "nodes", std::to_string(nodes));
    return {"sh", "-c", "exec " + launcher + " \"$@\"", "sh"};
  }
  if (slurm_) {
    words = {"srun", "--mpi=" + EnvironmentVariable("MPI_PLUGIN", "pmix"), "--kill-on-bad-exit=1", "--unbuffered",
             "--overlap",                    // a step before it that still waits for a lost node holds the others
             fmt::format("--nodes={}", nodes), fmt::format("--ntasks={}", ranks)};
    if (!hosts.empty()) words.insert(words.end(), {"-w", JoinHosts(hosts)});
    return words;
  }
  words = {"env", "PROGRAM=" + command_.program};
  if (ranks > 0) words.push_back(fmt::format("RANKS={}", ranks));
  if (!hosts.empty()) {
    words.push_back("HOSTS=" + JoinHosts(hosts));
    words.push_back(fmt::format("RANKS_PER_NODE={}", Rounded(ranks, hosts.size())));
  }
  words.push_back((LaunchFolder(command_.program) / "mpirun.sh").string());
  return words;
}

std::vector<std::string> LaunchedJob::ProgramWords(const RankLayout& chosen) const {
  std::vector<std::string> words;
  bool by_script = options_.launcher.empty() && !slurm_;      // launch/mpirun.sh adds both
  if (!by_script) {
    words = RankScript(command_.program);
    words.push_back(command_.program);
  }
  words.insert(words.end(), command_.arguments.begin(), command_.arguments.end());
  if (chosen.ranks == 0) return words;
  words = WithoutFlags(words, {"--tp", "--dp", "--pp", "--cp"});
  const ParallelConfig& layout = chosen.layout;
  for (auto [flag, value] : {std::pair("--tp", layout.tp), {"--dp", layout.dp}, {"--pp", layout.pp}, {"--cp", layout.cp}})
    words.insert(words.end(), {flag, std::to_string(value)});
  return words;
}

Result<RankLayout> LaunchedJob::ChooseRanks(int ranks, bool all_hosts) const {
  ranks = std::min(ranks, options_.ranks);
  if (!all_hosts) return FittingLayout(WithMemory(model_, memory_), ranks);
  // As the user said, or not at all.
  LM_ASSIGN_OR_RETURN(ParallelConfig layout, ChooseLayout(model_.config, model_.engine.layout, ranks));
  LM_RETURN_IF_ERROR(ValidateLayout(model_.config, layout));
  return FittingLayout(WithMemory(model_, {}), ranks);
}

Status LaunchedJob::Start(const std::string& rendezvous) {
  std::vector<std::string> hosts = hosts_.all();
  int ranks = options_.ranks;
  if (!hosts.empty() && std::exchange(started_, true)) {
    std::vector<std::string> answering = Answering();
    std::lock_guard lock(hosts_mutex_);
    if (!answering.empty()) hosts = hosts_.Usable(answering);
    else LogWarning("none of the hosts answers; trying all of them");
    ranks = Rounded(ranks, hosts_.all().size()) * static_cast<int>(hosts.size());
  }
  RankLayout chosen;
  if (ranks > 0) {
    LM_ASSIGN_OR_RETURN(chosen, ChooseRanks(ranks, hosts.size() == hosts_.all().size()));
    ranks = chosen.ranks;
    if (hosts.size() > static_cast<size_t>(ranks)) hosts.resize(static_cast<size_t>(ranks));
    LogInfo(fmt::format("starting {} ranks ({}){}{}", ranks, ToString(chosen.layout), hosts.empty() ? "" : " on ",
                        JoinHosts(hosts)));
  }
  std::vector<std::string> words = LauncherWords(hosts, ranks), program = ProgramWords(chosen);
  words.insert(words.end(), program.begin(), program.end());
  {
    std::lock_guard lock(hosts_mutex_);
    hosts_.JobStarts();
  }
  last_code_.reset();
  LM_ASSIGN_OR_RETURN(process_, ChildProcess::Start(words, rendezvous + "\n", [this](const std::string& line) {
    std::fputs((line + "\n").c_str(), stderr);
    std::lock_guard lock(hosts_mutex_);
    hosts_.ReadLine(line);
  }));
  return Status::Ok();
}

void LaunchedJob::End(bool broken) {
  if (process_ == nullptr) return;
  if (!process_->Wait(broken ? kSelfEndSeconds : 0)) {
    process_->Signal(SIGTERM);
    process_->Wait(kSoftSeconds);
  }
  process_->Signal(SIGKILL);                 // whatever its launcher has left
  if (!process_->WaitAll(kHardSeconds)) LogWarning("processes of the job are left on this host and cannot be killed");
  last_code_ = process_->ExitCode();
  process_.reset();
}

}  // namespace latentmesh
