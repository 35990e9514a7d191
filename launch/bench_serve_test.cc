#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <limits>
#include <thread>

#include "launch/bench_serve_client.h"
#include "launch/bench_serve_reader.h"
#include "launch/bench_serve_report.h"
#include "launch/bench_serve_stream.h"
#include "launch/command.h"
#include "launch/files.h"
#include "launch/serve_dataset.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

ServedRequest Served(double start, std::vector<double> events, int64_t input, int64_t output) {
  ServedRequest request{.ok = true, .start = start, .end = events.back()};
  request.events = std::move(events);
  request.input_tokens = input;
  request.output_tokens = output;
  return request;
}

// Three answers and a failure: TTFT 100, 200, 300 ms; TPOT (500-100)/4, (700-200)/2 ms and none of a single token.
std::vector<ServedRequest> MadeUpRequests() {
  ServedRequest failed{.ok = false, .error = "HTTP 429: busy", .start = 0.5, .end = 0.6};
  return {Served(0, {0.1, 0.2, 0.3, 0.4, 0.5}, 10, 5), failed, Served(0.4, {0.6, 0.9, 1.1}, 20, 3),
          Served(1, {1.3}, 30, 1)};
}

TEST(ServeReport, CountsRatesAndPercentiles) {
  ServeReport report = MakeServeReport(MadeUpRequests(), 2, {});
  EXPECT_EQ(report.completed, 3);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.first_error, "HTTP 429: busy");
  EXPECT_EQ(report.input_tokens, 60);
  EXPECT_EQ(report.output_tokens, 9);
  EXPECT_DOUBLE_EQ(report.PerSecond(report.completed), 1.5);
  EXPECT_DOUBLE_EQ(report.peak_output_throughput, 7);      // second 0: five and two; second 1: one and one
  EXPECT_NEAR(report.ttft.mean, 200, 1e-9);
  EXPECT_NEAR(report.ttft.median, 200, 1e-9);
  EXPECT_NEAR(report.ttft.std, 81.649658092772603, 1e-9);      // numpy.std([100, 200, 300])
  EXPECT_NEAR(report.ttft.p99, 298, 1e-9);                     // numpy.percentile([100, 200, 300], 99)
  EXPECT_NEAR(report.tpot.mean, (100 + 250) / 2.0, 1e-9);
  EXPECT_NEAR(report.itl.mean, (4 * 100 + 300 + 200) / 6.0, 1e-9);
  EXPECT_NEAR(report.e2el.median, 500, 1e-9);
  EXPECT_NEAR(report.e2el.mean, (500 + 700 + 300) / 3.0, 1e-9);
  EXPECT_FALSE(report.good.has_value());
}

TEST(ServeReport, SeveralTokensAnEventCountForThePeak) {
  ServeReport report = MakeServeReport({Served(0, {0.5, 1.5}, 1, 6)}, 2, {});
  EXPECT_DOUBLE_EQ(report.peak_output_throughput, 3);
  EXPECT_NEAR(report.tpot.mean, 1000 / 5.0, 1e-9);
}

TEST(ServeReport, GoodputNeedsAllLimits) {
  auto good = [](const std::vector<std::string>& words) {
    return MakeServeReport(MadeUpRequests(), 2, ParseServiceLevels(words).value()).good.value_or(-1);
  };
  EXPECT_EQ(good({"ttft:250"}), 2);
  EXPECT_EQ(good({"ttft:250", "tpot:150"}), 1);
  EXPECT_EQ(good({"tpot:150"}), 2);      // a single token has no TPOT to miss
  EXPECT_EQ(good({"e2el:250"}), 0);
  for (const char* wrong : {"itl:3", "ttft", "ttft:", "ttft:-1", "ttft:1x", "ttft:nan"}) {
    auto levels = ParseServiceLevels({wrong});
    ASSERT_FALSE(levels.ok()) << wrong;
    EXPECT_NE(levels.status().message().find(wrong), std::string::npos);
  }
}

TEST(ServeReport, NothingServedIsAllZeros) {
  ServeReport report = MakeServeReport({}, 0, {});
  EXPECT_EQ(report.PerSecond(3), 0);
  EXPECT_EQ(report.ttft.p99, 0);
  EXPECT_EQ(ReportText(report).find("nan"), std::string::npos);
}

