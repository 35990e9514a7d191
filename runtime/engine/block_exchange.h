// BlockExchange: one rank's part in moving cache blocks between dp ranks. Bytes go from cache memory to cache memory in
// the stored format, from a rank to its counterpart of the same stage and tp index. Where all tp ranks hold the same (the
// latents of DeepSeek models, unless context parallelism deals them out), they take turns by layers, and who received
// a layer gives it to its tp group: between shards a block costs block_size x layers x record bytes, not tp times that.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/cache/latent_kv_cache.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

class BlockExchange {
 public:
  // All outlive the exchange. `dp` joins the ranks of equal stage and tp index, in the order of the shards; `replicas` those
  // of a shard and stage that hold the same cache, in the same order in every shard; nullptr: there is none but this.
  BlockExchange(const LatentKvCache& cache, Communicator& dp, Communicator* replicas, Stream& stream)
      : cache_(cache), dp_(dp), replicas_(replicas != nullptr && replicas->size() > 1 ? replicas : nullptr), stream_(stream) {}

  // The transfers that are done before the step. Collective over the shards that take part.
  void Run(const std::vector<BlockTransfer>& transfers);
  // Starts the streamed ones' part of one layer of this stage, which has been computed; over MPI it travels while the
  // next layers are computed. Until FinishLayers the blocks are neither used where they arrive nor freed where they
  // leave, nothing else is called on `dp`, and `transfers` stays.
  void StartLayer(const std::vector<BlockTransfer>& transfers, int64_t layer);
  // Waits, with the deadline of `dp`, for what StartLayer started, and passes it on to the replicas. Nothing started: returns
  // at once.
  void FinishLayers();

  // Of the last Run: bytes of the blocks that left and reached this rank's cache, whichever replica sent them, and the time
  // until they had arrived. Zeros: it took no part.
  uint64_t bytes() const { return bytes_; }
  double seconds() const { return seconds_; }

 private:
  struct Part {
    char* data;
    size_t bytes;
  };
  // Calls visit(part) for each run of neighbouring blocks that stay neighbours, as this rank's end of it lies in memory.
  template <typename Visit>
  void EachPart(const BlockTransfer& transfer, int64_t layer, const Visit& visit) const;
  int OwnerOf(int64_t layer) const { return replicas_ == nullptr ? 0 : static_cast<int>(layer % replicas_->size()); }
  bool Owns(int64_t layer) const { return replicas_ == nullptr || OwnerOf(layer) == replicas_->rank(); }
  void MoveLayer(const BlockTransfer& transfer, int64_t layer, bool start_only);
  void PassOn(const BlockTransfer& transfer, int64_t layer);
  bool TakesPart(const BlockTransfer& transfer) const {
    return transfer.from_shard == dp_.rank() || transfer.to_shard == dp_.rank();
  }

  const LatentKvCache& cache_;
  Communicator& dp_;
  Communicator* replicas_;
  Stream& stream_;
  // Layers on their way, until FinishLayers. The transfers are those of the step.
  std::vector<std::pair<const BlockTransfer*, int64_t>> on_their_way_;
  uint64_t bytes_ = 0;
  double seconds_ = 0;
};

}  // namespace latentmesh
