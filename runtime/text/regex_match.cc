// A depth-first matcher. Whether a state (instruction, position) can succeed depends on nothing before it, as there are
// no captures; so a state that failed once is never tried again, whatever the start of the search.
#include <algorithm>

#include "runtime/text/regex.h"
#include "runtime/text/utf8.h"

namespace latentmesh {

using Mode = RegexInstruction::Mode;
using Op = RegexInstruction::Op;

RegexSearch::RegexSearch(const Regex& regex, std::string_view text) : program_(regex.program()), text_(text) {}

std::optional<RegexMatch> RegexSearch::Next() {
  while (position_ <= text_.size()) {
    const bool at_end = position_ == text_.size();
    const CodePoint here = at_end ? CodePoint{} : DecodeUtf8(text_, position_);
    const bool possible = !program_.first || (!at_end && program_.first->Contains(here.value));
    const std::optional<size_t> end = possible ? MatchAt(0, position_) : std::nullopt;
    const size_t begin = position_;
    if (end && !(*end == begin && last_end_ == begin)) {
      position_ = *end > begin ? *end : begin + here.length;
      last_end_ = *end;
      return RegexMatch{begin, *end};
    }
    position_ += here.length;
  }
  return std::nullopt;
}

std::optional<size_t> RegexSearch::MatchAt(uint32_t pc, size_t position) {
  const size_t base = stack_.size();
  for (;;) {
    CountSteps(1);
    const RegexInstruction& op = program_.code[pc];
    if (op.op == Op::kMatch) {
      stack_.resize(base);
      return position;
    }
    if (!Step(pc, position, base)) return std::nullopt;
  }
}

// Executes one instruction, and goes back to the latest open choice where it fails. False if none is left.
bool RegexSearch::Step(uint32_t& pc, size_t& position, size_t base) {
  if (Enter(program_.code[pc], pc, position)) return true;
  while (stack_.size() > base) {
    if (Resume(pc, position)) return true;
  }
  return false;
}

bool RegexSearch::Enter(const RegexInstruction& op, uint32_t& pc, size_t& position) {
  switch (op.op) {
    case Op::kSet: {
      if (position >= text_.size()) return false;
      const CodePoint c = DecodeUtf8(text_, position);
      if (!program_.sets[op.a].Contains(c.value)) return false;
      position += c.length;
      ++pc;
      return true;
    }
    case Op::kRepeat: return Repeat(op, pc, position);
    case Op::kSplit:
      if (Failed(op, position)) return false;
      if (!failed_.empty()) stack_.push_back({Frame::Kind::kFailed, pc, position, position, position, 0});
      stack_.push_back({Frame::Kind::kBranch, op.b, position, position, position, 0});
      pc = op.a;
      return true;
    case Op::kJump: pc = op.a; return true;
    case Op::kLookahead:
      if (MatchAt(pc + 1, position).has_value() == op.negated) return false;
      pc = op.a;
      return true;
    case Op::kAtomic: {
      const std::optional<size_t> end = MatchAt(pc + 1, position);
      if (!end) return false;
      position = *end;
      pc = op.a;
      return true;
    }
    default:
      ++pc;
      return Anchor(op, position);
  }
}

bool RegexSearch::Anchor(const RegexInstruction& op, size_t position) const {
  switch (op.op) {
    case Op::kLineStart: return position == 0 || (text_[position - 1] == '\n' && position < text_.size());
    case Op::kLineEnd: return position == text_.size() || text_[position] == '\n';
    case Op::kTextStart: return position == 0;
    case Op::kTextEnd: return position == text_.size();
    default: return position == text_.size() || (text_[position] == '\n' && position + 1 == text_.size());
  }
}

bool RegexSearch::Repeat(const RegexInstruction& op, uint32_t& pc, size_t& position) {
  if (Failed(op, position)) return false;
  const uint32_t repeat_pc = pc++;
  if (op.mode == Mode::kLazy) {
    stack_.push_back({Frame::Kind::kLazy, repeat_pc, position, position, position, op.b});
    return true;
  }
  const FastSet& set = program_.sets[op.a];
  const size_t low = position;
  uint32_t taken = 0;
  while (taken < op.b && position < text_.size()) {
    const CodePoint c = DecodeUtf8(text_, position);
    // What an unbounded loop can reach from a failed state has failed, too.
    if (!set.Contains(c.value) || (op.mode == Mode::kGreedy && Failed(op, position + c.length))) break;
    position += c.length;
    ++taken;
  }
  CountSteps(taken);
  if (op.mode == Mode::kGreedy && position > low) {
    stack_.push_back({Frame::Kind::kGreedy, repeat_pc, low, position, position, 0});
  }
  return true;
}

bool RegexSearch::Resume(uint32_t& pc, size_t& position) {
  Frame& frame = stack_.back();
  const RegexInstruction& op = program_.code[frame.pc];
  switch (frame.kind) {
    case Frame::Kind::kBranch:
      pc = frame.pc;
      position = frame.position;
      stack_.pop_back();
      return true;
    case Frame::Kind::kGreedy:
      if (frame.position == frame.low) break;
      position = frame.position = PreviousCodePoint(text_, frame.position);
      pc = frame.pc + 1;
      return true;
    case Frame::Kind::kLazy: {
      if (frame.left == 0 || frame.position >= text_.size()) break;
      const CodePoint c = DecodeUtf8(text_, frame.position);
      if (!program_.sets[op.a].Contains(c.value)) break;
      position = frame.position += c.length;
      frame.high = frame.position;
      if (frame.left != RegexProgram::kUnbounded) --frame.left;
      pc = frame.pc + 1;
      return true;
    }
    case Frame::Kind::kFailed: break;
  }
  MarkFailed(op, frame.low, frame.high);
  stack_.pop_back();
  return false;
}

bool RegexSearch::Failed(const RegexInstruction& op, size_t position) const {
  if (failed_.empty()) return false;
  const size_t bit = op.memo * (text_.size() + 1) + position;
  return (failed_[bit >> 6] >> (bit & 63) & 1) != 0;
}

void RegexSearch::MarkFailed(const RegexInstruction& op, size_t first, size_t last) {
  if (failed_.empty()) return;
  // A bounded repeat that failed from `first` says nothing about later positions.
  if (op.op == Op::kRepeat && op.b != RegexProgram::kUnbounded) last = first;
  const size_t row = op.memo * (text_.size() + 1);
  for (size_t bit = row + first; bit <= row + last; ++bit) failed_[bit >> 6] |= uint64_t{1} << (bit & 63);
}

void RegexSearch::CountSteps(size_t steps) {
  steps_ += steps;
  const bool expensive = steps_ > 32 * (text_.size() + 64);
  if (expensive && failed_.empty()) failed_.resize(program_.memo_rows * (text_.size() + 1) / 64 + 1);
}

}  // namespace latentmesh
