// ShardReader: reads one rank's tensors ahead in a thread of its own, within a window of memory.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"

namespace latentmesh {

// Used by one thread. Holds at most `window_bytes`, or one tensor where that is larger. The checkpoint outlives it.
class ShardReader {
 public:
  // `tensors`: indices in checkpoint.tensors(), in the order in which Next() gives them.
  ShardReader(const Checkpoint& checkpoint, std::vector<uint32_t> tensors, uint64_t window_bytes);
  ~ShardReader();                         // stops after the read in progress
  ShardReader(const ShardReader&) = delete;
  ShardReader& operator=(const ShardReader&) = delete;

  // The next tensor's bytes, checked if it holds scales; valid until the next call. After an error (kInvalidModel
  // naming file and tensor, kResourceExhausted) every further call gives the same error.
  Result<const std::byte*> Next();
  uint64_t bytes_read() const;

 private:
  struct Item {
    std::unique_ptr<std::byte[]> data;
    uint64_t bytes = 0;
  };
  void Run();
  bool WaitForRoom(uint64_t bytes);       // false: stop
  Result<Item> ReadOne(const TensorInfo& tensor);

  const Checkpoint& checkpoint_;
  const std::vector<uint32_t> tensors_;
  const uint64_t window_bytes_;
  std::optional<FileReader> file_;        // of the reading thread: the shard it is in
  std::optional<Item> current_;           // of the using thread

  mutable std::mutex mutex_;              // guards what follows
  std::condition_variable changed_;
  std::deque<Item> ready_;
  uint64_t held_ = 0;                     // bytes in ready_, in current_ and being read
  uint64_t bytes_read_ = 0;
  Status failure_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace latentmesh
