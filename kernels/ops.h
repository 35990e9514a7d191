// Ops: the fused operations that a model step is made of. kernels/cpu implements them first and is the reference that
// kernels/cuda is tested against.
//
// Rules for every operation
//  - Work is queued on `stream`; parameters are PODs copied at the call; all pointers are device memory.
//  - Activations are f32, or bf16 where the implementation says so (the CPU takes f32 everywhere and bf16 where noted);
//    sums are accumulated in f32 or better.
//  - Any count may be 0: the call then does nothing. Outputs never alias inputs unless said so.
//  - Shapes that contradict each other are programmer errors (LM_CHECK).
//  - One thread per rank calls Ops; the implementation may use the device's own threads.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "kernels/views.h"

namespace latentmesh {

struct EmbedParams {
  const int32_t* ids;        // [T]
  int64_t tokens;            // T
  TensorView table;          // [vocab rows of this rank, H], f32/bf16/f16
  int64_t vocab_begin;       // first vocabulary id of this rank; rows of other ranks come out as 0
  TensorView out;            // [T, H]
};

struct RmsNormParams {
  TensorView x;              // [T, H], rows may be strided
  TensorView residual;       // optional [T, H]: residual += x first, then the residual is normalised
  TensorView weight;         // [H] f32
  float eps;
  TensorView out;            // [T, H]; may alias x
};

struct GemmParams {
  TensorView x;              // [T, K], rows may be strided
  WeightView w;              // [N, K]
  TensorView bias;           // optional [N] f32
  TensorView out;            // [T, N], rows may be strided
  bool accumulate = false;   // out += instead of out =
};

// One small matrix product per head with a slice of a shared weight (absorbing kv_b_proj into query and output,
// DeepSeek-V2 section 2.1.2). Head h uses weight rows [h * rows_per_head + row_begin, + row_count).
//   transpose = false: out[t][h] = x[t][h] W_h^T      x dim = w.cols,    out dim = row_count   (latent -> value)
//   transpose = true:  out[t][h] = x[t][h] W_h        x dim = row_count, out dim = w.cols      (query -> latent)
struct HeadGemmParams {
  HeadsView x;
  WeightView w;              // [heads * rows_per_head, cols], unquantised
  int64_t rows_per_head;
  int64_t row_begin;
  int64_t row_count;
  bool transpose;
  HeadsView out;
};

struct RopeParams {
  HeadsView x;               // [T, heads, rope dim], rotated in place
  const int32_t* positions;  // [T]
  TensorView cos_sin;        // [positions, rope dim] f32: rope/2 cosines, then rope/2 sines, already times YaRN's factor
  bool interleaved;          // true: pairs (2i, 2i+1); false: pairs (i, i + dim/2)
};

// RMSNorm of the latent, rotation of the shared key, write to the cache; the key is not normalised.
struct LatentWriteParams {
  TensorView kv_a;           // [T, kv_lora_rank + rope] output of kv_a_proj_with_mqa, rows may be strided
  TensorView norm_weight;    // [kv_lora_rank] f32
  float eps;
  const int32_t* positions;  // [T]
  TensorView cos_sin;        // see RopeParams
  bool interleaved;
  const int64_t* slots;      // [T] slot in the cache, or -1: this rank does not keep the token
  CacheView cache;
};

// Attention on the latent itself with absorbed queries: keys are [latent, rope key], values the latent.
struct MlaAttentionParams {
  HeadsView q_latent;        // [T, heads, kv_lora_rank]
  HeadsView q_rope;          // [T, heads, rope]
  CacheView cache;
  PagedBatch batch;
  float scale;
  HeadsView out;             // [T, heads, kv_lora_rank]
  TensorView lse;            // optional [T, heads] f32: natural log of the sum of exponentials, -inf if no key is visible
};                           // (out is then 0)

// Reads cached records back as numbers: out[i] = record of local token begin + i of one sequence.
struct LatentGatherParams {
  CacheView cache;
  const int32_t* block_table;  // of this sequence
  int64_t begin;
  int64_t count;
  TensorView out;            // [count, latent + rope]
};

// Causal attention of one sequence's queries over expanded keys and values of a run of its tokens.
struct PrefillAttentionParams {
  HeadsView q;               // [n, heads, nope + rope]
  HeadsView k_nope;          // [S, heads, nope]
  TensorView k_rope;         // [S, rope], shared by all heads, rows may be strided
  HeadsView v;               // [S, heads, v_head_dim]
  int64_t query_position;    // position of q[0]
  int64_t key_begin;         // local index of key 0; its position is shard.GlobalPosition(key_begin)
  ContextShard shard;        // of the rank the keys come from
  float scale;
  HeadsView out;             // [n, heads, v_head_dim]
  TensorView lse;            // [n, heads] f32 as in MlaAttentionParams
};

// (out, lse) <- the attention over both key sets (log-sum-exp merge, FlashDecoding). a is updated in place.
struct MergeAttentionParams {
  HeadsView out_a;           // [T, heads, dim]
  TensorView lse_a;          // [T, heads]
  HeadsView out_b;
  TensorView lse_b;
};

// Baselines (MHA, GQA, MQA). Keys are rotated before they are written.
struct GqaWriteParams {
  HeadsView k;               // [T, kv_heads, d]
  HeadsView v;               // [T, kv_heads, d]
  const int64_t* slots;      // [T], -1 skips
  CacheView cache;           // latent = 2 * kv_heads * d, rope = 0
};
struct GqaAttentionParams {
  HeadsView q;               // [T, heads, d]
  CacheView cache;
  PagedBatch batch;
  int32_t kv_heads;          // in this cache
  int32_t group;             // query heads per key-value head
  int32_t head_offset;       // query head h uses cached key-value head (h + head_offset) / group
  float scale;
  HeadsView out;             // [T, heads, d]
};

// silu(x gate^T) * (x up^T)
struct GateUpParams {
  TensorView x;              // [T, K]
  WeightView gate;           // [W, K]
  WeightView up;             // [W, K]
  TensorView out;            // [T, W]
};

enum class ScoringFunc : uint8_t { kSoftmax, kSigmoid };
enum class TopkMethod : uint8_t { kGreedy, kGroupLimitedGreedy, kNoAuxTc };

// Expert choice in f32 (DeepSeek-V2 section 2.2, DeepSeek-V3 section 2.1.2). Ties go to the smaller index.
//   group_limited_greedy ranks groups by their best score, noaux_tc by the sum of the two best biased scores;
//   experts of other groups are masked with -inf. The bias selects only, weights come from the unbiased scores.
struct RouterParams {
  TensorView logits;         // [T, E] f32
  TensorView bias;           // optional [E] f32: e_score_correction_bias
  ScoringFunc scoring;
  TopkMethod method;
  int32_t n_group;
  int32_t topk_group;
  int32_t top_k;
  bool norm_topk_prob;       // weights /= sum + 1e-20
  float routed_scaling_factor;
  int32_t* ids;              // [T, top_k], by falling selection score
  float* weights;            // [T, top_k]
};

// Stable counting sort of (token, choice) slots by local expert; slots of other ranks' experts are left out.
struct SortByExpertParams {
  const int32_t* ids;        // [slots] first + local expert index, or outside [first, first + experts): not ours
  int64_t slots;
  int32_t experts;
  int32_t* offsets;          // [experts + 1]: expert e owns sorted rows [offsets[e], offsets[e+1])
  int32_t* source;           // [slots]: sorted row -> slot; -1 from offsets[experts] on
  int32_t* row;              // [slots]: slot -> sorted row, or -1
  int32_t first = 0;
  // Optional [sources]: of each source's tokens_per_source tokens (0: one source has all) only the first so many count.
  const int32_t* live_tokens = nullptr;
  int32_t slots_per_token = 1;            // for live_tokens, as the next
  int64_t tokens_per_source = 0;
  int64_t* loads = nullptr;  // optional [experts]: += sorted rows of the expert
};

// out[i] = x[index[i]], or zeros where index[i] < 0
struct GatherRowsParams {
  TensorView x;              // [N, K], any dtype
  const int32_t* index;      // [M]
  int64_t count;             // M
  int32_t divisor = 1;       // row index[i] / divisor is taken (slots of top_k choices -> tokens)
  TensorView out;            // [M, K]
};

// out[t] (+)= sum over j of weights[t][j] * x[index[t][j]], choices with index < 0 left out; summed in order of j.
struct CombineRowsParams {
  TensorView x;              // [M, H]
  const int32_t* index;      // [T, k]
  const float* weights;      // [T, k]
  int32_t k;
  TensorView out;            // [T, H]
  bool accumulate;
};

// Expert e multiplies rows [offsets[e], offsets[e+1]) of x.
struct GroupedGateUpParams {
  TensorView x;              // [M, K] sorted by expert
  const int32_t* offsets;    // [experts + 1]
  ExpertWeightsView gate;    // [W, K] each
  ExpertWeightsView up;
  TensorView out;            // [M, W]
};
struct GroupedGemmParams {
  TensorView x;              // [M, K] sorted by expert
  const int32_t* offsets;
  ExpertWeightsView w;       // [N, K] each
  TensorView out;            // [M, N]
};

// The experts' products on rows that stay where they arrived (CPU only): inputs are read where they lie, and each row's
// weighted results over several experts are added before they go to memory. A slot is a (row, expert) pair.
struct GatherGateUpParams {
  ScatteredRows rows;        // [R, K]
  const int32_t* source;     // [M] slot, sorted by expert -> row
  const int32_t* offsets;    // [experts + 1]
  ExpertWeightsView gate;    // [W, K] each
  ExpertWeightsView up;
  TensorView out;            // [M, W]: a row for each slot
};
// out[r] = sum over the slots i of row r of weights[i] * (x[i] W_e^T), by rising expert; 0 where a row has no slots.
struct GroupedDownSumParams {
  TensorView x;              // [M, K] sorted by expert
  const int32_t* source;     // [M] slot -> row of out
  const float* weights;      // [M]
  const int32_t* offsets;    // [experts + 1]
  ExpertWeightsView w;       // [N, K] each
  TensorView out;            // [R, N] f32 or bf16, each number written once
};

struct AddParams {
  TensorView x;              // [T, H]
  TensorView inout;          // [T, H] += x
};

struct CastParams {
  TensorView x;
  TensorView out;            // same size, other dtype
};

// Copies whole cache blocks (fork of a sequence with a half-filled last block).
struct CopyBlocksParams {
  CacheView cache;
  const int32_t* pairs;      // [count, 2] from, to
  int64_t count;
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual Device& device() = 0;

