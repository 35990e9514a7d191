// serve --resilient over 4 ranks that are killed at random moments under load: every stream gives what it gave before
// anything was killed. LATENTMESH_KILLS says how many times (50 by hand, few in the suite).
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <thread>

#include "parallel/launch_environment.h"
#include "tests/integration/program.h"
#include "tests/serve/http_client.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr int kRanks = 4;
constexpr double kStreamSeconds = 120;      // over several restarts on a busy machine

int FreePort() {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

// The processes whose command line holds both words.
std::vector<int> Processes(const std::string& first, const std::string& second) {
  std::vector<int> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    int pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0) continue;
    std::string name, line;
    std::getline(std::ifstream(entry.path() / "comm"), name);
    std::ifstream file(entry.path() / "cmdline");
    line.assign(std::istreambuf_iterator<char>(file), {});
    bool both = line.find(first) != std::string::npos && line.find(second) != std::string::npos;
    if (both && name.rfind("latentmesh", 0) == 0) found.push_back(pid);
  }
  return found;
}

struct Streamed {
  std::map<int64_t, std::string> texts, finish;
  std::map<int64_t, std::vector<std::string>> tokens;       // of logprobs
  int64_t completion_tokens = -1;
  std::string error;
  bool operator==(const Streamed&) const = default;
};

void AddEvent(const json::object& event, Streamed& streamed) {
  if (const json::value* usage = event.if_contains("usage"); usage != nullptr && usage->is_object())
    streamed.completion_tokens = usage->at("completion_tokens").as_int64();
  if (event.contains("error")) streamed.error = json::serialize(event);
  if (!event.contains("choices")) return;
  for (const json::value& choice : event.at("choices").as_array()) {
    int64_t index = choice.at("index").as_int64();
    streamed.texts[index] += choice.at("text").as_string().c_str();
    if (choice.at("finish_reason").is_string()) {
      if (!streamed.finish[index].empty()) streamed.error = "a choice ended twice";
      streamed.finish[index] = choice.at("finish_reason").as_string().c_str();
    }
    if (!choice.at("logprobs").is_object()) continue;
    for (const json::value& token : choice.at("logprobs").at("tokens").as_array())
      streamed.tokens[index].push_back(token.as_string().c_str());
  }
}

Streamed Stream(int port, const std::string& fields) {
  Streamed streamed;
  HttpClient client(port, kStreamSeconds);
  ClientResponse response = client.Post(
      "/v1/completions", "{\"stream\": true, \"stream_options\": {\"include_usage\": true}, " + fields + "}");
  if (response.status != 200 || !response.complete)
    streamed.error = fmt::format("status {}, {}complete: {}", response.status, response.complete ? "" : "not ", response.body);
  size_t at = 0;
  while ((at = response.body.find("data: {", at)) != std::string::npos) {
    size_t end = response.body.find("\n\n", at);
    if (end == std::string::npos) break;
    AddEvent(json::parse(response.body.substr(at + 6, end - at - 6)).as_object(), streamed);
    at = end;
  }
  return streamed;
}

const std::vector<std::string>& RequestBodies() {
  static const std::vector<std::string> bodies = {
      R"("prompt": "In the beginning", "max_tokens": 90, "temperature": 0, "ignore_eos": true)",
      R"("prompt": "And it came to pass", "max_tokens": 70, "temperature": 0.9, "top_p": 0.95, "seed": 5, "ignore_eos": true)",
      R"("prompt": "hacker: n.", "max_tokens": 60, "temperature": 1, "seed": 9, "n": 3, "logprobs": 1)",
      R"("prompt": "The king", "max_tokens": 80, "temperature": 0.7, "seed": 3, "repetition_penalty": 1.2, "stop": ["of the"])",
      R"("prompt": "Chapter 3", "max_tokens": 64, "temperature": 0.8, "seed": 4, "response_format": {"type": "json_object"})",
      R"("prompt": "1 And the", "max_tokens": 120, "temperature": 0, "ignore_eos": true, "frequency_penalty": 0.5)"};
  return bodies;
}

