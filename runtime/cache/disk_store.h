// DiskStore: one rank's cache blocks in a folder of the local disk, one file each. A thread of its own reads and writes, so
// that no step waits for the disk; what could not be written in time is left out, what could not be read in time failed.
//
// Several ranks and jobs may use one folder: files appear whole by rename, and a file that another process removed is
// only missing. Each bounds the folder: the least recently used files (by modification time, which a read renews) go.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/cache/block_file.h"
#include "runtime/cache/kv_event.h"

namespace latentmesh {

struct DiskStoreOptions {
  std::string folder;                  // created when missing, with a folder in it for each identity
  BlockFileFacts facts;
  uint64_t limit = 0;                  // bytes the files of this identity may take
  uint64_t write_queue = 256 << 20;    // bytes that may wait to be written
  std::chrono::milliseconds deadline{10'000};   // of a fetch; also how long the destructor waits for queued writes
};

class DiskStore {
 public:
  // Lists the folder: a kFound event for each block. kIo when it cannot be created or read.
  static Result<std::unique_ptr<DiskStore>> Open(const DiskStoreOptions& options);
  ~DiskStore();
  DiskStore(const DiskStore&) = delete;
  DiskStore& operator=(const DiskStore&) = delete;

  // From one thread. Each store and each fetch is answered by one event.
  void Store(const BlockKey& key, std::string bytes);
  void Fetch(const BlockKey& key);
  // The bytes of a block that was told to be ready; forgotten here. Drop: nobody wants them any more.
  std::string Take(const BlockKey& key);
  void Drop(const BlockKey& key);

  // What happened since the last call; waits up to `wait` for something while fetches are under way.
  std::vector<KvEvent> TakeEvents(std::chrono::milliseconds wait = {});
  std::vector<std::string> TakeWarnings();
  // Waits until what is queued has been written, at most the deadline.
  void Finish();

 private:
  struct Shared;                       // with the thread, which outlives this object where the disk hangs
  explicit DiskStore(std::shared_ptr<Shared> shared);
  std::shared_ptr<Shared> shared_;
};

}  // namespace latentmesh
