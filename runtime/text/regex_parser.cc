#include "runtime/text/regex_parser.h"

#include <algorithm>

#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

using Kind = RegexNode::Kind;
using Mode = RegexInstruction::Mode;
using Op = RegexInstruction::Op;

constexpr int kMaxNesting = 100;
constexpr uint32_t kMaxRepeat = 1000;

RegexNode SetNode(CodePointSet set) {
  RegexNode node;
  node.kind = Kind::kSet;
  node.set = std::move(set);
  return node;
}

RegexNode Wrap(Kind kind, RegexNode child) {
  RegexNode node;
  node.kind = kind;
  node.children.push_back(std::move(child));
  return node;
}

RegexNode AnchorNode(Op op) {
  RegexNode node;
  node.kind = Kind::kAnchor;
  node.anchor = op;
  return node;
}

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern) {}

  RegexNode Parse() {
    RegexNode root = Alternatives();
    if (!AtEnd()) Fail("unmatched ')'");
    return root;
  }

 private:
  bool AtEnd() const { return position_ >= pattern_.size(); }
  bool Looking(std::string_view what) const { return pattern_.substr(position_).starts_with(what); }
  bool Accept(std::string_view what) {
    if (!Looking(what)) return false;
    position_ += what.size();
    return true;
  }
  uint32_t TakeCodePoint() {
    if (AtEnd()) Fail("the pattern ends too early");
    const CodePoint c = DecodeUtf8(pattern_, position_);
    position_ += c.length;
    return c.value;
  }
  [[noreturn]] void Fail(const std::string& what) const { throw RegexSyntaxError(what, position_); }

  RegexNode Alternatives();
  RegexNode Sequence();
  RegexNode Quantified();
  RegexNode Atom();
  RegexNode Group();
  RegexNode GroupWithOption();
  RegexNode EscapeAtom();
  bool Quantifier(uint32_t& min, uint32_t& max, bool& interval);
  bool Interval(uint32_t& min, uint32_t& max);
  std::optional<uint32_t> Number();

  CodePointSet Class();
  void ClassItem(CodePointSet& set);
  std::optional<CodePointSet> EscapedSet(uint32_t letter);
  CodePointSet Property(bool negated);
  uint32_t EscapedCodePoint(uint32_t letter);
  uint32_t Hex(int min_digits, int max_digits);
  CodePointSet Cased(CodePointSet set) const { return ignore_case_ ? set.CaseClosed() : set; }

  std::string_view pattern_;
  size_t position_ = 0;
  bool ignore_case_ = false;
  bool dot_all_ = false;
  int depth_ = 0;
};

RegexNode Parser::Alternatives() {
  if (++depth_ > kMaxNesting) Fail("groups are nested too deeply");
  const bool outer_case = ignore_case_, outer_dot = dot_all_;
  while (Looking("(?i)") || Looking("(?m)")) {
    (Looking("(?i)") ? ignore_case_ : dot_all_) = true;
    position_ += 4;
  }
  RegexNode node;
  node.kind = Kind::kAlternate;
  do {
    node.children.push_back(Sequence());
  } while (Accept("|"));
  ignore_case_ = outer_case;
  dot_all_ = outer_dot;
  --depth_;
  if (node.children.size() > 1) return node;
  RegexNode only = std::move(node.children.front());
  return only;
}

RegexNode Parser::Sequence() {
  RegexNode node;
  node.kind = Kind::kConcat;
  while (!AtEnd() && !Looking("|") && !Looking(")")) node.children.push_back(Quantified());
  return node;
}

RegexNode Parser::Quantified() {
  RegexNode node = Atom();
  uint32_t min = 0, max = 0;
  bool interval = false;
  while (Quantifier(min, max, interval)) {
    if (node.kind == Kind::kAnchor || node.kind == Kind::kLookahead) Fail("a quantifier after an assertion");
    RegexNode repeat = Wrap(Kind::kRepeat, std::move(node));
    repeat.min = min;
    repeat.max = max;
    if (Accept("?")) {
      if (interval && min == max) Fail("unsupported '{n}?'");
      repeat.mode = Mode::kLazy;
    } else if (!interval && Accept("+")) {  // after an interval '+' is one more quantifier
      repeat.mode = Mode::kPossessive;
    }
    node = std::move(repeat);
  }
  return node;
}

