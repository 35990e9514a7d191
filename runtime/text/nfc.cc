#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/text/normalizer.h"
#include "runtime/text/unicode_table.h"
#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

// Hangul syllables are composed by arithmetic (Unicode, section 3.12).
constexpr uint32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr uint32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;

uint32_t CombiningClass(uint32_t c) {
  const uint32_t* end = unicode::kCombiningRuns + unicode::kCombiningRunsSize;
  const uint32_t* after = std::upper_bound(unicode::kCombiningRuns, end, c << 8 | 0xFF);
  return after == unicode::kCombiningRuns ? 0 : after[-1] & 0xFF;
}

void Decompose(uint32_t c, std::vector<uint32_t>& out) {
  if (c >= kSBase && c < kSBase + kSCount) {
    const uint32_t index = c - kSBase;
    out.push_back(kLBase + index / (kVCount * kTCount));
    out.push_back(kVBase + index % (kVCount * kTCount) / kTCount);
    if (index % kTCount) out.push_back(kTBase + index % kTCount);
    return;
  }
  const unicode::Decomposition* end = unicode::kDecompositions + unicode::kDecompositionsSize;
  const auto* found =
      std::lower_bound(unicode::kDecompositions, end, c, [](const auto& d, uint32_t v) { return d.whole < v; });
  if (found == end || found->whole != c) return out.push_back(c);
  Decompose(found->first, out);
  if (found->second) Decompose(found->second, out);
}

// The composite of two code points, or 0.
uint32_t Compose(uint32_t a, uint32_t b) {
  if (a >= kLBase && a < kLBase + kLCount && b >= kVBase && b < kVBase + kVCount) {
    return kSBase + ((a - kLBase) * kVCount + (b - kVBase)) * kTCount;
  }
  const bool lv = a >= kSBase && a < kSBase + kSCount && (a - kSBase) % kTCount == 0;
  if (lv && b > kTBase && b < kTBase + kTCount) return a + (b - kTBase);
  const unicode::Composition* end = unicode::kCompositions + unicode::kCompositionsSize;
  const auto less = [](const unicode::Composition& c, std::pair<uint32_t, uint32_t> v) {
    return std::pair(c.first, c.second) < v;
  };
  const auto* found = std::lower_bound(unicode::kCompositions, end, std::pair(a, b), less);
  return found != end && found->first == a && found->second == b ? found->whole : 0;
}

void SortMarks(std::vector<uint32_t>& text) {
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && CombiningClass(text[end]) != 0) ++end;
    std::stable_sort(text.begin() + i, text.begin() + end,
                     [](uint32_t a, uint32_t b) { return CombiningClass(a) < CombiningClass(b); });
    i = end + 1;
  }
}

// Joins each mark to its starter where nothing of the same or a higher class stands between.
std::vector<uint32_t> ComposeAll(const std::vector<uint32_t>& text) {
  std::vector<uint32_t> out;
  size_t starter = SIZE_MAX;
  uint32_t last_class = 0;
  for (const uint32_t c : text) {
    const uint32_t combining = CombiningClass(c);
    const bool adjacent = starter != SIZE_MAX && starter + 1 == out.size();
    const bool blocked = !adjacent && (last_class == 0 || last_class >= combining);
    const uint32_t whole = starter != SIZE_MAX && !blocked ? Compose(out[starter], c) : 0;
    if (whole) {
      out[starter] = whole;
      continue;
    }
    if (combining == 0) starter = out.size();
    last_class = combining;
    out.push_back(c);
  }
  return out;
}

void Flush(std::vector<uint32_t>& pending, std::string& out) {
  SortMarks(pending);
  for (const uint32_t c : ComposeAll(pending)) AppendUtf8(out, c);
  pending.clear();
}

}  // namespace

std::string ToNfc(std::string_view text) {
  // Below U+0300 every text is composed already: two-byte sequences start with a byte under 0xCC.
  const bool composed = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
  if (composed) return std::string(text);
  std::string out;
  std::vector<uint32_t> pending;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeUtf8(text, i);
    if (c.valid) {
      Decompose(c.value, pending);
    } else {
      Flush(pending, out);
      out += text[i];
    }
    i += c.length;
  }
  Flush(pending, out);
  return out;
}

}  // namespace latentmesh
