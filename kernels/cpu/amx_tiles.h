// Tile registers of AMX: their configuration and, as types, the shapes that the kernels use. A thread configures them at the
// start of a kernel and releases them at its end, so that the kernel saves no tiles when threads are switched.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace latentmesh::amx {

constexpr int kTileRows = 16;
constexpr int64_t kTileBytes = 64;  // of a row

// Palette 1 of the instruction set's manual ("Intel AMX", tile configuration).
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void Set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

// gcc's tile loads do not say that they read memory: what was written for them must be written before.
static inline void WrittenForTiles() { asm volatile("" ::: "memory"); }

class TileScope {
 public:
  explicit TileScope(const TileConfig& config) { Use(config); }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
  void Use(const TileConfig& config) {
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
};

}  // namespace latentmesh::amx
