// One cache block as a file: a header that says what it is, then the bytes. Little-endian.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/status.h"
#include "runtime/cache/block_key.h"
#include "runtime/cache/sha256.h"

namespace latentmesh {

// Sizes and names that a file must agree with before its bytes are used.
struct BlockFileFacts {
  Sha256Digest identity{};     // of model, cache format and part of the layout
  uint64_t block_bytes = 0;
};

uint64_t BlockFileBytes(const BlockFileFacts& facts);

// Creates `path` by way of `temporary` in the same folder (rename), so that no reader sees a part of it. kIo, with the
// temporary file gone again, when that fails.
Status WriteBlockFile(const std::string& path, const std::string& temporary, const BlockFileFacts& facts, const BlockKey& key,
                      const std::string& bytes);

// kIo: not there or unreadable; kMismatch: truncated, damaged, of another version, model or layout.
Result<std::string> ReadBlockFile(const std::string& path, const BlockFileFacts& facts, const BlockKey& key);

}  // namespace latentmesh
