// Byte-pair encoding of one pre-token (Sennrich et al., arXiv 1508.07909) by a linked list and a priority queue:
// O(n log n) for n symbols.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
using VocabularyMap = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

struct BpeOptions {
  bool byte_level = true;     // pieces are raw bytes, spelled in the byte alphabet by the vocabulary
  bool ignore_merges = false; // a whole piece in the vocabulary is that token
  bool byte_fallback = false; // an unknown symbol becomes its <0xNN> tokens
  bool fuse_unknown = false;  // a run of unknown symbols is one unknown token
  int32_t unknown_id = -1;    // -1: unknown symbols are dropped, as Hugging Face does
};

// Thread-safe: Encode may be called by many threads.
class Bpe {
 public:
  using Merge = std::pair<std::string, std::string>;  // both sides as the vocabulary spells them

  // `merges` in order of rank. Refuses a merge whose parts or result the vocabulary lacks.
  static Result<std::unique_ptr<Bpe>> Create(VocabularyMap vocabulary, const std::vector<Merge>& merges,
                                             const BpeOptions& options);

  // Appends the ids of one pre-token.
  void Encode(std::string_view piece, std::vector<int32_t>& ids) const;
  const VocabularyMap& vocabulary() const { return vocabulary_; }
  const BpeOptions& options() const { return options_; }

 private:
  struct Rule {
    uint32_t rank;
    int32_t result;
  };
  struct Symbol {
    int32_t id, previous, next;  // neighbours by index, -1 at the ends; id kMerged once merged into its left neighbour
  };
  struct Candidate {
    uint32_t rank;
    int32_t left, result;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };

  Bpe(VocabularyMap vocabulary, const BpeOptions& options);
  static uint64_t PairKey(int32_t a, int32_t b) {
    return uint64_t{static_cast<uint32_t>(a)} << 32 | static_cast<uint32_t>(b);
  }
  int32_t Find(std::string_view token) const;
  void EncodeUncached(std::string_view piece, std::vector<int32_t>& ids) const;
  void InitialSymbols(std::string_view piece, std::vector<int32_t>& ids) const;
  void Unknown(std::string_view symbol, std::vector<int32_t>& ids) const;
  void MergeAll(std::vector<int32_t>& ids) const;

  VocabularyMap vocabulary_;
  BpeOptions options_;
  std::array<int32_t, 256> byte_ids_;      // byte_level: the token of one byte; byte_fallback: of <0xNN>
  std::unordered_map<uint64_t, Rule> rules_;
  mutable std::mutex cache_mutex_;
  mutable std::unordered_map<std::string, std::vector<int32_t>, StringHash, std::equal_to<>> cache_;
};

}  // namespace latentmesh
