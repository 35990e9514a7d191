#include "launch/openai_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "launch/api_fields.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxLogprobs = 20;
constexpr int64_t kMaxChoices = 128;
constexpr int32_t kCompletionDefaultTokens = 16;

// Parses one body; every step is skipped once a field was wrong.
class RequestParser {
 public:
  RequestParser(ApiEndpoint endpoint, const json::object& body, const ApiContext& context)
      : fields_(body), context_(context) {
    request_.endpoint = endpoint;
    request_.sampling = context.defaults;
  }
  std::variant<ApiRequest, ApiError> Parse();

 private:
  bool chat() const { return request_.endpoint == ApiEndpoint::kChatCompletions; }
  void Sampling();
  void Stops();
  void Length();
  void Logprobs();
  void Streaming();
  void Unsupported();
  void ResponseFormat();
  void Constrain(Result<std::shared_ptr<const TokenConstraint>> constraint);
  void Prompts();
  void PromptItem(const json::value& item);
  void Messages();
  json::value PlainMessage(const json::value& message, const std::string& field);
  void AddEncoded(const char* field, std::string text, Result<std::vector<int32_t>> ids);
  bool Ids(const json::array& array, std::vector<int32_t>* ids);
  void CheckContext();

  ApiFields fields_;
  const ApiContext& context_;
  ApiRequest request_;
  bool length_given_ = false;
};

void RequestParser::Sampling() {
  SamplingParams& sampling = request_.sampling;
  fields_.Integer("n", 1, kMaxChoices, &sampling.n);
  fields_.Number("temperature", 0, 100, &sampling.temperature);
  fields_.Number("top_p", 0, 1, &sampling.top_p);
  fields_.Integer("top_k", -1, kMaxInt, &sampling.top_k);
  fields_.Number("min_p", 0, 1, &sampling.min_p);
  fields_.Number("presence_penalty", -2, 2, &sampling.presence_penalty);
  fields_.Number("frequency_penalty", -2, 2, &sampling.frequency_penalty);
  fields_.Number("repetition_penalty", 1e-6, 1e6, &sampling.repetition_penalty);
  fields_.LogitBias("logit_bias", context_.vocab_size, &sampling.logit_bias);
  fields_.Bool("skip_special_tokens", &sampling.skip_special_tokens);
  if (fields_.Has("seed")) {
    int64_t seed = 0;
    fields_.Integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), &seed);
    sampling.seed = static_cast<uint64_t>(seed);
  }
}

void RequestParser::Stops() {
  SamplingParams& sampling = request_.sampling;
  fields_.TextList("stop", &sampling.stop);
  for (const std::string& text : sampling.stop)
    if (text.empty()) fields_.Fail("stop", "must not hold an empty string");
  fields_.Bool("ignore_eos", &sampling.ignore_eos);
  fields_.Bool("include_stop_str_in_output", &sampling.include_stop_str_in_output);
  std::vector<int32_t> ids;
  fields_.IdList("stop_token_ids", context_.vocab_size, &ids);
  if (sampling.ignore_eos) sampling.stop_token_ids.clear();      // ends of sequence from generation_config.json
  sampling.stop_token_ids.insert(sampling.stop_token_ids.end(), ids.begin(), ids.end());
}

void RequestParser::Length() {
  SamplingParams& sampling = request_.sampling;
  const char* name = chat() && fields_.Has("max_completion_tokens") ? "max_completion_tokens" : "max_tokens";
  length_given_ = fields_.Has(name);
  if (!chat()) fields_.Bool("echo", &request_.echo);
  sampling.max_tokens = kCompletionDefaultTokens;
  fields_.Integer(name, request_.echo ? 0 : 1, kMaxInt, &sampling.max_tokens);
  request_.score_only = sampling.max_tokens == 0;
  if (request_.score_only) sampling.max_tokens = 1;
  fields_.Integer("min_tokens", 0, kMaxInt, &sampling.min_tokens);
}

void RequestParser::Logprobs() {
  SamplingParams& sampling = request_.sampling;
  int32_t count = 0;
  if (chat()) {
    bool wanted = false;
    fields_.Bool("logprobs", &wanted);
    fields_.Integer("top_logprobs", 0, kMaxLogprobs, &count);
    if (count > 0 && !wanted) fields_.Fail("top_logprobs", "needs logprobs to be true");
    if (wanted) sampling.logprobs = count;
    return;
  }
  if (!fields_.Has("logprobs")) return;
  fields_.Integer("logprobs", 0, kMaxLogprobs, &count);
  sampling.logprobs = count;
  if (request_.echo) sampling.prompt_logprobs = count;
}

