#include "runtime/engine/ngram_index.h"

#include <algorithm>

namespace latentmesh {

// Different runs may share a key: Drafts compares the tokens themselves.
uint64_t NgramIndex::KeyOfLast(size_t n, size_t end) const {
  uint64_t key = 0;
  for (size_t i = end - n; i < end; ++i) {
    key = (key ^ static_cast<uint32_t>(tokens_[i])) * 0x9e3779b97f4a7c15ull;
    key ^= key >> 32;
  }
  return key;
}

void NgramIndex::Append(std::span<const int32_t> tokens) {
  for (int32_t token : tokens) {
    size_t end = tokens_.size();
    for (size_t n = kShortest; n <= std::min(kLongest, end); ++n) ends_[n - kShortest][KeyOfLast(n, end)] = end;
    tokens_.push_back(token);
  }
}

std::vector<int32_t> NgramIndex::Drafts(int32_t count) const {
  size_t size = tokens_.size();
  for (size_t n = std::min(kLongest, size); n >= kShortest; --n) {
    auto found = ends_[n - kShortest].find(KeyOfLast(n, size));
    if (found == ends_[n - kShortest].end()) continue;
    auto after = tokens_.begin() + static_cast<std::ptrdiff_t>(found->second);
    if (!std::equal(after - static_cast<std::ptrdiff_t>(n), after, tokens_.end() - static_cast<std::ptrdiff_t>(n))) continue;
    return {after, after + std::min<std::ptrdiff_t>(count, tokens_.end() - after)};
  }
  return {};
}

}  // namespace latentmesh
