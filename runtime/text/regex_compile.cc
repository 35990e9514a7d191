#include <algorithm>

#include "runtime/text/regex_parser.h"

namespace latentmesh {
namespace {

using Kind = RegexNode::Kind;
using Mode = RegexInstruction::Mode;
using Op = RegexInstruction::Op;

constexpr size_t kMaxInstructions = 20000;
constexpr size_t kMaxSets = 1000;  // 8 KiB each

class Compiler {
 public:
  RegexProgram Compile(const RegexNode& root) {
    Emit(root);
    Add(Op::kMatch);
    if (!root.Nullable()) {
      CodePointSet first;
      First(root, first);
      program_.first.emplace(std::move(first));
    }
    return std::move(program_);
  }

 private:
  uint32_t Here() const { return static_cast<uint32_t>(program_.code.size()); }
  RegexInstruction& At(uint32_t pc) { return program_.code[pc]; }

  uint32_t Add(Op op, uint32_t a = 0, uint32_t b = 0) {
    if (program_.code.size() >= kMaxInstructions) throw RegexSyntaxError("the pattern is too large", 0);
    RegexInstruction instruction{op};
    instruction.a = a;
    instruction.b = b;
    if (op == Op::kSplit || op == Op::kRepeat) instruction.memo = program_.memo_rows++;
    program_.code.push_back(instruction);
    return Here() - 1;
  }

  uint32_t SetIndex(const CodePointSet& set) {
    for (size_t i = 0; i < program_.sets.size(); ++i)
      if (program_.sets[i].set().ranges() == set.ranges()) return static_cast<uint32_t>(i);
    if (program_.sets.size() >= kMaxSets) throw RegexSyntaxError("the pattern has too many classes", 0);
    program_.sets.emplace_back(set);
    return static_cast<uint32_t>(program_.sets.size() - 1);
  }

  void Emit(const RegexNode& node) {
    switch (node.kind) {
      case Kind::kEmpty: return;
      case Kind::kSet: Add(Op::kSet, SetIndex(node.set)); return;
      case Kind::kConcat:
        for (const RegexNode& child : node.children) Emit(child);
        return;
      case Kind::kAlternate: return EmitAlternatives(node);
      case Kind::kRepeat: return EmitRepeat(node);
      case Kind::kLookahead: return EmitSub(Op::kLookahead, node.children.front(), node.negated);
      case Kind::kAtomic: return EmitSub(Op::kAtomic, node.children.front(), false);
      case Kind::kAnchor: Add(node.anchor); return;
    }
  }

  void EmitAlternatives(const RegexNode& node) {
    std::vector<uint32_t> jumps;
    for (size_t i = 0; i < node.children.size(); ++i) {
      const bool last = i + 1 == node.children.size();
      const uint32_t split = last ? 0 : Add(Op::kSplit, Here() + 1);
      Emit(node.children[i]);
      if (last) break;
      jumps.push_back(Add(Op::kJump));
      At(split).b = Here();
    }
    for (const uint32_t jump : jumps) At(jump).a = Here();
  }

  void EmitSub(Op op, const RegexNode& body, bool negated) {
    const uint32_t start = Add(op);
    At(start).negated = negated;
    Emit(body);
    Add(Op::kMatch);
    At(start).a = Here();
  }

  void EmitRepeat(const RegexNode& node) {
    const RegexNode& body = node.children.front();
    if (body.kind != Kind::kSet && node.mode == Mode::kPossessive) {
      RegexNode greedy = node;
      greedy.mode = Mode::kGreedy;
      return EmitSub(Op::kAtomic, greedy, false);
    }
    for (uint32_t i = 0; i < node.min; ++i) Emit(body);
    if (node.max == node.min) return;
    const bool unbounded = node.max == RegexProgram::kUnbounded;
    if (body.kind == Kind::kSet) {
      const uint32_t repeat = Add(Op::kRepeat, SetIndex(body.set), unbounded ? node.max : node.max - node.min);
      At(repeat).mode = node.mode;
    } else if (unbounded) {
      EmitLoop(body, node.mode);
    } else {
      EmitOptional(body, node.max - node.min, node.mode);
    }
  }

  void EmitLoop(const RegexNode& body, Mode mode) {
    if (body.Nullable()) throw RegexSyntaxError("unsupported: it repeats a group that can match nothing", 0);
    const uint32_t split = Add(Op::kSplit);
    Emit(body);
    Add(Op::kJump, split);
    Branch(split, split + 1, Here(), mode);
  }

  void EmitOptional(const RegexNode& body, uint32_t count, Mode mode) {
    std::vector<uint32_t> splits;
    for (uint32_t i = 0; i < count; ++i) {
      splits.push_back(Add(Op::kSplit));
      Emit(body);
    }
    for (const uint32_t split : splits) Branch(split, split + 1, Here(), mode);
  }

  void Branch(uint32_t split, uint32_t take, uint32_t leave, Mode mode) {
    At(split).a = mode == Mode::kLazy ? leave : take;
    At(split).b = mode == Mode::kLazy ? take : leave;
  }

  // Adds the code points that a match of `node` can start with; true if it may also match nothing.
  bool First(const RegexNode& node, CodePointSet& set) {
    switch (node.kind) {
      case Kind::kSet: set.Add(node.set); return false;
      case Kind::kConcat:
        for (const RegexNode& child : node.children)
          if (!First(child, set)) return false;
        return true;
      case Kind::kAlternate: {
        bool nullable = false;
        for (const RegexNode& child : node.children) nullable = First(child, set) || nullable;
        return nullable;
      }
      case Kind::kRepeat: return First(node.children.front(), set) || node.min == 0;
      case Kind::kAtomic: return First(node.children.front(), set);
      default: return true;
    }
  }

  RegexProgram program_;
};

}  // namespace

FastSet::FastSet(CodePointSet set) : set_(std::move(set)), bits_(1024) {
  for (const CodePointSet::Range& r : set_.ranges())
    for (uint32_t c = r.first; c <= std::min<uint32_t>(r.last, 0xFFFF); ++c) bits_[c >> 6] |= uint64_t{1} << (c & 63);
}

RegexProgram CompileRegex(const RegexNode& root) { return Compiler().Compile(root); }

Result<Regex> Regex::Compile(std::string_view pattern) {
  try {
    return Regex(std::make_shared<const RegexProgram>(CompileRegex(ParseRegex(pattern))));
  } catch (const RegexSyntaxError& error) {
    return InvalidModel("regular expression '" + std::string(pattern.substr(0, 200)) + "': " + error.what());
  }
}

}  // namespace latentmesh
