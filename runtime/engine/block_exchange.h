// BlockExchange: one rank's part in moving cache blocks between dp ranks. Bytes go from cache memory to cache memory in
// the stored format, each rank to its counterpart of the same stage and tp index, so a block costs
// block_size x layers x record bytes of this rank.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/cache/latent_kv_cache.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

class BlockExchange {
 public:
  // All outlive the exchange. `dp` joins the ranks of equal stage and tp index, in the order of the shards.
  BlockExchange(const LatentKvCache& cache, Communicator& dp, Stream& stream)
      : cache_(cache), dp_(dp), stream_(stream) {}

  // The transfers that are done before the step. Collective over those whose shards take part.
  void Run(const std::vector<BlockTransfer>& transfers);
  // Starts the streamed ones' part of one layer of this stage, which has been computed; over MPI it travels while the
  // next layers are computed. Until FinishLayers the blocks are neither used where they arrive nor freed where they
  // leave, and nothing else is called on `dp`.
  void StartLayer(const std::vector<BlockTransfer>& transfers, int64_t layer);
  // Waits, with the deadline of `dp`, for what StartLayer started. Nothing started: returns at once.
  void FinishLayers();

  // Of the last Run: this rank's bytes, both ways, and the time until they had arrived. Zeros: it took no part.
  uint64_t bytes() const { return bytes_; }
  double seconds() const { return seconds_; }

 private:
  void MoveLayer(const BlockTransfer& transfer, int64_t layer, bool start_only);
  bool TakesPart(const BlockTransfer& transfer) const {
    return transfer.from_shard == dp_.rank() || transfer.to_shard == dp_.rank();
  }

  const LatentKvCache& cache_;
  Communicator& dp_;
  Stream& stream_;
  bool on_their_way_ = false;              // parts of layers, until FinishLayers
  uint64_t bytes_ = 0;
  double seconds_ = 0;
};

}  // namespace latentmesh
