#include "parallel/mpi_window.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>

#include "parallel/backoff.h"
#include "parallel/watchdog.h"

namespace latentmesh {
namespace {

constexpr size_t kLine = 64;

// The first line of each part.
struct alignas(kLine) Arrivals {
  std::atomic<uint64_t> count;             // barriers this rank has come to
  // Those of the first rank are everybody's:
  std::atomic<uint64_t> total;             // arrivals of all ranks at all barriers
  std::atomic<uint32_t> open;              // the last barrier that all have come to, its low half; ranks sleep on it
  std::atomic<uint32_t> sleepers;
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4, "processes share it");

constexpr std::chrono::microseconds kNap{500};                // between looks at messages

void FutexWait(std::atomic<uint32_t>& word, uint32_t seen) {
  timespec nap{0, std::chrono::nanoseconds(kNap).count()};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &nap, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0); }

class MpiWindow : public SharedWindow {
 public:
  MpiWindow(const CallSite& site, std::shared_ptr<MpiGroup> group, int run)
      : site_(site), group_(std::move(group)), first_(site.rank / run * run), parts_(run) {}

  ~MpiWindow() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Not after a failure, as with communicators: freeing is collective.
    if (finalized || std::uncaught_exceptions() > 0) return;
    if (window_ != MPI_WIN_NULL) MPI_Win_free(&window_);
    if (local_ != MPI_COMM_NULL) MPI_Comm_free(&local_);
  }

  // False when this rank's run has no common memory. Collective over the run.
  bool Allocate(size_t bytes) {
    MPI_Comm block;
    CheckMpi(MPI_Comm_split(group_->comm(), first_, site_.rank, &block), site_, "MPI_Comm_split");
    CheckMpi(MPI_Comm_split_type(block, MPI_COMM_TYPE_SHARED, site_.rank, MPI_INFO_NULL, &local_), site_, "MPI_Comm_split_type");
    MPI_Comm_free(&block);
    int size = 0;
    MPI_Comm_size(local_, &size);
    return size == this->size() && MakeWindow(sizeof(Arrivals) + (bytes + kLine - 1) / kLine * kLine);
  }

  int rank() const override { return site_.rank - first_; }
  int size() const override { return static_cast<int>(parts_.size()); }
  char* part(int rank) override { return parts_[rank] + sizeof(Arrivals); }

  void Barrier(const char* call) override {
    ++barriers_;
    arrivals(rank()).count.store(barriers_, std::memory_order_relaxed);
    if (all().total.fetch_add(1, std::memory_order_acq_rel) + 1 == barriers_ * parts_.size()) return Open();
    if (crowded_) return SleepUntilOpen(call);
    Backoff backoff(site_.timeout);
    for (int polls = 0; !IsOpen(all().open.load(std::memory_order_acquire));) {
      if (++polls % 64 == 0) Progress(call);
      if (!backoff.Pause()) throw site_.TimedOut(call, site_.timeout, Missing());
    }
  }

 private:
  bool MakeWindow(size_t bytes) {
    MPI_Info info;
    MPI_Info_create(&info);
    MPI_Info_set(info, "alloc_shared_noncontig", "true");     // each rank's part on its own pages
    MPI_Comm_set_errhandler(local_, MPI_ERRORS_RETURN);
    char* mine = nullptr;
    int rc = MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes + kLine), 1, info, local_, &mine, &window_);
    MPI_Info_free(&info);
    if (rc != MPI_SUCCESS) {
      window_ = MPI_WIN_NULL;
      return false;
    }
    std::memset(mine, 0, bytes + kLine);                      // pages lie near the rank that touches them first
    for (int r = 0; r < size(); ++r) {
      MPI_Aint length = 0;
      int unit = 0;
      CheckMpi(MPI_Win_shared_query(window_, r, &length, &unit, &parts_[r]), site_, "MPI_Win_shared_query");
      parts_[r] = ToLine(parts_[r]);
    }
    return true;
  }

  // MPI promises no more than an element's alignment. All ranks map the same pages, so that they find the same line.
  static char* ToLine(char* part) {
    return part + (kLine - reinterpret_cast<uintptr_t>(part) % kLine) % kLine;
  }

  Arrivals& arrivals(int rank) { return *reinterpret_cast<Arrivals*>(parts_[rank]); }
  Arrivals& all() { return arrivals(0); }
  bool IsOpen(uint32_t open) const { return static_cast<int32_t>(open - static_cast<uint32_t>(barriers_)) >= 0; }

  void Open() {
    all().open.store(static_cast<uint32_t>(barriers_));
    if (all().sleepers.load() > 0) FutexWakeAll(all().open);
  }

  // A rank that polls takes the core that others need to arrive, and hides from the system which core is free.
  void SleepUntilOpen(const char* call) {
    auto start = std::chrono::steady_clock::now();
    ++all().sleepers;
    for (uint32_t open = all().open.load(); !IsOpen(open); open = all().open.load()) {
      if (std::chrono::steady_clock::now() - start >= site_.timeout) {
        --all().sleepers;
        throw site_.TimedOut(call, site_.timeout, Missing());
      }
      FutexWait(all().open, open);
      Progress(call);
    }
    --all().sleepers;
  }

  // Messages of other operations move only inside MPI calls.
  void Progress(const char* call) {
    int flag = 0;
    CheckMpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, group_->comm(), &flag, MPI_STATUS_IGNORE), site_, call);
  }

  std::string Missing() {
    std::string text;
    for (int r = 0; r < size(); ++r)
      if (arrivals(r).count.load(std::memory_order_relaxed) < barriers_)
        text += (text.empty() ? "" : ", ") + group_->peer(first_ + r);
    return text;
  }

  const CallSite& site_;
  std::shared_ptr<MpiGroup> group_;
  int first_;                              // group rank of the run's first
  std::vector<char*> parts_;
  MPI_Comm local_ = MPI_COMM_NULL;
  MPI_Win window_ = MPI_WIN_NULL;
  uint64_t barriers_ = 0;
  const bool crowded_ = size() > sysconf(_SC_NPROCESSORS_ONLN);   // more ranks than cores
};

}  // namespace

std::unique_ptr<SharedWindow> CreateMpiWindow(const CallSite& site, std::shared_ptr<MpiGroup> group, size_t bytes, int run) {
  LM_CHECK(run >= 1 && site.size % run == 0);
  Watchdog watchdog(site.timeout, site.Describe("CreateWindow") + " did not end: some rank is stuck");
  auto window = std::make_unique<MpiWindow>(site, group, run);
  int mine = window->Allocate(bytes), all = 0;
  // Also makes all parts zeroed before anyone's first barrier.
  CheckMpi(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, group->comm()), site, "MPI_Allreduce");
  if (all == 0) return nullptr;
  return window;
}

}  // namespace latentmesh
