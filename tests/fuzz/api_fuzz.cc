// Bodies of both endpoints with the demo model's tokenizer and template. Nothing may crash; what is accepted holds what
// the engine relies on, and what is refused says why.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "launch/openai_request.h"

namespace {

using namespace latentmesh;

const ApiContext& Context() {
  static const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Load("launch/demo").value();
  static const TextCodec codec = TextCodec::Open(tokenizer.get());
  static const ApiContext context{&codec, tokenizer->vocab_size(), 256, {}};
  return context;
}

void Check(const ApiRequest& request) {
  LM_CHECK(!request.prompts.empty());
  for (const ApiPrompt& prompt : request.prompts) {
    LM_CHECK(!prompt.ids.empty());
    LM_CHECK(static_cast<int64_t>(prompt.ids.size()) + request.sampling.max_tokens <= Context().max_model_len);
    for (int32_t id : prompt.ids) LM_CHECK(id >= 0 && id < Context().vocab_size);
  }
  LM_CHECK(request.sampling.n >= 1 && request.sampling.max_tokens >= 1);
  LM_CHECK(ValidateSamplingParams(request.sampling, Context().vocab_size).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string body(reinterpret_cast<const char*>(data), size);
  for (ApiEndpoint endpoint : {ApiEndpoint::kCompletions, ApiEndpoint::kChatCompletions}) {
    auto parsed = ParseApiRequest(endpoint, body, Context());
    if (auto* request = std::get_if<ApiRequest>(&parsed)) Check(*request);
    else LM_CHECK(!std::get<ApiError>(parsed).message.empty());
  }
  return 0;
}
