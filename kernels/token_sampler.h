// TokenSampler: chooses tokens from logits where these lie, so that only token ids go to the host. The same choice as
// runtime/sample makes for requests without penalties, biases, masks and log-probabilities: temperature, min_p, top_k, top_p,
// then the inverse of the cumulative distribution at a given random number, in double precision and in the order of ids.
//
// Two calls, so that a vocabulary may lie on several ranks: Best finds the likeliest token of each row in this rank's part;
// the parts' results, gathered, give Choose the likeliest of all. Draws need the whole row on one rank.
// Queued on the stream; nothing is allocated and nothing waits. One stream at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/device.h"
#include "kernels/tensor.h"

namespace latentmesh {

// How one token is chosen. Below kGreedyTemperature: the likeliest, the smallest id among equals.
struct SampleSpec {
  double uniform = 0;              // in [0, 1)
  float temperature = 0;
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;               // 0 or less: all
  int32_t row = -1;                // of the logits; negative: padding, nothing is chosen
  int32_t unused = 0;
  bool operator==(const SampleSpec&) const = default;
};
inline constexpr float kGreedyTemperature = 1e-5f;

// A float and an id as one integer, the better the larger: larger value, then smaller id; 0: no number at all.
struct BestToken {
  uint64_t packed = 0;
};

struct SampleRows {
  TensorView logits;               // [rows, vocab of this rank] f32
  int64_t first_row = 0;           // specs with other rows than [first_row, first_row + rows) are left alone
  int64_t vocab_begin = 0;         // id of column 0
  const SampleSpec* specs = nullptr;   // [count] on the device
  int64_t count = 0;
};

class TokenSampler {
 public:
  virtual ~TokenSampler() = default;
  virtual void Best(const SampleRows& rows, BestToken* best, Stream& stream) = 0;       // best [count]
  // best [parts, count] of all parts of the vocabulary; ids [count], -1 where a row holds no finite logit. With more than
  // one part all specs must be greedy.
  virtual void Choose(const SampleRows& rows, const BestToken* best, int parts, int32_t* ids, Stream& stream) = 0;
};

// Of the device's kind; the device outlives it. The CPU's is a plain reference.
std::unique_ptr<TokenSampler> CreateTokenSampler(Device& device);
std::unique_ptr<TokenSampler> CreateReferenceTokenSampler();
std::unique_ptr<TokenSampler> CreateCudaTokenSampler(Device& device);

}  // namespace latentmesh
