#include "runtime/grammar/token_grammar.h"

#include <algorithm>
#include <unordered_map>

#include "runtime/grammar/json_grammar.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

constexpr size_t kMaxGrammars = 32;        // kept compiled
constexpr size_t kMaxMasks = 1024;         // kept of a grammar
const std::string kAnyObject = "";         // as a key; no schema is empty

}  // namespace

// The tokens that add bytes to a text, sorted by these bytes: neighbours share their beginnings.
struct TokenGrammars::Vocabulary {
  struct Entry {
    int32_t id;
    size_t shared;                         // leading bytes in common with the entry before
  };
  explicit Vocabulary(const Tokenizer& tokenizer) {
    bytes.resize(static_cast<size_t>(tokenizer.vocab_size()));
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      if (tokenizer.IsSpecial(id) || tokenizer.TokenBytes(id).empty()) continue;
      bytes[static_cast<size_t>(id)] = tokenizer.TokenBytes(id);
      entries.push_back({id, 0});
    }
    std::sort(entries.begin(), entries.end(), [this](const Entry& a, const Entry& b) { return Of(a) < Of(b); });
    for (size_t i = 1; i < entries.size(); ++i) {
      const std::string &before = Of(entries[i - 1]), &now = Of(entries[i]);
      size_t limit = std::min(before.size(), now.size());
      while (entries[i].shared < limit && before[entries[i].shared] == now[entries[i].shared]) ++entries[i].shared;
    }
  }
  const std::string& Of(const Entry& entry) const { return bytes[static_cast<size_t>(entry.id)]; }

  std::vector<std::string> bytes;          // by id; empty: never allowed
  std::vector<Entry> entries;
};

// A grammar's automaton with the masks of the states met so far; shared by all requests with this grammar.
class TokenGrammars::Compiled {
 public:
  Compiled(std::string key, ByteGrammar grammar, std::shared_ptr<const Vocabulary> vocabulary)
      : source(std::move(key)), automaton(std::move(grammar)), vocabulary(std::move(vocabulary)) {}

  const std::vector<uint64_t>& Mask(int32_t state) {
    auto found = masks_.find(state);
    if (found != masks_.end()) return found->second;
    if (masks_.size() >= kMaxMasks) masks_.clear();
    return masks_[state] = MakeMask(state);
  }
  void ForgetIfLarge() {
    int64_t before = automaton.generation();
    automaton.ForgetIfLarge();
    if (automaton.generation() != before) masks_.clear();
  }

  const std::string source;
  GrammarAutomaton automaton;
  std::shared_ptr<const Vocabulary> vocabulary;

 private:
  // Walks all tokens in order; states[n] is the state behind the first n bytes of the present one.
  std::vector<uint64_t> MakeMask(int32_t state) {
    std::vector<uint64_t> mask((vocabulary->bytes.size() + 63) / 64);
    std::vector<int32_t> states = {state};
    size_t dead = std::string::npos;       // the byte of the tokens' common beginning that cannot follow
    for (const Vocabulary::Entry& entry : vocabulary->entries) {
      if (entry.shared > dead) continue;   // begins as one that failed
      const std::string& bytes = vocabulary->Of(entry);
      states.resize(std::min(states.size(), entry.shared + 1));
      dead = std::string::npos;
      while (states.size() <= bytes.size()) {
        int32_t next = automaton.Next(states.back(), static_cast<uint8_t>(bytes[states.size() - 1]));
        if (next == GrammarAutomaton::kDead) {
          dead = states.size() - 1;
          break;
        }
        states.push_back(next);
      }
      if (dead == std::string::npos) mask[static_cast<size_t>(entry.id) / 64] |= uint64_t{1} << (entry.id % 64);
    }
    return mask;
  }

  std::unordered_map<int32_t, std::vector<uint64_t>> masks_;
};

class TokenGrammars::Constraint : public TokenConstraint {
 public:
  explicit Constraint(std::shared_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}

  std::unique_ptr<TokenConstraint> Clone() const override { return std::make_unique<Constraint>(*this); }

  void FillMask(std::span<uint64_t> mask) override {
    compiled_->ForgetIfLarge();
    const std::vector<uint64_t>& allowed = compiled_->Mask(State());
    std::copy_n(allowed.begin(), std::min(allowed.size(), mask.size()), mask.begin());
  }
  void Accept(int32_t token_id) override {
    const std::string& bytes = compiled_->vocabulary->bytes[static_cast<size_t>(token_id)];
    State();
    Advance(bytes);
    text_ += bytes;
  }
  bool CanEnd() const override { return compiled_->automaton.CanEnd(State()); }
  bool Finished() const override { return compiled_->automaton.Finished(State()); }
  std::string source() const override { return compiled_->source; }

 private:
  // The present state; found again from the text when the automaton has forgotten its states.
  int32_t State() const {
    if (state_ >= 0 && generation_ == compiled_->automaton.generation()) return state_;
    generation_ = compiled_->automaton.generation();
    state_ = compiled_->automaton.start();
    Advance(text_);
    return state_;
  }
  void Advance(const std::string& bytes) const {
    for (char byte : bytes) {
      state_ = compiled_->automaton.Next(state_, static_cast<uint8_t>(byte));
      LM_CHECK_MSG(state_ >= 0, "a token outside the grammar's mask was chosen");
    }
  }

  std::shared_ptr<Compiled> compiled_;
  std::string text_;
  mutable int32_t state_ = -1;
  mutable int64_t generation_ = -1;
};

TokenGrammars::TokenGrammars(const Tokenizer& tokenizer) : vocabulary_(std::make_shared<Vocabulary>(tokenizer)) {}
TokenGrammars::~TokenGrammars() = default;

Result<std::shared_ptr<const TokenConstraint>> TokenGrammars::JsonObject() { return Get(kAnyObject); }

Result<std::shared_ptr<const TokenConstraint>> TokenGrammars::JsonSchema(const std::string& schema_json) {
  if (schema_json.empty()) return InvalidArgument("json_schema: is empty");
  return Get(schema_json);
}

Result<std::shared_ptr<const TokenConstraint>> TokenGrammars::FromSource(const std::string& source) { return Get(source); }

Result<std::shared_ptr<const TokenConstraint>> TokenGrammars::Get(const std::string& key) {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(recent_.begin(), recent_.end(), [&](const auto& entry) { return entry.first == key; });
  if (found != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, found);
  } else {
    Result<ByteGrammar> grammar = key == kAnyObject ? JsonObjectGrammar() : JsonSchemaGrammar(key);
    LM_RETURN_IF_ERROR(grammar.status());
    auto compiled = std::make_shared<Compiled>(key, std::move(grammar).value(), vocabulary_);
    if (compiled->automaton.start() < 0) return InvalidArgument("json_schema: no JSON text matches it");
    recent_.emplace_front(key, std::move(compiled));
    if (recent_.size() > kMaxGrammars) recent_.pop_back();
  }
  return std::shared_ptr<const TokenConstraint>(std::make_shared<Constraint>(recent_.front().second));
}

}  // namespace latentmesh
