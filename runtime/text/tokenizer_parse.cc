#include <algorithm>
#include <map>
#include <set>

#include "runtime/text/json_fields.h"
#include "runtime/text/tokenizer_parts.h"

namespace latentmesh {
namespace {

using boost::json::value;

constexpr int64_t kMaxId = 1 << 24;  // far above any vocabulary; keeps a damaged file from taking all memory

Status Bad(const std::string& what) { return InvalidModel("tokenizer.json: " + what); }

class TokenizerParser {
 public:
  TokenizerParser(const value& json, const value& config)
      : json_(json), config_(config), parts_(std::make_unique<TokenizerParts>()) {}

  Result<std::unique_ptr<TokenizerParts>> Parse() {
    LM_ASSIGN_OR_RETURN(parts_->normalizer, Normalizer::Parse(Text("normalizer")));
    LM_ASSIGN_OR_RETURN(ParsedPreTokenizer pre_tokenizer, ParsePreTokenizer(Text("pre_tokenizer")));
    parts_->pre_tokenizer = std::move(pre_tokenizer.step);
    LM_RETURN_IF_ERROR(ParseModel(pre_tokenizer.byte_level));
    LM_RETURN_IF_ERROR(CollectAddedTokens());
    LM_RETURN_IF_ERROR(BuildTokenTable());
    LM_RETURN_IF_ERROR(NameSpecialTokens());
    if (const value* post = FindField(json_, "post_processor"); !IsNullOrAbsent(post)) {
      LM_RETURN_IF_ERROR(ParsePostProcessor(*post));
    }
    ApplyConfigFlag("add_bos_token", parts_->bos_id, parts_->prefix);
    ApplyConfigFlag("add_eos_token", parts_->eos_id, parts_->suffix);
    ParseChatTemplate();
    return std::move(parts_);
  }

 private:
  // The JSON text of a top-level field, for the room that parses it.
  std::string Text(const char* field) const {
    const value* found = FindField(json_, field);
    return found ? boost::json::serialize(*found) : "null";
  }

  Status ParseModel(bool byte_level);
  Status CheckModelOptions(const value& model) const;
  Result<VocabularyMap> ParseVocabulary(const value& model) const;
  Result<std::vector<Bpe::Merge>> ParseMerges(const value& model) const;
  Status CollectAddedTokens();
  Status AddToken(const value& json, int64_t id);
  Status BuildTokenTable();
  Status NameSpecialTokens();
  int32_t IdOf(const std::string& token) const;
  Status ParsePostProcessor(const value& json);
  Status ParseTemplate(const value& json);
  void ApplyConfigFlag(const char* flag, int32_t id, std::vector<int32_t>& ids) const;
  void ParseChatTemplate();

  const value& json_;
  const value& config_;
  std::unique_ptr<TokenizerParts> parts_;
  std::map<int32_t, AddedToken> added_;
};

Status TokenizerParser::ParseModel(bool byte_level) {
  const value* model = FindField(json_, "model");
  if (!model || !model->is_object()) return Bad("there is no 'model'");
  LM_RETURN_IF_ERROR(CheckModelOptions(*model));
  LM_ASSIGN_OR_RETURN(VocabularyMap vocabulary, ParseVocabulary(*model));
  LM_ASSIGN_OR_RETURN(const std::vector<Bpe::Merge> merges, ParseMerges(*model));
  BpeOptions options;
  options.byte_level = byte_level;
  options.ignore_merges = BoolField(*model, "ignore_merges", false);
  options.byte_fallback = BoolField(*model, "byte_fallback", false);
  options.fuse_unknown = BoolField(*model, "fuse_unk", false);
  if (const std::string unknown = StringField(*model, "unk_token"); !unknown.empty()) {
    const auto found = vocabulary.find(unknown);
    if (found == vocabulary.end()) return Bad("model.unk_token '" + unknown + "' is not in the vocabulary");
    options.unknown_id = found->second;
  }
  Result<std::unique_ptr<Bpe>> bpe = Bpe::Create(std::move(vocabulary), merges, options);
  if (!bpe.ok()) return Bad(bpe.status().message());
  parts_->bpe = std::move(*bpe);
  return Status::Ok();
}

Status TokenizerParser::CheckModelOptions(const value& model) const {
  const std::string type = StringField(model, "type", "BPE");
  if (type != "BPE") return Bad("unsupported model type '" + type + "'; only BPE is supported");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!StringField(model, name).empty()) return Bad(std::string("unsupported model.") + name);
  }
  const value* dropout = FindField(model, "dropout");
  const bool drops = dropout && dropout->is_double() && dropout->get_double() != 0;
  return drops ? Bad("model.dropout makes ids random; set it to null") : Status::Ok();
}

