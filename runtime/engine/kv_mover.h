// KvMover: one rank's lower cache tiers. Makes the moves that plans ask for between the cache, host memory and the disk,
// and reports what became of those that the disk makes in the background.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "runtime/cache/disk_store.h"
#include "runtime/cache/latent_kv_cache.h"
#include "runtime/schedule/kv_op.h"

namespace latentmesh {

struct KvReport {
  std::vector<KvEvent> events;
  std::vector<std::string> warnings;   // for the user
};
std::string EncodeKvReport(const KvReport& report);
Result<KvReport> DecodeKvReport(const std::string& bytes);   // kCommunication when damaged

class KvMover {
 public:
  // `host_slots` blocks of host memory, which the system gives when they are first used; `store` may be null. Cache and
  // stream outlive the mover.
  KvMover(LatentKvCache& cache, Stream& stream, int64_t host_slots, std::unique_ptr<DiskStore> store);

  // In order, after the work queued on the stream.
  void Run(const std::vector<KvOp>& ops);
  // What happened since the last report; waits up to `wait` for a fetch to end.
  KvReport TakeReport(std::chrono::milliseconds wait);
  void Finish();                         // waits for what the disk still writes, at most its deadline

 private:
  std::span<char> Slot(int32_t slot);

  LatentKvCache& cache_;
  Stream& stream_;
  size_t block_bytes_;
  int64_t slots_;
  std::unique_ptr<char[]> host_;         // [slots, block bytes]
  std::unique_ptr<DiskStore> store_;
};

}  // namespace latentmesh
