// DecodeSteps: steps in which every sequence brings the same few tokens, as decoding does. They are padded to one of a few
// sizes, and each size is captured into a graph when it comes for the second time, head and choice of tokens included, so that
// the host queues such a step with one call and waits for nothing but token ids.
//
// A size is (sequences, tokens each, context): launches depend on the longest context, in steps of a quarter of its power of
// two. The first step of a size runs uncaptured, because libraries load and measure kernels then. Sizes whose work needs the
// host in between (experts that are exchanged with exact counts, or counted on the host) stay uncaptured.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/captured_work.h"
#include "runtime/engine/result_collector.h"
#include "runtime/engine/step_command.h"
#include "runtime/model/decoder.h"

namespace latentmesh {

class DecodeSteps {
 public:
  struct Parts {
    const RankSetup* setup;
    Decoder* decoder;
    ResultCollector* collector;
    StepBatchBuilder* builder;
    MoeWorkspace* moe;                 // may be null
    const LatentKvCache* cache;
    CommunicatorSet* comms;
    Device* device;
    Stream* stream;
  };
  explicit DecodeSteps(const Parts& parts) : p_(parts) {}

  // Whether this rank's share of the step is of this kind. With dp 1 ranks may differ: what they exchange is the same either
  // way. Otherwise all shards must be of this kind, or empty, and are padded alike, because experts are then exchanged with
  // fixed capacity.
  bool Takes(const StepCommand& command) const;
  // Runs the model and queues the choice of tokens; ResultCollector::Fetch has then to follow. Collective like Decoder::Forward.
  // Returns the first row of each sequence.
  std::vector<int64_t> Run(const StepCommand& command);
  // Queues the step after `command`'s, which Run has just queued, on tokens that the device is still choosing, so that it need not
  // wait while the host deals with them: every sequence is taken to go on by one token, `specs` [sequences] saying how the token
  // after that is chosen. When its command comes Run finds it queued, also where some of the sequences have ended; the rest of
  // what was computed is left out. If others have joined it was in vain: what it wrote to the cache is written again. Where it
  // cannot be done nothing happens. On one rank (RankSetup::runs_ahead); before Fetch.
  void RunAhead(const StepCommand& command, std::span<const SampleSpec> specs);
  bool runs_ahead() const { return ahead_.has_value(); }
  void DropAhead() { ahead_.reset(); }
  int64_t steps_ahead() const { return steps_ahead_; }   // queued ahead and used
  // Before the next step: weights or placements have moved, what was captured is void.
  void Forget() { sizes_.clear(); }
  int64_t replays() const { return replays_; }

 private:
  struct Size {
    StepPadding padding;
    bool captures = true;
    std::unique_ptr<CapturedWork> work;
    TensorView logits;
  };
  struct Ahead {                       // a step that was queued before its command came
    ShardStep step;                    // without its tokens
    std::vector<SampleSpec> specs;
    std::vector<int64_t> first_row;
  };
  const ShardStep& Mine(const StepCommand& command) const;
  std::vector<const ShardStep*> Concerned(const StepCommand& command) const;
  bool Fits(const ShardStep& step, int64_t queries, AttentionMode attention) const;
  StepPadding PaddingOf(const StepCommand& command) const;
  Size& Find(const StepPadding& padding, bool* is_new);
  TensorView Queue(const StepBatch& batch);
  void Replay(const Size& size, int64_t tokens);
  void Capture(Size& size, const StepBatch& batch);
  bool Adopt(const StepCommand& command, std::vector<int64_t>& first_row);
  const Size* SizeFor(const StepCommand& command) const;

  Parts p_;
  std::list<Size> sizes_;              // used last in front
  int64_t replays_ = 0, steps_ahead_ = 0;
  std::optional<Ahead> ahead_;
};

// The size to which `sequences` (at least 1) sequences are padded: small steps at small numbers, of 8 beyond, of 16 above 64 and of
// 32 above 256.
int64_t PaddedSequences(int64_t sequences);
// `context` rounded up to a multiple of a quarter of its power of two, at least 256.
int64_t PaddedContext(int64_t context);

}  // namespace latentmesh
