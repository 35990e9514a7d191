// Fitting a latent attention of rank r to trained multi-head (or grouped-query) attention: the truncated SVD of the
// joint [W_k; W_v] gives kv_a (down) and kv_b (up) with the smallest error of the projections, as in post-training
// conversions to MLA (TransMLA, Meng et al. 2025; MHA2MLA, Ji et al. 2025).
//
// What RoPE forbids. A query meets a cached key as q^T R(m - n) W_uk c: the rotation R of the distance stands between
// W_q and W_uk, so W_uk cannot be absorbed into the query. Two ways out, both evaluated here:
//   rotated    the latent holds everything; keys are expanded from it and rotated at every use. Exact at full rank,
//   caches r
//              numbers, but only the expanded form works: decoding pays it.
//   decoupled  some frequency pairs keep RoPE: their keys are left as they are, rotated and cached beside the latent
//   (as
//              MLA's rope key, but one for each key-value head since the weights do not share one); all other pairs
//              lose their rotation and go into the latent with the values. Can be absorbed; wrong even at full rank by
//              what the lost rotations meant.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/lowrank/svd.h"

namespace latentmesh {

// One attention layer without biases; weights as y = x W^T uses them.
struct AttentionWeights {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  Matrix q;                          // [heads * d, hidden]
  Matrix k, v;                       // [kv_heads * d, hidden]
  Matrix o;                          // [hidden, heads * d]
  std::vector<float> cos_sin;        // [positions, d]: d/2 cosines, d/2 sines (MakeCosSinTable); pairs (i, i + d/2)
};

// Causal attention of x [T, hidden], positions from 0: [T, hidden], o_proj included. In double.
Matrix AttentionOutput(const AttentionWeights& w, const Matrix& x);

struct FitPoint {
  int64_t rank = 0;
  int64_t cache_numbers = 0;         // a token
  double weights_error = 0;          // ||[W_k; W_v] - fit|| / ||[W_k; W_v]|| of the rows in the latent
  double output_error = 0;           // relative, of AttentionOutput on x
};
struct FitCurve {
  int64_t rope_pairs = 0;            // that keep their rotation beside the latent; -1: the rotated form
  std::vector<FitPoint> points;
};

// `x`: the layer's normalised inputs [T, hidden]. Ranks above what the rows allow are cut to full rank.
FitCurve FitRotated(const AttentionWeights& w, const Matrix& x, const std::vector<int64_t>& ranks);
// Keeps the `pairs` frequency pairs with the largest mean |q_pair| |k_pair| over tokens and heads, the same for all
// heads.
FitCurve FitDecoupled(const AttentionWeights& w, const Matrix& x, int64_t pairs, const std::vector<int64_t>& ranks);
// Those pairs, rising.
std::vector<int64_t> StrongestPairs(const AttentionWeights& w, const Matrix& x, int64_t pairs);

}  // namespace latentmesh
