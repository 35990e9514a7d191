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
    on_their_way_ = true;
  }
}

void BlockExchange::FinishLayers() {
  if (!on_their_way_) return;
  TraceSpan span("wait for handed layers");
  dp_.Finish();
  on_their_way_ = false;
}

// Neighbouring blocks that stay neighbours travel as one message.
void BlockExchange::MoveLayer(const BlockTransfer& transfer, int64_t layer, bool start_only) {
  const std::vector<BlockCopy>& blocks = transfer.blocks;
  const bool sends = transfer.from_shard == dp_.rank();
  const auto follows = [](const BlockCopy& a, const BlockCopy& b) { return b.from == a.from + 1 && b.to == a.to + 1; };
  for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
    end = begin + 1;
    while (end < blocks.size() && follows(blocks[end - 1], blocks[end])) ++end;
    const LatentKvCache::Slice first = cache_.SliceOf(layer, sends ? blocks[begin].from : blocks[begin].to);
    const size_t bytes = first.bytes * (end - begin);
    const int peer = sends ? transfer.to_shard : transfer.from_shard;
    const size_t out = sends ? bytes : 0;
    if (start_only) dp_.StartSendRecv(first.data, out, peer, first.data, bytes - out, peer, stream_);
    else if (sends) dp_.Send(first.data, bytes, peer, stream_);
    else dp_.Recv(first.data, bytes, peer, stream_);
    bytes_ += bytes;
  }
}

}  // namespace latentmesh
