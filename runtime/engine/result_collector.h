// ResultCollector: what a step gives, brought to rank 0: tokens that the ranks chose on their devices, or rows of logits.
//
// A shard's logits lie on the tp ranks of its last stage, each with a part of the vocabulary. Greedy tokens need only the
// parts' best, which are gathered over tp; draws need whole rows, so that the ranks draw with tp 1 only. Ids then go to rank
// 0, the only thing that the host waits for in a step without host rows.
#pragma once

#include <memory>
#include <vector>

#include "kernels/side_stream.h"
#include "kernels/token_sampler.h"
#include "parallel/communicator.h"
#include "runtime/engine/kv_mover.h"
#include "runtime/engine/rank_setup.h"
#include "runtime/engine/step_command.h"
#include "runtime/model/decoder.h"

namespace latentmesh {

// What a step gave, on rank 0 (elsewhere empty).
struct StepResult {
  struct Shard {
    std::vector<int32_t> ids;            // [specs] of the command's sampling
    std::vector<float> logits;           // [host rows, vocab]: all rows where the command has no sampling
    std::vector<int32_t> host_rows;      // where not all: which, rising
    std::vector<float> hidden;           // [layers + 1, tokens, hidden] when captured
    int64_t rows = 0;
    int64_t tokens = 0;
  };
  std::vector<Shard> shards;           // [dp]
  std::vector<KvReport> kv_reports;    // [ranks] when the plan asked for them
  uint64_t moved_bytes = 0;            // of rank 0 in the transfers before the step, both ways; 0: it took no part
  double move_seconds = 0;
};

// Device memory of a collector.
struct ResultBuffers {
  TensorView logits_in;                // [max_logits_rows, widest part of the vocabulary] from other ranks; rank 0 only
  // Where ranks choose tokens:
  int64_t capacity = 0;                // specs of one shard and step
  SampleSpec* specs = nullptr;         // [capacity]
  BestToken* best = nullptr;           // [tp + 1, capacity]: own, then of all parts
  int32_t* ids = nullptr;              // rank 0: [dp, capacity], else [capacity]
  int32_t* kept = nullptr;             // [capacity] ids of a step behind which another one is queued
};
ResultBuffers ReserveResultBuffers(const RankSetup& setup, Arena& arena);

class ResultCollector {
 public:
  struct Parts {
    const RankSetup* setup;
    Decoder* decoder;
    CommunicatorSet* comms;
    Ops* ops;
    Stream* stream;
    int rank;                          // in the world
    SideStream* side = nullptr;        // GPUs
  };
  ResultCollector(const Parts& parts, const ResultBuffers& buffers);

  // After the decoder has run: collective over the world. Fills result.shards on rank 0.
  void Run(const StepCommand& command, const StepBatch& batch, StepResult& result);

  // The same in pieces, for a step that may be captured. Upload brings this rank's specs to the device, padded to `count`; Choose
  // queues the head and the choice for a batch whose logits rows fit one chunk, and returns the logits (last stage); Fetch does
  // the rest, with the logits of the last Choose or those given.
  void Upload(const StepCommand& command, int64_t count);
  TensorView Choose(const StepBatch& batch, int64_t count);
  void NoteReplay(const TensorView& logits) { logits_ = logits; }
  void Fetch(const StepCommand& command, StepResult& result);

  // For steps queued ahead, on one rank. Keep, after a step was queued: its `count` tokens stay for its Fetch, whatever is queued
  // meanwhile; GiveKept queues a copy of them. FetchOnly: the step has chosen more tokens than the next Fetch's command asks for,
  // which are those at `places`. fetched(): all tokens that the step of the last Fetch chose.
  void Keep(int64_t count);
  void GiveKept(int32_t* to, int64_t count);
  void FetchOnly(std::vector<int32_t> places) { places_ = std::move(places); }
  bool fetches_all() const { return places_.empty(); }
  const std::vector<int32_t>& fetched() const { return fetched_; }

 private:
  void CollectShard(const StepCommand& command, const StepBatch& batch, int dp, StepResult::Shard* shard);
  void CollectRows(const TensorView& logits, int dp, int64_t begin, int64_t count, StepResult::Shard* shard);
  void KeepRows(const TensorView& part, Range columns, int64_t begin, StepResult::Shard* shard);
  void ChooseRows(const TensorView& logits, int64_t begin, int64_t count);
  void SendIds(const StepCommand& command, int dp);
  void ReadIds(const StepCommand& command, StepResult& result);
  void ReadOwnIds(std::vector<int32_t>& ids);
  void Prepare(const StepCommand& command, StepResult& result) const;
  bool Mine(int dp) const { return p_.setup->shard.last_stage() && p_.setup->shard.dp_rank == dp; }
  int SourceRank(int dp, int tp) const;
  Device& device() const { return p_.ops->device(); }

  Parts p_;
  ResultBuffers b_;
  std::unique_ptr<TokenSampler> sampler_;
  std::vector<SampleSpec> staging_;
  TensorView logits_;                  // of Choose
  bool kept_ = false;                  // since the last Fetch
  std::vector<int32_t> places_;        // for the next Fetch; empty: all
  std::vector<int32_t> fetched_;
};

}  // namespace latentmesh
