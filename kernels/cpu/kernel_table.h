// The inner kernels of one instruction set as function pointers, chosen once per process.
//
// Instruction-set files (*_avx2.cc, *_avx512.cc) define nothing but such tables: everything in them has internal
// linkage or a namespace of its own and takes only the plain structs below, so that no function compiled for a newer
// machine can be picked by the linker for portable code. Kernels run on one thread and know nothing of tensors or
// threads.
#pragma once

#include <cstdint>

namespace latentmesh {

enum class WeightKind : int { kF32, kBF16, kF16, kF8 };
constexpr int kWeightKinds = 4;

// Rows of a weight matrix; w[i][j] = decode(data[i * stride + j]) * scale of its block where scales are given.
// row_offset and col_offset say where data[0] lies in the scale matrix, in elements.
struct WeightRows {
  const void* data;
  int64_t stride;
  const float* scales;
  int64_t scale_cols;
  int64_t block_rows, block_cols;
  int64_t row_offset, col_offset;
};

// out[t][n] (+)= x[t] . w[n]
struct DotArgs {
  const float* x;
  int64_t x_stride;
  int64_t tokens;
  WeightRows w;
  int64_t rows;
  int64_t k;
  float* out;
  int64_t out_stride;
  bool accumulate;
};

// c[m][n] (+)= sum over k of a[m][k] b[k][n], where a[m][k] is at a + m * a_stride + k, or at a + k * a_stride + m in
// the transposed form. b is a float matrix (packed or not) or unscaled weights.
struct OuterArgs {
  const float* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t m, n, k;
  bool accumulate;
};

// Dequantises columns [0, k) of `rows` (at most kPanelCols) weight rows into a panel [k][kPanelCols], rows missing at
// the end as zeros.
struct PackArgs {
  WeightRows w;
  int64_t rows;
  int64_t k;
  float* panel;
};
constexpr int64_t kPanelCols = 32;

// 32 numbers of a token as bytes: x[i] = scale * level[i].
struct ActivationGroup {
  int8_t level[32];
  float scale;
  int32_t zero_sum[2];  // -128 and -8 times the sum of the levels: what codes that are off by their zero add too much
};

// out[t][n] (+)= x[t] . w[n] with packed weights (packed_weights.h); the first row begins a panel.
struct PackedDotArgs {
  const ActivationGroup* x;  // [tokens, 2 * blocks]
  int64_t tokens;
  const uint8_t* panels;
  int64_t blocks;
  int64_t rows;
  float* out;
  int64_t out_stride;
  bool accumulate;
};

// Products of bf16 weights with activations rounded to bf16, sums in f32. The activations of a product lie in a layout
// that the instruction set chooses, `size` tokens of `k` numbers: see PairBytes.
struct PairInput {
  uint16_t* data;
  int64_t size;
  int64_t k;
};
// Writes tokens [first, first + tokens) of the input; x is the first of them. At most kPairTokens at a time.
struct ToPairsArgs {
  const float* x;
  int64_t x_stride;
  int64_t first, tokens;
  PairInput out;
};
constexpr int64_t kPairTokens = 16;
// out[t][n] (+)= x[first + t] . w[n]
struct PairDotArgs {
  PairInput x;
  int64_t first, tokens;
  const uint16_t* w;
  int64_t w_stride;
  int64_t rows;
  float* out;
  int64_t out_stride;
  bool accumulate;
};
// Enough for every layout: tokens and columns are padded.
constexpr int64_t PairBytes(int64_t tokens, int64_t k) { return (tokens + 2 * kPairTokens) * ((k + 31) / 32 * 64); }

// One block of an online softmax (FlashAttention, Dao et al. 2022, algorithm 1) for up to kTileRows rows side by side.
// scores [keys][kTileRows] become exp(scale * score - new maximum), 0 for keys at and after a row's limit; `largest`
// and `sum` are updated, `rescale` is what earlier sums must be multiplied with.
struct SoftmaxArgs {
  float* scores;
  int64_t keys;
  int64_t rows;           // rows in use
  const int32_t* limits;  // [kTileRows] visible keys of this block for each row
  float scale;
  float* largest;  // [kTileRows], -inf at first
  float* sum;      // [kTileRows]
  float* rescale;  // [kTileRows]
};
constexpr int64_t kTileRows = 32;

// Records of `heads` heads of `dim` numbers side by side, f32 or bf16, and `group` rows (query rows, or sums of values)
// for each head; see record_kernels.inl. Where records are bf16 the rows are in pair order.
struct RecordArgs {
  const void* const* records;  // [keys], each to the first head's first number
  int64_t keys;
  int64_t heads;
  int64_t group;   // 1 to kMostGroup
  int64_t dim;
  float* rows;     // [heads * group][dim], heads * group <= kTileRows
  float* weights;  // [keys][kTileRows]
};
constexpr int64_t kMostGroup = 4;

// out [n] from codes and a scale for each 128 of them. `next`, if any: fetched meanwhile, as many bytes.
struct F8ToFloatArgs {
  const uint8_t* codes;
  const float* scales;
  float* out;
  int64_t n;
  const void* next;
};

// out = or += sum over r of weights[r] * rows[r]: rows and out [n] of f32 or bf16, in order of r. With `stream`, for
// rows in the caches, whole lines of out go to memory past the caches, where its first number begins a line; other threads
// may be told after end_stream.
struct SumRowsArgs {
  const void* const* rows;  // [count]
  const float* weights;     // [count]
  int count;
  void* out;
  int64_t n;
  bool accumulate;
  bool stream = false;
};

struct KernelTable {
  const char* name;
  int64_t outer_rows;  // rows of the register tile of `outer`
  int64_t dot_tokens;  // up to this many tokens `dot` beats packing for `outer`
  void (*dot[kWeightKinds])(const DotArgs&);
  void (*outer[kWeightKinds - 1])(const OuterArgs&);  // no block scales
  void (*outer_transposed)(const OuterArgs&);         // float b
  void (*pack[kWeightKinds])(const PackArgs&);
  // [n] numbers as groups, an even number of them, filled with zeros at the end. A group that holds NaN or infinity gets the scale NaN.
  void (*to_groups)(const float* x, int64_t n, ActivationGroup* groups);
  void (*packed_dot8)(const PackedDotArgs&);
  void (*packed_dot4)(const PackedDotArgs&);
  void (*softmax)(const SoftmaxArgs&);
  void (*record_scores[2])(const RecordArgs&);            // [bf16]: weights = records . rows
  void (*record_sums[2])(const RecordArgs&);              // [bf16]: rows += weights . records
  void (*pair_order)(const float* x, float* out, int64_t n, bool back);
  void (*to_float[kWeightKinds])(const void* source, float* target, int64_t n, float scale);
  // Decodes a multiple of the vector length, up to n numbers of packed 6-bit codes, and returns how many.
  int64_t (*six_bit_to_float)(const void* source, float* target, int64_t n, float scale);
  float (*sum_squares)(const float* x, int64_t n);
  void (*scale_by)(const float* x, float factor, const float* weight, float* out, int64_t n);  // x * factor * weight
  void (*scale)(float* x, float factor, int64_t n);
  void (*add)(const float* x, float* inout, int64_t n);
  void (*axpy)(float factor, const float* x, float* inout, int64_t n);
  void (*silu_times)(const float* gate, const float* up, float* out, int64_t n);
  void (*to_bf16)(const float* source, uint16_t* target, int64_t n);
  // Codes and a scale for each 128 numbers (the largest of them becomes 448).
  void (*to_f8)(const float* source, uint8_t* codes, float* scales, int64_t n);
  void (*f8_to_float)(const F8ToFloatArgs&);
  void (*sum_rows[2][2])(const SumRowsArgs&);  // [rows are bf16][out is bf16]
  void (*end_stream)();
  // Multiply-adds in registers only, for measuring the machine: `rounds` times fma_flops operations.
  float (*fma_burn)(int64_t rounds);
  int64_t fma_flops;
  float (*int8_burn)(int64_t rounds);                     // the same with the products of bytes
  int64_t int8_operations;
  // nullptr where the instruction set has no products of bf16.
  void (*to_pairs)(const ToPairsArgs&) = nullptr;
  void (*pair_dot)(const PairDotArgs&) = nullptr;
};

const KernelTable& PortableKernels();
const KernelTable* Avx2Kernels();  // nullptr when this build has none
const KernelTable* AvxVnniKernels();
const KernelTable* Avx512Kernels();
const KernelTable* AmxKernels();  // those of AVX-512 but for the products of bf16

// The best table this machine can run; SetKernels forces one (tests). Not thread-safe against running operations.
const KernelTable& Kernels();
void SetKernels(const KernelTable* table);  // nullptr: choose again

// Every table that this machine can run, the portable one first. `count` is set.
const KernelTable* const* RunnableKernels(int* count);

}  // namespace latentmesh
