// Bodies of /v1/completions and /v1/chat/completions: parsing and validation, for `batch` and the HTTP front end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "launch/text_codec.h"
#include "runtime/grammar/token_grammar.h"
#include "runtime/sample/sampling_params.h"

namespace latentmesh {

enum class ApiEndpoint : uint8_t { kCompletions, kChatCompletions };

// An answer in OpenAI's error form.
struct ApiError {
  int http_status = 400;
  std::string message;
  std::string param;                          // the field; empty when it is none in particular
  std::string type = "invalid_request_error";
  std::string code;
};

struct ApiPrompt {
  std::string text;                           // as given; decoded when token ids were given and `echo` needs it
  std::vector<int32_t> ids;
};

struct ApiRequest {
  ApiEndpoint endpoint = ApiEndpoint::kCompletions;
  std::string model;                          // as the client named it; may be empty
  std::vector<ApiPrompt> prompts;             // one request to the engine for each
  SamplingParams sampling;
  bool echo = false;
  bool score_only = false;                    // echo with max_tokens 0: one token is generated and left out
  bool stream = false;
  bool include_usage = false;
  std::shared_ptr<const TokenConstraint> constraint;   // of response_format
};

struct ApiContext {
  const TextCodec* codec = nullptr;
  int64_t vocab_size = 0;
  int max_model_len = 0;
  SamplingParams defaults;                    // of the checkpoint's generation_config.json
  TokenGrammars* grammars = nullptr;          // for response_format; without them only text is possible
};

// Unknown fields are ignored; wrong ones give an error that names the field. Token counts are checked against
// max_model_len. max_tokens is 16 for completions, and what the context leaves for chats, unless given.
std::variant<ApiRequest, ApiError> ParseApiRequest(ApiEndpoint endpoint, const std::string& body,
                                                   const ApiContext& context);

}  // namespace latentmesh