Result<VocabularyMap> TokenizerParser::ParseVocabulary(const value& model) const {
  const value* vocab = FindField(model, "vocab");
  if (!vocab || !vocab->is_object()) return Bad("model.vocab must be an object");
  VocabularyMap vocabulary;
  vocabulary.reserve(vocab->get_object().size());
  for (const auto& [token, id] : vocab->get_object()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > kMaxId) {
      return Bad("model.vocab: bad id of '" + std::string(token) + "'");
    }
    vocabulary.emplace(std::string(token), static_cast<int32_t>(id.get_int64()));
  }
  return vocabulary;
}

Result<std::vector<Bpe::Merge>> TokenizerParser::ParseMerges(const value& model) const {
  const value* list = FindField(model, "merges");
  if (!list || !list->is_array()) return Bad("model.merges must be a list");
  std::vector<Bpe::Merge> merges;
  merges.reserve(list->get_array().size());
  for (const value& item : list->get_array()) {
    if (const auto* text = item.if_string()) {
      const size_t space = text->find(' ');
      if (space == boost::json::string::npos || text->find(' ', space + 1) != boost::json::string::npos) {
        return Bad("model.merges: '" + std::string(*text) + "' is not a pair");
      }
      merges.emplace_back(text->subview(0, space), text->subview(space + 1));
    } else if (const auto* pair = item.if_array();
               pair && pair->size() == 2 && (*pair)[0].is_string() && (*pair)[1].is_string()) {
      merges.emplace_back((*pair)[0].get_string(), (*pair)[1].get_string());
    } else {
      return Bad("model.merges: entry " + std::to_string(merges.size()) + " is not a pair");
    }
  }
  return merges;
}

// tokenizer.json lists them; tokenizer_config.json may describe the same or further ones, and then has the last word.
Status TokenizerParser::CollectAddedTokens() {
  if (const value* list = FindField(json_, "added_tokens"); list && list->is_array()) {
    for (const value& item : list->get_array()) {
      const value* id = FindField(item, "id");
      if (!id || !id->is_int64()) return Bad("added_tokens: an entry without an id");
      LM_RETURN_IF_ERROR(AddToken(item, id->get_int64()));
    }
  }
  if (const value* table = FindField(config_, "added_tokens_decoder"); table && table->is_object()) {
    for (const auto& [key, item] : table->get_object()) {
      const std::string digits(key);
      const bool number = !digits.empty() && digits.size() < 10 &&
                          std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (!number) return InvalidModel("tokenizer_config.json: added_tokens_decoder: '" + digits + "' is no id");
      LM_RETURN_IF_ERROR(AddToken(item, std::stoll(digits)));
    }
  }
  return Status::Ok();
}

Status TokenizerParser::AddToken(const value& json, int64_t id) {
  AddedToken token;
  token.content = StringField(json, "content");
  if (token.content.empty() || id < 0 || id > kMaxId) return Bad("added token " + std::to_string(id) + " is damaged");
  token.id = static_cast<int32_t>(id);
  token.special = BoolField(json, "special", false);
  token.single_word = BoolField(json, "single_word", false);
  token.lstrip = BoolField(json, "lstrip", false);
  token.rstrip = BoolField(json, "rstrip", false);
  token.normalized = BoolField(json, "normalized", !token.special);
  added_[token.id] = token;
  return Status::Ok();
}

Status TokenizerParser::BuildTokenTable() {
  LM_ASSIGN_OR_RETURN(const TokenDecoder decoder, TokenDecoder::Parse(Text("decoder")));
  parts_->strip_leading_space = decoder.strip_leading_space;
  int32_t size = added_.empty() ? 0 : added_.rbegin()->first + 1;
  for (const auto& [token, id] : parts_->bpe->vocabulary()) size = std::max(size, id + 1);
  parts_->tokens.resize(size);
  const auto set = [&](int32_t id, const std::string& spelling, bool special) {
    parts_->tokens[id] = {spelling, decoder.Bytes(spelling), true, special};
  };
  for (const auto& [token, id] : parts_->bpe->vocabulary()) set(id, token, false);
  for (const auto& [id, token] : added_) {
    set(id, token.content, token.special);
    AddedToken sought = token;
    if (token.normalized) sought.content = parts_->normalizer.Apply(token.content);
    (token.normalized ? parts_->normalized_matcher : parts_->raw_matcher).Add(sought);
    parts_->added.push_back(token);
  }
  return Status::Ok();
}

