// LatentRing: the latents of expanded attention, chunk by chunk; under context parallelism every chunk of the local
// ones goes once around the cp group (as keys and values do in Ring Attention, Liu et al. 2023), one rank further a
// hop.
//
// What the next hop computes travels while this one computes, also from the last hop of a chunk to the first of the
// next one, and the very first part travels while the queries are projected (Begin). Three buffers go round: one is
// computed and sent, one arrives; at the end of a chunk one is computed, one sent, one arrives.
#pragma once

#include <functional>
#include <vector>

#include "runtime/model/arena.h"
#include "runtime/model/model_context.h"
#include "runtime/model/step_batch.h"

namespace latentmesh {

class LatentRing {
 public:
  // Latents of `width` numbers, expand_keys of them in a chunk.
  LatentRing(const ModelContext& ctx, int64_t width, Arena& arena);

  // latents [keys, width] of keys [begin, ...) of rank `source`; keys may be 0 (a rank has fewer than the first one).
  using Attend = std::function<void(const ExpandedSequence& s, const TensorView& latents, int64_t begin, int source)>;

  // Gathers the first chunk and starts its journey, before Run of the same sequences. The cache holds the new latents.
  // Nothing but started calls on the cp group between the two.
  void Begin(const CacheView& cache, const std::vector<ExpandedSequence>& sequences);
  // All chunks of all sequences. Collective over the cp group.
  void Run(const CacheView& cache, const std::vector<ExpandedSequence>& sequences, const Attend& attend);

 private:
  struct Chunk {
    const ExpandedSequence* sequence = nullptr;
    int64_t begin = 0;
  };
  // Latents at a hop, and those of the next hop on their way.
  struct Hop {
    TensorView latents, next;
    StartedCall call;
  };
  int64_t LocalKeys(const ExpandedSequence& s, int cp_rank) const;
  int64_t KeysOf(const Chunk& chunk, int cp_rank) const;
  int SourceAt(int hop) const;
  Chunk Following(const std::vector<ExpandedSequence>& sequences, const Chunk& chunk) const;
  TensorView NextBuffer(int64_t keys);
  Hop Start(const CacheView& cache, const Chunk& chunk);
  void StartTransfer(const Chunk& chunk, int hop, Hop& at);

  const ModelContext& ctx_;
  int cp_, me_;
  int64_t width_;
  TensorView buffers_;         // [cp > 1 ? 3 : 1, expand_keys, width]
  int64_t next_buffer_ = 0;
  Hop first_;                  // of Begin
  bool begun_ = false;
};

}  // namespace latentmesh
