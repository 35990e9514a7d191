// HTTP itself: limits, keep-alive, pipelining, slow and broken clients.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "tests/serve/serve_fixture.h"

namespace latentmesh {
namespace {

using testing::HasSubstr;

TEST_F(ServeTest, KeepAliveAndPipelining) {
  Start();
  HttpClient client(port());
  std::string request = "GET /health HTTP/1.1\r\nHost: test\r\n\r\n";
  std::string completion = HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 2})");
  std::string burst;
  for (int i = 0; i < 50; ++i) burst += i % 2 == 0 ? request : completion;
  ASSERT_TRUE(client.Send(burst));
  for (int i = 0; i < 50; ++i) {
    ClientResponse response = client.Read();
    EXPECT_EQ(response.status, 200);
    EXPECT_THAT(response.body, HasSubstr(i % 2 == 0 ? "ok" : "text_completion"));
  }
  EXPECT_EQ(client.Get("/health", "Connection: close\r\n").Header("Connection"), "close");
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(ServeTest, BytesOneByOne) {
  Start();
  HttpClient client(port());
  for (char c : HttpClient::PostText("/v1/completions", "{\"prompt\": \"\xc3\xa9\xe2\x82\xac\", \"max_tokens\": 2}")) {
    ASSERT_TRUE(client.Send(std::string(1, c)));
  }
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServeTest, ChunkedBodyInPieces) {
  Start();
  HttpClient client(port());
  std::string text = "POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (char c : std::string(R"({"prompt": "abc", "max_tokens": 2})")) text += "1\r\n" + std::string(1, c) + "\r\n";
  text += "0\r\n\r\nGET /health HTTP/1.1\r\nHost: t\r\n\r\n";
  for (size_t at = 0; at < text.size(); at += 7) ASSERT_TRUE(client.Send(text.substr(at, 7)));
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.Read().body, "{\"status\":\"ok\"}");
}

TEST_F(ServeTest, MethodsAndHeads) {
  Start();
  HttpClient client(port());
  client.Send("HEAD /health HTTP/1.1\r\nHost: test\r\n\r\n");
  ClientResponse head = client.Read(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.Header("Content-Length"), "15");
  client.Send("HEAD /stats/stream HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_EQ(client.Read(true).status, 200);
  client.Send("OPTIONS /v1/completions HTTP/1.1\r\nHost: test\r\n\r\n");
  ClientResponse options = client.Read();
  EXPECT_EQ(options.status, 204);
  EXPECT_EQ(options.Header("Allow"), "POST, OPTIONS");
  ClientResponse wrong = client.Get("/v1/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.Header("Allow"), "POST, OPTIONS");
  EXPECT_EQ(client.Get("/nothing").status, 404);
  EXPECT_EQ(client.Get("/health?x=1").status, 200);
}

TEST_F(ServeTest, ExpectContinue) {
  Start();
  HttpClient client(port());
  std::string text =
      HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 2})", "Expect: 100-continue\r\n");
  size_t body = text.find("\r\n\r\n") + 4;
  client.Send(text.substr(0, body));
  EXPECT_EQ(client.Read().status, 100);
  client.Send(text.substr(body));
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServeTest, CorsWhenAskedFor) {
  front_end_options_.cors_origin = "https://example.org";
  Start();
  EXPECT_EQ(HttpClient(port()).Get("/health").Header("Access-Control-Allow-Origin"), "https://example.org");
}

TEST_F(ServeTest, SizesAreLimited) {
  http_.limits.max_body = 1000;
  http_.limits.max_header = 2000;
  Start();
  EXPECT_EQ(HttpClient(port()).Post("/v1/completions", std::string(1001, ' ')).status, 413);
  HttpClient chunked(port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) chunked.Send("64\r\n" + std::string(100, ' ') + "\r\n");
  EXPECT_EQ(chunked.Read().status, 413);
  HttpClient large(port());       // the answer arrives although the client goes on sending
  large.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 2000000\r\n\r\n" + std::string(2000000, ' '));
  EXPECT_EQ(large.Read().status, 413);
  EXPECT_EQ(HttpClient(port()).Get("/health", "X: " + std::string(3000, 'x') + "\r\n").status, 431);
  HttpClient unsized(port());
  unsized.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(unsized.Read().status, 411);
}