void RequestParser::Streaming() {
  fields_.Bool("stream", &request_.stream);
  const json::value* options = fields_.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return fields_.Fail("stream_options", "must be an object");
  if (!request_.stream) return fields_.Fail("stream_options", "is only allowed when stream is true");
  ApiFields inner(options->get_object());
  inner.Bool("include_usage", &request_.include_usage);
  if (inner.error().has_value()) fields_.Fail("stream_options.include_usage", "must be true or false");
}

// Fields whose silent neglect would give a wrong answer.
void RequestParser::Unsupported() {
  int32_t best_of = request_.sampling.n;
  fields_.Integer("best_of", 1, kMaxChoices, &best_of);
  if (best_of != request_.sampling.n) fields_.Fail("best_of", "must equal n: choices are not ranked");
  std::string suffix;
  fields_.Text("suffix", &suffix);
  if (!suffix.empty()) fields_.Fail("suffix", "is not supported");
}

void RequestParser::ResponseFormat() {
  const json::value* format = fields_.Find("response_format");
  if (format == nullptr) return;
  const json::value* type = format->is_object() ? format->get_object().if_contains("type") : nullptr;
  if (type == nullptr || !type->is_string()) return fields_.Fail("response_format", "must be an object with a type");
  if (type->get_string() == "text") return;
  if (context_.grammars == nullptr) return fields_.Fail("response_format", "only the type text is supported here");
  if (request_.sampling.min_tokens > 0) return fields_.Fail("min_tokens", "cannot stand beside response_format");
  if (type->get_string() == "json_object") return Constrain(context_.grammars->JsonObject());
  if (type->get_string() != "json_schema") {
    return fields_.Fail("response_format", "the type must be text, json_object or json_schema");
  }
  const json::value* named = format->get_object().if_contains("json_schema");
  const json::value* schema =
      named != nullptr && named->is_object() ? named->get_object().if_contains("schema") : nullptr;
  if (schema == nullptr) return fields_.Fail("response_format", "json_schema.schema is missing");
  Constrain(context_.grammars->JsonSchema(json::serialize(*schema)));
}

void RequestParser::Constrain(Result<std::shared_ptr<const TokenConstraint>> constraint) {
  if (!constraint.ok()) return fields_.Fail("response_format", constraint.status().message());
  request_.constraint = std::move(constraint).value();
}

bool RequestParser::Ids(const json::array& array, std::vector<int32_t>* ids) {
  for (const json::value& item : array) {
    std::optional<int64_t> id = AsInteger(item);
    if (!id.has_value()) return fields_.Fail("prompt", "must not mix token ids with other things"), false;
    if (*id < 0 || *id >= context_.vocab_size) {
      fields_.Fail("prompt", fmt::format("token id {} is not from 0 to {}", *id, context_.vocab_size - 1));
      return false;
    }
    ids->push_back(static_cast<int32_t>(*id));
  }
  return true;
}

void RequestParser::AddEncoded(const char* field, std::string text, Result<std::vector<int32_t>> ids) {
  if (!ids.ok()) return fields_.Fail(field, ids.status().message());
  if (ids->empty()) return fields_.Fail(field, "is empty");
  request_.prompts.push_back({std::move(text), std::move(ids).value()});
}

// One element of a list of prompts: a text, or token ids.
void RequestParser::PromptItem(const json::value& item) {
  if (item.is_string()) {
    std::string text(item.get_string());
    auto ids = context_.codec->EncodePrompt(text);
    return AddEncoded("prompt", std::move(text), std::move(ids));
  }
  if (!item.is_array()) return fields_.Fail("prompt", "must be text, token ids, or a list of either");
  std::vector<int32_t> ids;
  if (!Ids(item.get_array(), &ids)) return;
  std::string text = request_.echo ? context_.codec->Decode(ids) : "";
  AddEncoded("prompt", std::move(text), std::move(ids));
}

void RequestParser::Prompts() {
  const json::value* prompt = fields_.Find("prompt");
  if (prompt == nullptr) return fields_.Fail("prompt", "is missing");
  bool is_list = prompt->is_array() && !prompt->get_array().empty() && !AsInteger(prompt->get_array()[0]).has_value();
  if (!is_list) return PromptItem(*prompt);
  for (const json::value& item : prompt->get_array()) {
    PromptItem(item);
    if (fields_.error().has_value()) return;
  }
}

