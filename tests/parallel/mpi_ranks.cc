// One rank of the multi-process tests; tests/parallel/CMakeLists.txt runs it under mpirun: `mpi_ranks CASE [cuda]`.
// With "cuda" data lies on the GPU, which the ranks share, and travels by NCCL.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <thread>

#include "kernels/device.h"
#include "parallel/bootstrap.h"
#include "parallel/self_check.h"

namespace latentmesh {
namespace {

using std::chrono::milliseconds;

struct Ranks {
  Job& job;
  Device& device;
  Stream& stream;
  CommunicatorSet Make(const ParallelConfig& config) {
    auto mesh = ProcessMesh::Create(config, job.size(), job.rank());
    auto set = mesh.ok() ? job.CreateCommunicators(*mesh, device) : mesh.status();
    if (!set.ok()) throw Error(set.status().code(), set.status().message());
    return std::move(*set);
  }
};

void Require(bool condition, const std::string& what) {
  if (!condition) throw Error(StatusCode::kMismatch, "wrong: " + what);
}

bool OnHost(Ranks& ranks) { return ranks.device.kind() == DeviceKind::kCpu; }

// Every layout of these ranks, every group, all operations.
void Collectives(Ranks& ranks) {
  int n = ranks.job.size();
  for (int tp = 1; tp <= n; ++tp)
    for (int dp = 1; tp * dp <= n; ++dp) {
      if (n % (tp * dp) != 0) continue;
      CommunicatorSet set = ranks.Make({.tp = tp, .dp = dp, .pp = n / tp / dp, .cp = tp % 2 == 0 ? 2 : 1});
      SelfCheckOptions on_host{.rounds = 2};
      Status host = ranks.job.control().Agree(CheckCollectives(set.host(), ranks.stream, on_host));
      Require(host.ok(), host.message());
      for (Communicator* group :
           {set.world.get(), set.tp.get(), set.cp.get(), set.dp.get(), set.ep.get(), set.pp.get()})
        for (size_t max_bytes : {100, 5'000, 400'000}) {
          SelfCheckOptions options{.seed = max_bytes + tp, .rounds = max_bytes > 100'000 || !OnHost(ranks) ? 2 : 8,
                                   .max_bytes = max_bytes, .device = OnHost(ranks) ? nullptr : &ranks.device};
          Status agreed = ranks.job.control().Agree(CheckCollectives(*group, ranks.stream, options));
          Require(agreed.ok(), agreed.message());
        }
    }
}

// f32 sums that round: the same bits on all ranks and as in rank order, for both algorithms.
void RankOrder(Ranks& ranks) {
  CommunicatorSet set = ranks.Make({.tp = ranks.job.size()});
  for (int64_t count : {5, 70'001}) {
    auto value = [](int rank, int64_t i) { return 1.0f / static_cast<float>(3 + rank * 7 + i % 1000); };
    std::vector<float> data(count);
    for (int64_t i = 0; i < count; ++i) data[i] = value(ranks.job.rank(), i);
    set.tp->AllReduceSum(TensorView(data.data(), DType::kF32, {count}), ranks.stream);
    for (int64_t i = 0; i < count; ++i) {
      float sum = value(0, i);
      for (int r = 1; r < ranks.job.size(); ++r) sum += value(r, i);
      Require(data[i] == sum, "sum " + std::to_string(i) + " of " + std::to_string(count));
    }
  }
}

// The same counts as the other transports; see communicator_base.h.
void Traffic(Ranks& ranks) {
  CommunicatorSet set = ranks.Make({.tp = ranks.job.size()});
  uint64_t n = ranks.job.size();
  std::vector<float> data(1200);
  set.tp->AllReduceSum(TensorView(data.data(), DType::kF32, {1200}), ranks.stream);
  TrafficCounters t = set.tp->traffic();
  Require(t.calls == 1 && t.bytes_sent == 2 * 4800 * (n - 1) / n && t.bytes_received == t.bytes_sent, "traffic");
}

// Several sends of one communicator are under way, too large to be buffered, while the ranks meet in another one: the
// first send starts before and ends after what comes between, as layers handed over while the next are computed. A
// whole call in its place would wait for its receiver for ever.
void StartedSends(Ranks& ranks) {
  CommunicatorSet set = ranks.Make({.dp = 2});
  const int me = set.dp->rank();
  const auto bytes_of = [](int layer) { return size_t{8'000'000} + layer; };
  const auto content = [&](int layer) { return std::string(bytes_of(layer), static_cast<char>('a' + layer)); };
  std::vector<Buffer> layers;
  std::vector<StartedCall> calls(3);
  for (int layer = 0; layer < 3; ++layer) {
    layers.emplace_back(&ranks.device, bytes_of(layer));
    if (me == 0) ranks.device.CopyToDevice(layers[layer].data(), content(layer).data(), bytes_of(layer), ranks.stream);
  }
  const auto start = [&](int layer) {
    const size_t out = me == 0 ? bytes_of(layer) : 0;
    void* data = layers[layer].data();
    calls[layer] = set.dp->StartSendRecv(data, out, 1 - me, data, bytes_of(layer) - out, 1 - me, ranks.stream);
  };
  // NCCL connects two ranks at their first message, and the host of each waits for the other meanwhile.
  Buffer word(&ranks.device, 8);
  if (me == 0) set.dp->Send(word.data(), 8, 1, ranks.stream);
  else set.dp->Recv(word.data(), 8, 0, ranks.stream);
  const TrafficCounters before = set.dp->traffic();
  for (int layer = 0; layer < 3; ++layer) {
    if (me == 0) start(layer);
    set.host().Barrier(ranks.stream);      // "the next layer": nobody takes the message yet
    set.dp->Poll();
  }
  for (int layer = 0; layer < 3 && me == 1; ++layer) start(layer);
  for (int layer : {1, 2, 0}) {
    set.dp->Finish(calls[layer]);
    std::string host(bytes_of(layer), '-');
    ranks.device.CopyToHost(host.data(), layers[layer].data(), host.size(), ranks.stream);
    ranks.stream.Synchronize();
    Require(host == content(layer), "layer " + std::to_string(layer));
  }
  TrafficCounters t = set.dp->traffic();
  const uint64_t total = bytes_of(0) + bytes_of(1) + bytes_of(2);
  const uint64_t sent = t.bytes_sent - before.bytes_sent, received = t.bytes_received - before.bytes_received;
  Require(t.calls == before.calls + 3 && sent == (me == 0 ? total : 0) && received == total - sent, "traffic");
}

void Control(Ranks& ranks) {
  ControlChannel& control = ranks.job.control();
  int me = control.rank(), n = control.size();
  for (size_t bytes : {0, 10, 100'000, 3'000'000}) {
    std::string expected(bytes, 'p'), message = me == 0 ? expected : "";
    control.Broadcast(message);
    Require(message == expected, "broadcast of " + std::to_string(bytes) + " bytes");
    auto all = control.Gather(std::string(bytes / 10 + me, static_cast<char>('a' + me)));
    for (int r = 0; r < static_cast<int>(all.size()); ++r)
      Require(all[r] == std::string(bytes / 10 + r, static_cast<char>('a' + r)), "gather");
    if (me > 0) control.Send(std::to_string(me) + expected, 0);
    for (int r = n - 1; me == 0 && r > 0; --r) Require(control.Recv(r) == std::to_string(r) + expected, "recv");
    control.Barrier();
  }
  Status agreed = control.Agree(me == n - 1 ? IoError("disk full") : Status::Ok());
  Require(agreed.code() == StatusCode::kIo, "agreed code");
  Require(n == 1 || agreed.message() == "disk full (rank " + std::to_string(n - 1) + " on " + ranks.job.host() + ")",
          agreed.message());
}

// Rank 0 is idle for three times the timeout and only sends heartbeats.
void Idle(Ranks& ranks) {
  ranks.job.SetOptions({.step_timeout = milliseconds(1'000), .idle_timeout = milliseconds(1'000)});
  std::string message;
  for (int beat = 0; beat < 60 && ranks.job.rank() == 0; ++beat) {
    ranks.job.control().Heartbeat();
    std::this_thread::sleep_for(milliseconds(50));
  }
  if (ranks.job.rank() == 0) message = "plan";
  ranks.job.control().Broadcast(message);
  Require(message == "plan", "message after idling");
}

// Rank 0 computes for longer than the idle timeout, without heartbeats: no fault, because a plan was under way.
void LongStep(Ranks& ranks) {
  ranks.job.SetOptions({.step_timeout = milliseconds(30'000), .idle_timeout = milliseconds(300)});
  for (int step = 0; step < 2; ++step) {
    std::string message = "plan";
    ranks.job.control().Broadcast(message);
    if (ranks.job.rank() == 0) std::this_thread::sleep_for(milliseconds(1'200));
  }
}

void DieIn(Ranks& ranks, int signal, const std::function<void(CommunicatorSet&)>& operation) {
  ranks.job.SetOptions({.step_timeout = milliseconds(OnHost(ranks) ? 2'000 : 15'000),
                        .idle_timeout = milliseconds(2'000)});
  CommunicatorSet set = ranks.Make({.tp = ranks.job.size()});
  set.tp->Barrier(ranks.stream);
  set.tp->SetContext(17, "layer 3 reduce");
  ranks.job.control().Barrier();
  if (ranks.job.rank() == ranks.job.size() - 1) raise(signal);
  operation(set);
}

void StopInCollective(Ranks& ranks) {
  DieIn(ranks, SIGSTOP, [&](CommunicatorSet& set) {
    Tensor data(&ranks.device, DType::kF32, {100'000});
    set.tp->AllReduceSum(data.view, ranks.stream);
    ranks.stream.Synchronize();            // on a GPU the host waits here, where only the watcher can end it
    set.tp->Barrier(ranks.stream);
  });
}
void StopInStarted(Ranks& ranks) {
  DieIn(ranks, SIGSTOP, [&](CommunicatorSet& set) {
    const size_t n = ranks.job.size(), part = 1'000'000;
    std::vector<char> sent(n * part), received(n * part);
    std::vector<size_t> bytes(n, part), at(n);
    for (size_t r = 0; r < n; ++r) at[r] = r * part;
    std::vector<StartedCall> calls;
    for (int i = 0; i < 2; ++i)
      calls.push_back(set.tp->StartAllToAllV({sent.data(), bytes, at, received.data(), bytes, at}, ranks.stream));
    set.tp->Finish(calls[1]);
  });
}
void StopInGather(Ranks& ranks) {
  DieIn(ranks, SIGSTOP, [&](CommunicatorSet&) {
    ranks.job.control().Gather("here");
    if (ranks.job.rank() > 0) std::this_thread::sleep_for(milliseconds(20'000));    // rank 0 must end this
  });
}
void StopWhileIdle(Ranks& ranks) {
  DieIn(ranks, SIGSTOP, [&](CommunicatorSet&) {
    std::string plan;
    if (ranks.job.rank() > 0) return ranks.job.control().Broadcast(plan);
    for (int beat = 0; beat < 200; ++beat) {
      ranks.job.control().Heartbeat();
      std::this_thread::sleep_for(milliseconds(100));
    }
  });
}
// All ranks of a run see what each wrote; runs of every size; again and again, so that a barrier that lets someone pass shows.
void Window(Ranks& ranks) {
  CommunicatorSet set = ranks.Make({.tp = ranks.job.size()});
  for (int run = 1; run <= ranks.job.size(); ++run) {
    if (ranks.job.size() % run != 0) continue;
    constexpr size_t kNumbers = 3000;
    auto window = set.tp->CreateWindow(kNumbers * sizeof(int), run);
    Require(window != nullptr && window->size() == run && window->rank() == ranks.job.rank() % run, "shape of the window");
    for (int r = 0; r < run; ++r) Require(reinterpret_cast<uintptr_t>(window->part(r)) % 64 == 0, "parts begin a line");
    for (int turn = 1; turn <= 300; ++turn) {
      int first = ranks.job.rank() / run * run;
      std::fill_n(reinterpret_cast<int*>(window->part(window->rank())), kNumbers, turn * 100 + ranks.job.rank());
      window->Barrier("written");
      for (int r = 0; r < run; ++r) {
        const int* part = reinterpret_cast<const int*>(window->part(r));
        for (size_t i : {size_t{0}, kNumbers / 2, kNumbers - 1}) Require(part[i] == turn * 100 + first + r, "content of the window");
      }
      window->Barrier("read");
    }
  }
}
void StopInWindow(Ranks& ranks) {
  ranks.job.SetOptions({.step_timeout = milliseconds(2'000), .idle_timeout = milliseconds(2'000)});
  CommunicatorSet set = ranks.Make({.tp = ranks.job.size()});
  auto window = set.tp->CreateWindow(64, ranks.job.size());
  Require(window != nullptr, "no window");
  for (int turn = 0; turn < 1000; ++turn) {
    window->Barrier("dispatch: tokens");
    if (turn == 10 && ranks.job.rank() == ranks.job.size() - 1) raise(SIGSTOP);
  }
}
void Kill(Ranks& ranks) {
  DieIn(ranks, SIGKILL, [&](CommunicatorSet& set) { set.tp->Barrier(ranks.stream); });
}
void Throw(Ranks& ranks) {
  DieIn(ranks, 0, [&](CommunicatorSet& set) {
    if (ranks.job.rank() == ranks.job.size() - 1) throw Error(StatusCode::kIo, "disk full");
    set.tp->Barrier(ranks.stream);
  });
}
void DifferentSizes(Ranks& ranks) {
  DieIn(ranks, 0, [&](CommunicatorSet& set) {
    char data[64] = {};
    if (ranks.job.rank() == 0) set.tp->Send(data, 40, 1, ranks.stream);
    if (ranks.job.rank() == 1) set.tp->Recv(data, 64, 0, ranks.stream);
    set.tp->Barrier(ranks.stream);
  });
}

const std::map<std::string, void (*)(Ranks&)> kCases = {
    {"collectives", Collectives}, {"rank_order", RankOrder}, {"traffic", Traffic},
    {"started_sends", StartedSends}, {"stop_in_started", StopInStarted}, {"control", Control}, {"idle", Idle},
    {"long_step", LongStep}, {"stop_in_collective", StopInCollective}, {"stop_in_gather", StopInGather},
    {"stop_while_idle", StopWhileIdle}, {"window", Window}, {"stop_in_window", StopInWindow}, {"kill", Kill}, {"throw", Throw}, {"different_sizes", DifferentSizes}};

int Run(int argc, char** argv) {
  auto job = Job::Join(&argc, &argv);
  if (!job.ok()) return std::fprintf(stderr, "%s\n", job.status().message().c_str()), ExitCode(job.status().code());
  auto test = kCases.find(argc > 1 ? argv[1] : "");
  if (test == kCases.end()) return ExitCode(StatusCode::kInvalidArgument);
  bool cuda = argc > 2 && std::string(argv[2]) == "cuda";
  (*job)->SetOptions({.step_timeout = milliseconds(60'000), .share_gpu = cuda});
  auto device = CreateDevice(cuda ? DeviceKind::kCuda : DeviceKind::kCpu,
                             {.threads = 1, .local_rank = (*job)->local_rank(), .share_gpu = cuda});
  if (!device.ok()) return ExitCode(device.status().code());
  auto stream = (*device)->CreateStream();
  Ranks ranks{**job, **device, *stream};
  try {
    test->second(ranks);
    (*job)->control().Barrier();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    (*job)->Abort(error.code());
  }
  if ((*job)->rank() == 0)
    std::printf("%s passed on %d ranks, %s\n", argv[1], (*job)->size(), (*job)->transport().c_str());
  return 0;
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Run(argc, argv); }
