// NgramIndex: drafts from the text so far, by prompt look-up (Saxena 2023).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace latentmesh {

// Knows where every run of 2 to 4 tokens of a growing sequence last stood, so that a look-up costs the same however long the
// sequence is. Not thread-safe.
class NgramIndex {
 public:
  void Append(std::span<const int32_t> tokens);
  // Up to `count` tokens that followed the latest earlier occurrence of the longest suffix of 4 to 2 tokens; empty when there
  // is none.
  std::vector<int32_t> Drafts(int32_t count) const;
  size_t size() const { return tokens_.size(); }

 private:
  static constexpr size_t kShortest = 2, kLongest = 4;
  uint64_t KeyOfLast(size_t n, size_t end) const;            // of the n tokens before `end`

  std::vector<int32_t> tokens_;
  // [n - kShortest] key of n tokens -> where the latest such run ended; the run that ends the sequence is not in it yet.
  std::array<std::unordered_map<uint64_t, size_t>, kLongest - kShortest + 1> ends_;
};

}  // namespace latentmesh