bool Parser::Quantifier(uint32_t& min, uint32_t& max, bool& interval) {
  interval = false;
  min = 0;
  max = RegexProgram::kUnbounded;
  if (Accept("*")) return true;
  if (Accept("+")) return min = 1, true;
  if (Accept("?")) return max = 1, true;
  interval = Looking("{") && Interval(min, max);
  return interval;
}

// {n} {n,} {n,m} {,m}; anything else after '{' is a literal, as in Oniguruma.
bool Parser::Interval(uint32_t& min, uint32_t& max) {
  const size_t start = position_++;
  const std::optional<uint32_t> low = Number();
  std::optional<uint32_t> high = low;
  bool open = false;
  if (Accept(",")) {
    high = Number();
    open = !high;
  }
  if ((!low && !high) || !Accept("}")) return position_ = start, false;
  min = low.value_or(0);
  max = open ? RegexProgram::kUnbounded : *high;
  if (min > kMaxRepeat || (!open && max > kMaxRepeat)) Fail("a repeat count above " + std::to_string(kMaxRepeat));
  if (max < min) Fail("a repeat range with its ends swapped");
  return true;
}

std::optional<uint32_t> Parser::Number() {
  std::optional<uint32_t> value;
  while (!AtEnd() && pattern_[position_] >= '0' && pattern_[position_] <= '9') {
    value = std::min<uint32_t>(value.value_or(0) * 10 + (pattern_[position_++] - '0'), 1000000);
  }
  return value;
}

RegexNode Parser::Atom() {
  if (Looking("(")) return Group();
  if (Accept("[")) return SetNode(Class());
  if (Accept("\\")) return EscapeAtom();
  if (Accept("^")) return AnchorNode(Op::kLineStart);
  if (Accept("$")) return AnchorNode(Op::kLineEnd);
  if (Accept(".")) return SetNode(dot_all_ ? CodePointSet({{0, kMaxCodePoint}}) : CodePointSet::Single('\n').Negated());
  if (Looking("*") || Looking("+") || Looking("?")) Fail("a quantifier with nothing before it");
  return SetNode(Cased(CodePointSet::Single(TakeCodePoint())));
}

RegexNode Parser::Group() {
  RegexNode node;
  if (Accept("(?:")) {
    node = Alternatives();
  } else if (Accept("(?=")) {
    node = Wrap(Kind::kLookahead, Alternatives());
  } else if (Accept("(?!")) {
    node = Wrap(Kind::kLookahead, Alternatives());
    node.negated = true;
  } else if (Accept("(?>")) {
    node = Wrap(Kind::kAtomic, Alternatives());
  } else if (Looking("(?<=") || Looking("(?<!")) {
    Fail("unsupported lookbehind");
  } else if (Looking("(?")) {
    node = GroupWithOption();
  } else {
    Accept("(");
    node = Alternatives();
  }
  if (!Accept(")")) Fail("a group without ')'");
  return node;
}

RegexNode Parser::GroupWithOption() {
  const bool outer_case = ignore_case_, outer_dot = dot_all_;
  position_ += 2;
  bool value = true;
  for (; !AtEnd() && !Looking(":"); ++position_) {
    const char option = pattern_[position_];
    if (option == '-') value = false;
    else if (option == 'i') ignore_case_ = value;
    else if (option == 'm') dot_all_ = value;
    else Fail(std::string("unsupported group '(?") + option + "'");
  }
  if (!Accept(":")) Fail("a group without ':'");
  RegexNode node = Alternatives();
  ignore_case_ = outer_case;
  dot_all_ = outer_dot;
  return node;
}

RegexNode Parser::EscapeAtom() {
  if (Accept("A")) return AnchorNode(Op::kTextStart);
  if (Accept("z")) return AnchorNode(Op::kTextEnd);
  if (Accept("Z")) return AnchorNode(Op::kTextEndOrNewline);
  const uint32_t letter = TakeCodePoint();
  // As in Oniguruma: outside a class \w takes a few characters more, and (?i) does not widen a set.
  if (letter == 'w' || letter == 'W') return SetNode(letter == 'w' ? PatternWordSet() : PatternWordSet().Negated());
  if (std::optional<CodePointSet> set = EscapedSet(letter)) return SetNode(std::move(*set));
  return SetNode(Cased(CodePointSet::Single(EscapedCodePoint(letter))));
}

