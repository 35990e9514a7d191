// Request bodies in, answers out, with the demo model's tokenizer and template.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "launch/openai_request.h"
#include "launch/openai_response.h"

namespace latentmesh {
namespace {

namespace json = boost::json;
using testing::ElementsAre;
using testing::HasSubstr;

class OpenAiTest : public testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load("launch/demo");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    tokenizer_ = std::move(tokenizer).value();
    codec_ = std::make_unique<TextCodec>(TextCodec::Open(tokenizer_.get()));
    context_ = {codec_.get(), 4096, 256, {.temperature = 0.6f, .stop_token_ids = {7}}};
  }
  ApiRequest Completion(const std::string& body) { return Good(ApiEndpoint::kCompletions, body); }
  ApiRequest Chat(const std::string& body) { return Good(ApiEndpoint::kChatCompletions, body); }
  ApiRequest Good(ApiEndpoint endpoint, const std::string& body) {
    auto parsed = ParseApiRequest(endpoint, body, context_);
    if (auto* error = std::get_if<ApiError>(&parsed)) {
      ADD_FAILURE() << body << ": " << error->message;
      return {};
    }
    return std::get<ApiRequest>(parsed);
  }
  ApiError Bad(ApiEndpoint endpoint, const std::string& body) {
    auto parsed = ParseApiRequest(endpoint, body, context_);
    if (auto* error = std::get_if<ApiError>(&parsed)) return *error;
    ADD_FAILURE() << body << " was accepted";
    return {};
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TextCodec> codec_;
  ApiContext context_;
};

TEST_F(OpenAiTest, DefaultsComeFromTheCheckpoint) {
  ApiRequest request = Completion(R"({"prompt": "In the beginning", "unknown_field": {"a": 1}, "top_p": null})");
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(request.prompts[0].ids, tokenizer_->Encode("In the beginning"));
  EXPECT_EQ(request.sampling.temperature, 0.6f);
  EXPECT_EQ(request.sampling.max_tokens, 16);
  EXPECT_THAT(request.sampling.stop_token_ids, ElementsAre(7));
}

TEST_F(OpenAiTest, ReadsEverySamplingField) {
  SamplingParams sampling = Completion(R"({"prompt": [5, 6.0], "n": 3, "temperature": 0, "top_p": 0.5, "top_k": -1,
      "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1.5, "repetition_penalty": 1.25, "seed": -4,
      "stop": ["a", "b"], "stop_token_ids": [9], "ignore_eos": true, "max_tokens": 20, "min_tokens": 2, "logprobs": 4,
      "logit_bias": {"12": -100, "13": 2.5}, "echo": true, "skip_special_tokens": false,
      "include_stop_str_in_output": true})").sampling;
  EXPECT_EQ(sampling.n, 3);
  EXPECT_EQ(sampling.temperature, 0);
  EXPECT_EQ(sampling.top_p, 0.5f);
  EXPECT_EQ(sampling.top_k, -1);
  EXPECT_EQ(sampling.min_p, 0.1f);
  EXPECT_EQ(sampling.presence_penalty, 1);
  EXPECT_EQ(sampling.frequency_penalty, -1.5f);
  EXPECT_EQ(sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(sampling.seed, static_cast<uint64_t>(-4));
  EXPECT_THAT(sampling.stop, ElementsAre("a", "b"));
  EXPECT_THAT(sampling.stop_token_ids, ElementsAre(9));      // ignore_eos drops the checkpoint's 7
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_EQ(sampling.max_tokens, 20);
  EXPECT_EQ(sampling.min_tokens, 2);
  EXPECT_EQ(sampling.logprobs, 4);
  EXPECT_EQ(sampling.prompt_logprobs, 4);
  EXPECT_EQ(sampling.logit_bias.size(), 2u);
  EXPECT_FALSE(sampling.skip_special_tokens);
  EXPECT_TRUE(sampling.include_stop_str_in_output);
}

TEST_F(OpenAiTest, TakesAllFormsOfPrompts) {
  EXPECT_EQ(Completion(R"({"prompt": ["a", "b", "c"]})").prompts.size(), 3u);
  auto ids = Completion(R"({"prompt": [[1, 2], [3]]})").prompts;
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_THAT(ids[0].ids, ElementsAre(1, 2));
  EXPECT_THAT(ids[1].ids, ElementsAre(3));
  EXPECT_EQ(Completion(R"({"prompt": [5, 6]})").prompts.size(), 1u);
}

TEST_F(OpenAiTest, ErrorsNameTheField) {
  struct Case {
    const char* body;
    const char* param;
  } cases[] = {
      {R"({})", "prompt"},
      {R"({"prompt": 5})", "prompt"},
      {R"({"prompt": []})", "prompt"},
      {R"({"prompt": [1, "a"]})", "prompt"},
      {R"({"prompt": [4096]})", "prompt"},
      {R"({"prompt": [-1]})", "prompt"},
      {R"({"prompt": [1, 2.5]})", "prompt"},
      {R"({"prompt": [[1], []]})", "prompt"},
      {R"({"prompt": "a", "model": 5})", "model"},
      {R"({"prompt": "a", "temperature": "hot"})", "temperature"},
      {R"({"prompt": "a", "temperature": -1})", "temperature"},
      {R"({"prompt": "a", "temperature": 1e999})", "temperature"},
      {R"({"prompt": "a", "top_p": 1.5})", "top_p"},
      {R"({"prompt": "a", "top_k": -2})", "top_k"},
      {R"({"prompt": "a", "n": 0})", "n"},
      {R"({"prompt": "a", "n": 1.5})", "n"},
      {R"({"prompt": "a", "n": true})", "n"},
      {R"({"prompt": "a", "max_tokens": 0})", "max_tokens"},
      {R"({"prompt": "a", "max_tokens": 99999999999})", "max_tokens"},
      {R"({"prompt": "a", "max_tokens": 4, "min_tokens": 5})", "min_tokens"},
      {R"({"prompt": "a", "max_tokens": 4000})", "prompt"},
      {R"({"prompt": "a", "stop": 5})", "stop"},
      {R"({"prompt": "a", "stop": [""]})", "stop"},
      {R"({"prompt": "a", "stop_token_ids": [99999]})", "stop_token_ids"},
      {R"({"prompt": "a", "logprobs": 21})", "logprobs"},
      {R"({"prompt": "a", "logit_bias": {"x": 1}})", "logit_bias"},
      {R"({"prompt": "a", "logit_bias": {"1": 101}})", "logit_bias"},
      {R"({"prompt": "a", "best_of": 4})", "best_of"},
      {R"({"prompt": "a", "suffix": "b"})", "suffix"},
      {R"({"prompt": "a", "stream": "yes"})", "stream"},
      {R"({"prompt": "a", "stream_options": {}})", "stream_options"},
      {R"({"prompt": "a", "response_format": {"type": "json_object"}})", "response_format"},
      {R"({"prompt": "a", "seed": 1e30})", "seed"},
  };
  for (const Case& c : cases) {
    ApiError error = Bad(ApiEndpoint::kCompletions, c.body);
    EXPECT_EQ(error.param, c.param) << c.body << ": " << error.message;
    EXPECT_EQ(error.http_status, 400);
    EXPECT_FALSE(error.message.empty());
  }
  EXPECT_THAT(Bad(ApiEndpoint::kCompletions, "{").message, HasSubstr("JSON"));
  EXPECT_THAT(Bad(ApiEndpoint::kCompletions, "[1]").message, HasSubstr("object"));
}

TEST_F(OpenAiTest, ChatRendersTheTemplateOnce) {
  ApiRequest request =
      Chat(R"({"messages": [{"role": "user", "content": "Hello"}], "logprobs": true, "top_logprobs": 2})");
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(request.prompts[0].ids,
            tokenizer_->Encode("<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜>", false));
  EXPECT_EQ(request.sampling.max_tokens, 256 - static_cast<int>(request.prompts[0].ids.size()));
  EXPECT_EQ(request.sampling.logprobs, 2);
  EXPECT_EQ(Chat(R"({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 5})").sampling.max_tokens,
            5);
  auto parts = Chat(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hel"},
                                                                 {"type": "text", "text": "lo"}]}]})");
  EXPECT_EQ(parts.prompts[0].ids, Chat(R"({"messages": [{"role": "user", "content": "Hel\nlo"}]})").prompts[0].ids);
}

