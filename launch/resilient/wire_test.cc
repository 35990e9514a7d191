#include "launch/resilient/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "launch/resilient/messages.h"

namespace latentmesh {
namespace {

WireRequest AnyRequest() {
  WireRequest request;
  request.id = "cmpl-1-0";
  request.prompt_ids = {1, 2, 3};
  request.sampling.n = 2;
  request.sampling.temperature = 0.25f;
  request.sampling.seed = 0xfedcba9876543210ull;
  request.sampling.stop = {"", "a\nb"};
  request.sampling.logprobs = 0;
  request.sampling.logit_bias = {{7, -1.5f}};
  request.sampling.ignore_eos = true;
  request.constraint = "";
  request.generated = {{{4, 5}, true}, {{}, false}};
  return request;
}

TEST(WireTest, RequestsComeBackWhole) {
  Result<WireRequest> back = Decode<WireRequest>(Encode(AnyRequest()), "request");
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(Encode(*back), Encode(AnyRequest()));      // every field is on the wire once
  EXPECT_EQ(back->sampling.seed, 0xfedcba9876543210ull);
  EXPECT_EQ(back->sampling.stop, (std::vector<std::string>{"", "a\nb"}));
  EXPECT_EQ(back->sampling.logprobs, 0);
  EXPECT_FALSE(back->sampling.prompt_logprobs.has_value());
  EXPECT_EQ(back->sampling.logit_bias[0], (std::pair<int32_t, float>(7, -1.5f)));
  EXPECT_TRUE(back->sampling.ignore_eos);
  EXPECT_EQ(back->constraint, "");
  EXPECT_TRUE(back->generated[0].finished);
  EXPECT_EQ(back->generated[0].tokens, (std::vector<int32_t>{4, 5}));
}

TEST(WireTest, OutputsAndStatsComeBackWhole) {
  RequestOutput output;
  output.request_id = "r";
  output.choices.push_back({1, "text", {9}, {{9, -0.5f, 1, {{9, -0.5f}, {8, -2.f}}}}, FinishReason::kLength, "why"});
  output.prompt_logprobs.push_back({3, -1.f, 2, {}});
  output.finished = true;
  output.completion_tokens = 77;
  output.times.finished = 1.5;
  Result<RequestOutput> back = Decode<RequestOutput>(Encode(output), "output");
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(Encode(*back), Encode(output));
  EXPECT_EQ(back->choices[0].logprobs[0].top[1].id, 8);
  EXPECT_EQ(back->choices[0].finish, FinishReason::kLength);
  EngineStats stats;
  stats.steps = 5;
  stats.expert_load = {1, 2};
  stats.expert_rank_load = {0.5};
  Result<EngineStats> same = Decode<EngineStats>(Encode(stats), "stats");
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(same->expert_load, stats.expert_load);
  EXPECT_EQ(same->steps, 5);
}

TEST(WireTest, TruncatedAndProlongedPayloadsAreRefused) {
  std::string whole = Encode(AnyRequest());
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_EQ(Decode<WireRequest>(std::string_view(whole).substr(0, size), "request").status().code(),
              StatusCode::kCommunication) << size;
  EXPECT_FALSE(Decode<WireRequest>(whole + "x", "request").ok());
}

// A false length must neither crash nor take memory for what is not there.
TEST(WireTest, RandomPayloadsAreHarmless) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(random() % 80, '\0');
    for (char& byte : bytes) byte = random() % 3 == 0 ? '\xff' : static_cast<char>(random() % 4);
    (void)Decode<WireRequest>(bytes, "request");
    (void)Decode<RequestOutput>(bytes, "output");
  }
}

TEST(FrameTest, ArriveByteByByte) {
  std::string stream;
  AppendFrame(stream, 3, "first");
  AppendFrame(stream, 9, "");
  AppendFrame(stream, 4, std::string(100000, 'x'));
  FrameDecoder decoder;
  std::vector<Frame> frames;
  for (char byte : stream) {
    decoder.Feed({&byte, 1});
    Result<std::optional<Frame>> next = decoder.Next();
    ASSERT_TRUE(next.ok());
    if (next->has_value()) frames.push_back(std::move(**next));
  }
  ASSERT_EQ(frames.size(), 3u);
  EXPECT_EQ(frames[0].payload, "first");
  EXPECT_EQ(frames[1].type, 9);
  EXPECT_EQ(frames[2].payload.size(), 100000u);
}

TEST(FrameTest, AnyDamagedByteIsNoticed) {
  std::string whole;
  AppendFrame(whole, 3, "payload");
  AppendFrame(whole, 3, "payload");            // so that a length that grew finds bytes
  for (size_t at = 0; at < whole.size() / 2; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      FrameDecoder decoder;
      decoder.Feed(damaged);
      Result<std::optional<Frame>> next = decoder.Next();
      EXPECT_TRUE(!next.ok() || !next->has_value()) << at << " bit " << bit;
    }
  }
}

TEST(FrameTest, LongerThanTheLimitIsRefusedAtOnce) {
  std::string header;
  AppendFrame(header, 1, "");
  uint32_t length = static_cast<uint32_t>(kMaxFrame + 1);
  header.replace(8, 4, reinterpret_cast<const char*>(&length), 4);
  FrameDecoder decoder;
  decoder.Feed(header);
  EXPECT_FALSE(decoder.Next().ok());
}

}  // namespace
}  // namespace latentmesh