TEST(ServeReport, TextHasTheExpectedLines) {
  std::string text = ReportText(MakeServeReport(MadeUpRequests(), 2, {}));
  size_t at = 0;
  for (const char* label : {"Successful requests:", "Failed requests:", "Benchmark duration (s):",
                            "Total input tokens:", "Total generated tokens:", "Request throughput (req/s):",
                            "Output token throughput (tok/s):", "Peak output token throughput (tok/s):",
                            "Total token throughput (tok/s):", "Mean TTFT (ms):", "Median TTFT (ms):",
                            "P99 TTFT (ms):", "Mean TPOT (ms):", "Median TPOT (ms):",
                            "P99 TPOT (ms):", "Mean ITL (ms):", "Median ITL (ms):", "P99 ITL (ms):", "Mean E2EL (ms):",
                            "Median E2EL (ms):", "P99 E2EL (ms):"}) {
    size_t found = text.find(std::string("\n") + label, at);      // in this order
    ASSERT_NE(found, std::string::npos) << label << "\n" << text;
    at = found + 1;
  }
  EXPECT_NE(text.find("HTTP 429: busy"), std::string::npos);
}

TEST(ServeReport, JsonHasTheExpectedKeys) {
  ServeReport report = MakeServeReport(MadeUpRequests(), 2, {});
  ServeRunInfo info{.model = "m", .request_rate = std::numeric_limits<double>::infinity()};
  json::object object = json::parse(ReportJson(report, info)).as_object();
  for (const char* key : {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
                          "request_throughput", "output_throughput", "total_token_throughput"}) {
    EXPECT_TRUE(object.contains(key)) << key;
  }
  for (const char* measure : {"ttft", "tpot", "itl", "e2el"})
    for (const char* statistic : {"mean", "median", "std", "p99"})
      EXPECT_TRUE(object.contains(std::string(statistic) + "_" + measure + "_ms")) << statistic << measure;
  EXPECT_FALSE(object.contains("spec_decode_acceptance_rate"));
  EXPECT_NEAR(object["total_token_throughput"].to_number<double>(), 69 / 2.0, 1e-12);
  report.drafts = DraftCounters{10, 40, 25};
  object = json::parse(ReportJson(report, info)).as_object();
  EXPECT_NEAR(object["spec_decode_acceptance_rate"].to_number<double>(), 25 / 40.0, 1e-12);
  EXPECT_NEAR(object["spec_decode_acceptance_length"].to_number<double>(), 3.5, 1e-12);
}

TEST(ServeReport, DraftCountersOfMetrics) {
  EXPECT_FALSE(ParseDraftCounters("latentmesh:num_requests_running 3\n").has_value());
  auto counters = ParseDraftCounters("# HELP latentmesh:spec_decode_num_drafts_total x 7\n"
                                     "latentmesh:spec_decode_num_drafts_total 12\n"
                                     "vllm:spec_decode_num_draft_tokens_total{engine=\"0\"} 30.0\n"
                                     "vllm:spec_decode_num_draft_tokens_total{engine=\"1\"} 6.0\n"
                                     "latentmesh:spec_decode_num_accepted_tokens_total 1.5e1");
  ASSERT_TRUE(counters.has_value());
  EXPECT_EQ(counters->steps, 12);
  EXPECT_EQ(counters->drafts, 36);
  EXPECT_EQ(counters->accepted, 15);
}

TEST(ServeReport, PlotShowsBothLatencies) {
  ServeReport report = MakeServeReport(MadeUpRequests(), 2, {});
  std::string svg = ReportPlot({report, report}, {{.request_rate = 1}, {.request_rate = 2}});
  EXPECT_NE(svg.find("Time to first token"), std::string::npos);
  EXPECT_NE(svg.find("Inter-token latency"), std::string::npos);
}

struct ReadResponse {
  Status status;
  bool done = false;
  int code = 0;
  std::string body;
};

ReadResponse ReadInPieces(const std::string& bytes, size_t piece, bool close = false) {
  ReadResponse result;
  ResponseReader reader([&](std::string_view body) { result.body += body; });
  for (size_t i = 0; i < bytes.size() && result.status.ok(); i += piece) {
    result.status = reader.Feed(std::string_view(bytes).substr(i, piece));
  }
  if (close && result.status.ok()) result.status = reader.Close();
  result.done = reader.done();
  result.code = reader.status();
  return result;
}

