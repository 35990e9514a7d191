#include "runtime/text/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "runtime/text/tokenizer_parts.h"
#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

Result<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  if (!file || !(contents << file.rdbuf())) return IoError("cannot read " + path);
  return std::move(contents).str();
}

Status WithFolder(const Status& status, const std::string& directory) {
  return {status.code(), directory + ": " + status.message()};
}

const TokenEntry& EntryOf(const TokenizerParts& parts, int32_t id) {
  static const TokenEntry none;
  return id >= 0 && id < static_cast<int32_t>(parts.tokens.size()) ? parts.tokens[id] : none;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::Create(std::string_view tokenizer_json, std::string_view config_json) {
  LM_ASSIGN_OR_RETURN(std::unique_ptr<TokenizerParts> parts, ParseTokenizer(tokenizer_json, config_json));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts)));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& directory) {
  const auto exists = [&](const char* name) { return std::filesystem::exists(directory + "/" + name); };
  if (!exists("tokenizer.json")) {
    return IoError(directory + ": there is no tokenizer.json; copy it from the published model");
  }
  LM_ASSIGN_OR_RETURN(const std::string json, ReadFile(directory + "/tokenizer.json"));
  std::string config;
  if (exists("tokenizer_config.json")) {
    LM_ASSIGN_OR_RETURN(config, ReadFile(directory + "/tokenizer_config.json"));
  }
  Result<std::unique_ptr<Tokenizer>> tokenizer = Create(json, config);
  if (!tokenizer.ok()) return WithFolder(tokenizer.status(), directory);
  if (exists("chat_template.jinja")) {
    LM_ASSIGN_OR_RETURN(const std::string source, ReadFile(directory + "/chat_template.jinja"));
    (*tokenizer)->parts_->chat_template = (*tokenizer)->parts_->tool_chat_template = source;
  }
  return tokenizer;
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool add_special, bool allow_special) const {
  std::vector<int32_t> ids;
  if (add_special) ids = parts_->prefix;
  for (const TextSegment& segment : parts_->raw_matcher.Cut(text, allow_special)) {
    if (segment.id >= 0) ids.push_back(segment.id);
    else EncodePlain(segment.text, segment.text.data() == text.data(), allow_special, ids);
  }
  if (add_special) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

void Tokenizer::EncodePlain(std::string_view text, bool at_start, bool allow_special, std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!parts_->normalizer.empty()) {
    normalized = parts_->normalizer.Apply(text);
    text = normalized;
  }
  for (const TextSegment& segment : parts_->normalized_matcher.Cut(text, allow_special)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    Pieces pieces;
    pieces.views = {segment.text};
    pieces.at_text_start = at_start && segment.text.data() == text.data();
    parts_->pre_tokenizer->Apply(pieces);
    for (const std::string_view piece : pieces.views) parts_->bpe->Encode(piece, ids);
  }
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  IncrementalDetokenizer detokenizer(*this, skip_special);
  std::string text;
  for (const int32_t id : ids) text += detokenizer.Push(id);
  return text += detokenizer.Finish();
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->tokens.size()); }

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  for (const AddedToken& added : parts_->added)
    if (added.content == token) return added.id;
  const auto found = parts_->bpe->vocabulary().find(token);
  if (found == parts_->bpe->vocabulary().end()) return std::nullopt;
  return found->second;
}

const std::string& Tokenizer::IdToToken(int32_t id) const { return EntryOf(*parts_, id).spelling; }
const std::string& Tokenizer::TokenBytes(int32_t id) const { return EntryOf(*parts_, id).bytes; }
bool Tokenizer::IsSpecial(int32_t id) const { return EntryOf(*parts_, id).special; }
const std::string& Tokenizer::bos_token() const { return parts_->bos_token; }
const std::string& Tokenizer::eos_token() const { return parts_->eos_token; }
int32_t Tokenizer::bos_id() const { return parts_->bos_id; }
int32_t Tokenizer::eos_id() const { return parts_->eos_id; }
bool Tokenizer::strips_leading_space() const { return parts_->strip_leading_space; }
const std::string& Tokenizer::chat_template(bool with_tools) const {
  return with_tools ? parts_->tool_chat_template : parts_->chat_template;
}

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special), strip_space_(tokenizer.strips_leading_space()) {}

std::string IncrementalDetokenizer::Push(int32_t id) {
  if (skip_special_ && tokenizer_->IsSpecial(id)) return "";
  held_ += tokenizer_->TokenBytes(id);
  if (strip_space_ && !held_.empty()) {
    if (held_[0] == ' ') held_.erase(0, 1);
    strip_space_ = false;
  }
  std::string text;
  held_.erase(0, AppendLossyUtf8(text, held_));
  return text;
}

std::string IncrementalDetokenizer::Finish() {
  std::string text;
  if (!held_.empty()) AppendUtf8(text, kReplacementCharacter);
  held_.clear();
  strip_space_ = tokenizer_->strips_leading_space();
  return text;
}

}  // namespace latentmesh
