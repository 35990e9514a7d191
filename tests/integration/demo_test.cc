// The shipped model: its reference continuations to the last token, and its perplexity.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "launch/files.h"
#include "tests/integration/json_lines.h"
#include "tests/integration/program.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

// Runs all reference prompts in one job and compares ids and text.
void ExpectReference(const Layout& layout) {
  json::object reference = json::parse(*ReadFile("tests/golden/greedy_reference.json")).as_object();
  std::string prompts;
  for (const auto& item : reference) prompts += " --prompt " + ShellQuote(std::string(item.key()));
  Outcome run = RunProgram(layout, "generate --model launch/demo --dtype f32 --kv-dtype f32 --temperature 0 "
                                   "--ignore-eos --max-tokens 96 --format json" + prompts);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  auto lines = JsonLines(run.out);
  ASSERT_EQ(lines.size(), reference.size()) << run.out;
  size_t i = 0;
  for (const auto& item : reference) {
    json::array ids = lines[i].at("prompt_ids").as_array();
    for (const json::value& id : lines[i].at("output_ids").as_array()) ids.push_back(id);
    EXPECT_EQ(ids, item.value().at("ids").as_array()) << "prompt: " << item.key();
    EXPECT_EQ(std::string(item.key()) + std::string(lines[i].at("text").as_string()),
              item.value().at("text").as_string());
    ++i;
  }
}

TEST(Demo, GreedyReferenceOnOneRank) { ExpectReference({}); }
TEST(Demo, GreedyReferenceOnFourRanks) { ExpectReference({.tp = 2, .dp = 2}); }
TEST(Demo, GreedyReferenceWithPipelineAndContextParallel) { ExpectReference({.tp = 2, .pp = 2, .cp = 2}); }

TEST(Demo, PerplexityIsTheReferences) {
  Outcome run = RunProgram(2, "eval --model launch/demo --dtype f32 --kv-dtype f32 --dp 2 --ids "
                              "tests/golden/validation_ids.safetensors --windows 60 --format json", 280);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  json::value result = json::parse(run.out);
  EXPECT_EQ(result.at("tokens"), 60 * 512);
  EXPECT_NEAR(result.at("perplexity").to_number<double>(), 30.70, 0.005 * 30.70);
}

}  // namespace
}  // namespace latentmesh
