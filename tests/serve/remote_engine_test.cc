// RemoteEngine over a back end in this process: the real link with a stub for the engine, cut off at chosen moments.
#include "launch/resilient/remote_engine.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <thread>

#include "launch/resilient/backend.h"
#include "tests/serve/stub_engine.h"

namespace latentmesh {

struct RemoteEngineBreaker {
  static void Break(RemoteEngine& engine) { engine.Lose("broken by a test"); }      // as if rank 0 had died now
};

namespace {

constexpr int64_t kVocab = 1000;

// "The ranks": a thread with a link and a stub engine.
class StubJob : public RestartableJob {
 public:
  ~StubJob() override { Kill(); }

  Status Start(const std::string& rendezvous) override {
    rendezvous_ = rendezvous;
    ++starts;
    code_.reset();
    if (fail_with > 0) {
      code_ = fail_with;
      return Status::Ok();
    }
    thread_ = std::thread([this, rendezvous] {
      auto link = BackendLink::Connect(rendezvous, {.connect_seconds = 10, .exit_when_stuck = false});
      ASSERT_TRUE(link.ok()) << link.status().message();
      StubEngine engine(nullptr, kVocab, 4096);
      engine.step_micros = step_micros.load();
      (*link)->Serve(engine, nullptr, {4, 4096, 8192, fmt::format("layout {}", starts.load()), 1 << 30, false});
    });
    return Status::Ok();
  }
  std::optional<int> ExitCode() override { return code_; }
  void End(bool) override { Kill(); }
  void Serves(const Ready& ready) override { memory_seen += ready.available == 1 << 30; }

  std::atomic<int> starts{0}, step_micros{300};
  int fail_with = 0, memory_seen = 0;
  const std::string& rendezvous() const { return rendezvous_; }

 private:
  void Kill() {
    if (thread_.joinable()) thread_.join();      // the link has been dropped, or told to stop
    if (!code_.has_value()) code_ = 0;
  }
  std::string rendezvous_;
  std::optional<int> code_;
  std::thread thread_;
};

struct Received {
  std::mutex mutex;
  std::map<int32_t, std::string> texts;
  RequestOutput last;
};

class RemoteEngineTest : public testing::Test {
 protected:
  void Start(RemoteEngineOptions options = {}) {
    config_.vocab_size = kVocab;
    auto engine = RemoteEngine::Create(job_, config_, nullptr, options);
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    engine_ = std::move(engine).value();
  }
  Request MakeRequest(const std::string& id, int32_t tokens, int32_t n, Received& received) {
    Request request;
    request.id = id;
    request.prompt_ids = {1, 2, 3};
    request.sampling.max_tokens = tokens;
    request.sampling.n = n;
    request.on_output = [&received](const RequestOutput& output) {
      std::lock_guard lock(received.mutex);
      for (const ChoiceDelta& delta : output.choices) received.texts[delta.index] += delta.text;
      received.last = output;
    };
    return request;
  }
  static std::string WholeText(int32_t choice, int32_t tokens) {
    std::string text;
    for (int32_t i = 0; i < tokens; ++i) text += StubEngine::TokenText(choice, i);
    return text;
  }
  void Break() { RemoteEngineBreaker::Break(*engine_); }
  void RunWhile(const std::function<bool()>& condition) {
    auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (condition() && std::chrono::steady_clock::now() < until) engine_->Step();
    ASSERT_FALSE(condition()) << "not within 30 s";
  }

