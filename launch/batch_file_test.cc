#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>

#include "launch/batch_line.h"
#include "launch/files.h"
#include "launch/result_file.h"

namespace latentmesh {
namespace {

using testing::HasSubstr;

TEST(BatchLine, ReadsBothEndpoints) {
  BatchLine line = ParseBatchLine(
      R"({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"x": 1}, "extra": 2})", 7);
  EXPECT_FALSE(line.error.has_value());
  EXPECT_EQ(line.id, "batch_req_7");
  EXPECT_EQ(line.custom_id, "a");
  EXPECT_EQ(line.endpoint, ApiEndpoint::kChatCompletions);
  EXPECT_EQ(line.body, R"({"x":1})");
}

TEST(BatchLine, NamesLineAndField) {
  struct Case {
    const char* text;
    const char* param;
  } cases[] = {
      {"{", ""},
      {"[]", ""},
      {R"({"method": "POST", "url": "/v1/completions", "body": {}})", "custom_id"},
      {R"({"custom_id": 5, "method": "POST", "url": "/v1/completions", "body": {}})", "custom_id"},
      {R"({"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}})", "method"},
      {R"({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}})", "url"},
      {R"({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": []})", "body"},
  };
  for (const Case& c : cases) {
    BatchLine line = ParseBatchLine(c.text, 3);
    ASSERT_TRUE(line.error.has_value()) << c.text;
    EXPECT_EQ(line.error->param, c.param) << c.text;
    EXPECT_THAT(line.error->message, HasSubstr("line 3"));
  }
}

TEST(BatchLine, WritesAnswersAndFailures) {
  BatchLine line{.number = 2, .id = "batch_req_2", .custom_id = "q"};
  auto answer = boost::json::parse(BatchAnswer(line, "cmpl-1", R"({"choices": []})")).as_object();
  EXPECT_EQ(answer["custom_id"], "q");
  EXPECT_EQ(answer.at("response").at("status_code"), 200);
  EXPECT_EQ(answer.at("response").at("request_id"), "cmpl-1");
  EXPECT_TRUE(answer["error"].is_null());
  auto failure = boost::json::parse(BatchFailure(line, {.message = "no", .param = "top_p"})).as_object();
  EXPECT_EQ(failure.at("response").at("status_code"), 400);
  EXPECT_EQ(failure.at("response").at("body").at("error").at("param"), "top_p");
  EXPECT_EQ(failure.at("error").at("message"), "no");
}

class ResultFileTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string Text() { return *ReadFile(path_); }
  std::string path_ = testing::TempDir() + "/result_file_test" + std::to_string(getpid()) + ".jsonl";
};

TEST_F(ResultFileTest, AppendsAndRemembers) {
  {
    auto file = ResultFile::Open(path_);
    ASSERT_TRUE(file.ok());
    file->Add(R"({"id": "1", "custom_id": "a"})");
    ASSERT_TRUE(file->Flush().ok());
    EXPECT_EQ(Text(), "{\"id\": \"1\", \"custom_id\": \"a\"}\n");
  }
  auto again = ResultFile::Open(path_);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->HasId("1"));
  EXPECT_TRUE(again->HasCustomId("a"));
  EXPECT_FALSE(again->HasCustomId("b"));
  EXPECT_FALSE(again->repaired());
  again->Add("{}");
  ASSERT_TRUE(again->Flush().ok());
  EXPECT_EQ(Text(), "{\"id\": \"1\", \"custom_id\": \"a\"}\n{}\n");
}

TEST_F(ResultFileTest, RemovesATornLastLine) {
  std::ofstream(path_) << "{\"id\": \"1\", \"custom_id\": \"a\"}\n{\"id\": \"2\", \"custom_id\": \"b\"}";
  auto file = ResultFile::Open(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->repaired());
  EXPECT_TRUE(file->HasCustomId("a"));
  EXPECT_FALSE(file->HasCustomId("b"));
  EXPECT_EQ(Text(), "{\"id\": \"1\", \"custom_id\": \"a\"}\n");
}

TEST_F(ResultFileTest, ARefusedRepetitionDoesNotAnswerTheFirst) {
  std::ofstream(path_) << R"({"id": "2", "custom_id": "a", "error": {"param": "custom_id"}})" << "\n";
  auto file = ResultFile::Open(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->HasId("2"));
  EXPECT_FALSE(file->HasCustomId("a"));
}

TEST_F(ResultFileTest, NamesAFileItCannotWrite) {
  auto file = ResultFile::Open("/no/such/folder/x");
  EXPECT_EQ(file.status().code(), StatusCode::kIo);
  EXPECT_THAT(file.status().message(), HasSubstr("/no/such/folder/x"));
}

TEST_F(ResultFileTest, AFullDiskIsAnError) {
  auto file = ResultFile::Open("/dev/full");
  if (!file.ok()) GTEST_SKIP() << file.status().message();
  file->Add("{}");
  EXPECT_EQ(file->Flush().code(), StatusCode::kIo);
}

}  // namespace
}  // namespace latentmesh