std::optional<CodePointSet> Parser::EscapedSet(uint32_t letter) {
  static const CodePointSet hex({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
  switch (letter) {
    case 'p': return Property(false);
    case 'P': return Property(true);
    case 's': return WhitespaceSet();
    case 'S': return WhitespaceSet().Negated();
    case 'd': return DigitSet();
    case 'D': return DigitSet().Negated();
    case 'w': return WordSet();
    case 'W': return WordSet().Negated();
    case 'h': return hex;
    case 'H': return hex.Negated();
    default: return std::nullopt;
  }
}

CodePointSet Parser::Property(bool negated) {
  if (!Accept("{")) Fail("'\\p' without '{'");
  if (Accept("^")) negated = !negated;
  const size_t close = pattern_.find('}', position_);
  if (close == std::string_view::npos) Fail("'\\p{' without '}'");
  const std::string name(pattern_.substr(position_, close - position_));
  std::optional<CodePointSet> set = PropertySet(name);
  if (!set) Fail("unsupported property '\\p{" + name + "}'");
  position_ = close + 1;
  return negated ? set->Negated() : *set;
}

uint32_t Parser::EscapedCodePoint(uint32_t letter) {
  switch (letter) {
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'f': return '\f';
    case 'v': return '\v';
    case 'a': return '\a';
    case 'e': return 0x1B;
    case '0': return 0;
    case 'u': return Hex(4, 4);
    case 'x': {
      if (!Accept("{")) return Hex(1, 2);
      const uint32_t value = Hex(1, 8);
      if (!Accept("}")) Fail("'\\x{' without '}'");
      return value;
    }
    default: break;
  }
  const bool word =
      (letter >= '0' && letter <= '9') || (letter >= 'A' && letter <= 'Z') || (letter >= 'a' && letter <= 'z');
  if (word) Fail(std::string("unsupported escape '\\") + static_cast<char>(letter) + "'");
  return letter;
}

uint32_t Parser::Hex(int min_digits, int max_digits) {
  uint32_t value = 0;
  int digits = 0;
  for (; digits < max_digits && !AtEnd(); ++digits, ++position_) {
    const char c = pattern_[position_];
    if (c >= '0' && c <= '9') value = value * 16 + (c - '0');
    else if ((c | 32) >= 'a' && (c | 32) <= 'f') value = value * 16 + ((c | 32) - 'a' + 10);
    else break;
  }
  if (digits < min_digits || value > kMaxCodePoint) Fail("a bad hexadecimal escape");
  return value;
}

// After '['. Items are united, '&&' intersects what stands on its two sides, '^' negates the result.
CodePointSet Parser::Class() {
  if (++depth_ > kMaxNesting) Fail("classes are nested too deeply");
  const bool negated = Accept("^");
  CodePointSet result({{0, kMaxCodePoint}});
  bool first = true;
  for (bool more = true; more;) {
    CodePointSet part;
    for (; first || !(Looking("]") || Looking("&&")); first = false) ClassItem(part);
    result = result.Intersected(part);
    more = Accept("&&");
  }
  Accept("]");
  --depth_;
  result = Cased(std::move(result));
  return negated ? result.Negated() : result;
}

void Parser::ClassItem(CodePointSet& set) {
  if (Looking("[:")) Fail("unsupported POSIX class");
  if (Accept("[")) return set.Add(Class());
  const auto take = [&](std::optional<CodePointSet>& whole) -> uint32_t {
    const uint32_t c = TakeCodePoint();
    if (c != '\\') return c;
    const uint32_t letter = TakeCodePoint();
    whole = EscapedSet(letter);
    return whole ? 0 : letter == 'b' ? '\b' : EscapedCodePoint(letter);
  };
  std::optional<CodePointSet> whole;
  const uint32_t low = take(whole);
  if (whole) return set.Add(*whole);
  if (!Looking("-") || pattern_.substr(position_ + 1).starts_with("]") ||
      pattern_.substr(position_ + 1).starts_with("[")) {
    return set.Add(low, low);
  }
  Accept("-");
  const uint32_t high = take(whole);
  if (whole || high < low) Fail("a bad range in a class");
  set.Add(low, high);
}

}  // namespace

bool RegexNode::Nullable() const {
  const auto nullable = [](const RegexNode& n) { return n.Nullable(); };
  switch (kind) {
    case Kind::kSet: return false;
    case Kind::kConcat: return std::all_of(children.begin(), children.end(), nullable);
    case Kind::kAlternate: return std::any_of(children.begin(), children.end(), nullable);
    case Kind::kRepeat: return min == 0 || children.front().Nullable();
    case Kind::kAtomic: return children.front().Nullable();
    default: return true;
  }
}

RegexNode ParseRegex(std::string_view pattern) { return Parser(pattern).Parse(); }

}  // namespace latentmesh
