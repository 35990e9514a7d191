// What a block on disk belongs to: it may be used again only by a run whose cache blocks would hold the same numbers.
#pragma once

#include <string>

#include "runtime/cache/sha256.h"
#include "runtime/engine/rank_setup.h"

namespace latentmesh {

// Of config.json and the weights: name, size and modification time of every file, and samples of its content (whole files
// would take as long to hash as to load). Rank 0 makes it for all. kIo when a file cannot be read.
Result<std::string> ModelIdentity(const EngineOptions& options, const std::vector<std::string>& files);

// With formats, block size, and the layers, heads and share of tokens that this rank keeps.
Sha256Digest BlockIdentity(const std::string& model_identity, const RankSetup& setup);

}  // namespace latentmesh
