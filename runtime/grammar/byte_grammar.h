// ByteGrammar: a context-free grammar over bytes, and the lazily built automaton that reads it.
#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace latentmesh {

using ByteSet = std::bitset<256>;

// Rules are numbered; a rule is a list of alternatives; an alternative is a sequence of byte sets and rules.
class ByteGrammar {
 public:
  struct Element {
    enum class Kind : uint8_t { kBytes, kRule, kEnd } kind;
    int32_t value = 0;                     // number of a byte set or rule
  };
  using Sequence = std::vector<Element>;

  int32_t NewRule();
  void AddAlternative(int32_t rule, const Sequence& sequence);
  Element Bytes(const ByteSet& set);
  static Element Rule(int32_t rule) { return {Element::Kind::kRule, rule}; }
  void AppendText(Sequence& sequence, std::string_view text);      // each byte of it
  void set_root(int32_t rule) { root_ = rule; }

  int32_t root() const { return root_; }
  int64_t size() const { return static_cast<int64_t>(code_.size()); }
  const Element& at(int32_t position) const { return code_[static_cast<size_t>(position)]; }
  const ByteSet& set(int32_t number) const { return sets_[static_cast<size_t>(number)]; }
  const std::vector<int32_t>& alternatives(int32_t rule) const { return rules_[static_cast<size_t>(rule)]; }

 private:
  std::vector<Element> code_;              // all alternatives, each followed by kEnd
  std::vector<std::vector<int32_t>> rules_;      // where their alternatives begin
  std::vector<ByteSet> sets_;
  int32_t root_ = 0;
};

ByteSet ByteRange(int first, int last);
ByteSet ByteAnyOf(std::string_view bytes);

// A pushdown automaton run on all alternatives at once: a state is the set of stacks that the bytes so far allow. Equal
// sets are one state, so masks and transitions can be kept. Rules that are the last of their sequence leave nothing on
// the stack: a list of any length needs no depth. Not thread-safe.
class GrammarAutomaton {
 public:
  static constexpr int32_t kDead = -1;

  explicit GrammarAutomaton(ByteGrammar grammar);

  int32_t start() const { return start_; }
  int32_t Next(int32_t state, uint8_t byte);       // kDead: the byte cannot follow
  bool CanEnd(int32_t state) const { return states_[static_cast<size_t>(state)].can_end; }
  bool Finished(int32_t state) const;              // the end, and nothing else may follow
  // States are forgotten when there are very many of them; numbers from before are then void.
  int64_t generation() const { return generation_; }
  void ForgetIfLarge();

 private:
  struct State {
    std::vector<int32_t> stacks;           // sorted node numbers, each with a byte set on top
    bool can_end = false;
    std::vector<int32_t> next;             // [256] once a byte was tried
  };
  void Clear();
  int32_t Node(int32_t position, int32_t below);
  void Expand(int32_t position, int32_t below);
  int32_t Intern();

  ByteGrammar grammar_;
  std::vector<std::pair<int32_t, int32_t>> nodes_;       // position, node below (0: nothing)
  std::map<std::pair<int32_t, int32_t>, int32_t> node_numbers_;
  std::vector<State> states_;
  std::map<std::pair<std::vector<int32_t>, bool>, int32_t> state_numbers_;
  int32_t start_ = 0;
  int64_t generation_ = 0;

  std::vector<std::pair<int32_t, int32_t>> seen_;        // scratch of one step
  std::vector<int32_t> reached_;
  bool reached_end_ = false;
};

}  // namespace latentmesh
