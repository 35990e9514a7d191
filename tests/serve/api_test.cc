// The OpenAI endpoints over a stub engine.
#include <gmock/gmock.h>

#include <boost/json.hpp>

#include "tests/serve/serve_fixture.h"

namespace latentmesh {
namespace {

namespace json = boost::json;
using testing::AllOf;
using testing::HasSubstr;

json::value Parse(const std::string& text) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  EXPECT_FALSE(error) << text;
  return value;
}

std::string Words(int32_t choice, int32_t count) {
  std::string text;
  for (int32_t i = 0; i < count; ++i) text += StubEngine::TokenText(choice, i);
  return text;
}

// The data of all events of a stream, which must end with [DONE].
std::vector<json::value> Events(const std::string& body) {
  std::vector<json::value> events;
  size_t at = 0;
  while (at < body.size()) {
    size_t end = body.find("\n\n", at);
    EXPECT_EQ(body.compare(at, 6, "data: "), 0) << body.substr(at);
    std::string data = body.substr(at + 6, end - at - 6);
    at = end + 2;
    if (data == "[DONE]") {
      EXPECT_EQ(at, body.size());
      return events;
    }
    events.push_back(Parse(data));
  }
  ADD_FAILURE() << "no [DONE]";
  return events;
}

TEST_F(ServeTest, Completion) {
  Start();
  HttpClient client(port());
  ClientResponse response =
      client.Post("/v1/completions", R"({"prompt": "Hello", "max_tokens": 5, "n": 2})", "X-Request-Id: mine-1\r\n");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Header("X-Request-Id"), "mine-1");
  EXPECT_EQ(response.Header("Access-Control-Allow-Origin"), "");
  json::value body = Parse(response.body);
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_EQ(body.at("model"), "stub");
  ASSERT_EQ(body.at("choices").as_array().size(), 2u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(body.at("choices").at(i).at("text").as_string(), Words(i, 5).c_str());
    EXPECT_EQ(body.at("choices").at(i).at("finish_reason"), "length");
  }
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 10);
}

TEST_F(ServeTest, ListsOfPromptsAndTokenIds) {
  Start();
  HttpClient client(port());
  json::value body = Parse(client.Post("/v1/completions", R"({"prompt": [[5, 6], [7, 8, 9]], "max_tokens": 2})").body);
  ASSERT_EQ(body.at("choices").as_array().size(), 2u);
  EXPECT_EQ(body.at("choices").at(1).at("index"), 1);
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 5);
  body = Parse(client.Post("/v1/completions", R"({"prompt": ["a", "b", "c"], "max_tokens": 1})").body);
  EXPECT_EQ(body.at("choices").as_array().size(), 3u);
}

TEST_F(ServeTest, StreamedTextEqualsTheWhole) {
  Start();
  HttpClient client(port());
  ClientResponse response = client.Post(
      "/v1/completions",
      R"({"prompt": "Hello", "max_tokens": 40, "n": 2, "stream": true, "stream_options": {"include_usage": true}})");
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.Header("Content-Type"), HasSubstr("text/event-stream"));
  std::string texts[2], finish[2];
  auto events = Events(response.body);
  ASSERT_GE(events.size(), 2u);
  EXPECT_TRUE(events.back().at("choices").as_array().empty());
  EXPECT_EQ(events.back().at("usage").at("completion_tokens"), 80);
  events.pop_back();
  for (const json::value& event : events) {
    EXPECT_TRUE(event.at("usage").is_null());
    const json::value& choice = event.at("choices").at(0);
    auto index = static_cast<size_t>(choice.at("index").as_int64());
    texts[index] += choice.at("text").as_string();
    if (!choice.at("finish_reason").is_null()) finish[index] = choice.at("finish_reason").as_string();
  }
  for (int i = 0; i < 2; ++i) EXPECT_EQ(texts[i], Words(i, 40));
  for (int i = 0; i < 2; ++i) EXPECT_EQ(finish[i], "length");
}

TEST_F(ServeTest, StreamedChatBeginsWithTheRole) {
  Start();
  HttpClient client(port());
  ClientResponse response = client.Post(
      "/v1/chat/completions", R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": true,
                                  "logprobs": true, "top_logprobs": 1})");
  auto events = Events(response.body);
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events[0].at("choices").at(0).at("delta").at("role"), "assistant");
  std::string text;
  size_t scored = 0;
  for (const json::value& event : events) {
    text += event.at("choices").at(0).at("delta").at("content").as_string();
    const json::value& logprobs = event.at("choices").at(0).at("logprobs");
    if (!logprobs.is_null()) scored += logprobs.at("content").as_array().size();
  }
  EXPECT_EQ(text, Words(0, 4));
  EXPECT_EQ(scored, 4u);
}