TEST_F(OpenAiTest, ChatErrorsNameTheField) {
  EXPECT_EQ(Bad(ApiEndpoint::kChatCompletions, R"({})").param, "messages");
  EXPECT_EQ(Bad(ApiEndpoint::kChatCompletions, R"({"messages": []})").param, "messages");
  EXPECT_EQ(Bad(ApiEndpoint::kChatCompletions, R"({"messages": [{"content": "a"}]})").param, "messages[0].role");
  EXPECT_EQ(
      Bad(ApiEndpoint::kChatCompletions, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})")
          .param,
      "messages[0].content");
  EXPECT_EQ(Bad(ApiEndpoint::kChatCompletions, R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})")
                .param,
            "top_logprobs");
}

Collector Answer(const std::vector<int32_t>& ids, const std::string& text) {
  Collector answer;
  CollectedChoice choice{.text = text, .token_ids = ids, .finish = FinishReason::kLength};
  for (int32_t id : ids) choice.logprobs.push_back({id, -0.5f, 1, {{id, -0.5f}}});
  answer.choices = {choice};
  answer.prompt_tokens = 2;
  answer.completion_tokens = static_cast<int32_t>(ids.size());
  return answer;
}

TEST_F(OpenAiTest, CompletionAnswersHaveChoicesPromptByPrompt) {
  ApiRequest request = Completion(R"({"prompt": [[1, 2], [3, 4]]})");
  json::value body =
      json::parse(CompletionBody(request, {"cmpl-1", 17, "m"}, {Answer({5}, "x"), Answer({6}, "y")}, *codec_));
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_EQ(body.at("choices").as_array().size(), 2u);
  EXPECT_EQ(body.at("choices").at(1).at("index"), 1);
  EXPECT_EQ(body.at("choices").at(1).at("text"), "y");
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_TRUE(body.at("choices").at(0).at("logprobs").is_null());
  EXPECT_EQ(body.at("usage").at("total_tokens"), 6);
}

