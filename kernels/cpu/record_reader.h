// Turns cached records into blocks of f32 keys and values for AttentionTile.
#pragma once

#include "kernels/cpu/attention_tile.h"
#include "kernels/views.h"

namespace latentmesh {

// Which numbers of a record are wanted: [begin, begin + dim).
struct RecordPart {
  int64_t begin;
  int64_t dim;
};

class RecordReader {
 public:
  // Scratch of one block of kTileKeys keys.
  static int64_t ScratchFloats(const RecordPart& key, const RecordPart& value);
  RecordReader(const CacheView& cache, RecordPart key, RecordPart value, float* scratch);

  // Local tokens [begin, begin + count) of the sequence with this block table; count is cut to kTileKeys, and to one
  // cache block where records are read in place. The block is valid until the next call.
  KeyBlock Read(const int32_t* block_table, int64_t begin, int64_t count);

 private:
  void CopyRecord(const char* record, int64_t i);

  CacheView cache_;
  RecordPart key_, value_;
  bool shared_;  // values lie inside the key: one copy serves both
  int64_t value_base_;
  float* scratch_;  // [kTileKeys][key (, value)]
  int64_t stride_;
};

// Numbers [begin, begin + n) of a record.
void DecodeRecordPart(const CacheView& cache, const char* record, int64_t begin, int64_t n, float* numbers);

}  // namespace latentmesh
