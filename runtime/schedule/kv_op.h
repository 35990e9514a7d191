// KvOp: one move of a cache block between the tiers, by all ranks of a dp shard alike: each moves its own part.
#pragma once

#include <cstdint>

#include "runtime/cache/block_key.h"

namespace latentmesh {

enum class KvOpKind : uint8_t {
  kOffload,    // cache block -> host slot
  kRestore,    // host slot -> cache block
  kStore,      // cache block -> disk, in the background; answered by kStored or kNotStored
  kFetch,      // disk -> memory, in the background; answered by kReady or kFailed
  kAccept,     // fetched bytes -> cache block
  kDrop,       // fetched bytes are no longer wanted
};

struct KvOp {
  KvOpKind kind = KvOpKind::kOffload;
  int32_t block = -1;                // of the cache: all but kFetch and kDrop
  int32_t slot = -1;                 // of host memory: kOffload, kRestore
  BlockKey key;                      // kStore, kFetch, kAccept, kDrop
};

}  // namespace latentmesh