TEST_F(ServeTest, EchoInAStreamComesFirst) {
  Start();
  HttpClient client(port());
  ClientResponse response = client.Post(
      "/v1/completions", R"({"prompt": "Hello", "max_tokens": 3, "stream": true, "echo": true, "logprobs": 1})");
  auto events = Events(response.body);
  ASSERT_GE(events.size(), 2u);
  const json::value& first = events[0].at("choices").at(0);
  EXPECT_EQ(first.at("text"), "Hello");
  EXPECT_TRUE(first.at("logprobs").at("token_logprobs").at(0).is_null());
  int64_t last = -1;
  for (const json::value& event : events) {
    for (const json::value& offset : event.at("choices").at(0).at("logprobs").at("text_offset").as_array()) {
      EXPECT_GE(offset.as_int64(), last);
      last = offset.as_int64();
    }
  }
}

TEST_F(ServeTest, WrongFieldsAreNamed) {
  Start();
  HttpClient client(port());
  const std::pair<const char*, const char*> cases[] = {
      {R"({"prompt": "x", "top_p": 7})", "top_p"},
      {R"({"prompt": "x", "temperature": "hot"})", "temperature"},
      {R"({"prompt": "x", "n": 0})", "n"},
      {R"({"prompt": "x", "max_tokens": 1e99})", "max_tokens"},
      {R"({"prompt": "x", "stop": [1]})", "stop"},
      {R"({"max_tokens": 1})", "prompt"},
      {R"({"prompt": [13], "max_tokens": 1})", "prompt"},
      {R"({"prompt": "x", "stream_options": {}})", "stream_options"},
  };
  for (const auto& [body, param] : cases) {
    ClientResponse response = client.Post("/v1/completions", body);
    EXPECT_EQ(response.status, 400) << body;
    json::value error = Parse(response.body).at("error");
    EXPECT_EQ(error.at("param"), param) << body;
    EXPECT_EQ(error.at("type"), "invalid_request_error");
  }
  for (const char* body : {"", "{", "[]", "null", "{\"prompt\": \"\xff\"}", "{\"prompt\": 1e400}"}) {
    EXPECT_EQ(client.Post("/v1/completions", body).status, 400) << body;
  }
  EXPECT_EQ(client.Post("/v1/completions", std::string(200000, '[')).status, 400);
  ClientResponse missing = client.Post("/v1/completions", R"({"prompt": "x", "model": "other"})");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(Parse(missing.body).at("error").at("code"), "model_not_found");
  EXPECT_EQ(engine_->live(), 0);
}

TEST_F(ServeTest, ResponseFormats) {
  Start();
  HttpClient client(port());
  auto ask = [&](const std::string& format) {
    return client.Post("/v1/completions",
                       "{\"prompt\": \"x\", \"max_tokens\": 2, \"response_format\": " + format + "}");
  };
  EXPECT_EQ(ask(R"({"type": "text"})").status, 200);
  EXPECT_EQ(engine_->constrained, 0);
  EXPECT_EQ(ask(R"({"type": "json_object"})").status, 200);
  EXPECT_EQ(ask(R"({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}})").status, 200);
  EXPECT_EQ(engine_->constrained, 2);
  for (const char* format :
       {R"("json")", R"({"type": "xml"})", R"({"type": "json_schema"})",
        R"({"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "a"}}})"}) {
    ClientResponse response = ask(format);
    EXPECT_EQ(response.status, 400) << format;
    EXPECT_EQ(Parse(response.body).at("error").at("param"), "response_format");
  }
}

TEST_F(ServeTest, InformationEndpoints) {
  Start();
  HttpClient client(port());
  EXPECT_EQ(client.Get("/health").status, 200);
  EXPECT_EQ(Parse(client.Get("/version").body).at("version"), LATENTMESH_VERSION);
  EXPECT_EQ(Parse(client.Get("/v1/models").body).at("data").at(0).at("id"), "stub");
  EXPECT_EQ(Parse(client.Get("/v1/models").body).at("data").at(0).at("vocab_size"), tokenizer_->vocab_size());
  json::value tokens = Parse(client.Post("/tokenize", R"({"prompt": "hello world"})").body);
  auto expected = tokenizer_->Encode("hello world");
  ASSERT_EQ(tokens.at("count"), expected.size());
  std::string ids = json::serialize(tokens.at("tokens"));
  EXPECT_EQ(Parse(client.Post("/detokenize", "{\"tokens\": " + ids + "}").body).at("prompt"), "hello world");
  EXPECT_EQ(client.Post("/detokenize", R"({"tokens": [99999999]})").status, 400);
  client.Post("/v1/completions", R"({"prompt": "Hello", "max_tokens": 5})");
  std::string metrics = client.Get("/metrics").body;
  for (const char* name : {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
                           "generation_tokens_total 5", "prefix_cache_queries_total", "prefix_cache_hits_total",
                           "prefix_cache_fetched_tokens_total", "migrated_sequences_total", "handed_over_sequences_total",
                           "moved_blocks_total", "num_preemptions_total", "spec_decode_num_drafts_total 3",
                           "spec_decode_num_draft_tokens_total 6", "spec_decode_num_accepted_tokens_total 4",
                           "request_success_total{finished_reason=\"length\"} 1",
                           "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_count 4",
                           "e2e_request_latency_seconds_count 1", "request_queue_time_seconds_sum",
                           "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum"}) {
    EXPECT_THAT(metrics, HasSubstr(std::string("latentmesh:") + name));
  }
  ClientResponse page = client.Get("/");
  EXPECT_THAT(page.Header("Content-Type"), HasSubstr("text/html"));
  EXPECT_THAT(page.body, HasSubstr("latentmesh"));
  client.Send("GET /stats/stream HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("}\n\n"),
              AllOf(HasSubstr("text/event-stream"), HasSubstr("\"expert_load\":[5.5E1,2.5E1]"),
                    HasSubstr("\"expert_loads\":[[400,0,0,0,0,200,100,100],[0,0,0,0,0,0,0,0]]")));
}

