#include "runtime/grammar/byte_grammar.h"

#include <algorithm>

namespace latentmesh {
namespace {

constexpr size_t kMaxStates = 1 << 14;
constexpr int32_t kUnknown = -2;

}  // namespace

ByteSet ByteRange(int first, int last) {
  ByteSet set;
  for (int byte = first; byte <= last; ++byte) set.set(static_cast<size_t>(byte));
  return set;
}

ByteSet ByteAnyOf(std::string_view bytes) {
  ByteSet set;
  for (char byte : bytes) set.set(static_cast<uint8_t>(byte));
  return set;
}

int32_t ByteGrammar::NewRule() {
  rules_.emplace_back();
  return static_cast<int32_t>(rules_.size()) - 1;
}

void ByteGrammar::AddAlternative(int32_t rule, const Sequence& sequence) {
  rules_[static_cast<size_t>(rule)].push_back(static_cast<int32_t>(code_.size()));
  code_.insert(code_.end(), sequence.begin(), sequence.end());
  code_.push_back({Element::Kind::kEnd, 0});
}

ByteGrammar::Element ByteGrammar::Bytes(const ByteSet& set) {
  auto found = std::find(sets_.begin(), sets_.end(), set);
  if (found == sets_.end()) found = sets_.insert(found, set);
  return {Element::Kind::kBytes, static_cast<int32_t>(found - sets_.begin())};
}

void ByteGrammar::AppendText(Sequence& sequence, std::string_view text) {
  for (char byte : text) sequence.push_back(Bytes(ByteAnyOf({&byte, 1})));
}

GrammarAutomaton::GrammarAutomaton(ByteGrammar grammar) : grammar_(std::move(grammar)) { Clear(); }

void GrammarAutomaton::Clear() {
  nodes_.assign(1, {0, 0});                // node 0: the empty stack
  node_numbers_.clear();
  states_.clear();
  state_numbers_.clear();
  seen_.clear();
  for (int32_t begin : grammar_.alternatives(grammar_.root())) Expand(begin, 0);
  start_ = Intern();
}

void GrammarAutomaton::ForgetIfLarge() {
  if (states_.size() < kMaxStates) return;
  Clear();
  ++generation_;
}

int32_t GrammarAutomaton::Node(int32_t position, int32_t below) {
  auto [found, added] = node_numbers_.try_emplace({position, below}, static_cast<int32_t>(nodes_.size()));
  if (added) nodes_.emplace_back(position, below);
  return found->second;
}

// Follows rules and ends from `position` until byte sets are on top. seen_ ends loops of rules that read nothing.
void GrammarAutomaton::Expand(int32_t position, int32_t below) {
  std::pair<int32_t, int32_t> key{position, below};
  if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) return;
  seen_.push_back(key);
  const ByteGrammar::Element element = grammar_.at(position);
  if (element.kind == ByteGrammar::Element::Kind::kBytes) return reached_.push_back(Node(position, below));
  if (element.kind == ByteGrammar::Element::Kind::kEnd) {
    if (below == 0) reached_end_ = true;
    else Expand(nodes_[static_cast<size_t>(below)].first, nodes_[static_cast<size_t>(below)].second);
    return;
  }
  bool last = grammar_.at(position + 1).kind == ByteGrammar::Element::Kind::kEnd;
  int32_t back = last ? below : Node(position + 1, below);
  for (int32_t begin : grammar_.alternatives(element.value)) Expand(begin, back);
}

int32_t GrammarAutomaton::Intern() {
  std::sort(reached_.begin(), reached_.end());
  reached_.erase(std::unique(reached_.begin(), reached_.end()), reached_.end());
  bool can_end = std::exchange(reached_end_, false);
  seen_.clear();
  std::vector<int32_t> stacks = std::exchange(reached_, {});
  if (stacks.empty() && !can_end) return kDead;
  auto [found, added] = state_numbers_.try_emplace({stacks, can_end}, static_cast<int32_t>(states_.size()));
  if (added) states_.push_back({std::move(stacks), can_end, {}});
  return found->second;
}

bool GrammarAutomaton::Finished(int32_t state) const {
  const State& s = states_[static_cast<size_t>(state)];
  return s.can_end && s.stacks.empty();
}

int32_t GrammarAutomaton::Next(int32_t state, uint8_t byte) {
  {
    State& s = states_[static_cast<size_t>(state)];
    if (s.next.empty()) s.next.assign(256, kUnknown);
    if (s.next[byte] != kUnknown) return s.next[byte];
    for (int32_t stack : s.stacks) {
      auto [position, below] = nodes_[static_cast<size_t>(stack)];
      if (grammar_.set(grammar_.at(position).value).test(byte)) Expand(position + 1, below);
    }
  }
  int32_t next = Intern();                 // may move the states
  states_[static_cast<size_t>(state)].next[byte] = next;
  return next;
}

}  // namespace latentmesh