TEST(ResponseReader, AllFramingsInPiecesOfAnySize) {
  const std::string chunked = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-Encoding:  Chunked\r\n\r\n"
                              "5;ext=1\r\nhel\r\n\r\nA\r\nlo, world!\r\n0\r\nTrailer: x\r\n\r\n";
  const std::string sized = "HTTP/1.1 404 Not Found\nContent-Length: 5\n\nhello";
  const std::string open = "HTTP/1.0 200\r\nServer: x\r\n\r\nto the end";
  for (size_t piece = 1; piece <= chunked.size(); ++piece) {
    ReadResponse a = ReadInPieces(chunked, piece), b = ReadInPieces(sized, piece), c = ReadInPieces(open, piece, true);
    EXPECT_TRUE(a.status.ok() && a.done && a.code == 200) << a.status.message();
    EXPECT_EQ(a.body, "hel\r\nlo, world!");
    EXPECT_TRUE(b.status.ok() && b.done && b.code == 404) << b.status.message();
    EXPECT_EQ(b.body, "hello");
    EXPECT_TRUE(c.status.ok() && c.done && c.code == 200) << c.status.message();
    EXPECT_EQ(c.body, "to the end");
  }
}

TEST(ResponseReader, RefusesWhatIsNoResponse) {
  const std::string head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string& wrong :
       {std::string("SSH-2.0-OpenSSH\r\n"), std::string("HTTP/1.1 xx OK\r\n"), head + "zz\r\n", head + "-1\r\n",
        head + "FFFFFFFFFFFFFFFF\r\n", head + "1\r\nab\r\n", std::string("HTTP/1.1 200 OK\r\nno colon\r\n"),
        std::string("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n"), std::string(70000, 'x')}) {
    EXPECT_EQ(ReadInPieces(wrong, 7).status.code(), StatusCode::kCommunication) << wrong.substr(0, 80);
  }
  EXPECT_EQ(ReadInPieces(head + "5\r\nhel", 3, true).status.code(), StatusCode::kCommunication);      // cut off
}

TEST(EventReader, LinesAndEventsSplitAnywhere) {
  const std::string stream = ": comment\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\ndata:  lines\n\n\rid: 3\r\r"
                             "data: \xc3\xa4\r\rdata: unfinished";
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    std::vector<std::string> events;
    EventReader reader([&](const std::string& data) { events.push_back(data); });
    for (size_t i = 0; i < stream.size(); i += piece) reader.Feed(std::string_view(stream).substr(i, piece));
    EXPECT_EQ(events, (std::vector<std::string>{"{\"a\":1}", "two\n lines", "\xc3\xa4"})) << piece;
  }
}

std::string Event(const std::string& data) { return "data: " + data + "\n\n"; }

TEST(AnswerReader, CompletionsAreTimedByTheirEvents) {
  ServedRequest request;
  AnswerReader reader(&request);
  reader.Feed(200, Event(R"({"choices":[{"text":"a","finish_reason":null}]})").substr(0, 20), 1);
  reader.Feed(200, Event(R"({"choices":[{"text":"a","finish_reason":null}]})").substr(20), 2);
  reader.Feed(200, Event(R"({"choices":[{"text":"b","finish_reason":"length"}],"usage":null})"), 3);
  reader.Feed(200, Event(R"({"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}})") + Event("[DONE]"), 4);
  reader.Finish(Status::Ok(), 200, 5);
  EXPECT_TRUE(request.ok) << request.error;
  EXPECT_EQ(request.events, (std::vector<double>{2, 3}));
  EXPECT_EQ(request.end, 3);
  EXPECT_EQ(request.input_tokens, 7);
  EXPECT_EQ(request.output_tokens, 5);
}

TEST(AnswerReader, TheRoleAndTheEndOfAChatAreNoTokens) {
  ServedRequest request;
  AnswerReader reader(&request);
  reader.Feed(200, Event(R"({"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]})"), 1);
  reader.Feed(200, Event(R"({"choices":[{"delta":{"content":"a"},"finish_reason":null}]})"), 2);
  reader.Feed(200, Event(R"({"choices":[{"delta":{"content":"b"},"finish_reason":null}]})"), 3);
  reader.Feed(200, Event(R"({"choices":[{"delta":{},"finish_reason":"stop"}]})"), 4);
  reader.Finish(Status::Ok(), 200, 5);
  EXPECT_TRUE(request.ok) << request.error;
  EXPECT_EQ(request.events, (std::vector<double>{2, 3}));
  EXPECT_EQ(request.output_tokens, 2);      // no usage: events are counted
}

