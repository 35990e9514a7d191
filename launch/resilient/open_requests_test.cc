#include "launch/resilient/open_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

Request MakeRequest(const std::string& id, int32_t n = 1) {
  Request request;
  request.id = id;
  request.prompt_ids = {1, 2};
  request.sampling.n = n;
  return request;
}

RequestOutput Tokens(const std::string& id, std::vector<std::vector<int32_t>> of_choices, int32_t sum) {
  RequestOutput output;
  output.request_id = id;
  for (size_t i = 0; i < of_choices.size(); ++i) {
    ChoiceDelta& delta = output.choices.emplace_back();
    delta.index = static_cast<int32_t>(i);
    delta.token_ids = of_choices[i];
  }
  output.completion_tokens = sum;
  return output;
}

TEST(OpenRequestsTest, KeepsWhatWasDelivered) {
  OpenRequests open;
  open.Add(MakeRequest("a", 2));
  EXPECT_FALSE(open.MarkSent("a"));
  RequestOutput first = Tokens("a", {{5}, {6}}, 2);
  first.cached_tokens = 1;
  ASSERT_TRUE(open.Take(first).ok());
  open.JobLost(10);
  RequestOutput second = Tokens("a", {{7, 8}}, 4);
  second.choices[0].finish = FinishReason::kStop;
  second.cached_tokens = 2;                    // of another job
  auto delivered = open.Take(second);
  ASSERT_TRUE(delivered.ok() && delivered->has_value());
  EXPECT_EQ((*delivered)->output.cached_tokens, 1);
  const Request& request = *open.InOrder().at(0);
  EXPECT_EQ(request.generated[0].tokens, (std::vector<int32_t>{5, 7, 8}));
  EXPECT_TRUE(request.generated[0].finished);
  EXPECT_EQ(request.generated[1].tokens, std::vector<int32_t>{6});
}

TEST(OpenRequestsTest, RefusesOutputsThatDoNotFollow) {
  OpenRequests open;
  open.Add(MakeRequest("a"));
  ASSERT_TRUE(open.Take(Tokens("a", {{5}}, 1)).ok());
  EXPECT_FALSE(open.Take(Tokens("a", {{5}}, 1)).ok()) << "a token twice";
  EXPECT_FALSE(open.Take(Tokens("a", {{7}}, 3)).ok()) << "a token lost";
  EXPECT_FALSE(open.Take(Tokens("a", {{7}, {8}}, 3)).ok()) << "a second choice of one";
  RequestOutput odd = Tokens("a", {{7}}, 2);
  odd.choices[0].finish = static_cast<FinishReason>(9);
  EXPECT_FALSE(open.Take(odd).ok());
  odd.choices[0].finish = FinishReason::kStop;
  EXPECT_TRUE(open.Take(odd).ok());
  EXPECT_FALSE(open.Take(Tokens("a", {{8}}, 3)).ok()) << "after its end";
  auto unknown = open.Take(Tokens("b", {{1}}, 1));
  EXPECT_TRUE(unknown.ok() && !unknown->has_value());
}

TEST(OpenRequestsTest, GivesUpWhatWasInTooManyLostJobs) {
  OpenRequests open;
  for (const char* id : {"stuck", "moving", "unsent"}) open.Add(MakeRequest(id));
  int32_t tokens = 0;
  for (int job = 1; job <= 3; ++job) {
    open.MarkSent("stuck");
    open.MarkSent("moving");
    ++tokens;
    ASSERT_TRUE(open.Take(Tokens("moving", {{1}}, tokens)).ok());
    std::vector<OpenRequests::Delivery> ended = open.JobLost(3);
    ASSERT_EQ(ended.size(), job == 3 ? 1u : 0u);
    if (job == 3) {
      EXPECT_EQ(ended[0].output.request_id, "stuck");
    }
  }
  EXPECT_EQ(open.size(), 2u);
}

TEST(OpenRequestsTest, EndsCancelledOnesOnce) {
  OpenRequests open;
  open.Add(MakeRequest("a", 2));
  EXPECT_TRUE(open.Cancel("a"));
  EXPECT_FALSE(open.Cancel("a"));
  EXPECT_FALSE(open.Cancel("b"));
  EXPECT_TRUE(open.MarkSent("a"));
  auto ended = open.EndCancelled();
  ASSERT_EQ(ended.size(), 1u);
  EXPECT_TRUE(ended[0].output.finished);
  EXPECT_EQ(ended[0].output.choices.size(), 2u);
  EXPECT_EQ(ended[0].output.choices[1].finish, FinishReason::kAbort);
  EXPECT_EQ(open.size(), 0u);
}

}  // namespace
}  // namespace latentmesh
