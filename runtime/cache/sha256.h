// SHA-256 (FIPS 180-4), for names that nobody can make collide: cached blocks and models.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace latentmesh {

using Sha256Digest = std::array<uint8_t, 32>;
Sha256Digest Sha256(std::string_view bytes);

}  // namespace latentmesh
