#include "runtime/model/latent_ring.h"

#include <algorithm>
#include <utility>

#include "parallel/trace.h"

namespace latentmesh {

LatentRing::LatentRing(const ModelContext& ctx, int64_t width, Arena& arena)
    : ctx_(ctx), cp_(ctx.shard.layout.cp), me_(ctx.shard.cp_rank), width_(width) {
  buffers_ = arena.Reserve(ctx.activation, {cp_ > 1 ? 3 : 1, ctx.limits.expand_keys, width});
}

int64_t LatentRing::LocalKeys(const ExpandedSequence& s, int cp_rank) const {
  return ContextShard{cp_, cp_rank, ctx_.limits.block_size}.LocalLength(s.context);
}

int64_t LatentRing::KeysOf(const Chunk& chunk, int cp_rank) const {
  return std::clamp<int64_t>(LocalKeys(*chunk.sequence, cp_rank) - chunk.begin, 0, ctx_.limits.expand_keys);
}

int LatentRing::SourceAt(int hop) const { return (me_ - hop + cp_) % cp_; }

// Rank 0 has most keys, so that its chunks are those of all.
LatentRing::Chunk LatentRing::Following(const std::vector<ExpandedSequence>& sequences, const Chunk& chunk) const {
  const int64_t begin = chunk.begin + ctx_.limits.expand_keys;
  if (begin < LocalKeys(*chunk.sequence, 0)) return {chunk.sequence, begin};
  const bool last = chunk.sequence == &sequences.back();
  return last ? Chunk() : Chunk{chunk.sequence + 1, 0};
}

TensorView LatentRing::NextBuffer(int64_t keys) {
  const int64_t count = buffers_.dim(0);
  char* data = static_cast<char*>(buffers_.data) + buffers_.bytes() / static_cast<size_t>(count) * next_buffer_;
  next_buffer_ = (next_buffer_ + 1) % count;
  return TensorView(data, buffers_.dtype, {keys, width_});
}

LatentRing::Hop LatentRing::Start(const CacheView& cache, const Chunk& chunk) {
  Hop at;
  at.latents = NextBuffer(KeysOf(chunk, me_));
  ctx_.ops->LatentGather({cache, chunk.sequence->block_table, chunk.begin, at.latents.dim(0), at.latents},
                         *ctx_.stream);
  if (cp_ > 1) StartTransfer(chunk, 0, at);
  return at;
}

void LatentRing::StartTransfer(const Chunk& chunk, int hop, Hop& at) {
  at.next = NextBuffer(KeysOf(chunk, SourceAt(hop + 1)));
  at.call = ctx_.comms->cp->StartSendRecv(at.latents.data, at.latents.bytes(), (me_ + 1) % cp_, at.next.data,
                                          at.next.bytes(), (me_ - 1 + cp_) % cp_, *ctx_.stream);
}

void LatentRing::Begin(const CacheView& cache, const std::vector<ExpandedSequence>& sequences) {
  first_ = Start(cache, {&sequences.front(), 0});
  begun_ = true;
}

void LatentRing::Run(const CacheView& cache, const std::vector<ExpandedSequence>& sequences, const Attend& attend) {
  if (sequences.empty()) return;
  Chunk chunk{&sequences.front(), 0};
  Hop at = std::exchange(begun_, false) ? first_ : Start(cache, chunk);
  while (chunk.sequence != nullptr) {
    const Chunk following = Following(sequences, chunk);
    Hop ahead;
    for (int hop = 0; hop < cp_; ++hop) {
      const bool last = hop + 1 == cp_;
      if (last && cp_ > 1 && following.sequence != nullptr) ahead = Start(cache, following);
      if (at.latents.dim(0) > 0) attend(*chunk.sequence, at.latents, chunk.begin, SourceAt(hop));
      if (last) break;
      {
        TraceSpan span("wait for latents", hop);
        ctx_.comms->cp->Finish(at.call);
      }
      at.latents = at.next;
      if (hop + 2 < cp_) StartTransfer(chunk, hop + 1, at);
    }
    if (cp_ == 1 && following.sequence != nullptr) ahead = Start(cache, following);
    chunk = following, at = ahead;
  }
}

}  // namespace latentmesh
