// RankSetup: everything about one rank's part of a run that is decided before memory is taken: layout, formats, limits and
// the memory plan. The same arithmetic serves `latentmesh plan`.
#pragma once

#include <memory>
#include <string>

#include "kernels/device.h"
#include "moe/moe_layer.h"
#include "runtime/cache/latent_kv_cache.h"
#include "runtime/config/model_config.h"
#include "runtime/engine/engine_options.h"
#include "runtime/engine/memory_plan.h"
#include "runtime/model/model_shard.h"
#include "runtime/model/step_batch.h"
#include "runtime/model/weights.h"

namespace latentmesh {

struct RankSetup {
  ModelConfig config;
  EngineOptions options;         // resolved
  ModelShard shard;
  ExpertPlacement placement = ExpertPlacement::Contiguous(1, 1);   // unused without routed experts
  StepLimits limits;
  DType activation = DType::kF32;
  WeightLayoutOptions weight_options;
  CacheShape cache;              // num_blocks is this rank's wish until all ranks have agreed
  MemoryPlan plan;
  uint64_t cache_budget = 0;     // bytes the cache may take; max_seqs sequences may need less

  int64_t blocks_per_sequence() const;   // cache blocks one sequence of max_model_len takes
  bool drafts_with_layer() const { return options.speculative_tokens > 0 && options.speculative == "mtp"; }
  bool captures() const;                 // decode steps become graphs
  bool runs_ahead() const;               // a decode step is queued before the tokens of the one before it are known
  int dispatch_node() const;             // MoeWorkspaceOptions::ranks_per_node
  MoeWorkspaceOptions moe_options() const;
  // 2: steps may run as two halves (Interleave), whose tokens travel to experts and back while the other half computes; the
  // rank then has a second workspace, of second_moe_options. The same on all ranks. 1 without experts or with dp 1, where
  // nothing travels; else as --micro-batches says; left open 2 on CPU ranks of several nodes. Which steps then are halved:
  // micro_batches.h.
  int micro_batches() const;
  MoeWorkspaceOptions second_moe_options() const;
  uint64_t moe_bytes() const;            // of both
  void SetBlocks(int64_t blocks);
  void SetOffloadBlocks(int64_t blocks);
  bool has_tiers() const { return plan.offload_blocks > 0 || !options.kv_store.empty(); }
};

// Fills in what the user left open. kInvalidArgument names the flag.
Result<EngineOptions> ResolveOptions(const EngineOptions& options, const ModelConfig& config, int world_size,
                                     DeviceKind device);

// Counts a rank's bytes with the code that lays them out. `available` is what its device has free.
Result<RankSetup> PlanRank(const ModelConfig& config, const EngineOptions& resolved, const ProcessMesh& mesh,
                           const StoredDType& stored, uint64_t available);

// kResourceExhausted with the numbers and what would fit, when the plan has no room for one sequence.
Status CheckMemory(const RankSetup& setup);

}  // namespace latentmesh
