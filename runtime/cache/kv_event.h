// KvEvent: what a rank's disk store has to say about a block.
#pragma once

#include <cstdint>

#include "runtime/cache/block_key.h"

namespace latentmesh {

enum class KvEventKind : uint8_t {
  kFound,       // is on disk, written earlier or by somebody else
  kStored,      // answers a store: is on disk now (or was before)
  kNotStored,   // answers a store: is not on disk
  kGone,        // is no longer on disk, or was found damaged
  kReady,       // answers a fetch: its bytes are in memory
  kFailed,      // answers a fetch: they are not to be had
};

struct KvEvent {
  KvEventKind kind = KvEventKind::kFound;
  BlockKey key;
};

}  // namespace latentmesh
