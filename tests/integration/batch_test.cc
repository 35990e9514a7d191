// `batch`: bad lines among good ones, restarts, interruption.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "tests/integration/json_lines.h"
#include "tests/integration/program.h"

namespace latentmesh {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

constexpr const char* kBatch = "batch --model launch/demo --dtype f32 --threads 1 ";

class Batch : public testing::Test {
 protected:
  std::string Arguments() const { return std::string(kBatch) + "--input " + input_ + " --output " + output_; }
  void WriteInput(const std::vector<std::string>& lines) {
    std::ofstream file(input_);
    for (const std::string& line : lines) file << line << "\n";
  }
  static std::string Line(const std::string& id, const std::string& body) {
    return R"({"custom_id": ")" + id + R"(", "method": "POST", "url": "/v1/completions", "body": )" + body + "}";
  }
  std::vector<json::value> Results() const { return JsonLines(*ReadFile(output_)); }
  std::map<std::string, json::value> ById() const {
    std::map<std::string, json::value> results;
    for (json::value& line : Results()) {
      std::string id = line.at("custom_id").is_string() ? std::string(line.at("custom_id").as_string()) : "";
      EXPECT_TRUE(results.emplace(id, line).second) << id << " was answered twice";
    }
    return results;
  }

  TempFolder folder_;
  std::string input_ = folder_ / "in.jsonl", output_ = folder_ / "out.jsonl";
};

TEST_F(Batch, AnswersGoodLinesAndReportsBadOnes) {
  WriteInput(
      {Line("a", R"({"prompt": "In the beginning", "max_tokens": 4, "temperature": 0})"), "this is no JSON",
       Line("b", R"({"prompt": [[0, 5], [0, 6]], "max_tokens": 3, "n": 2, "ignore_eos": true})"),
       Line("c", R"({"prompt": "x", "top_p": 7})"),
       R"({"custom_id": "d", "method": "POST", "url": "/v1/chat/completions",)"
              R"( "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprobs": true}})",
       Line("f", R"({"prompt": "Say", "max_tokens": 40, "temperature": 0, "response_format": {"type": "json_schema",)"
                 R"( "json_schema": {"name": "n", "schema": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}}})"),
       Line("e", R"({"prompt": "long", "max_tokens": 100000})")});
  Outcome run = RunProgram(2, Arguments() + " --tp 2");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  auto results = ById();
  ASSERT_EQ(results.size(), 7u);
  EXPECT_EQ(results["a"].at("response").at("status_code"), 200);
  EXPECT_EQ(results["a"].at("response").at("body").at("usage").at("completion_tokens"), 4);
  EXPECT_EQ(results["b"].at("response").at("body").at("choices").as_array().size(), 4u);
  EXPECT_EQ(results["c"].at("error").at("param"), "top_p");
  EXPECT_EQ(results["c"].at("response").at("status_code"), 400);
  EXPECT_EQ(results["d"].at("response").at("body").at("object"), "chat.completion");
  const json::value& masked = results["f"].at("response").at("body").at("choices").at(0);
  EXPECT_TRUE(json::parse(masked.at("text").as_string()).is_array()) << masked;
  EXPECT_FALSE(results["e"].at("error").is_null());
  EXPECT_THAT(json::serialize(results[""].at("error")), HasSubstr("line 2"));
}

TEST_F(Batch, ARestartAnswersOnlyTheRestAndRepairsATornLine) {
  std::vector<std::string> lines;
  for (int i = 0; i < 6; ++i) lines.push_back(Line("r" + std::to_string(i), R"({"prompt": "God", "max_tokens": 3})"));
  lines.push_back("bad");
  WriteInput(lines);
  ASSERT_EQ(RunProgram(1, Arguments()).exit_code, 0);
  auto first = ById();
  ASSERT_EQ(first.size(), 7u);
  // As a killed run leaves it: two lines and a half.
  std::string text = *ReadFile(output_);
  size_t second = text.find('\n', text.find('\n') + 1) + 1;
  std::ofstream(output_, std::ios::trunc) << text.substr(0, second + 20);
  Outcome again = RunProgram(1, Arguments());
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(ById().size(), 7u);
  EXPECT_EQ((*ReadFile(output_)).substr(0, second), text.substr(0, second));
  std::string complete = *ReadFile(output_);
  ASSERT_EQ(RunProgram(1, Arguments()).exit_code, 0);
  EXPECT_EQ(*ReadFile(output_), complete) << "nothing was left to do";
}

TEST_F(Batch, ASignalEndsItCleanlyAndARestartCompletes) {
  std::vector<std::string> lines;
  for (int i = 0; i < 300; ++i) {
    lines.push_back(Line("s" + std::to_string(i), R"({"prompt": "And", "max_tokens": 200, "ignore_eos": true})"));
  }
  WriteInput(lines);
  std::string arguments = Arguments() + " --max-seqs 4";
  BackgroundProgram program(1, arguments);
  for (int i = 0; i < 600 && std::filesystem::exists(output_) == false; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  for (int i = 0; i < 600 && std::filesystem::file_size(output_) == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  program.Signal(SIGTERM);
  Outcome stopped = program.Wait();
  EXPECT_EQ(stopped.exit_code, 10) << stopped.err;
  EXPECT_LT(stopped.seconds, 5);
  EXPECT_EQ(stopped.Count("latentmesh: error:"), 1) << stopped.err;
  size_t answered = ById().size();
  EXPECT_GT(answered, 0u);
  EXPECT_LT(answered, 300u);
  WriteInput({lines.begin(), lines.begin() + static_cast<long>(answered) + 4});
  ASSERT_EQ(RunProgram(1, arguments).exit_code, 0);
  EXPECT_GE(ById().size(), answered);
  EXPECT_EQ((*ReadFile(output_)).back(), '\n');
}

}  // namespace
}  // namespace latentmesh
