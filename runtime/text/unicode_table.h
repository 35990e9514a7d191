// The raw Unicode 16 tables behind unicode.h and nfc.h. Generated data, see tests/golden/make_unicode_table.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace latentmesh::unicode {

enum class Script : uint8_t {
  kArabic, kArmenian, kBengali, kCyrillic, kDevanagari, kGeorgian, kGreek, kHan,
  kHangul, kHebrew, kHiragana, kKatakana, kLatin, kTamil, kThai,
};

struct ScriptRun {
  Script script;
  uint32_t first, last;  // inclusive
};
struct CaseFold {
  uint32_t from, to;
};
struct Decomposition {
  uint32_t whole, first, second;  // second is 0 for a singleton
};
struct Composition {
  uint32_t first, second, whole;
};

// Each run starts at (entry >> 5) with the category (entry & 31), in the alphabetical order of Category.
extern const uint32_t kCategoryRuns[];
extern const size_t kCategoryRunsSize;
extern const ScriptRun kScriptRuns[];
extern const size_t kScriptRunsSize;
extern const CaseFold kCaseFolds[];  // sorted by `from`
extern const size_t kCaseFoldsSize;
extern const Decomposition kDecompositions[];  // sorted by `whole`
extern const size_t kDecompositionsSize;
extern const Composition kCompositions[];  // sorted by (first, second)
extern const size_t kCompositionsSize;
// Each run starts at (entry >> 8) with the canonical combining class (entry & 255).
extern const uint32_t kCombiningRuns[];
extern const size_t kCombiningRunsSize;

}  // namespace latentmesh::unicode