TEST(AnswerReader, SaysWhyARequestFailed) {
  auto error_of = [](int http_status, const std::string& body, const Status& status = Status::Ok()) {
    ServedRequest request;
    AnswerReader reader(&request);
    reader.Feed(http_status, body, 1);
    reader.Finish(status, http_status, 2);
    EXPECT_FALSE(request.ok);
    return request.error;
  };
  const std::string token = Event(R"({"choices":[{"text":"a","finish_reason":null}]})");
  EXPECT_EQ(error_of(400, R"({"error":{"message":"max_tokens is wrong"}})"), "HTTP 400: max_tokens is wrong");
  EXPECT_EQ(error_of(502, "<html>"), "HTTP 502: <html>");
  EXPECT_EQ(error_of(200, token + Event(R"({"error":{"message":"lost"}})")), "lost");
  EXPECT_NE(error_of(200, token).find("[DONE]"), std::string::npos);
  EXPECT_NE(error_of(200, Event("[DONE]")).find("no streamed choice"), std::string::npos);
  EXPECT_EQ(error_of(200, token, Status(StatusCode::kCommunication, "cut")), "cut");
  EXPECT_NE(error_of(200, Event("{\"choices\":")).find("not a JSON object"), std::string::npos);
}

TEST(ServeRequest, BodyFollowsTheEndpoint) {
  ServePrompt prompt{.text = "hi \"you\"", .output_len = 9};
  json::object body = json::parse(ServeRequestBody(prompt, {.model = "m", .ignore_eos = true})).as_object();
  EXPECT_EQ(body["prompt"].as_string(), "hi \"you\"");
  EXPECT_EQ(body["max_tokens"].as_int64(), 9);
  EXPECT_TRUE(body["ignore_eos"].as_bool());
  EXPECT_TRUE(body["stream_options"].as_object()["include_usage"].as_bool());
  body = json::parse(ServeRequestBody(prompt, {.model = "m", .chat = true})).as_object();
  EXPECT_EQ(body["messages"].as_array()[0].as_object()["content"].as_string(), "hi \"you\"");
  EXPECT_FALSE(body.contains("prompt"));
  EXPECT_FALSE(body.contains("ignore_eos"));
  prompt.ids = {3, 1, 2};
  body = json::parse(ServeRequestBody(prompt, {.model = "m"})).as_object();
  EXPECT_EQ(body["prompt"], json::value({3, 1, 2}));
}

TEST(ServeDataset, RandomPromptsShareTheirPrefixOnly) {
  RandomPrompts wanted{.count = 5, .input_len = 30, .prefix_len = 10, .output_len = 4, .vocab_size = 777, .seed = 3};
  auto prompts = MakeRandomPrompts(wanted);
  ASSERT_EQ(prompts.size(), 5u);
  for (const ServePrompt& prompt : prompts) {
    ASSERT_EQ(prompt.ids.size(), 40u);
    EXPECT_EQ(prompt.input_tokens, 40);
    EXPECT_EQ(prompt.output_len, 4);
    for (int32_t id : prompt.ids) EXPECT_TRUE(id >= 0 && id < 777);
    EXPECT_TRUE(std::equal(prompt.ids.begin(), prompt.ids.begin() + 10, prompts[0].ids.begin()));
  }
  EXPECT_NE(prompts[0].ids, prompts[1].ids);
  EXPECT_EQ(MakeRandomPrompts(wanted)[4].ids, prompts[4].ids);
  wanted.seed = 4;
  EXPECT_NE(MakeRandomPrompts(wanted)[0].ids, prompts[0].ids);
}

TEST(ServeDataset, UnknownVocabularyGivesWords) {
  auto prompts = MakeRandomPrompts({.count = 1, .input_len = 6, .output_len = 1, .seed = 1});
  EXPECT_TRUE(prompts[0].ids.empty());
  EXPECT_EQ(std::count(prompts[0].text.begin(), prompts[0].text.end(), ' '), 5);
}

