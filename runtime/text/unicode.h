// Sets of Unicode code points, general categories and case folding (Unicode 16, as Oniguruma 6.9.10 has it).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace latentmesh {

constexpr uint32_t kMaxCodePoint = 0x10FFFF;

// A set of code points, kept as sorted disjoint inclusive ranges.
class CodePointSet {
 public:
  struct Range {
    uint32_t first, last;
    bool operator==(const Range&) const = default;
  };

  CodePointSet() = default;
  explicit CodePointSet(std::vector<Range> ranges);
  static CodePointSet Single(uint32_t c) { return CodePointSet({{c, c}}); }

  void Add(uint32_t first, uint32_t last);
  void Add(const CodePointSet& other);
  CodePointSet Negated() const;
  CodePointSet Intersected(const CodePointSet& other) const;
  // With every code point that has the same simple case fold as a member.
  CodePointSet CaseClosed() const;

  bool Contains(uint32_t c) const;
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  void Normalize();
  std::vector<Range> ranges_;
};

// A general category ("L", "Lu", "Letter", ...), a script ("Han") or "Alphabetic", "Any", "ASCII"; case, '_', '-' and
// spaces do not matter. Empty for an unknown name.
std::optional<CodePointSet> PropertySet(std::string_view name);

const CodePointSet& WhitespaceSet();  // \s: White_Space
const CodePointSet& DigitSet();       // \d: Nd
const CodePointSet& WordSet();        // \w: letters, marks, decimal and letter numbers, connectors
// \w outside a class: the same and, as Oniguruma has it, Latin-1's superscripts and fractions.
const CodePointSet& PatternWordSet();
const CodePointSet& NumericSet();     // Nd, Nl, No
const CodePointSet& PunctuationSet(); // P

bool IsWhitespace(uint32_t c);

}  // namespace latentmesh
