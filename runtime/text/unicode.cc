#include "runtime/text/unicode.h"

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <utility>

#include "runtime/text/unicode_table.h"

namespace latentmesh {
namespace {

using Range = CodePointSet::Range;

// In the order of the table's category numbers.
constexpr std::array<std::string_view, 30> kCategoryNames = {
    "cc", "cf", "cn", "co", "cs", "ll", "lm", "lo", "lt", "lu", "mc", "me", "mn", "nd", "nl",
    "no", "pc", "pd", "pe", "pf", "pi", "po", "ps", "sc", "sk", "sm", "so", "zl", "zp", "zs"};

constexpr std::array<std::string_view, 15> kScriptNames = {
    "arabic", "armenian", "bengali", "cyrillic", "devanagari", "georgian", "greek", "han",
    "hangul", "hebrew", "hiragana", "katakana", "latin", "tamil", "thai"};

constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {
    {"letter", "l"}, {"mark", "m"}, {"number", "n"}, {"punctuation", "p"}, {"symbol", "s"}, {"separator", "z"},
    {"other", "c"}, {"uppercaseletter", "lu"}, {"lowercaseletter", "ll"}, {"titlecaseletter", "lt"},
    {"modifierletter", "lm"}, {"otherletter", "lo"}, {"decimalnumber", "nd"}, {"letternumber", "nl"},
    {"othernumber", "no"}, {"nonspacingmark", "mn"}, {"spacingmark", "mc"}, {"enclosingmark", "me"},
    {"connectorpunctuation", "pc"}, {"dashpunctuation", "pd"}, {"otherpunctuation", "po"}, {"mathsymbol", "sm"},
    {"currencysymbol", "sc"}, {"modifiersymbol", "sk"}, {"othersymbol", "so"}, {"spaceseparator", "zs"},
    {"control", "cc"}, {"format", "cf"}, {"unassigned", "cn"},
};

// All categories whose name starts with `prefix`: "l" takes ll, lm, lo, lt and lu.
CodePointSet CategorySet(std::string_view prefix) {
  std::vector<Range> ranges;
  for (size_t i = 0; i < unicode::kCategoryRunsSize; ++i) {
    const uint32_t run = unicode::kCategoryRuns[i];
    const uint32_t end = i + 1 < unicode::kCategoryRunsSize ? unicode::kCategoryRuns[i + 1] >> 5 : kMaxCodePoint + 1;
    if (kCategoryNames[run & 31].starts_with(prefix)) ranges.push_back({run >> 5, end - 1});
  }
  return CodePointSet(std::move(ranges));
}

CodePointSet ScriptSet(size_t script) {
  std::vector<Range> ranges;
  for (size_t i = 0; i < unicode::kScriptRunsSize; ++i) {
    const unicode::ScriptRun& run = unicode::kScriptRuns[i];
    if (static_cast<size_t>(run.script) == script) ranges.push_back({run.first, run.last});
  }
  return CodePointSet(std::move(ranges));
}

CodePointSet MakeWordSet() {
  CodePointSet set = CategorySet("l");
  for (const char* name : {"m", "nd", "nl", "pc"}) set.Add(CategorySet(name));
  // Other_Alphabetic symbols: circled and squared letters.
  for (const Range r :
       {Range{0x24B6, 0x24E9}, Range{0x1F130, 0x1F149}, Range{0x1F150, 0x1F169}, Range{0x1F170, 0x1F189}}) {
    set.Add(r.first, r.last);
  }
  return set;
}

std::string Simplified(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (c == '_' || c == '-' || c == ' ') continue;
    out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

}  // namespace

CodePointSet::CodePointSet(std::vector<Range> ranges) : ranges_(std::move(ranges)) { Normalize(); }

void CodePointSet::Normalize() {
  std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
  std::vector<Range> merged;
  for (const Range& r : ranges_) {
    if (!merged.empty() && r.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, r.last);
    } else {
      merged.push_back(r);
    }
  }
  ranges_ = std::move(merged);
}

void CodePointSet::Add(uint32_t first, uint32_t last) {
  ranges_.push_back({first, last});
  Normalize();
}

void CodePointSet::Add(const CodePointSet& other) {
  ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
  Normalize();
}

CodePointSet CodePointSet::Negated() const {
  CodePointSet out;
  uint32_t next = 0;
  for (const Range& r : ranges_) {
    if (r.first > next) out.ranges_.push_back({next, r.first - 1});
    next = r.last + 1;
  }
  if (next <= kMaxCodePoint) out.ranges_.push_back({next, kMaxCodePoint});
  return out;
}

CodePointSet CodePointSet::Intersected(const CodePointSet& other) const {
  CodePointSet outside = Negated();
  outside.Add(other.Negated());
  return outside.Negated();
}

CodePointSet CodePointSet::CaseClosed() const {
  std::set<uint32_t> folds;
  for (size_t i = 0; i < unicode::kCaseFoldsSize; ++i) {
    const unicode::CaseFold& fold = unicode::kCaseFolds[i];
    if (Contains(fold.from) || Contains(fold.to)) folds.insert(fold.to);
  }
  CodePointSet out = *this;
  for (const uint32_t c : folds) out.ranges_.push_back({c, c});
  for (size_t i = 0; i < unicode::kCaseFoldsSize; ++i) {
    const unicode::CaseFold& fold = unicode::kCaseFolds[i];
    if (folds.count(fold.to)) out.ranges_.push_back({fold.from, fold.from});
  }
  out.Normalize();
  return out;
}

bool CodePointSet::Contains(uint32_t c) const {
  auto after =
      std::upper_bound(ranges_.begin(), ranges_.end(), c, [](uint32_t v, const Range& r) { return v < r.first; });
  return after != ranges_.begin() && c <= std::prev(after)->last;
}

std::optional<CodePointSet> PropertySet(std::string_view raw) {
  std::string name = Simplified(raw);
  for (const auto& [long_name, short_name] : kLongNames)
    if (name == long_name) name = short_name;
  if (name == "any") return CodePointSet({{0, kMaxCodePoint}});
  if (name == "ascii") return CodePointSet({{0, 0x7F}});
  if (name == "alphabetic" || name == "alpha") {
    return WordSet().Intersected([] {
      CodePointSet not_letter = CategorySet("nd");
      not_letter.Add(CategorySet("pc"));
      return not_letter.Negated();
    }());
  }
  const bool category = name.size() <= 2 && std::any_of(kCategoryNames.begin(), kCategoryNames.end(), [&](auto n) {
                          return !name.empty() && n.starts_with(name);
                        });
  if (category) return CategorySet(name);
  for (size_t i = 0; i < kScriptNames.size(); ++i)
    if (name == kScriptNames[i]) return ScriptSet(i);
  return std::nullopt;
}

const CodePointSet& WhitespaceSet() {
  static const CodePointSet set({{0x9, 0xD},
                                 {0x20, 0x20},
                                 {0x85, 0x85},
                                 {0xA0, 0xA0},
                                 {0x1680, 0x1680},
                                 {0x2000, 0x200A},
                                 {0x2028, 0x2029},
                                 {0x202F, 0x202F},
                                 {0x205F, 0x205F},
                                 {0x3000, 0x3000}});
  return set;
}

const CodePointSet& DigitSet() {
  static const CodePointSet set = CategorySet("nd");
  return set;
}

const CodePointSet& WordSet() {
  static const CodePointSet set = MakeWordSet();
  return set;
}

const CodePointSet& PatternWordSet() {
  static const CodePointSet set = [] {
    CodePointSet word = WordSet();
    word.Add(CodePointSet({{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}}));
    return word;
  }();
  return set;
}

const CodePointSet& NumericSet() {
  static const CodePointSet set = CategorySet("n");
  return set;
}

const CodePointSet& PunctuationSet() {
  static const CodePointSet set = CategorySet("p");
  return set;
}

bool IsWhitespace(uint32_t c) { return c < 0x80 ? c == ' ' || (c >= 9 && c <= 13) : WhitespaceSet().Contains(c); }

}  // namespace latentmesh
