#include "parallel/local_communicator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "parallel/bootstrap.h"
#include "parallel/communicator_base.h"
#include "parallel/local_group.h"
#include "parallel/reduce.h"

namespace latentmesh {
namespace {

thread_local const std::atomic<bool>* local_run_failed = nullptr;

void Copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}
const char* At(const void* data, size_t offset) { return static_cast<const char*>(data) + offset; }
char* At(void* data, size_t offset) { return static_cast<char*>(data) + offset; }

// Ranks are threads: any memory will do. The barrier is that of the whole group.
class LocalWindow : public SharedWindow {
 public:
  LocalWindow(const CallSite& site, std::shared_ptr<LocalGroup> group, size_t bytes, int run)
      : site_(site), group_(std::move(group)), rank_(site.rank % run), parts_(run) {
    auto mine = std::make_shared<Part>(bytes / sizeof(Line) + 1);
    group_->Meet(site_, {.call = "CreateWindow", .bytes = bytes, .root = run, .send = &mine});
    for (int r = 0; r < run; ++r)
      parts_[r] = *static_cast<const std::shared_ptr<Part>*>(group_->offer(site_.rank - rank_ + r).send);
    group_->Part(site_);
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(parts_.size()); }
  char* part(int rank) override { return parts_[rank]->data()->bytes; }
  void Barrier(const char* call) override {
    group_->Meet(site_, {.call = call});
    group_->Part(site_);
  }

 private:
  struct alignas(64) Line {
    char bytes[64] = {};
  };
  using Part = std::vector<Line>;
  const CallSite& site_;                 // the communicator's
  std::shared_ptr<LocalGroup> group_;
  int rank_;
  std::vector<std::shared_ptr<Part>> parts_;   // by rank of the run; all own all: a neighbour may read on when this rank has ended
};

class LocalCommunicator : public CommunicatorBase {
 public:
  LocalCommunicator(CallSite site, std::shared_ptr<LocalGroup> group)
      : CommunicatorBase(std::move(site)), group_(std::move(group)) {}
  ~LocalCommunicator() override { group_->Leave(rank()); }
  std::unique_ptr<SharedWindow> CreateWindow(size_t bytes, int run) override {
    LM_CHECK(run >= 1 && size() % run == 0);
    return std::make_unique<LocalWindow>(site(), group_, bytes, run);
  }

 protected:
  // Each rank sums its part of the vector and writes it to all.
  void DoAllReduceSum(const TensorView& inout, Stream&) override {
    group_->Meet(site(), {.call = "AllReduceSum", .bytes = inout.bytes(), .recv = inout.data});
    Range part = SplitRange(inout.size(), size(), rank());
    size_t offset = part.begin * DTypeSize(inout.dtype), bytes = part.count * DTypeSize(inout.dtype);
    SumInOrder(Sources(offset), At(inout.data, offset), inout.dtype, part.count);
    for (int r = 0; r < size(); ++r)
      if (r != rank()) Copy(At(group_->offer(r).recv, offset), At(inout.data, offset), bytes);
    group_->Part(site());
  }

  void DoReduceScatterSum(const TensorView& in, const TensorView& out, Stream&) override {
    group_->Meet(site(), {.call = "ReduceScatterSum", .bytes = out.bytes(), .recv = in.data});
    SumInOrder(Sources(out.bytes() * rank()), out.data, out.dtype, out.size());
    group_->Part(site());
  }

  void DoAllGather(const void* send, void* recv, size_t bytes, Stream&) override {
    group_->Meet(site(), {.call = "AllGather", .bytes = bytes, .send = send});
    for (int r = 0; r < size(); ++r) Copy(At(recv, bytes * r), group_->offer(r).send, bytes);
    group_->Part(site());
  }

  void DoAllGatherV(const void* send, size_t, void* recv, std::span<const size_t> recv_bytes, Stream&) override {
    size_t total = 0;
    for (size_t bytes : recv_bytes) total += bytes;
    group_->Meet(site(), {.call = "AllGatherV", .bytes = total, .send = send});
    size_t offset = 0;
    for (int r = 0; r < size(); offset += recv_bytes[r++]) Copy(At(recv, offset), group_->offer(r).send, recv_bytes[r]);
    group_->Part(site());
  }

  void DoBroadcast(void* data, size_t bytes, int root, Stream&) override {
    group_->Meet(site(), {.call = "Broadcast", .bytes = bytes, .root = root, .send = data});
    Copy(data, group_->offer(root).send, bytes);
    group_->Part(site());
  }

  void DoAllToAllV(const AllToAllVParams& p, Stream&) override {
    group_->Meet(site(), {.call = "AllToAllV", .all_to_all = &p});
    std::string problem;
    for (int r = 0; r < size(); ++r) {
      const AllToAllVParams& peer = *group_->offer(r).all_to_all;
      if (peer.send_bytes[rank()] == p.recv_bytes[r])
        Copy(At(p.recv, p.recv_offsets[r]), At(peer.send, peer.send_offsets[rank()]), p.recv_bytes[r]);
      else
        problem = "expected " + std::to_string(p.recv_bytes[r]) + " bytes from rank " + std::to_string(r) +
                  ", which sends " + std::to_string(peer.send_bytes[rank()]);
    }
    group_->Part(site());                  // before an error, too: the others still read this rank's memory
    if (!problem.empty()) group_->Abort(site().Fail(StatusCode::kCommunication, "AllToAllV", problem));
  }

