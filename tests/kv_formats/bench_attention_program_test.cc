// `latentmesh bench attention` as a user starts it: seconds long, all three outputs.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include <boost/json.hpp>
#include <unistd.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

std::string Read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

int RunBench(const std::string& arguments) {
  const std::string line =
      std::string(LATENTMESH_PROGRAM) + " bench attention --threads 1 --log-level warn " + arguments;
  return WEXITSTATUS(std::system(line.c_str()));
}

TEST(BenchAttentionProgram, WritesTableJsonAndPage) {
  const std::string base = testing::TempDir() + "bench_attention" + std::to_string(getpid());
  ASSERT_EQ(RunBench("--heads 6 --hidden 192 --kv-lora-rank 80 --nope 40 --rope 24 --v-head-dim 56 --contexts 64,300 "
                     "--batches 1,2 "
                     "--memory 50MB --seconds 1 --fit tests/golden/llama-mha --json " +
                     base + ".json --html " + base + ".html > " + base + ".txt"),
            0);
  const boost::json::value json = boost::json::parse(Read(base + ".json"));
  EXPECT_EQ(json.at("decode").as_array().size(), 4u * 2 * 2);     // GQA-8 and GQA-4 do not divide 6 heads
  for (const auto& check : json.at("checks").as_array()) EXPECT_TRUE(check.at("ok").as_bool());
  for (const auto& cell : json.at("decode").as_array()) EXPECT_EQ(cell.at("source").as_string(), "measured");
  EXPECT_EQ(json.at("fit").at("mean").as_array().size(), 3u);
  EXPECT_NE(Read(base + ".txt").find("Crossover"), std::string::npos);
  EXPECT_NE(Read(base + ".html").find("</html>"), std::string::npos);
  for (const char* kind : {".json", ".html", ".txt"}) std::remove((base + kind).c_str());
}

TEST(BenchAttentionProgram, RefusesWithTheFlag) {
  EXPECT_EQ(RunBench("--contexts 1k,x 2> /dev/null"), 2);
  EXPECT_EQ(RunBench("--nope 41 2> /dev/null"), 2);
  EXPECT_EQ(RunBench("--seconds 1 --contexts 16 --batches 1 --fit tests/golden/v3-tiny 2> /dev/null > /dev/null"), 2);
}

}  // namespace
}  // namespace latentmesh
