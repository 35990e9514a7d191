#include "runtime/cache/disk_store.h"

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "runtime/cache/disk_folder.h"

namespace latentmesh {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kRestAfterFailure = std::chrono::seconds(30);   // no writes to a disk that is full or broken
constexpr size_t kMostWarnings = 100;

}  // namespace

struct DiskStore::Shared {
  Shared(const DiskStoreOptions& o, std::string path) : options(o), folder(std::move(path), o.facts, o.limit) {}

  struct Write {
    BlockKey key;
    std::string bytes;
  };

  void Loop();
  void Serve(std::unique_lock<std::mutex>& lock, const BlockKey& key);
  void Serve(std::unique_lock<std::mutex>& lock, Write write);
  void Warn(std::string text);
  void FailOverdue();

  const DiskStoreOptions options;
  DiskFolder folder;                   // the thread's, once it runs
  Clock::time_point no_writes_until{};

  std::mutex mutex;                    // guards all below
  std::condition_variable work, news;
  std::deque<BlockKey> reads;
  std::deque<Write> writes;
  uint64_t waiting_bytes = 0;
  bool closing = false, ended = false;
  std::map<BlockKey, Clock::time_point> fetching;                     // unanswered: since when
  std::unordered_map<BlockKey, std::string, BlockKeyHash> ready;
  std::vector<KvEvent> events;
  std::vector<std::string> warnings;
};

// Reads go first: somebody waits for them.
void DiskStore::Shared::Loop() {
  std::unique_lock lock(mutex);
  for (;;) {
    work.wait(lock, [&] { return closing || !reads.empty() || !writes.empty(); });
    if (closing) reads.clear();
    if (!reads.empty()) {
      BlockKey key = reads.front();
      reads.pop_front();
      Serve(lock, key);
    } else if (!writes.empty()) {
      Write write = std::move(writes.front());
      writes.pop_front();
      Serve(lock, std::move(write));
    } else if (closing) {
      break;
    }
    news.notify_all();
  }
  ended = true;
  news.notify_all();
}

void DiskStore::Shared::Serve(std::unique_lock<std::mutex>& lock, const BlockKey& key) {
  lock.unlock();
  std::vector<KvEvent> seen;
  Result<std::string> bytes = folder.Read(key, seen);
  lock.lock();
  events.insert(events.end(), seen.begin(), seen.end());
  if (fetching.erase(key) == 0) return;   // was overdue: the answer has been given
  if (bytes.ok()) ready[key] = std::move(bytes).value();
  else if (bytes.status().code() == StatusCode::kMismatch) Warn("cache block ignored: " + bytes.status().message());
  events.push_back({ready.count(key) != 0 ? KvEventKind::kReady : KvEventKind::kFailed, key});
}

void DiskStore::Shared::Serve(std::unique_lock<std::mutex>& lock, Write write) {
  lock.unlock();
  std::vector<KvEvent> seen;
  bool rests = Clock::now() < no_writes_until;
  Status status = rests ? IoError("") : folder.Write(write.key, write.bytes, seen);
  if (!status.ok() && !rests) no_writes_until = Clock::now() + kRestAfterFailure;
  lock.lock();
  waiting_bytes -= write.bytes.size();
  events.insert(events.end(), seen.begin(), seen.end());
  events.push_back({status.ok() ? KvEventKind::kStored : KvEventKind::kNotStored, write.key});
  if (!status.ok() && !rests) Warn("cache blocks are not stored for now: " + status.message());
}

void DiskStore::Shared::Warn(std::string text) {
  if (warnings.size() < kMostWarnings) warnings.push_back(std::move(text));
}

// A disk that hangs must not keep a request waiting.
void DiskStore::Shared::FailOverdue() {
  auto now = Clock::now();
  for (auto it = fetching.begin(); it != fetching.end();) {
    if (now - it->second < options.deadline) {
      ++it;
      continue;
    }
    events.push_back({KvEventKind::kFailed, it->first});
    Warn(fmt::format("{}: no answer within {} ms; the prompt is computed instead", folder.path(), options.deadline.count()));
    it = fetching.erase(it);
  }
}

Result<std::unique_ptr<DiskStore>> DiskStore::Open(const DiskStoreOptions& options) {
  std::string name;
  for (size_t i = 0; i < 8; ++i) name += fmt::format("{:02x}", options.facts.identity[i]);
  std::filesystem::path path = std::filesystem::path(options.folder) / name;
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return IoError(fmt::format("--kv-store: cannot create {}: {}", path.string(), error.message()));
  auto shared = std::make_shared<Shared>(options, path.string());
  LM_RETURN_IF_ERROR(shared->folder.Scan(shared->events));
  if (shared->folder.ignored() > 0)
    shared->Warn(fmt::format("{}: {} files are not whole blocks of this model and are ignored", path.string(),
                             shared->folder.ignored()));
  return std::unique_ptr<DiskStore>(new DiskStore(std::move(shared)));
}

DiskStore::DiskStore(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {
  std::thread([shared = shared_] { shared->Loop(); }).detach();
}

DiskStore::~DiskStore() {
  std::unique_lock lock(shared_->mutex);
  shared_->closing = true;
  shared_->work.notify_all();
  shared_->news.wait_for(lock, shared_->options.deadline, [&] { return shared_->ended; });
}

void DiskStore::Finish() {
  std::unique_lock lock(shared_->mutex);
  shared_->news.wait_for(lock, shared_->options.deadline, [&] { return shared_->waiting_bytes == 0; });
}

void DiskStore::Store(const BlockKey& key, std::string bytes) {
  std::lock_guard lock(shared_->mutex);
  if (shared_->waiting_bytes + bytes.size() > shared_->options.write_queue) {
    shared_->events.push_back({KvEventKind::kNotStored, key});
    return;
  }
  shared_->waiting_bytes += bytes.size();
  shared_->writes.push_back({key, std::move(bytes)});
  shared_->work.notify_all();
}

void DiskStore::Fetch(const BlockKey& key) {
  std::lock_guard lock(shared_->mutex);
  shared_->fetching[key] = Clock::now();
  shared_->reads.push_back(key);
  shared_->work.notify_all();
}

std::string DiskStore::Take(const BlockKey& key) {
  std::lock_guard lock(shared_->mutex);
  auto node = shared_->ready.extract(key);
  LM_CHECK_MSG(!node.empty(), "the block was not ready");
  return std::move(node.mapped());
}

void DiskStore::Drop(const BlockKey& key) {
  std::lock_guard lock(shared_->mutex);
  shared_->ready.erase(key);
}

std::vector<KvEvent> DiskStore::TakeEvents(std::chrono::milliseconds wait) {
  std::unique_lock lock(shared_->mutex);
  if (!shared_->fetching.empty()) shared_->news.wait_for(lock, wait, [&] { return !shared_->events.empty(); });
  shared_->FailOverdue();
  return std::exchange(shared_->events, {});
}

std::vector<std::string> DiskStore::TakeWarnings() {
  std::lock_guard lock(shared_->mutex);
  return std::exchange(shared_->warnings, {});
}

}  // namespace latentmesh
