#include "runtime/engine/block_exchange.h"

#include <chrono>

#include "parallel/trace.h"

namespace latentmesh {

void BlockExchange::Run(const std::vector<BlockTransfer>& transfers) {
  bytes_ = 0;
  seconds_ = 0;
  const auto started = std::chrono::steady_clock::now();
  for (const BlockTransfer& transfer : transfers) {
    if (transfer.streamed || !TakesPart(transfer)) continue;
    TraceSpan span("move blocks", static_cast<int64_t>(transfer.blocks.size()));
    for (int64_t layer = 0; layer < cache_.shape().layers; ++layer) MoveLayer(transfer, layer, false);
    for (int64_t layer = 0; layer < cache_.shape().layers; ++layer) PassOn(transfer, layer);
  }
  if (bytes_ == 0) return;
  stream_.Synchronize();
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void BlockExchange::StartLayer(const std::vector<BlockTransfer>& transfers, int64_t layer) {
  dp_.Poll();
  for (const BlockTransfer& transfer : transfers) {
    if (!transfer.streamed || !TakesPart(transfer)) continue;
    TraceSpan span("hand over layer", layer);
    MoveLayer(transfer, layer, true);
    on_their_way_.emplace_back(&transfer, layer);
  }
}

void BlockExchange::FinishLayers() {
  if (on_their_way_.empty()) return;
  TraceSpan span("wait for handed layers");
  dp_.Finish();
  for (const auto& [transfer, layer] : on_their_way_) PassOn(*transfer, layer);
  on_their_way_.clear();
}

template <typename Visit>
void BlockExchange::EachPart(const BlockTransfer& transfer, int64_t layer, const Visit& visit) const {
  const std::vector<BlockCopy>& blocks = transfer.blocks;
  const bool sends = transfer.from_shard == dp_.rank();
  const auto follows = [](const BlockCopy& a, const BlockCopy& b) { return b.from == a.from + 1 && b.to == a.to + 1; };
  for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
    end = begin + 1;
    while (end < blocks.size() && follows(blocks[end - 1], blocks[end])) ++end;
    const LatentKvCache::Slice first = cache_.SliceOf(layer, sends ? blocks[begin].from : blocks[begin].to);
    visit(Part{first.data, first.bytes * (end - begin)});
  }
}

// Each part is a message of the layer's owner.
void BlockExchange::MoveLayer(const BlockTransfer& transfer, int64_t layer, bool start_only) {
  const bool sends = transfer.from_shard == dp_.rank();
  const int peer = sends ? transfer.to_shard : transfer.from_shard;
  EachPart(transfer, layer, [&](const Part& part) {
    bytes_ += part.bytes;
    if (!Owns(layer)) return;
    const size_t out = sends ? part.bytes : 0;
    if (start_only) dp_.StartSendRecv(part.data, out, peer, part.data, part.bytes - out, peer, stream_);
    else if (sends) dp_.Send(part.data, part.bytes, peer, stream_);
    else dp_.Recv(part.data, part.bytes, peer, stream_);
  });
}

// What this shard received goes from the layer's owner to the other replicas.
void BlockExchange::PassOn(const BlockTransfer& transfer, int64_t layer) {
  if (replicas_ == nullptr || transfer.to_shard != dp_.rank()) return;
  EachPart(transfer, layer, [&](const Part& part) { replicas_->Broadcast(part.data, part.bytes, OwnerOf(layer), stream_); });
}

}  // namespace latentmesh
