#include "parallel/mpi_bootstrap.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "parallel/communicator_base.h"
#include "parallel/mpi_communicator.h"
#include "parallel/mpi_control_channel.h"
#include "parallel/nccl_communicator.h"
#include "parallel/watchdog.h"

namespace latentmesh {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kJoinTimeout{300'000}, kLeaveTimeout{20'000}, kAbortTimeout{3'000};

// "Open MPI v4.1.4" from the library's long answer.
std::string LibraryName() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "MPI";
  std::string name(text, length);
  return name.substr(0, name.find_first_of(",\n"));
}

std::vector<std::string> HostNames(int size) {
  char mine[MPI_MAX_PROCESSOR_NAME] = {};
  int length = 0;
  MPI_Get_processor_name(mine, &length);
  std::vector<char> all(size_t{MPI_MAX_PROCESSOR_NAME} * size);
  CheckMpi(MPI_Allgather(mine, sizeof mine, MPI_CHAR, all.data(), sizeof mine, MPI_CHAR, MPI_COMM_WORLD),
           {.group = "world", .size = size}, "exchanging host names");
  std::vector<std::string> hosts;
  for (int r = 0; r < size; ++r) hosts.emplace_back(&all[size_t{MPI_MAX_PROCESSOR_NAME} * r]);
  return hosts;
}

class MpiJob : public Job {
 public:
  MpiJob() {
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    hosts_ = HostNames(size_);
    transport_ = LibraryName();
    FindLocalRanks();
    MPI_Comm control;
    CheckMpi(MPI_Comm_dup(MPI_COMM_WORLD, &control), Site("control", rank_, size_), "MPI_Comm_dup");
    control_ = CreateMpiControlChannel(Site("control", rank_, size_), {options_.step_timeout, options_.idle_timeout},
                                       std::make_shared<MpiGroup>(control, PeerNames(AllRanks())));
  }