// bos_token and its like: a string, or an object with "content".
std::string TokenName(const value& config, const char* field) {
  const value* found = FindField(config, field);
  if (!found) return "";
  return found->is_object() ? StringField(*found, "content") : StringField(config, field);
}

Status TokenizerParser::NameSpecialTokens() {
  const auto find = [&](const char* field, std::string& token, int32_t& id) -> Status {
    token = TokenName(config_, field);
    if (token.empty()) return Status::Ok();
    id = IdOf(token);
    if (id >= 0) return parts_->tokens[id].special = true, Status::Ok();
    return InvalidModel(std::string("tokenizer_config.json: ") + field + " '" + token + "' is not in the vocabulary");
  };
  LM_RETURN_IF_ERROR(find("bos_token", parts_->bos_token, parts_->bos_id));
  return find("eos_token", parts_->eos_token, parts_->eos_id);
}

int32_t TokenizerParser::IdOf(const std::string& token) const {
  for (const auto& [id, added] : added_)
    if (added.content == token) return id;
  const auto found = parts_->bpe->vocabulary().find(token);
  return found == parts_->bpe->vocabulary().end() ? -1 : found->second;
}

Status TokenizerParser::ParsePostProcessor(const value& json) {
  const std::string type = StringField(json, "type");
  if (type == "ByteLevel") return Status::Ok();  // only trims offsets
  if (type == "TemplateProcessing") return ParseTemplate(json);
  const value* list = FindField(json, "processors");
  if (type != "Sequence" || !list || !list->is_array()) {
    return Bad("unsupported post_processor '" + type + "'; supported are TemplateProcessing, ByteLevel and Sequence");
  }
  for (const value& item : list->get_array()) LM_RETURN_IF_ERROR(ParsePostProcessor(item));
  return Status::Ok();
}

Status TokenizerParser::ParseTemplate(const value& json) {
  const value* single = FindField(json, "single");
  const value* table = FindField(json, "special_tokens");
  if (!single || !single->is_array()) return Bad("post_processor TemplateProcessing needs a list 'single'");
  bool after_text = false;
  for (const value& item : single->get_array()) {
    if (FindField(item, "Sequence")) {
      after_text = true;
      continue;
    }
    const value* special = FindField(item, "SpecialToken");
    const std::string name = special ? StringField(*special, "id") : "";
    const value* entry = table ? FindField(*table, name) : nullptr;
    const value* ids = entry ? FindField(*entry, "ids") : nullptr;
    if (!ids || !ids->is_array()) return Bad("post_processor: no ids for special token '" + name + "'");
    for (const value& id : ids->get_array()) {
      const bool good =
          id.is_int64() && id.get_int64() >= 0 && id.get_int64() < static_cast<int64_t>(parts_->tokens.size());
      if (!good) return Bad("post_processor: bad id of special token '" + name + "'");
      (after_text ? parts_->suffix : parts_->prefix).push_back(static_cast<int32_t>(id.get_int64()));
    }
  }
  return Status::Ok();
}

// add_bos_token and add_eos_token, where given, have the last word over the post-processor.
void TokenizerParser::ApplyConfigFlag(const char* flag, int32_t id, std::vector<int32_t>& ids) const {
  const value* wanted = FindField(config_, flag);
  if (!wanted || !wanted->is_bool() || id < 0) return;
  ids.erase(std::remove(ids.begin(), ids.end(), id), ids.end());
  const bool leads = &ids == &parts_->prefix;
  if (wanted->get_bool()) ids.insert(leads ? ids.begin() : ids.end(), id);
}

void TokenizerParser::ParseChatTemplate() {
  const value* source = FindField(config_, "chat_template");
  if (!source) return;
  if (source->is_string()) {
    parts_->chat_template = parts_->tool_chat_template = std::string(source->get_string());
  } else if (source->is_array()) {
    for (const value& item : source->get_array()) {
      const std::string name = StringField(item, "name"), text = StringField(item, "template");
      if (name == "default") parts_->chat_template = text;
      if (name == "tool_use") parts_->tool_chat_template = text;
    }
    if (parts_->tool_chat_template.empty()) parts_->tool_chat_template = parts_->chat_template;
  }
}

}  // namespace

Result<std::unique_ptr<TokenizerParts>> ParseTokenizer(std::string_view tokenizer_json, std::string_view config_json) {
  LM_ASSIGN_OR_RETURN(const value json, ParseJson(tokenizer_json, "tokenizer.json"));
  LM_ASSIGN_OR_RETURN(const value config, ParseJson(config_json.empty() ? "{}" : config_json, "tokenizer_config.json"));
  return TokenizerParser(json, config).Parse();
}

}  // namespace latentmesh