TEST_F(ServeTest, MalformedRequestsAre400) {
  Start();
  for (const char* text :
       {"NONSENSE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /health HTTP/1.1\r\nBad Header\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n", "GET /health HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"}) {
    HttpClient client(port());
    client.Send(text);
    ClientResponse response = client.Read();
    EXPECT_EQ(response.status, 400) << text;
    EXPECT_THAT(response.body, HasSubstr("\"error\"")) << text;
    EXPECT_TRUE(client.AtEnd()) << text;
  }
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
}

TEST_F(ServeTest, SlowHeadersAreEnded) {
  http_.limits.header_timeout = 0.3;
  http_.limits.body_timeout = 0.3;
  Start();
  HttpClient silent(port()), header(port()), body(port());
  header.Send("GET /health HT");
  body.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_TRUE(silent.AtEnd());
  EXPECT_EQ(header.Read().status, 408);
  EXPECT_EQ(body.Read().status, 408);
}

TEST_F(ServeTest, ConnectionsAreLimited) {
  http_.limits.max_connections = 3;
  Start();
  auto a = std::make_unique<HttpClient>(port());
  HttpClient b(port()), c(port());
  EXPECT_EQ(a->Get("/health").status, 200);
  EXPECT_EQ(b.Get("/health").status, 200);
  EXPECT_EQ(c.Get("/health").status, 200);
  EXPECT_EQ(HttpClient(port()).Read().status, 503);
  a.reset();
  EXPECT_TRUE(Eventually([&] { return HttpClient(port()).Get("/health").status == 200; }));
}

long OpenFiles() {
  auto files = std::filesystem::directory_iterator("/proc/self/fd");
  return std::distance(begin(files), end(files));
}

long ResidentKilobytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (long kilobytes = 0; word == "VmRSS:" && status >> kilobytes) return kilobytes;
  return 0;
}

// 65,536 connections to one server: silent ones, cut headers, streams that nobody reads to the end.
TEST_F(ServeTest, ConnectionsOpenedAndDropped) {
  Start();
  auto idle = [&] { return engine_->live() == 0 && server_->connections().open == 0; };
  const std::string stream =
      HttpClient::PostText("/v1/completions", R"({"prompt": "a", "max_tokens": 3000, "stream": true})");
  ASSERT_EQ(HttpClient(port()).Get("/health").status, 200);
  ASSERT_TRUE(Eventually(idle));
  const long files = OpenFiles();
  long resident = 0;
  for (int i = 0; i < 65536; ++i) {
    HttpClient client(port());
    ASSERT_TRUE(client.connected()) << i;
    if (i % 3 == 1) client.Send("GET /he");
    if (i % 3 == 2) client.Send(stream);
    client.CloseWithReset();
    if (i != 6000) continue;
    ASSERT_TRUE(Eventually(idle));
    resident = ResidentKilobytes();
  }
  // The last ones may still wait to be accepted.
  EXPECT_TRUE(Eventually([&] { return idle() && OpenFiles() <= files; })) << OpenFiles() << " files, before " << files;
  EXPECT_LE(ResidentKilobytes(), resident + 32 * 1024) << "60,000 connections may not cost memory";
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
}

// Valid requests with bytes changed, cut and doubled: the server answers or closes, and goes on.
TEST_F(ServeTest, MutatedRequests) {
  http_.limits.header_timeout = 0.2;
  http_.limits.body_timeout = 0.2;
  Start();
  std::mt19937 random(7);
  const std::string seeds[] = {
      HttpClient::PostText("/v1/completions",
                           R"({"prompt": ["a", [1, 2]], "max_tokens": 3, "logit_bias": {"5": 1}, "stop": ["x"]})"),
      HttpClient::PostText("/v1/chat/completions",
                           R"({"messages": [{"role": "user", "content": "é"}], "stream": true, "max_tokens": 2})"),
      "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"pro\r\n0\r\n\r\n"};
  for (int round = 0; round < 600; ++round) {
    std::string text = seeds[random() % 3];
    for (unsigned edits = random() % 4 + 1; edits > 0; --edits) {
      size_t at = random() % text.size();
      switch (random() % 4) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, random() % 8); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 16)); break;
        default: text.insert(at, std::string(random() % 64, "[{\"9\\,:\xff"[random() % 8]));
      }
      if (text.empty()) text = "x";
    }
    HttpClient client(port(), 5);
    client.Send(text);
    if (round % 4 == 0) client.Read();
  }
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0 && server_->connections().open == 0; }));
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
}

}  // namespace
}  // namespace latentmesh
