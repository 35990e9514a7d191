// The arithmetic of attention variants: what a token costs in the cache, and how much work and traffic a step is. Pure
// functions; all of it is computed, nothing measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/views.h"

namespace latentmesh {

// GQA-8 and GQA-4 have 8 and 4 key-value heads (Ainslie et al. 2023). MLA (DeepSeek-V2, section 2.1) is one variant
// with one cache; its two forms differ in the work only.
enum class AttentionVariant { kMha, kGqa8, kGqa4, kMqa, kMlaExpanded, kMlaAbsorbed };
inline constexpr AttentionVariant kAttentionVariants[] = {
    AttentionVariant::kMha, AttentionVariant::kGqa8,        AttentionVariant::kGqa4,
    AttentionVariant::kMqa, AttentionVariant::kMlaExpanded, AttentionVariant::kMlaAbsorbed};
const char* VariantName(AttentionVariant variant);        // "GQA-8", "MLA absorbed"
inline bool IsMla(AttentionVariant variant) { return variant >= AttentionVariant::kMlaExpanded; }

// One attention layer. Baselines have the same heads and model width, with keys and values of qk_nope_head_dim.
struct AttentionShape {
  int64_t heads = 16;
  int64_t hidden = 2048;
  int64_t kv_lora_rank = 512;
  int64_t nope = 128;
  int64_t rope = 64;
  int64_t v_head_dim = 128;
};

int64_t KvHeads(AttentionVariant variant, const AttentionShape& shape);      // baselines
// False for GQA with more key-value heads than heads, or heads that they do not divide.
bool VariantApplies(AttentionVariant variant, const AttentionShape& shape);

// Bytes of one token in one layer. Baselines have no quantised formats: they are counted in bf16 then.
CacheFormat VariantFormat(AttentionVariant variant, CacheFormat format);
int64_t CacheBytesPerToken(AttentionVariant variant, const AttentionShape& shape, CacheFormat format);
// Sequences of `context` tokens whose cache over `layers` layers fits.
int64_t LargestBatch(int64_t bytes_per_token, int64_t layers, int64_t context, uint64_t memory);

// The attention itself, without the projections of x: `sequences` sequences with `queries` new tokens each, the last of
// `context` cached ones. Operations are 2 a multiply-add; causal. MLA counts its work with kv_b_proj (absorbing queries
// and outputs, or expanding all keys and values). Bytes: cache and kv_b_proj once; expanded keys and values not
// counted.
struct AttentionWork {
  double flops = 0;
  double bytes = 0;
};
AttentionWork WorkOf(AttentionVariant variant, const AttentionShape& shape, CacheFormat format, int64_t sequences,
                     int64_t queries, int64_t context);
// Flops of the projections of x and o_proj for `tokens` tokens.
double ProjectionFlops(AttentionVariant variant, const AttentionShape& shape, int64_t tokens);

// n*: expanding is cheaper for more queries than this. 1/n* = 1/S + (2r - nope - v) / (r (nope + v)); the second term
// is 1/170.7 for DeepSeek-V3. Infinite where absorbing never loses.
double CrossoverQueries(const AttentionShape& shape, int64_t context);

// What DeepSeek-V3 (61 layers, 128 heads) would keep and compute with each variant.
struct VariantCost {
  std::string name;
  std::string cache;                 // "bf16"
  int64_t bytes_per_token = 0;       // all layers
  double saving = 0;                 // against MHA at the same heads
  double sequence_bytes = 0;         // of one sequence of `context`
  double decode_flops = 0;           // attention of one decoded token at the end of it
  double intensity() const { return decode_flops / sequence_bytes; }     // operations a byte of cache
};
std::vector<VariantCost> DeepSeekV3Costs(int64_t context);

// DeepSeek-V2 (60 layers) against DeepSeek-67B (95 layers, GQA with 8 heads of 128) in bf16: the comparison behind the
// published 93.3 %.
struct PublishedSaving {
  int64_t dense_67b = 0;             // bytes a token
  int64_t v2_bf16 = 0, v2_6bit = 0;  // 6bit: this program's records (scales and bf16 rope keys included)
  double bare_6bit = 0;              // bytes with 6 bits for each of the 576 numbers and nothing else
  double saving_bf16 = 0, saving_6bit = 0, saving_bare_6bit = 0;
};
PublishedSaving DeepSeekV2Saving();

}  // namespace latentmesh
