// What a client receives of one request, and how two of these are compared.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/engine/request.h"

namespace latentmesh {

struct ReceivedChoice {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<SampledToken> logprobs;
  FinishReason finish = FinishReason::kNone;
  std::string stop_reason;
};

// What a client has received of one request.
struct Received {
  std::map<int, ReceivedChoice> choices;
  size_t prompt_logprobs = 0;
  int32_t completion_tokens = 0;
  bool finished = false;

  void Add(const RequestOutput& output) {
    EXPECT_FALSE(finished);
    for (const ChoiceDelta& delta : output.choices) {
      ReceivedChoice& choice = choices[delta.index];
      EXPECT_EQ(choice.finish, FinishReason::kNone) << "tokens after the end of choice " << delta.index;
      choice.text += delta.text;
      choice.ids.insert(choice.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
      choice.logprobs.insert(choice.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
      choice.finish = delta.finish;
      choice.stop_reason = delta.stop_reason;
    }
    prompt_logprobs += output.prompt_logprobs.size();
    completion_tokens = output.completion_tokens;
    finished = output.finished;
  }
  std::vector<GeneratedTokens> Generated(int32_t n) const {
    std::vector<GeneratedTokens> generated(static_cast<size_t>(n));
    for (const auto& [index, choice] : choices)
      generated[static_cast<size_t>(index)] = {choice.ids, choice.finish != FinishReason::kNone};
    return generated;
  }
};

inline void ExpectSame(const Received& got, const Received& want, const std::string& where) {
  ASSERT_EQ(got.choices.size(), want.choices.size()) << where;
  for (const auto& [index, choice] : want.choices) {
    const ReceivedChoice& mine = got.choices.at(index);
    EXPECT_EQ(mine.text, choice.text) << where;
    EXPECT_EQ(mine.ids, choice.ids) << where;
    EXPECT_EQ(mine.finish, choice.finish) << where;
    EXPECT_EQ(mine.stop_reason, choice.stop_reason) << where;
    ASSERT_EQ(mine.logprobs.size(), choice.logprobs.size()) << where;
    for (size_t i = 0; i < choice.logprobs.size(); ++i) {
      EXPECT_EQ(mine.logprobs[i].id, choice.logprobs[i].id) << where;
      EXPECT_NEAR(mine.logprobs[i].logprob, choice.logprobs[i].logprob, 1e-3) << where;   // float32, other order of sums
    }
  }
  EXPECT_EQ(got.prompt_logprobs, want.prompt_logprobs) << where;
  EXPECT_EQ(got.completion_tokens, want.completion_tokens) << where;
  EXPECT_TRUE(got.finished) << where;
}

}  // namespace latentmesh
