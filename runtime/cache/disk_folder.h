// DiskFolder: the files of a DiskStore, their sizes and order of use. The store's thread only.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime/cache/block_file.h"
#include "runtime/cache/kv_event.h"

namespace latentmesh {

class DiskFolder {
 public:
  DiskFolder(std::string path, const BlockFileFacts& facts, uint64_t limit);

  // Reads the folder: events for what came and went since the last time. kIo when it cannot be read.
  Status Scan(std::vector<KvEvent>& events);
  // Ok when the block is on disk afterwards. Removes what then is too much.
  Status Write(const BlockKey& key, const std::string& bytes, std::vector<KvEvent>& events);
  // A block that cannot be read, or is not what it should be, is forgotten, and overwritten by the next Write.
  Result<std::string> Read(const BlockKey& key, std::vector<KvEvent>& events);

  const std::string& path() const { return path_; }
  int64_t ignored() const { return ignored_; }       // files of the last Scan that are no whole blocks

 private:
  struct Entry {
    std::list<BlockKey>::iterator use;
  };
  struct Listed {
    int64_t modified_ns = 0;
    BlockKey key;
  };
  std::string PathOf(const BlockKey& key) const { return path_ + "/" + ToHex(key) + ".kv"; }
  Result<std::vector<Listed>> List();
  void Remember(const BlockKey& key);
  void Forget(const BlockKey& key);
  void Trim(std::vector<KvEvent>& events);

  std::string path_;
  BlockFileFacts facts_;
  uint64_t most_files_;
  std::string temporary_;                       // a name that no other process takes
  std::list<BlockKey> uses_;                    // least recently used first
  std::unordered_map<BlockKey, Entry, BlockKeyHash> entries_;
  std::unordered_set<BlockKey, BlockKeyHash> bad_;   // damaged files that still lie there
  int64_t ignored_ = 0;
  int64_t writes_since_scan_ = 0;
};

}  // namespace latentmesh