TEST(ServeDataset, ConversationsOfAFile) {
  const std::string file = R"([
    {"id": "a", "conversations": [{"from": "human", "value": "question one"}, {"from": "gpt", "value": "12345678"}]},
    {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
    {"id": "c", "conversations": []}, 5, {"x": 1},
    {"messages": [{"role": "user", "content": "question two"}, {"role": "assistant", "content": "1234567890123"}]}])";
  auto prompts = ParseConversations(file, {.path = "f.json", .count = 5, .output_len = 0, .seed = 1});
  ASSERT_TRUE(prompts.ok()) << prompts.status().message();
  ASSERT_EQ(prompts->size(), 5u);
  int ones = 0;
  for (const ServePrompt& prompt : *prompts) {
    ones += prompt.text == "question one";
    EXPECT_EQ(prompt.output_len, prompt.text == "question one" ? 2 : 3);
  }
  EXPECT_TRUE(ones == 2 || ones == 3);      // both are used, and again
  EXPECT_EQ(ParseConversations(file, {.count = 1, .output_len = 50}).value()[0].output_len, 50);
  for (const char* wrong : {"{}", "[", "[]", R"([{"conversations": [1, 2]}])"}) {
    auto result = ParseConversations(wrong, {.path = "f.json", .count = 1});
    ASSERT_FALSE(result.ok()) << wrong;
    EXPECT_NE(result.status().message().find("f.json"), std::string::npos);
  }
}