  void DoSend(const void* data, size_t bytes, int peer, Stream&) override {
    group_->Transfer(site(), {"Send", data, bytes, peer, nullptr, 0, -1});
  }
  void DoRecv(void* data, size_t bytes, int peer, Stream&) override {
    group_->Transfer(site(), {"Recv", nullptr, 0, -1, data, bytes, peer});
  }
  void DoSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                  Stream&) override {
    group_->Transfer(site(), {"SendRecv", send, send_bytes, to, recv, recv_bytes, from});
  }
  void DoBarrier(Stream&) override {
    group_->Meet(site(), {.call = "Barrier"});
    group_->Part(site());
  }
  void DoStart(uint64_t id, const StartedMessages& messages, Stream&) override { group_->Start(site(), id, messages); }
  void DoPoll() override { group_->Progress(site()); }
  void DoFinish(uint64_t id, const char* call) override { group_->Finish(site(), id, call); }

 private:
  std::vector<const void*> Sources(size_t offset) const {
    std::vector<const void*> sources;
    for (int r = 0; r < size(); ++r) sources.push_back(At(group_->offer(r).recv, offset));
    return sources;
  }

  std::shared_ptr<LocalGroup> group_;
};

// The ranks of `of(rank)` for every rank of the mesh; each distinct group is made once.
void AddGroups(std::vector<CommunicatorSet>& sets, std::unique_ptr<Communicator> CommunicatorSet::* member,
               const std::string& name, const std::function<std::vector<int>(int rank)>& of,
               std::chrono::milliseconds timeout) {
  for (int rank = 0; rank < static_cast<int>(sets.size()); ++rank) {
    std::vector<int> ranks = of(rank);
    if (ranks.front() != rank) continue;
    auto group = CreateLocalGroup(name, static_cast<int>(ranks.size()), timeout);
    for (size_t i = 0; i < ranks.size(); ++i) sets[ranks[i]].*member = std::move(group[i]);
  }
}

}  // namespace

bool LocalRunFailed() { return local_run_failed != nullptr && local_run_failed->load(); }

std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(const std::string& name, int size,
                                                            std::chrono::milliseconds timeout) {
  LM_CHECK(size >= 1);
  auto group = std::make_shared<LocalGroup>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.push_back(std::make_unique<LocalCommunicator>(
        CallSite{.group = name, .rank = rank, .size = size, .timeout = timeout}, group));
  return ranks;
}

std::vector<CommunicatorSet> CreateLocalMesh(const ParallelConfig& config, std::chrono::milliseconds timeout) {
  int world = config.pp * config.dp * config.tp;
  std::vector<ProcessMesh> meshes;
  for (int rank = 0; rank < world; ++rank) {
    auto mesh = ProcessMesh::Create(config, world, rank);
    LM_CHECK_MSG(mesh.ok(), mesh.status().message());
    meshes.push_back(*mesh);
  }
  std::vector<int> everyone(world);
  for (int rank = 0; rank < world; ++rank) everyone[rank] = rank;
  std::vector<CommunicatorSet> sets(world);
  AddGroups(sets, &CommunicatorSet::world, "world", [&](int) { return everyone; }, timeout);
  AddGroups(sets, &CommunicatorSet::tp, "tp", [&](int r) { return meshes[r].TpGroup(); }, timeout);
  AddGroups(sets, &CommunicatorSet::cp, "cp", [&](int r) { return meshes[r].CpGroup(); }, timeout);
  AddGroups(sets, &CommunicatorSet::dp, "dp", [&](int r) { return meshes[r].DpGroup(); }, timeout);
  AddGroups(sets, &CommunicatorSet::ep, "ep", [&](int r) { return meshes[r].EpGroup(); }, timeout);
  AddGroups(sets, &CommunicatorSet::pp, "pp", [&](int r) { return meshes[r].PpGroup(); }, timeout);
  return sets;
}

void RunLocalRanks(int size, const std::function<void(int rank)>& body) {
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::exception_ptr first;
  auto run = [&](int rank) {
    local_run_failed = &failed;
    try {
      body(rank);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
      failed = true;
    }
    local_run_failed = nullptr;
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(run, rank);
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

CommunicatorSet CreateSingleRankCommunicators(Device* device) {
  bool on_host = device == nullptr || device->kind() == DeviceKind::kCpu;
  return {.world = CreateSoloCommunicator("world", device),
          .tp = CreateSoloCommunicator("tp", device),
          .cp = CreateSoloCommunicator("cp", device),
          .dp = CreateSoloCommunicator("dp", device),
          .ep = CreateSoloCommunicator("ep", device),
          .pp = CreateSoloCommunicator("pp", device),
          .host_world = on_host ? nullptr : CreateSoloCommunicator("host")};
}

}  // namespace latentmesh
