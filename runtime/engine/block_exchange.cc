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
    for (int64_t layer = 0; layer < cache_.shape().layers; ++layer) MoveLayer(transfer, layer);
  }
  if (bytes_ == 0) return;
  stream_.Synchronize();
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void BlockExchange::RunLayer(const std::vector<BlockTransfer>& transfers, int64_t layer) {
  for (const BlockTransfer& transfer : transfers) {
    if (!transfer.streamed || !TakesPart(transfer)) continue;
    TraceSpan span("hand over layer", layer);
    MoveLayer(transfer, layer);
  }
}

// Neighbouring blocks that stay neighbours travel as one message.
void BlockExchange::MoveLayer(const BlockTransfer& transfer, int64_t layer) {
  const std::vector<BlockCopy>& blocks = transfer.blocks;
  const bool sends = transfer.from_shard == dp_.rank();
  for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
    end = begin + 1;
    while (end < blocks.size() && blocks[end].from == blocks[end - 1].from + 1 && blocks[end].to == blocks[end - 1].to + 1) ++end;
    const LatentKvCache::Slice first = cache_.SliceOf(layer, sends ? blocks[begin].from : blocks[begin].to);
    const size_t bytes = first.bytes * (end - begin);
    if (sends) dp_.Send(first.data, bytes, transfer.to_shard, stream_);
    else dp_.Recv(first.data, bytes, transfer.from_shard, stream_);
    bytes_ += bytes;
  }
}

}  // namespace latentmesh
