#include "runtime/text/bpe.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <queue>

#include "runtime/text/byte_level.h"
#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

constexpr size_t kMaxCachedPiece = 64;      // bytes
constexpr size_t kMaxCachedPieces = 32768;  // then the cache starts anew
constexpr int32_t kMerged = -2;

std::string ByteFallbackToken(int byte) {
  char name[8];
  std::snprintf(name, sizeof name, "<0x%02X>", byte);
  return name;
}

}  // namespace

Bpe::Bpe(VocabularyMap vocabulary, const BpeOptions& options) : vocabulary_(std::move(vocabulary)), options_(options) {
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids_[byte] = Find(options_.byte_level ? SpellBytes({&c, 1}) : ByteFallbackToken(byte));
  }
}

Result<std::unique_ptr<Bpe>> Bpe::Create(VocabularyMap vocabulary, const std::vector<Merge>& merges,
                                         const BpeOptions& options) {
  std::unique_ptr<Bpe> bpe(new Bpe(std::move(vocabulary), options));
  bpe->rules_.reserve(merges.size());
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const int32_t a = bpe->Find(left), b = bpe->Find(right), whole = bpe->Find(left + right);
    if (a < 0 || b < 0 || whole < 0) {
      const std::string& missing = a < 0 ? left : b < 0 ? right : left + right;
      return InvalidModel("merge " + std::to_string(rank) + " needs the token '" + missing +
                          "', which the vocabulary lacks");
    }
    bpe->rules_.insert_or_assign(PairKey(a, b), Rule{rank, whole});
  }
  return bpe;
}

int32_t Bpe::Find(std::string_view token) const {
  const auto found = vocabulary_.find(token);
  return found == vocabulary_.end() ? -1 : found->second;
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (piece.size() > kMaxCachedPiece) return EncodeUncached(piece, ids);
  {
    std::lock_guard lock(cache_mutex_);
    if (const auto found = cache_.find(piece); found != cache_.end()) {
      ids.insert(ids.end(), found->second.begin(), found->second.end());
      return;
    }
  }
  const size_t start = ids.size();
  EncodeUncached(piece, ids);
  std::lock_guard lock(cache_mutex_);
  if (cache_.size() >= kMaxCachedPieces) cache_.clear();
  cache_.emplace(std::string(piece), std::vector<int32_t>(ids.begin() + start, ids.end()));
}

void Bpe::EncodeUncached(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    const int32_t whole = Find(options_.byte_level ? SpellBytes(piece) : std::string(piece));
    if (whole >= 0) return ids.push_back(whole);
  }
  std::vector<int32_t> symbols;
  InitialSymbols(piece, symbols);
  MergeAll(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::InitialSymbols(std::string_view piece, std::vector<int32_t>& ids) const {
  for (size_t i = 0; i < piece.size();) {
    const size_t length = options_.byte_level ? 1 : DecodeUtf8(piece, i).length;
    const std::string_view symbol = piece.substr(i, length);
    const int32_t id = options_.byte_level ? byte_ids_[static_cast<uint8_t>(symbol[0])] : Find(symbol);
    if (id >= 0) ids.push_back(id);
    else Unknown(symbol, ids);
    i += length;
  }
}

void Bpe::Unknown(std::string_view symbol, std::vector<int32_t>& ids) const {
  const auto byte_id = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)]; };
  const bool fallback = options_.byte_fallback && !options_.byte_level &&
                        std::all_of(symbol.begin(), symbol.end(), [&](char c) { return byte_id(c) >= 0; });
  if (fallback) {
    for (const char c : symbol) ids.push_back(byte_id(c));
  } else if (options_.unknown_id >= 0 &&
             !(options_.fuse_unknown && !ids.empty() && ids.back() == options_.unknown_id)) {
    ids.push_back(options_.unknown_id);
  }
}

void Bpe::MergeAll(std::vector<int32_t>& ids) const {
  const int32_t count = static_cast<int32_t>(ids.size());
  std::vector<Symbol> symbols(count);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](int32_t left) {
    const int32_t right = left < 0 ? -1 : symbols[left].next;
    if (right < 0) return;
    const auto rule = rules_.find(PairKey(symbols[left].id, symbols[right].id));
    if (rule != rules_.end()) queue.push({rule->second.rank, left, rule->second.result});
  };
  for (int32_t i = 0; i < count; ++i) symbols[i] = {ids[i], i - 1, i + 1 < count ? i + 1 : -1};
  for (int32_t i = 0; i < count; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.id == kMerged || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const auto rule = rules_.find(PairKey(left.id, right.id));
    if (rule == rules_.end() || rule->second.result != best.result) continue;  // a neighbour changed meanwhile
    left.id = best.result;
    right.id = kMerged;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  ids.clear();
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace latentmesh