// "the ranks are back after 1.3 s": all of them, in order of size.
std::vector<double> RestartSeconds(const std::string& messages) {
  std::vector<double> seconds;
  const std::string back = "the ranks are back after ";
  for (size_t at = messages.find(back); at != std::string::npos; at = messages.find(back, at + 1))
    seconds.push_back(std::atof(messages.c_str() + at + back.size()));
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

class ResilientTest : public testing::Test {
 protected:
  void Start(const std::string& flags) {
    port_ = FreePort();
    name_ = fmt::format("resilient-{}-{}", getpid(), port_);
    // The ranks get what RunProgram gives mpirun on a small machine.
    std::string launcher = "mpirun --quiet --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca "
                           "btl_vader_single_copy_mechanism none -n {ranks}";
    if (geteuid() == 0) launcher.insert(6, " --allow-run-as-root");
    program_ = std::make_unique<BackgroundProgram>(
        1, fmt::format("serve --resilient --model launch/demo --ranks {} --launcher {} --port {} --served-model-name {} "
                       "--threads 1 --max-seqs 8 --max-restarts 1000 {}", kRanks, ShellQuote(launcher), port_, name_, flags));
    ASSERT_TRUE(WaitHealthy(60));
  }
  bool Healthy() const { return HttpClient(port_).Get("/health").status == 200; }
  bool WaitHealthy(double seconds) const {
    auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!Healthy()) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return true;
  }
  double Restarts() const {
    std::string text = HttpClient(port_).Get("/metrics").body;
    size_t at = text.find("\nlatentmesh:engine_restarts_total ");
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + 34);
  }
  std::vector<int> Ranks() const { return Processes(name_, "--backend"); }
  void ExpectNothingLeft() const {
    for (int i = 0; i < 400 && !Processes(name_, "serve").empty(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(Processes(name_, "serve").empty());
  }
  void TearDown() override {
    if (HasFailure())
      for (int pid : Processes(name_, "serve")) kill(pid, SIGKILL);
  }

  int port_ = 0;
  std::string name_;
  std::unique_ptr<BackgroundProgram> program_;
};

TEST_F(ResilientTest, StreamsSurviveKilledRanks) {
  int kills = std::atoi(EnvironmentVariable("LATENTMESH_KILLS", "2").c_str());
  Start("--speculative-tokens 2");
  std::vector<Streamed> want;
  for (const std::string& body : RequestBodies()) {
    want.push_back(Stream(port_, body));
    ASSERT_EQ(want.back().error, "");
    ASSERT_GT(want.back().completion_tokens, 10);
  }
  std::atomic<bool> done{false};
  std::atomic<int64_t> streams{0};
  std::vector<std::thread> clients;
  for (size_t c = 0; c < want.size(); ++c) {
    clients.emplace_back([&, c] {
      for (size_t i = c; !done; ++i) {
        size_t which = i % want.size();
        Streamed got = Stream(port_, RequestBodies()[which]);
        EXPECT_EQ(got.error, "");
        EXPECT_TRUE(got == want[which]) << RequestBodies()[which] << "\ngot:  " << got.texts[0] << "\nwant: " << want[which].texts[0];
        ++streams;
      }
    });
  }
  std::mt19937 random(static_cast<unsigned>(getpid()));
  auto pause = [&](int low, int high) {
    std::this_thread::sleep_for(std::chrono::milliseconds(std::uniform_int_distribution<int>(low, high)(random)));
  };
  int killed = 0;
  while (killed < kills) {
    bool any_time = killed + 1 < kills && random() % 5 == 0;      // also while they start or end
    double before = Restarts();
    EXPECT_TRUE(any_time || WaitHealthy(60));
    pause(20, 1500);
    std::vector<int> ranks = Ranks();
    if (ranks.empty() || kill(ranks[random() % ranks.size()], SIGKILL) != 0) continue;
    ++killed;
    for (int i = 0; i < 600 && !any_time && Restarts() <= before; ++i) pause(50, 51);
  }
  EXPECT_TRUE(WaitHealthy(60));
  double restarts = Restarts();
  done = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GE(restarts, 1);
  EXPECT_LE(restarts, kills);
  std::printf("%d ranks killed, %.0f restarts, %lld streams compared\n", killed, restarts, static_cast<long long>(streams));
  program_->Signal(SIGTERM);
  Outcome outcome = program_->Wait();
  EXPECT_EQ(outcome.exit_code, 10) << outcome.err;
  std::vector<double> seconds = RestartSeconds(outcome.err);
  ASSERT_FALSE(seconds.empty()) << outcome.err;
  std::printf("from the loss to the first request sent again: median %.1f s, worst %.1f s\n", seconds[seconds.size() / 2],
              seconds.back());
  ExpectNothingLeft();
}

// A rank that hangs is found by --step-timeout of the others, and the stream goes on all the same.
TEST_F(ResilientTest, StreamsSurviveAStoppedRank) {
  Start("--step-timeout 2 --idle-timeout 2");
  Streamed want = Stream(port_, RequestBodies()[0]);
  ASSERT_EQ(want.error, "");
  std::atomic<bool> done{false};
  std::thread client([&] {
    while (!done) EXPECT_TRUE(Stream(port_, RequestBodies()[0]) == want);
  });
  std::vector<int> ranks = Ranks();
  EXPECT_EQ(ranks.size(), static_cast<size_t>(kRanks));
  int stopped = ranks.empty() ? 0 : ranks.back();
  EXPECT_TRUE(stopped > 0 && kill(stopped, SIGSTOP) == 0);
  for (int i = 0; i < 1200 && Restarts() < 1; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_GE(Restarts(), 1);
  EXPECT_TRUE(WaitHealthy(60));
  EXPECT_THAT(Ranks(), testing::Not(testing::Contains(stopped))) << "the stopped one is left";
  done = true;
  client.join();
  program_->Signal(SIGTERM);
  EXPECT_EQ(program_->Wait().exit_code, 10);
  ExpectNothingLeft();
}

// The front end is killed: its ranks see the connection end, and end.
TEST_F(ResilientTest, RanksDoNotOutliveTheFrontEnd) {
  Start("");
  std::vector<int> fronts = Processes(name_, "--resilient");
  ASSERT_EQ(fronts.size(), 1u);
  ASSERT_EQ(Ranks().size(), static_cast<size_t>(kRanks));
  kill(fronts[0], SIGKILL);
  program_->Wait();
  ExpectNothingLeft();
}

}  // namespace
}  // namespace latentmesh
