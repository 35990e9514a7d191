#include "parallel/nccl_watch.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "parallel/backoff.h"
#include "parallel/watchdog.h"

namespace latentmesh {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kInspectEvery{100}, kSlack{2'000}, kTimeToThrow{5'000}, kTimeToFinalize{10'000};

// After a failure ncclCommAbort, cudaFree and every wait for the GPU may hang, so that neither a caught Error nor a
// destructor can be relied on: this ends the process in any case. Never stopped.
void EndProcessWithin(milliseconds time, const std::string& message, StatusCode code) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Watchdog>> watchdogs;
  std::lock_guard lock(mutex);
  watchdogs.push_back(std::make_unique<Watchdog>(time, message, code));
}

}  // namespace

void CheckCuda(cudaError_t rc, const CallSite& site, const char* call) {
  if (rc == cudaSuccess) return;
  throw site.Fail(StatusCode::kCommunication, call, std::string("CUDA: ") + cudaGetErrorString(rc));
}

// One thread for all links of the process; it lives as long as there are any.
class NcclWatcher {
 public:
  static std::shared_ptr<NcclWatcher> Shared() {
    static std::mutex mutex;
    static std::weak_ptr<NcclWatcher> existing;
    std::lock_guard lock(mutex);
    auto watcher = existing.lock();
    if (!watcher) existing = watcher = std::make_shared<NcclWatcher>();
    return watcher;
  }
  NcclWatcher() : thread_([this] { Loop(); }) {}
  ~NcclWatcher() {
    {
      std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void Add(NcclLink* link) {
    std::lock_guard lock(mutex_);
    links_.push_back(link);
  }
  void Remove(NcclLink* link) {
    std::lock_guard lock(mutex_);
    std::erase(links_, link);
  }

 private:
  void Loop() {
    // Otherwise a look at an event would spoil a graph capture that goes on in another thread.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    std::unique_lock lock(mutex_);
    while (!done_) {
      for (NcclLink* link : links_) link->Inspect();
      changed_.wait_for(lock, kInspectEvery);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<NcclLink*> links_;
  bool done_ = false;
  std::thread thread_;
};

NcclLink::NcclLink(const CallSite& site, const NcclGroupId& id, std::vector<std::string> peers)
    : site_(site), peers_(std::move(peers)) {
  CheckCuda(cudaGetDevice(&device_), site_, "cudaGetDevice");
  CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), site_, "cudaEventCreate");
  try {
    CreateComm(id);
  } catch (...) {
    cudaEventDestroy(event_);
    throw;
  }
  watcher_ = NcclWatcher::Shared();
  watcher_->Add(this);
}

void NcclLink::CreateComm(const NcclGroupId& id) {
  static_assert(sizeof(ncclUniqueId) == sizeof id.bytes);
  ncclUniqueId unique;
  std::memcpy(&unique, id.bytes.data(), sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  std::lock_guard lock(mutex_);
  Settle(site_, "ncclCommInitRank", ncclCommInitRankConfig(&comm_, site_.size, unique, site_.rank, &config));
}

// Finalize waits for all ranks to come here; a rank that failed does not.
NcclLink::~NcclLink() {
  watcher_->Remove(this);
  std::lock_guard lock(mutex_);
  if (comm_ != nullptr && std::uncaught_exceptions() == 0) {
    ncclResult_t rc = ncclCommFinalize(comm_);
    Backoff backoff(kTimeToFinalize);
    while (rc == ncclSuccess || rc == ncclInProgress) {
      if (ncclCommGetAsyncError(comm_, &rc) != ncclSuccess || rc != ncclInProgress || !backoff.Pause()) break;
    }
    if (rc == ncclSuccess) ncclCommDestroy(comm_), comm_ = nullptr;
  }
  if (comm_ != nullptr) ncclCommAbort(comm_);
  cudaEventDestroy(event_);
}

void NcclLink::Enqueue(const CallSite& site, const char* call, cudaStream_t stream,
                       const std::function<ncclResult_t(ncclComm_t)>& calls) {
  std::lock_guard lock(mutex_);
  ThrowFailure();
  host_step_ = site.step;
  host_operation_ = site.operation;
  host_since_ = Clock::now().time_since_epoch().count();
  host_call_ = call;
  Settle(site, call, calls(comm_));
  Track(site, call, stream);
  host_call_ = nullptr;
}

void NcclLink::WatchQueued(const CallSite& site, cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  ThrowFailure();
  Track(site, "captured step", stream);
}

CallSite NcclLink::SiteAt(int64_t step, const char* operation) const {
  CallSite site = site_;
  site.step = step;
  site.operation = operation;
  return site;
}

// NCCL promises that calls on a non-blocking communicator return at once. This does not rely on it.
void NcclLink::CheckHost() {
  const char* call = host_call_;
  if (call == nullptr) return;
  auto waited = Clock::now() - Clock::time_point(Clock::duration(host_since_.load()));
  if (waited < site_.timeout + kSlack) return;
  Error error = SiteAt(host_step_, host_operation_).TimedOut(call, site_.timeout, OtherRanks());
  EndProcessWithin(milliseconds(0), error.what(), error.code());
}

// The communicator is non-blocking: a call may still be connecting in the background when it returns.
void NcclLink::Settle(const CallSite& site, const char* call, ncclResult_t rc) {
  Backoff backoff(site.timeout);
  while (rc == ncclInProgress) {
    ncclResult_t asked = ncclCommGetAsyncError(comm_, &rc);
    if (asked != ncclSuccess) rc = asked;
    if (rc == ncclInProgress && !backoff.Pause()) {
      Fail(site.TimedOut(call, site.timeout, OtherRanks()));
      ThrowFailure();
    }
  }
  if (rc == ncclSuccess) return;
  Fail(site.Fail(StatusCode::kCommunication, call, LastError(rc)));
  ThrowFailure();
}

// The event moves behind the latest work, because no later call may come to notice that. Not during a capture: there
// the event would belong to the graph.
void NcclLink::Track(const CallSite& site, const char* call, cudaStream_t stream) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CheckCuda(cudaStreamIsCapturing(stream, &capture), site, call);
  if (capture != cudaStreamCaptureStatusNone) return;
  CheckCuda(cudaEventRecord(event_, stream), site, call);
  tracked_step_ = site.step;
  tracked_operation_ = site.operation;
  tracked_ = call;
  tracked_since_ = Clock::now();
}

void NcclLink::Synchronize(const CallSite& site, const char* call, cudaStream_t stream) {
  Backoff backoff(site.timeout);
  for (cudaError_t rc; (rc = cudaStreamQuery(stream)) != cudaSuccess;) {
    if (rc != cudaErrorNotReady) CheckCuda(rc, site, call);
    if (backoff.Pause()) continue;
    std::lock_guard lock(mutex_);
    if (!failure_) Fail(site.TimedOut(call, site.timeout, OtherRanks()));
    ThrowFailure();
  }
  std::lock_guard lock(mutex_);
  ThrowFailure();
}

void NcclLink::Inspect() {
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return CheckHost();
  if (comm_ == nullptr) return;
  ncclResult_t rc = ncclSuccess, asked = ncclCommGetAsyncError(comm_, &rc);
  if (asked != ncclSuccess) rc = asked;
  const char* call = tracked_ == nullptr ? "NCCL" : tracked_;
  CallSite site = SiteAt(tracked_step_, tracked_operation_);
  if (rc != ncclSuccess && rc != ncclInProgress) {
    Fail(site.Fail(StatusCode::kCommunication, call, LastError(rc)));
  } else if (tracked_ != nullptr) {
    cudaSetDevice(device_);
    cudaError_t done = cudaEventQuery(event_);
    if (done != cudaErrorNotReady) tracked_ = nullptr;
    else if (Clock::now() - tracked_since_ > site.timeout) Fail(site.TimedOut(call, site.timeout, OtherRanks()));
  }
}

void NcclLink::ThrowFailure() {
  if (failure_) throw *failure_;
}

void NcclLink::Fail(const Error& error) {
  failure_ = error;
  EndProcessWithin(kTimeToThrow, error.what(), error.code());
  if (comm_ != nullptr) ncclCommAbort(comm_);
  comm_ = nullptr;
}

std::string NcclLink::LastError(ncclResult_t rc) const {
  std::string text = std::string("NCCL: ") + ncclGetErrorString(rc);
  const char* details = ncclGetLastError(comm_);
  if (details != nullptr && details[0] != '\0') text += std::string(" (") + details + ")";
  if (rc == ncclInvalidUsage) text += "; several ranks on one GPU need --share-gpu";
  return text;
}

std::string NcclLink::OtherRanks() const {
  std::string text;
  for (int r = 0; r < site_.size; ++r)
    if (r != site_.rank) text += (text.empty() ? "one of " : ", ") + peers_[r];
  return text;
}

}  // namespace latentmesh
