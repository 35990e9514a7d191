// The syntax tree of a pre-tokenizer pattern; see regex.h for the syntax.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/regex.h"

namespace latentmesh {

struct RegexNode {
  enum class Kind { kEmpty, kSet, kConcat, kAlternate, kRepeat, kLookahead, kAtomic, kAnchor };
  Kind kind = Kind::kEmpty;
  CodePointSet set;                                                            // kSet
  std::vector<RegexNode> children;                                             // one for kRepeat, kLookahead, kAtomic
  uint32_t min = 0, max = 0;                                                   // kRepeat
  RegexInstruction::Mode mode = RegexInstruction::Mode::kGreedy;               // kRepeat
  bool negated = false;                                                        // kLookahead
  RegexInstruction::Op anchor = RegexInstruction::Op::kLineStart;              // kAnchor

  // Whether it can match the empty string.
  bool Nullable() const;
};

// What the parser and the compiler throw; Regex::Compile turns it into a Status.
struct RegexSyntaxError : std::runtime_error {
  RegexSyntaxError(const std::string& what, size_t offset)
      : std::runtime_error(what + " at byte " + std::to_string(offset)) {}
};

RegexNode ParseRegex(std::string_view pattern);
RegexProgram CompileRegex(const RegexNode& root);

}  // namespace latentmesh
