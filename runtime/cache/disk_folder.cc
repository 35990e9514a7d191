#include "runtime/cache/disk_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <random>

#include <fmt/format.h>

namespace latentmesh {
namespace {

constexpr std::string_view kEnding = ".kv";
constexpr std::string_view kTemporary = ".writing-";
constexpr int64_t kScanEvery = 256;            // writes, so that what others write counts against the limit too
constexpr int64_t kAbandonedAfter = 3600;      // seconds after which a temporary file belongs to nobody

int64_t Nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

}  // namespace

DiskFolder::DiskFolder(std::string path, const BlockFileFacts& facts, uint64_t limit)
    : path_(std::move(path)), facts_(facts), most_files_(limit / BlockFileBytes(facts)) {
  std::random_device random;
  temporary_ = fmt::format("{}/{}{}-{:08x}{:08x}", path_, kTemporary, getpid(), random(), random());
}

// Blocks of the right size; what a killed job left half written is removed once it is old.
Result<std::vector<DiskFolder::Listed>> DiskFolder::List() {
  DIR* folder = opendir(path_.c_str());
  if (folder == nullptr) return IoError(fmt::format("cannot read {}: {}", path_, std::strerror(errno)));
  std::vector<Listed> listed;
  ignored_ = 0;
  while (const dirent* entry = readdir(folder)) {
    std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat info{};
    std::string path = fmt::format("{}/{}", path_, name);
    if (stat(path.c_str(), &info) != 0) continue;
    if (name.substr(0, kTemporary.size()) == kTemporary) {
      if (info.st_mtime + kAbandonedAfter < std::time(nullptr)) unlink(path.c_str());
      continue;
    }
    auto key = name.size() > kEnding.size() ? KeyFromHex(name.substr(0, name.size() - kEnding.size())) : std::nullopt;
    bool block = key && name.substr(name.size() - kEnding.size()) == kEnding && S_ISREG(info.st_mode) &&
                 static_cast<uint64_t>(info.st_size) == BlockFileBytes(facts_);
    if (block) listed.push_back({Nanoseconds(info.st_mtim), *key});
    else ++ignored_;
  }
  closedir(folder);
  std::sort(listed.begin(), listed.end(), [](const Listed& a, const Listed& b) { return a.modified_ns < b.modified_ns; });
  return listed;
}

Status DiskFolder::Scan(std::vector<KvEvent>& events) {
  LM_ASSIGN_OR_RETURN(std::vector<Listed> listed, List());
  auto before = std::move(entries_);
  entries_.clear();
  uses_.clear();
  for (const Listed& file : listed) {
    if (bad_.count(file.key) != 0) continue;
    Remember(file.key);
    if (before.erase(file.key) == 0) events.push_back({KvEventKind::kFound, file.key});
  }
  for (const auto& [key, entry] : before) events.push_back({KvEventKind::kGone, key});
  writes_since_scan_ = 0;
  return Status::Ok();
}

void DiskFolder::Remember(const BlockKey& key) {
  Forget(key);
  entries_[key] = {uses_.insert(uses_.end(), key)};
}

void DiskFolder::Forget(const BlockKey& key) {
  auto found = entries_.find(key);
  if (found == entries_.end()) return;
  uses_.erase(found->second.use);
  entries_.erase(found);
}

Status DiskFolder::Write(const BlockKey& key, const std::string& bytes, std::vector<KvEvent>& events) {
  std::string path = PathOf(key);
  struct stat info{};
  bool there = entries_.count(key) != 0 ||
               (bad_.count(key) == 0 && stat(path.c_str(), &info) == 0 &&
                static_cast<uint64_t>(info.st_size) == BlockFileBytes(facts_));   // another rank or job wrote it
  if (!there) LM_RETURN_IF_ERROR(WriteBlockFile(path, temporary_, facts_, key, bytes));
  bad_.erase(key);
  Remember(key);
  if (++writes_since_scan_ >= kScanEvery) LM_RETURN_IF_ERROR(Scan(events));
  Trim(events);
  return entries_.count(key) != 0 ? Status::Ok() : IoError("--kv-store-size has no room for one block");
}

void DiskFolder::Trim(std::vector<KvEvent>& events) {
  while (entries_.size() > most_files_) {
    BlockKey oldest = uses_.front();
    unlink(PathOf(oldest).c_str());
    Forget(oldest);
    events.push_back({KvEventKind::kGone, oldest});
  }
}

Result<std::string> DiskFolder::Read(const BlockKey& key, std::vector<KvEvent>& events) {
  std::string path = PathOf(key);
  Result<std::string> bytes = ReadBlockFile(path, facts_, key);
  if (bytes.ok()) {
    utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
    Remember(key);
    return bytes;
  }
  if (bytes.status().code() == StatusCode::kMismatch) bad_.insert(key);
  Forget(key);
  events.push_back({KvEventKind::kGone, key});
  return bytes;
}

}  // namespace latentmesh