TEST_F(ServeTest, ApiKey) {
  front_end_options_.api_key = "secret";
  Start();
  HttpClient client(port());
  EXPECT_EQ(client.Get("/v1/models").status, 401);
  EXPECT_EQ(client.Get("/v1/models", "Authorization: Bearer secre\r\n").status, 401);
  EXPECT_EQ(client.Get("/v1/models", "Authorization: Bearer secrets\r\n").status, 401);
  EXPECT_EQ(client.Get("/v1/models", "Authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(client.Get("/metrics").status, 401);
  EXPECT_EQ(client.Get("/health").status, 200);
}

TEST_F(ServeTest, ClosedConnectionCancels) {
  engine_->step_micros = 2000;
  Start();
  {
    HttpClient streaming(port()), waiting(port());
    streaming.Send(HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 4000, "stream": true})"));
    waiting.Send(HttpClient::PostText("/v1/completions", R"({"prompt": ["a", "b"], "max_tokens": 4000})"));
    EXPECT_THAT(streaming.ReadUntil("w0_3"), HasSubstr("w0_3"));
    ASSERT_TRUE(Eventually([&] { return engine_->live() == 3; }));
  }
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; }));
  EXPECT_EQ(engine_->cancelled, 3);
}

TEST_F(ServeTest, FullQueueIs429) {
  front_end_options_.max_queue = 2;
  engine_->paused = true;
  Start();
  HttpClient first(port()), second(port()), third(port());
  first.Send(HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 2})"));
  second.Send(HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 2})"));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 2; }));
  ClientResponse refused = third.Post("/v1/completions", R"({"prompt": "a"})");
  EXPECT_EQ(refused.status, 429);
  EXPECT_NE(refused.Header("Retry-After"), "");
  engine_->paused = false;
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  EXPECT_EQ(third.Post("/v1/completions", R"({"prompt": "a"})").status, 200);
}

TEST_F(ServeTest, HealthFailsWhenTheEngineStands) {
  front_end_options_.health_timeout = 0.2;
  Start();
  HttpClient client(port());
  EXPECT_EQ(client.Get("/health").status, 200);
  engine_->paused = true;
  EXPECT_TRUE(Eventually([&] { return client.Get("/health").status == 503; }));
  engine_->paused = false;
  EXPECT_TRUE(Eventually([&] { return client.Get("/health").status == 200; }));
}

TEST_F(ServeTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  engine_->step_micros = 5000;
  Start();
  HttpClient running(port());
  running.Send(HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 60})"));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  std::atomic<bool> drained{false};
  front_end_->Drain([&] { drained = true; });
  ASSERT_TRUE(Eventually([&] { return HttpClient(port()).Get("/health").status == 503; }));
  EXPECT_EQ(HttpClient(port()).Post("/v1/completions", R"({"prompt": "a"})").status, 503);
  EXPECT_FALSE(drained);
  ClientResponse response = running.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Parse(response.body).at("choices").at(0).at("text").as_string(), Words(0, 60).c_str());
  EXPECT_TRUE(Eventually([&] { return drained.load(); }));
}

TEST_F(ServeTest, RequestTimeout) {
  front_end_options_.request_timeout = 0.3;
  engine_->step_micros = 20000;
  Start();
  HttpClient whole(port()), streamed(port());
  streamed.Send(HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 3000, "stream": true})"));
  EXPECT_EQ(whole.Post("/v1/completions", R"({"prompt": "a", "max_tokens": 3000})").status, 504);
  EXPECT_THAT(streamed.Read().body, HasSubstr("timeout_error"));
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; }));
}

TEST_F(ServeTest, SlowReaderIsClosedAndDelaysNobody) {
  front_end_options_.max_lag = 256 << 10;
  Start();
  HttpClient slow(port(), 20, 4096);
  slow.Send(
      HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 4000, "n": 128, "stream": true})"));
  HttpClient quick(port());
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(quick.Post("/v1/completions", R"({"prompt": "a", "max_tokens": 20})").status, 200);
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; }));
  EXPECT_THAT(quick.Get("/metrics").body, HasSubstr("latentmesh:slow_readers_closed_total 1"));
}

}  // namespace
}  // namespace latentmesh