TEST_F(OpenAiTest, EchoPutsThePromptAndItsLogprobsFirst) {
  ApiRequest request = Completion(R"({"prompt": "ab", "echo": true, "logprobs": 1, "max_tokens": 0})");
  EXPECT_TRUE(request.score_only);
  EXPECT_EQ(request.sampling.max_tokens, 1);
  Collector answer = Answer({6}, "y");
  size_t prompt = request.prompts[0].ids.size();
  for (size_t i = 1; i < prompt; ++i) answer.prompt_logprobs.push_back({request.prompts[0].ids[i], -1.0f, 1, {}});
  json::value body = json::parse(CompletionBody(request, {}, {answer}, *codec_));
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("text"), "ab");
  EXPECT_EQ(choice.at("logprobs").at("tokens").as_array().size(), prompt);
  EXPECT_TRUE(choice.at("logprobs").at("token_logprobs").at(0).is_null());
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 0);
}

TEST_F(OpenAiTest, ChatAnswersCarryBytes) {
  ApiRequest request = Chat(R"({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 1})");
  int32_t id = tokenizer_->Encode("a", false)[0];
  json::value body = json::parse(CompletionBody(request, {"chatcmpl-1", 1, "m"}, {Answer({id}, "a")}, *codec_));
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_EQ(choice.at("message").at("content"), "a");
  EXPECT_EQ(choice.at("logprobs").at("content").at(0).at("bytes").at(0), 'a');
  EXPECT_EQ(choice.at("logprobs").at("content").at(0).at("top_logprobs").as_array().size(), 1u);
}

TEST_F(OpenAiTest, PartialCharactersAreShownAsBytes) {
  std::string snowman = "\xe2\x98\x83";
  std::vector<int32_t> ids = tokenizer_->Encode(snowman, false);
  ASSERT_GT(ids.size(), 1u) << "the demo tokenizer has no token for it";
  ApiRequest request = Completion(R"({"prompt": "a", "logprobs": 0})");
  json::value body = json::parse(CompletionBody(request, {}, {Answer(ids, snowman)}, *codec_));
  const json::value& logprobs = body.at("choices").at(0).at("logprobs");
  EXPECT_THAT(std::string(logprobs.at("tokens").at(0).as_string()), HasSubstr("bytes:\\xe2"));
  EXPECT_EQ(logprobs.at("text_offset").at(0), 0);
  EXPECT_EQ(logprobs.at("text_offset").at(ids.size() - 1), 1);      // one character so far
}

TEST(ErrorBody, HasOpenAisForm) {
  json::value body = json::parse(ErrorBody({.message = "bad", .param = "top_p"}));
  EXPECT_EQ(body.at("error").at("message"), "bad");
  EXPECT_EQ(body.at("error").at("type"), "invalid_request_error");
  EXPECT_EQ(body.at("error").at("param"), "top_p");
  EXPECT_TRUE(body.at("error").at("code").is_null());
}

}  // namespace
}  // namespace latentmesh