  virtual void Embed(const EmbedParams& p, Stream& stream) = 0;
  virtual void RmsNorm(const RmsNormParams& p, Stream& stream) = 0;
  virtual void Gemm(const GemmParams& p, Stream& stream) = 0;
  virtual void HeadGemm(const HeadGemmParams& p, Stream& stream) = 0;
  virtual void Rope(const RopeParams& p, Stream& stream) = 0;
  virtual void LatentWrite(const LatentWriteParams& p, Stream& stream) = 0;
  virtual void MlaAttention(const MlaAttentionParams& p, Stream& stream) = 0;
  virtual void LatentGather(const LatentGatherParams& p, Stream& stream) = 0;
  virtual void PrefillAttention(const PrefillAttentionParams& p, Stream& stream) = 0;
  virtual void MergeAttention(const MergeAttentionParams& p, Stream& stream) = 0;
  virtual void GqaWrite(const GqaWriteParams& p, Stream& stream) = 0;
  virtual void GqaAttention(const GqaAttentionParams& p, Stream& stream) = 0;
  virtual void GateUp(const GateUpParams& p, Stream& stream) = 0;
  virtual void Route(const RouterParams& p, Stream& stream) = 0;
  virtual void SortByExpert(const SortByExpertParams& p, Stream& stream) = 0;
  virtual void GatherRows(const GatherRowsParams& p, Stream& stream) = 0;
  virtual void CombineRows(const CombineRowsParams& p, Stream& stream) = 0;
  virtual void GroupedGateUp(const GroupedGateUpParams& p, Stream& stream) = 0;
  virtual void GroupedGemm(const GroupedGemmParams& p, Stream& stream) = 0;
  virtual void GatherGateUp(const GatherGateUpParams& p, Stream& stream) = 0;
  virtual void GroupedDownSum(const GroupedDownSumParams& p, Stream& stream) = 0;
  virtual void Add(const AddParams& p, Stream& stream) = 0;
  virtual void Cast(const CastParams& p, Stream& stream) = 0;
  virtual void CopyBlocks(const CopyBlocksParams& p, Stream& stream) = 0;
};

// The operations of the device's kind; the device outlives them.
std::unique_ptr<Ops> CreateOps(Device& device);
std::unique_ptr<Ops> CreateCpuOps(Device& device);
std::unique_ptr<Ops> CreateCudaOps(Device& device);

}  // namespace latentmesh
