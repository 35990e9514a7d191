// What a user chooses about a run; the same on all ranks. Zero or "auto" lets latentmesh choose (and print) the value.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "parallel/process_mesh.h"
#include "runtime/checkpoint/weight_loader.h"
#include "runtime/model/step_batch.h"

namespace latentmesh {

struct EngineOptions {
  std::string model;                  // checkpoint folder
  std::string load_format = "auto";   // auto: a checkpoint; dummy: random weights in the formats config.json says
  std::string shape;                  // with dummy: mini, v2-lite or v3 instead of a folder (published_shapes.h)
  int num_layers = 0;                 // with dummy: only so many decoder layers; 0: all
  int num_experts = 0;                // with dummy: only so many routed experts, as one rank of a larger layout holds; 0: all
  std::string device = "auto";        // auto, cpu, cuda
  ParallelConfig layout{0, 0, 0, 0};  // 0: choose
  std::string dtype = "auto";         // auto, f32, bf16
  std::string weights = "auto";       // weight_format.h: auto, f32, bf16, fp8, int8, int4
  std::string kv_dtype = "auto";      // auto, f32, bf16; latents (MLA) also fp8, 6bit
  int max_batch_tokens = 0;           // tokens a dp rank computes in one step
  int max_seqs = 0;                   // sequences a dp rank runs at once
  int max_model_len = 0;              // 0: max_position_embeddings
  int block_size = 64;                // tokens a cache block holds on one rank
  uint64_t kv_memory = 0;             // bytes a rank for the cache; 0: what memory allows, up to what max_seqs can use
  uint64_t kv_offload = 0;            // bytes of host memory a rank for blocks that the cache evicts; 0: none
  std::string kv_store;               // folder on a local disk that keeps blocks, also for later runs; empty: none
  uint64_t kv_store_size = uint64_t{16} << 30;   // bytes of it for each model and part of the layout
  int threads = 0;                    // compute threads a rank
  bool prefix_caching = true;
  bool migration = true;              // sequences and prefixes move between dp ranks where that helps
  int prefill_ranks = 0;              // the first so many dp ranks only compute prompts, the others go on with them; 0: all do both
  bool share_gpu = false;
  uint64_t seed = 0;                  // for requests without one
  bool check_collectives = false;     // after each step: did all ranks make the same calls, with the same data?
  std::string inject_fault;           // for tests: fault_injection.h
  AttentionMode attention = AttentionMode::kAuto;
  std::string speculative = "auto";   // auto (mtp when the checkpoint has the layer), mtp, ngram
  int speculative_tokens = 0;         // drafts a sequence and step at most; 0: off
  bool speculative_adapt = true;      // fewer or none where they do not pay; false: always as many as there is room for
  bool expert_balance = false;        // move and copy experts between ranks to follow the load (balancer.h)
  int redundant_experts = 0;          // copies of experts beyond one each, in a layer, over all ranks of a stage
  int balance_interval = 0;           // steps between two looks at the loads; 0: off, or chosen with expert_balance
  std::string dispatch_dtype = "auto";   // of tokens on their way to experts: auto (as activations), f32, bf16, fp8 (CPU)
  int ranks_per_node = 0;             // neighbouring ranks taken for one node; 0: Runtime fills in those of a host
  int micro_batches = 0;              // 2: halves of a step hide each other's messages; 1: off; 0: 2 where that should pay
  std::string cuda_graphs = "auto";   // decode steps on GPUs: auto (captured), off
  bool run_ahead = false;              // one rank: the next decode step is queued before this one's tokens are known
  bool sample_on_ranks = false;       // ranks choose tokens themselves where they can; always so on GPUs, on CPUs for tests
  std::string trace;                  // file for a timeline of all ranks (trace.h); empty: off
  std::function<void(const std::string&)> warn;   // called on rank 0, from the engine's thread, for what only costs time
  std::function<void(const LoadProgress&)> load_progress;   // called on rank 0
  std::function<void()> keep_alive;   // called between steps: for a CreateLocal run inside a job's body
};

}  // namespace latentmesh