// A message whose content is text: a list of text parts is joined, as templates expect text.
json::value RequestParser::PlainMessage(const json::value& message, const std::string& field) {
  const json::object* object = message.if_object();
  const json::value* role = object == nullptr ? nullptr : object->if_contains("role");
  if (role == nullptr || !role->is_string()) return fields_.Fail(field + ".role", "must be a string"), nullptr;
  json::object plain = *object;
  json::value& content = plain["content"];
  if (content.is_null() || content.is_string()) return plain;
  if (!content.is_array()) return fields_.Fail(field + ".content", "must be text or a list of text parts"), nullptr;
  std::string text;
  for (const json::value& part : content.get_array()) {
    const json::value* piece = part.is_object() ? part.get_object().if_contains("text") : nullptr;
    if (piece == nullptr || !piece->is_string()) {
      return fields_.Fail(field + ".content", "only parts of the type text are supported"), nullptr;
    }
    if (!text.empty()) text += '\n';
    text += std::string_view(piece->get_string());
  }
  content = text;
  return plain;
}

void RequestParser::Messages() {
  const json::value* messages = fields_.Find("messages");
  if (messages == nullptr) return fields_.Fail("messages", "is missing");
  if (!messages->is_array() || messages->get_array().empty()) {
    return fields_.Fail("messages", "must be a list of at least one message");
  }
  json::array plain;
  for (size_t i = 0; i < messages->get_array().size(); ++i) {
    plain.push_back(PlainMessage(messages->get_array()[i], fmt::format("messages[{}]", i)));
    if (fields_.error().has_value()) return;
  }
  ChatInput chat{.messages = json::serialize(plain)};
  fields_.Bool("add_generation_prompt", &chat.add_generation_prompt);
  if (const json::value* tools = fields_.Find("tools")) {
    if (!tools->is_array()) return fields_.Fail("tools", "must be a list");
    if (!tools->get_array().empty()) chat.tools = json::serialize(*tools);
  }
  if (const json::value* extra = fields_.Find("chat_template_kwargs")) {
    if (!extra->is_object()) return fields_.Fail("chat_template_kwargs", "must be an object");
    chat.extra = json::serialize(*extra);
  }
  if (!fields_.error().has_value()) AddEncoded("messages", "", context_.codec->EncodeChat(chat));
}

void RequestParser::CheckContext() {
  if (fields_.error().has_value()) return;
  SamplingParams& sampling = request_.sampling;
  size_t longest = 0;
  for (const ApiPrompt& prompt : request_.prompts) longest = std::max(longest, prompt.ids.size());
  int64_t left = context_.max_model_len - static_cast<int64_t>(longest);
  if (!length_given_ && left >= 1) {
    sampling.max_tokens = static_cast<int32_t>(chat() ? left : std::min<int64_t>(left, kCompletionDefaultTokens));
  }
  if (left < sampling.max_tokens) {
    fields_.Fail(
        chat() ? "messages" : "prompt",
        fmt::format("this model's maximum context length is {} tokens, but {} were requested ({} in the prompt, "
                    "{} in the completion)",
                    context_.max_model_len, longest + static_cast<size_t>(sampling.max_tokens), longest,
                    sampling.max_tokens));
  } else if (sampling.min_tokens > sampling.max_tokens) {
    fields_.Fail("min_tokens", fmt::format("{} is more than max_tokens, which is {}", sampling.min_tokens,
                                           sampling.max_tokens));
  }
}

std::variant<ApiRequest, ApiError> RequestParser::Parse() {
  fields_.Text("model", &request_.model);
  Sampling();
  Stops();
  Length();
  Logprobs();
  Streaming();
  Unsupported();
  if (!fields_.error().has_value()) ResponseFormat();
  if (!fields_.error().has_value()) chat() ? Messages() : Prompts();
  CheckContext();
  if (fields_.error().has_value()) return *fields_.error();
  Status status = ValidateSamplingParams(request_.sampling, context_.vocab_size);
  if (!status.ok()) return ApiError{.message = status.message()};
  return std::move(request_);
}

}  // namespace

std::variant<ApiRequest, ApiError> ParseApiRequest(ApiEndpoint endpoint, const std::string& body,
                                                   const ApiContext& context) {
  boost::system::error_code error;
  json::value root = json::parse(body, error);
  if (error) return ApiError{.message = "the body is not valid JSON: " + error.message()};
  if (!root.is_object()) return ApiError{.message = "the body must be a JSON object"};
  return RequestParser(endpoint, root.get_object(), context).Parse();
}

}  // namespace latentmesh