  ~MpiJob() override {
    Watchdog watchdog(kLeaveTimeout, "rank " + std::to_string(rank_) + " on " + host() +
                                         ": MPI_Finalize did not return: some rank has not come to the end");
    control_.reset();
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& host() const override { return hosts_[rank_]; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  std::string transport() const override { return transport_; }
  ControlChannel& control() override { return *control_; }

  void SetOptions(const JobOptions& options) override {
    options_ = options;
    control_->SetTimeouts({options.step_timeout, options.idle_timeout});
    if (options.share_gpu) ShareGpuBetweenRanks(rank_);
  }

  Result<CommunicatorSet> CreateCommunicators(const ProcessMesh& mesh, Device& device) override {
    if (mesh.world_size() != size_ || mesh.rank() != rank_)
      return InvalidArgument("layout " + ToString(mesh.config()) + " does not fit a job of " + std::to_string(size_) +
                             " ranks");
    Watchdog watchdog(options_.step_timeout, "rank " + std::to_string(rank_) + " on " + host() +
                                                 ": creating the communicators did not end: some rank is stuck");
    CommunicatorSet set;
    const struct { const char* name; std::vector<int> ranks; std::unique_ptr<Communicator>* target; } groups[] = {
        {"world", AllRanks(), &set.world}, {"tp", mesh.TpGroup(), &set.tp}, {"cp", mesh.CpGroup(), &set.cp},
        {"dp", mesh.DpGroup(), &set.dp},   {"ep", mesh.EpGroup(), &set.ep}, {"pp", mesh.PpGroup(), &set.pp}};
    for (const auto& group : groups) {
      auto made = CreateGroup(group.name, group.ranks, device);
      LM_RETURN_IF_ERROR(control_->Agree(made.status()));
      *group.target = std::move(*made);
    }
    if (device.kind() == DeviceKind::kCuda) set.host_world = CreateHostGroup("host", AllRanks());
    return set;
  }

  void Abort(StatusCode code) override {
    std::fflush(nullptr);
    Watchdog watchdog(kAbortTimeout, "", code);
    MPI_Abort(MPI_COMM_WORLD, ExitCode(code));
    _exit(ExitCode(code));
  }

 private:
  CallSite Site(const std::string& group, int rank, int size) const {
    return {.group = group, .rank = rank, .size = size, .host = hosts_[rank_], .world_rank = rank_,
            .timeout = options_.step_timeout};
  }
  std::vector<int> AllRanks() const {
    std::vector<int> ranks(size_);
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  std::vector<std::string> PeerNames(const std::vector<int>& ranks) const {
    std::vector<std::string> names;
    for (int r : ranks) names.push_back("rank " + std::to_string(r) + " on " + hosts_[r]);
    return names;
  }

  void FindLocalRanks() {
    MPI_Comm local;
    CheckMpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local),
             Site("world", rank_, size_), "MPI_Comm_split_type");
    MPI_Comm_rank(local, &local_rank_);
    MPI_Comm_size(local, &local_size_);
    MPI_Comm_free(&local);
  }

  // All ranks call this for each group in turn, whatever the sizes of their own groups.
  Result<std::unique_ptr<Communicator>> CreateGroup(const char* name, const std::vector<int>& ranks, Device& device) {
    if (device.kind() == DeviceKind::kCuda) return CreateNcclGroup(GroupSite(name, ranks), ranks, device);
    return CreateHostGroup(name, ranks);
  }

  CallSite GroupSite(const char* name, const std::vector<int>& ranks) const {
    int index = static_cast<int>(std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin());
    return Site(name, index, static_cast<int>(ranks.size()));
  }

  std::unique_ptr<Communicator> CreateHostGroup(const char* name, const std::vector<int>& ranks) const {
    CallSite site = GroupSite(name, ranks);
    MPI_Comm comm = MPI_COMM_NULL;
    CheckMpi(MPI_Comm_split(MPI_COMM_WORLD, site.size == 1 ? MPI_UNDEFINED : ranks.front(), site.rank, &comm), site,
             "MPI_Comm_split");
    if (site.size == 1) return CreateSoloCommunicator(name);
    return CreateMpiCommunicator(site, std::make_shared<MpiGroup>(comm, PeerNames(ranks)));
  }

  // The first rank of each group makes its id; all ids are shown to all ranks, and each takes that of its group.
  Result<std::unique_ptr<Communicator>> CreateNcclGroup(const CallSite& site, const std::vector<int>& ranks,
                                                        Device& device) {
    NcclGroupId mine{};
    Status made = site.size > 1 && site.rank == 0 ? CreateNcclGroupId(&mine) : Status::Ok();
    LM_RETURN_IF_ERROR(control_->Agree(made));
    std::vector<NcclGroupId> all(size_);
    CheckMpi(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, MPI_COMM_WORLD), site,
             "MPI_Allgather");
    if (site.size == 1) return CreateSoloCommunicator(site.group, &device);
    return CreateNcclCommunicator(site, all[ranks.front()], PeerNames(ranks));
  }

  JobOptions options_;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::vector<std::string> hosts_;
  std::string transport_;
  std::unique_ptr<ControlChannelBase> control_;
};

// MPI built for another launcher starts every rank as a world of its own.
Status CheckWorld(const LaunchEnvironment& launch) {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (launch.size <= 1 || size == launch.size) return Status::Ok();
  return Unavailable(launch.launcher + " started " + std::to_string(launch.size) + " ranks, but " + LibraryName() +
                     " sees " + std::to_string(size) + ": start with the mpirun of " + LibraryName() +
                     " or, under Slurm, with srun --mpi=pmix");
}

}  // namespace

Result<std::unique_ptr<Job>> JoinMpi(int* argc, char*** argv, const LaunchEnvironment& launch) {
  Watchdog watchdog(kJoinTimeout, "rank " + std::to_string(launch.rank) + ": joining the job (" + launch.launcher +
                                      ") did not end: some rank has not started or cannot be reached");
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
    return Status(StatusCode::kCommunication, "MPI_Init_thread failed");
  Status status = provided < MPI_THREAD_FUNNELED
                      ? Unavailable(LibraryName() + " was built without threads (MPI_THREAD_FUNNELED)")
                      : CheckWorld(launch);
  try {
    if (status.ok()) return std::unique_ptr<Job>(std::make_unique<MpiJob>());
  } catch (const Error& error) {
    return Status(error.code(), error.what());
  }
  MPI_Finalize();
  return status;
}

}  // namespace latentmesh
