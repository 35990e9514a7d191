// MoeLayer: routed experts of one layer over the ranks of an ep group: router, dispatch, experts, combine.
// Shared experts are the model's own business. Buffers are shared by all layers of a rank (MoeWorkspace).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "kernels/ops.h"
#include "kernels/side_stream.h"
#include "moe/dispatcher.h"
#include "moe/expert_placement.h"
#include "moe/experts.h"
#include "parallel/communicator.h"

namespace latentmesh {

// Named as in config.json (hidden_size, moe_intermediate_size, n_routed_experts, num_experts_per_tok, ...).
struct MoeConfig {
  int64_t hidden = 0;
  int64_t width = 0;
  int32_t experts = 0;
  int32_t top_k = 0;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  TopkMethod method = TopkMethod::kGreedy;
  ScoringFunc scoring = ScoringFunc::kSoftmax;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1.0f;
};
// kInvalidArgument names the field: groups must divide the experts, top_k must fit the kept groups, ...
Status ValidateMoeConfig(const MoeConfig& config);

struct MoeWorkspaceOptions {
  int64_t max_tokens = 0;            // tokens one rank routes in one step: its slice of the step's tokens
  int32_t max_local_experts = 0;     // 0: of the contiguous placement; more to leave room for replicas
  DType activation = DType::kF32;
  DType payload = DType::kF32;       // rows on the wire
  int32_t ranks_per_node = 0;        // above 0: tokens are dispatched by nodes of so many ranks (CPU); 0: by messages
  int64_t max_rows = 0;              // see DispatchLimits
  int64_t max_slots = 0;
  int64_t max_replicated_tokens = 0; // for ForwardReplicated; 0: it is not used
  bool fixed_capacity = false;       // ForwardReplicated does without the host where it can (DispatchLimits)
  int64_t gathered_tokens = 0;       // tokens a rank of steps with UseFixedExchange, at most; 0: it is not used
  int32_t counted_layers = 0;        // layers whose loads are counted on the device then, at most
};

// What the layers of one rank use in turn: router scratch, dispatcher, expert scratch.
class MoeWorkspace {
 public:
  // `ops` and `ep` outlive the workspace.
  MoeWorkspace(Ops& ops, Communicator& ep, const MoeConfig& config, const MoeWorkspaceOptions& options);
  // Device bytes of a workspace, for the memory plan; allocates nothing.
  static size_t Bytes(const MoeConfig& config, const MoeWorkspaceOptions& options, int ep_size);

  // Of the next Forwards with fixed capacity: tokens from *live (device memory) on get nothing and are not counted, as a
  // step that was padded to a captured size needs it. nullptr: all count.
  void SetLiveTokens(const int32_t* live) { live_tokens_ = live; }
  // The next Forwards exchange tokens with fixed capacity (CreateGatherDispatcher) where the placement allows; on all ranks of
  // the group alike, which then all bring equally many tokens, at most gathered_tokens.
  void UseFixedExchange(bool on) { fixed_exchange_ = on; }
  // Brings what was counted on the device into the layers' loads(); waits for the stream.
  void ReadLoads(Stream& stream);
  // Dispatches so far that waited for the host.
  int64_t host_waits() const { return host_waits_; }

 private:
  friend class MoeLayer;
  int64_t* DeviceLoads(size_t layer) const;
  Ops& ops_;
  Communicator& ep_;
  MoeConfig config_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
  std::unique_ptr<TokenDispatcher> replicated_;   // nullptr unless max_replicated_tokens > 0
  std::unique_ptr<TokenDispatcher> gathered_;     // nullptr unless gathered_tokens > 0
  Experts experts_;
  struct Pass {                      // of MoeLayer::Start to Finish
    DispatchParams params;
    int rounds = 0;
  };
  Pass pass_;
  Tensor logits_;                    // [most tokens, E] f32
  Tensor ids_;                       // [most tokens, top_k] i32
  Tensor topk_weights_;              // [most tokens, top_k] f32
  const int32_t* live_tokens_ = nullptr;
  bool fixed_exchange_ = false;
  int64_t host_waits_ = 0;
  SideStream* joined_ = nullptr;     // until the next combine
  std::deque<std::vector<int64_t>> loads_;   // [layers][E] host counters
  Tensor device_loads_;              // [counted layers, E] i64, since the last ReadLoads
};

// One layer's weights on this rank. Not owned; they outlive the layer.
struct MoeWeights {
  WeightView router;                 // [E, H] mlp.gate.weight, f32 (or as stored)
  TensorView bias;                   // [E] f32 e_score_correction_bias, or empty
  ExpertWeights experts;             // of placement.LocalExperts(ep rank), in that order
};

// The shared expert's part on this rank; width may be 0.
struct SharedExpert {
  WeightView gate, up;               // [width, H]
  WeightView down;                   // [H, width]
};

class MoeLayer {
 public:
  MoeLayer(MoeWorkspace& workspace, const MoeWeights& weights, ExpertPlacement placement);

