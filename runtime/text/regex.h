// A small backtracking regular-expression engine for the pre-tokenizer patterns that published tokenizers use.
//
// Syntax, with Oniguruma's (Ruby's) meaning: literals, escapes, '.', classes with ranges, nesting, negation and &&,
// \p{..} \P{..} \s \S \d \D \w \W \h \H, ^ $ \A \z \Z, groups (..) (?:..) (?i:..) (?i) (?>..), alternation, lookahead
// (?=..) (?!..), quantifiers ? * + {m,n} with lazy and possessive forms. Anything else is refused with its place.
//
// Failed states are remembered once a text turns out to be expensive, so a search takes time linear in the text.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "runtime/text/unicode.h"

namespace latentmesh {

// A set that answers quickly: a bit a code point below U+10000, ranges above.
class FastSet {
 public:
  explicit FastSet(CodePointSet set);
  bool Contains(uint32_t c) const {
    return c < 0x10000 ? (bits_[c >> 6] >> (c & 63) & 1) != 0 : set_.Contains(c);
  }
  const CodePointSet& set() const { return set_; }

 private:
  CodePointSet set_;
  std::vector<uint64_t> bits_;
};

// One instruction of the compiled pattern. `a`, `b` are instruction indices, set indices or bounds by `op`.
struct RegexInstruction {
  enum class Op : uint8_t {
    kSet,         // consume one code point of set a
    kRepeat,      // consume up to b code points of set a (kUnbounded: all), greedy, lazy or possessive by `mode`
    kSplit,       // try a, then b
    kJump,        // go to a
    kLookahead,   // body at pc + 1 up to its kMatch; negated by `negated`; go on at a
    kAtomic,      // the same, but go on at a where the body ended
    kLineStart, kLineEnd, kTextStart, kTextEnd, kTextEndOrNewline,
    kMatch,
  };
  enum class Mode : uint8_t { kGreedy, kLazy, kPossessive };
  Op op;
  Mode mode = Mode::kGreedy;
  bool negated = false;
  uint32_t a = 0, b = 0;
  int32_t memo = -1;  // row of the table of failed states
};

struct RegexProgram {
  static constexpr uint32_t kUnbounded = 0xFFFFFFFF;
  std::vector<RegexInstruction> code;
  std::vector<FastSet> sets;
  int memo_rows = 0;
  // Code points that a match can start with; empty if it may be empty or that is unknown.
  std::optional<FastSet> first;
};

// A compiled pattern. Immutable, so one may serve many threads.
class Regex {
 public:
  static Result<Regex> Compile(std::string_view pattern);
  const RegexProgram& program() const { return *program_; }

 private:
  explicit Regex(std::shared_ptr<const RegexProgram> program) : program_(std::move(program)) {}
  std::shared_ptr<const RegexProgram> program_;
};

struct RegexMatch {
  size_t begin, end;  // byte offsets
};

// Finds the matches of one regex in one text, left to right. The text and the regex must outlive it.
class RegexSearch {
 public:
  RegexSearch(const Regex& regex, std::string_view text);
  // The next match, as find_iter gives them: not overlapping, and no empty match right after a match.
  std::optional<RegexMatch> Next();

 private:
  struct Frame {
    enum class Kind : uint8_t { kBranch, kGreedy, kLazy, kFailed } kind;
    uint32_t pc;
    size_t low, position, high;  // where its choices begin, the current one, and where they end
    uint32_t left;               // kLazy: how many more code points it may take
  };

  std::optional<size_t> MatchAt(uint32_t pc, size_t position);
  bool Step(uint32_t& pc, size_t& position, size_t base);
  bool Repeat(const RegexInstruction& op, uint32_t& pc, size_t& position);
  bool Resume(uint32_t& pc, size_t& position);
  bool Anchor(const RegexInstruction& op, size_t position) const;
  bool Enter(const RegexInstruction& op, uint32_t& pc, size_t& position);
  bool Failed(const RegexInstruction& op, size_t position) const;
  void MarkFailed(const RegexInstruction& op, size_t first, size_t last);
  void CountSteps(size_t steps);

  const RegexProgram& program_;
  std::string_view text_;
  size_t position_ = 0;
  std::optional<size_t> last_end_;
  std::vector<Frame> stack_;
  size_t steps_ = 0;
  std::vector<uint64_t> failed_;  // bit memo * (size + 1) + position
};

}  // namespace latentmesh