  StubJob job_;
  ModelConfig config_;
  std::unique_ptr<RemoteEngine> engine_;
  std::atomic<bool> stop_{false};
};

TEST_F(RemoteEngineTest, ServesAsTheEngineBehindIt) {
  Start();
  ASSERT_TRUE(engine_->Begin(stop_).ok());
  EXPECT_EQ(engine_->layout(), "layout 1");
  EXPECT_EQ(engine_->max_model_len(), 4096);
  Received received;
  ASSERT_TRUE(engine_->Submit(MakeRequest("a", 20, 2, received)).ok());
  EXPECT_THAT(engine_->Submit(MakeRequest("a", 20, 2, received)).message(), testing::HasSubstr("in use"));
  RunWhile([&] { return !received.last.finished; });
  EXPECT_EQ(received.texts[0], WholeText(0, 20));
  EXPECT_EQ(received.texts[1], WholeText(1, 20));
  EXPECT_EQ(received.last.completion_tokens, 40);
  stop_ = true;
  engine_->RunUntil(stop_);
}

TEST_F(RemoteEngineTest, StreamsGoOnWhenTheLinkBreaksAgainAndAgain) {
  Start({.first_pause = 0.01});
  ASSERT_TRUE(engine_->Begin(stop_).ok());
  std::vector<Received> received(6);
  for (int i = 0; i < 5; ++i)
    ASSERT_TRUE(engine_->Submit(MakeRequest(std::to_string(i), 300 + 40 * i, 1 + i % 2, received[i])).ok());
  for (int cut = 1; cut <= 5; ++cut) {
    int64_t before = received[4].last.completion_tokens;
    RunWhile([&] { return received[4].last.completion_tokens < before + 11 * cut && !received[4].last.finished; });
    Break();
    EXPECT_TRUE(engine_->Stats().restarting);
    if (cut == 3) {
      ASSERT_TRUE(engine_->Submit(MakeRequest("late", 30, 1, received[5])).ok());      // waits
    }
    RunWhile([&] { return engine_->Stats().restarting; });
  }
  for (Received& one : received) RunWhile([&] { return !one.last.finished; });
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(received[i].texts[0], WholeText(0, 300 + 40 * i));
    if (i % 2 == 1) {
      EXPECT_EQ(received[i].texts[1], WholeText(1, 300 + 40 * i));
    }
    EXPECT_EQ(received[i].last.completion_tokens, (300 + 40 * i) * (1 + i % 2));
  }
  EXPECT_EQ(received[5].texts[0], WholeText(0, 30));
  EXPECT_EQ(job_.starts, 6);
  EXPECT_EQ(engine_->layout(), "layout 6");
  EXPECT_EQ(job_.memory_seen, 6);
  EXPECT_EQ(engine_->Stats().restarts, 5);
}

TEST_F(RemoteEngineTest, CancelledRequestsEndWithAndWithoutRanks) {
  Start();
  job_.step_micros = 5000;
  ASSERT_TRUE(engine_->Begin(stop_).ok());
  Received first, second;
  ASSERT_TRUE(engine_->Submit(MakeRequest("first", 4000, 1, first)).ok());
  ASSERT_TRUE(engine_->Submit(MakeRequest("second", 4000, 1, second)).ok());
  RunWhile([&] { return first.texts[0].empty(); });
  engine_->Cancel("first");
  RunWhile([&] { return !first.last.finished; });
  EXPECT_EQ(first.last.choices.at(0).finish, FinishReason::kAbort);
  Break();
  engine_->Cancel("second");
  RunWhile([&] { return !second.last.finished; });
  EXPECT_EQ(second.last.choices.at(0).finish, FinishReason::kAbort);
  RunWhile([&] { return engine_->Stats().restarting; });      // a job that has not called yet cannot be told to end
}

TEST_F(RemoteEngineTest, StrangersAndDamagedFramesGetNowhere) {
  Start();
  ASSERT_TRUE(engine_->Begin(stop_).ok());
  Received received;
  ASSERT_TRUE(engine_->Submit(MakeRequest("a", 200, 1, received)).ok());
  Break();                     // back to greeting: a stranger calls first
  std::string address = job_.rendezvous().substr(job_.rendezvous().find(' ') + 1);
  auto stranger = FrameSocket::Connect({address}, std::chrono::seconds(5));
  auto noise = FrameSocket::Connect({address}, std::chrono::seconds(5));
  ASSERT_TRUE(stranger.ok() && noise.ok());
  std::string hello;
  AppendMessage(hello, MessageType::kHello, Hello{"not the token", LATENTMESH_VERSION});
  std::string why;
  (*stranger)->Queue(hello);
  (*stranger)->Pump(&why);
  (*noise)->Queue("GET / HTTP/1.1\r\n\r\n");
  (*noise)->Pump(&why);
  RunWhile([&] { return !received.last.finished; });
  EXPECT_EQ(received.texts[0], WholeText(0, 200));
}

TEST_F(RemoteEngineTest, RefusesWhatCannotRunAndGivesUpWithTheJobsCode) {
  Start({.max_restarts = 2, .first_pause = 0.01});
  ASSERT_TRUE(engine_->Begin(stop_).ok());
  Received received;
  Request request = MakeRequest("long", 5000, 1, received);
  EXPECT_THAT(engine_->Submit(request).message(), testing::HasSubstr("4096"));
  request.prompt_ids = {1000};
  EXPECT_THAT(engine_->Submit(request).message(), testing::HasSubstr("vocabulary"));
  job_.fail_with = 3;                          // the checkpoint has gone: no use in trying again
  Break();
  try {
    RunWhile([] { return true; });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidModel);
  }
  StubJob never;
  never.fail_with = 4;
  auto engine = RemoteEngine::Create(never, config_, nullptr, {});
  ASSERT_TRUE(engine.ok());
  EXPECT_EQ((*engine)->Begin(stop_).code(), StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace latentmesh