  // out[t] += sum of weighted expert outputs of x[t]. x, out: [T, H] of the activation dtype, T <= max_tokens; T is
  // this rank's own slice and may be 0. Collective over the ep group. out may not alias x.
  void Forward(const TensorView& x, const TensorView& out, Stream& stream);

  // Without communication: all ranks of the ep group pass the same x, and out[t] += what this rank's experts
  // contribute; the caller sums over the group (one all-reduce, together with other partial sums it may hold). Every
  // choice is served and counted by exactly one rank. T <= max_replicated_tokens.
  void ForwardReplicated(const TensorView& x, const TensorView& out, Stream& stream);

  // For a token or two on a GPU (kernels/chosen_experts.h): out[t] = the shared expert of x[t] + what ForwardReplicated would add,
  // without waiting for the host. False, and nothing done, where it does not apply.
  bool ForwardFew(const SharedExpert& shared, const TensorView& x, const TensorView& out, Stream& stream);

  // Forward in four steps, between which the rank computes something else while messages travel: the counts of tokens from
  // Start to Send, the tokens to Compute, the results to Finish. x stays as it is until Finish, which adds to out. Several
  // batches may be under way at once, each in a workspace of its own, as long as all ranks take the steps in the same order;
  // then none is passed to Forward.
  void Start(MoeWorkspace& w, const TensorView& x, Stream& stream);
  void Send(MoeWorkspace& w, Stream& stream);
  void Compute(MoeWorkspace& w, Stream& stream);
  void Finish(MoeWorkspace& w, const TensorView& out, Stream& stream);

  // The next Forward or ForwardReplicated waits for `side` before it first adds to `out`.
  void JoinBeforeCombine(SideStream* side) { w_.joined_ = side; }

  const ExpertPlacement& placement() const { return placement_; }
  // Between steps: another placement and the weights that go with it. On all ranks at the same step.
  void Replace(const ExpertWeights& experts, ExpertPlacement placement);

  // Tokens of this rank that chose each logical expert, since the last reset. Host memory; with fixed capacity as of the
  // workspace's last ReadLoads.
  std::span<const int64_t> loads() const { return w_.loads_[index_]; }
  void ResetLoads();

  // From now on counts, too, on how many ranks and nodes of so many ranks its tokens' experts lie as placed; 0: off. In
  // ForwardReplicated, where all ranks see the same tokens, rank 0 counts for all.
  void CountSpreadOver(int ranks_per_node) { ranks_per_node_ = ranks_per_node; }
  const RoutingSpread& spread() const { return spread_; }

 private:
  void Route(MoeWorkspace& w, const TensorView& x, Stream& stream);
  DispatchParams ParamsOf(MoeWorkspace& w, const TensorView& x);
  void RunRoundWhole(MoeWorkspace& w, TokenDispatcher& dispatcher, int round, const TensorView& out, Stream& stream);
  void RunExperts(TokenDispatcher& dispatcher, const TensorView& x, const TensorView& out, Stream& stream);
  MoeWorkspace& w_;
  MoeWeights weights_;
  ExpertPlacement placement_;
  size_t index_;                     // among the workspace's layers: of its counters
  RoutingSpread spread_;
  int ranks_per_node_ = 0;
};

}  // namespace latentmesh