TEST(ServeClient, BaseUrls) {
  ServeTarget target = ParseBaseUrl("http://localhost:8123/api/").value();
  EXPECT_EQ(target.address, "127.0.0.1");
  EXPECT_EQ(target.port, 8123);
  EXPECT_EQ(target.host, "localhost:8123");
  EXPECT_EQ(target.path, "/api");
  EXPECT_EQ(ParseBaseUrl("http://10.1.2.3").value().port, 80);
  EXPECT_EQ(ParseBaseUrl("http://[::1]:81").value().address, "::1");
  EXPECT_EQ(ParseBaseUrl("http://[::1]:81").value().port, 81);
  for (const char* wrong : {"https://127.0.0.1", "127.0.0.1:80", "http://", "http://host.example", "http://1.2.3.4:0",
                            "http://1.2.3.4:70000", "http://1.2.3.4:8x", "http://1.2.3.4/a b", "http://[::1:80"}) {
    EXPECT_EQ(ParseBaseUrl(wrong).status().code(), StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(ServeClient, ArrivalsHaveTheirRateAndShape) {
  EXPECT_EQ(ArrivalTimes(3, std::numeric_limits<double>::infinity(), 1, 0), (std::vector<double>{0, 0, 0}));
  for (double shape : {0.5, 1.0, 4.0}) {
    auto times = ArrivalTimes(20001, 10, shape, 7);
    double sum = 0, squares = 0;
    for (size_t i = 1; i < times.size(); ++i) {
      double gap = times[i] - times[i - 1];
      sum += gap;
      squares += gap * gap;
    }
    double mean = sum / 20000, variance = squares / 20000 - mean * mean;
    EXPECT_EQ(times[0], 0);
    EXPECT_NEAR(mean, 0.1, 0.005);                                    // deviation of the mean is below 0.001
    EXPECT_NEAR(variance, 0.01 / shape, 0.15 * 0.01 / shape);         // about five deviations at shape 0.5
  }
}

// A server with one thread a connection, each answering one request. Joined at the end.
class TinyServer {
 public:
  TinyServer() {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    bool ok = bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0 && listen(listener_, 128) == 0 &&
              getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    if (!ok) std::abort();
    url_ = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~TinyServer() {
    stopped_ = true;
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
    close(listener_);
  }
  const std::string& url() const { return url_; }
  std::atomic<int> completions{0}, most_at_once{0}, authorized{0};
  std::atomic<bool> refuse{false}, stall{false};

 private:
  void Accept() {
    while (!stopped_) {
      pollfd wait = {listener_, POLLIN, 0};
      if (poll(&wait, 1, 20) <= 0) continue;
      int peer = accept(listener_, nullptr, nullptr);
      if (peer >= 0) threads_.emplace_back([this, peer] { Answer(peer); });
    }
  }
  std::string ReadRequest(int peer) const {
    std::string request;
    char buffer[4096];
    for (size_t wanted = std::string::npos; request.size() < wanted;) {
      pollfd wait = {peer, POLLIN, 0};
      ssize_t bytes = poll(&wait, 1, 5000) > 0 ? read(peer, buffer, sizeof buffer) : 0;
      if (bytes <= 0) break;
      request.append(buffer, static_cast<size_t>(bytes));
      size_t head = request.find("\r\n\r\n"), length = request.find("Content-Length: ");
      if (head == std::string::npos) continue;
      wanted = head + 4 + (length == std::string::npos ? 0 : std::stoul(request.substr(length + 16)));
    }
    return request;
  }
  static void Write(int peer, const std::string& text) {
    for (size_t done = 0; done < text.size();) {
      ssize_t bytes = send(peer, text.data() + done, text.size() - done, MSG_NOSIGNAL);
      if (bytes <= 0) return;
      done += static_cast<size_t>(bytes);
    }
  }
  static std::string Sized(const std::string& status, const std::string& body) {
    return "HTTP/1.1 " + status + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  static std::string Chunk(const std::string& text) {
    char size[20];
    std::snprintf(size, sizeof size, "%zx\r\n", text.size());
    return size + text + "\r\n";
  }
  void Answer(int peer) {
    std::string request = ReadRequest(peer);
    if (request.find("\r\nAuthorization: Bearer sesame\r\n") != std::string::npos) ++authorized;
    if (request.rfind("GET /v1/models ", 0) == 0) {
      Write(peer, Sized("200 OK", R"({"object":"list","data":[{"id":"tiny","vocab_size":50}]})"));
    } else if (request.rfind("GET /metrics ", 0) == 0) {
      int count = completions;
      Write(peer, Sized("200 OK", "latentmesh:spec_decode_num_drafts_total " + std::to_string(2 * count) +
                                      "\nlatentmesh:spec_decode_num_draft_tokens_total " + std::to_string(4 * count) +
                                      "\nlatentmesh:spec_decode_num_accepted_tokens_total " + std::to_string(count) +
                                      "\n"));
    } else if (refuse) {
      Write(peer, Sized("503 Busy", R"({"error":{"message":"no room"}})"));
    } else {
      Complete(peer, request);
    }
    close(peer);
  }
  void Complete(int peer, const std::string& request) {
    int running = ++running_;
    for (int most = most_at_once; running > most && !most_at_once.compare_exchange_weak(most, running);) {}
    json::object body = json::parse(request.substr(request.find("\r\n\r\n") + 4)).as_object();
    int64_t wanted = body["max_tokens"].as_int64();
    size_t prompt = body["prompt"].as_array().size();
    Write(peer, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int64_t i = 0; i < wanted; ++i) {
      const char* finish = i + 1 == wanted ? "\"length\"" : "null";
      std::string event = Event(std::string(R"({"choices":[{"index":0,"text":"x","finish_reason":)") + finish + "}]}");
      Write(peer, Chunk(event.substr(0, 9)) + Chunk(event.substr(9)));      // events and chunks differ
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    while (stall && !stopped_) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ++completions;
    --running_;
    Write(peer, Chunk(Event(R"({"choices":[],"usage":{"prompt_tokens":)" + std::to_string(prompt) +
                            R"(,"completion_tokens":)" + std::to_string(wanted) + "}}")) +
                    Chunk(Event("[DONE]")) + "0\r\n\r\n");
  }

  int listener_ = -1;
  std::string url_;
  std::atomic<bool> stopped_{false};
  std::atomic<int> running_{0};
  std::thread acceptor_;
  std::vector<std::thread> threads_;
};

// The subcommand asks for its rank alone.
class RankZero : public Job {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& host() const override { return host_; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  std::string transport() const override { return "none"; }
  void SetOptions(const JobOptions&) override {}
  ControlChannel& control() override { throw Error(StatusCode::kInternal, "no channel is needed"); }
  Result<CommunicatorSet> CreateCommunicators(const ProcessMesh&, Device&) override {
    return Unavailable("no communicators are needed");
  }
  void Abort(StatusCode code) override { throw Error(code, "aborted"); }

 private:
  std::string host_ = "localhost";
};

// The subcommand with these arguments, in a world of one rank.
Status RunBenchServe(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"latentmesh", "bench", "serve", "--no-progress"});
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeBenchServeCommand());
  auto line = ParseCommandLine(static_cast<int>(argv.size()), argv.data(), commands);
  if (!line.ok()) return line.status();
  RankZero job;
  return line->command->Run(job);
}

std::string ResultPath() { return ::testing::TempDir() + "bench_serve_" + std::to_string(getpid()) + ".json"; }

TEST(BenchServe, LoadOnAServer) {
  TinyServer server;
  std::string result = ResultPath(), key = result + ".key", plot = result + ".svg";
  ASSERT_TRUE(WriteFile(key, "sesame\n").ok());
  Status status = RunBenchServe({"--base-url", server.url(), "--num-prompts", "12", "--input-len", "20",
                                 "--prefix-len", "5", "--output-len", "6", "--max-concurrency", "3",
                                 "--request-rate", "500",
                                 "--goodput", "ttft:60000", "tpot:60000", "--ignore-eos",
                                 "--api-key-file", key, "--save-result",
                                 "--result-filename", result, "--plot", plot});
  ASSERT_TRUE(status.ok()) << status.message();
  json::object object = json::parse(ReadFile(result).value()).as_object();
  EXPECT_EQ(object["completed"].as_int64(), 12);
  EXPECT_EQ(object["failed"].as_int64(), 0);
  EXPECT_EQ(object["model_id"].as_string(), "tiny");
  EXPECT_EQ(object["total_input_tokens"].as_int64(), 12 * 25);
  EXPECT_EQ(object["total_output_tokens"].as_int64(), 12 * 6);
  EXPECT_GE(object["mean_itl_ms"].to_number<double>(), 1);      // the server waits 2 ms between tokens
  EXPECT_GE(object["mean_e2el_ms"].to_number<double>(), object["mean_ttft_ms"].to_number<double>());
  EXPECT_DOUBLE_EQ(object["request_goodput"].to_number<double>(), object["request_throughput"].to_number<double>());
  EXPECT_NEAR(object["spec_decode_acceptance_rate"].to_number<double>(), 0.25, 1e-12);
  EXPECT_NEAR(object["spec_decode_acceptance_length"].to_number<double>(), 1.5, 1e-12);
  EXPECT_EQ(server.completions, 12);
  EXPECT_LE(server.most_at_once, 3);
  EXPECT_EQ(server.authorized, 12 + 1 + 2);      // the models and both looks at the metrics, too
  EXPECT_NE(ReadFile(plot).value().find("<svg"), std::string::npos);
  for (const std::string& path : {result, key, plot}) std::remove(path.c_str());
}

TEST(BenchServe, SeveralRatesGiveAList) {
  TinyServer server;
  std::string result = ResultPath();
  Status status = RunBenchServe({"--base-url", server.url(), "--num-prompts", "3", "--input-len", "4",
                                 "--output-len", "2", "--request-rates", "300,inf", "--result-filename", result});
  ASSERT_TRUE(status.ok()) << status.message();
  json::array list = json::parse(ReadFile(result).value()).as_array();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].as_object()["request_rate"].to_number<double>(), 300);
  EXPECT_EQ(list[1].as_object()["request_rate"].as_string(), "inf");
  std::remove(result.c_str());
}

TEST(BenchServe, AllFailedIsAnErrorWithTheFirstReason) {
  TinyServer server;
  server.refuse = true;
  Status status = RunBenchServe({"--base-url", server.url(), "--num-prompts", "2", "--output-len", "2"});
  EXPECT_EQ(ExitCode(status.code()), 8);
  EXPECT_NE(status.message().find("HTTP 503: no room"), std::string::npos) << status.message();
}

TEST(BenchServe, AStuckAnswerEndsAtItsDeadline) {
  TinyServer server;
  server.stall = true;
  Status status = RunBenchServe({"--base-url", server.url(), "--num-prompts", "2", "--output-len", "2",
                                 "--request-timeout", "0.3"});
  EXPECT_EQ(ExitCode(status.code()), 8);
  EXPECT_NE(status.message().find("no answer in time"), std::string::npos) << status.message();
}

TEST(BenchServe, NoServerAndWrongFlags) {
  std::string gone;
  {
    TinyServer server;
    gone = server.url();
  }
  Status status = RunBenchServe({"--base-url", gone});
  EXPECT_EQ(status.code(), StatusCode::kCommunication);
  EXPECT_NE(status.message().find(gone.substr(7)), std::string::npos) << status.message();
  for (std::vector<std::string> wrong : {std::vector<std::string>{"--request-rate", "0"}, {"--request-rate", "fast"},
                                         {"--request-rates", "1,,2"}, {"--goodput", "itl:4"}, {"--endpoint", "v1"},
                                         {"--base-url", "https://127.0.0.1"}}) {
    EXPECT_EQ(RunBenchServe(wrong).code(), StatusCode::kInvalidArgument) << wrong[0] << " " << wrong[1];
  }
}

}  // namespace
}  // namespace latentmesh
