// `generate`: forms of prompts and output, and the same tokens on every layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/json_lines.h"
#include "tests/integration/program.h"

namespace latentmesh {
namespace {

namespace json = boost::json;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kDemo = "generate --model launch/demo --dtype f32 --kv-dtype f32 --threads 1 ";

std::string Ids(const json::value& line) { return json::serialize(line.at("output_ids")); }

TEST(Generate, StreamsTextOfOnePrompt) {
  Outcome run =
      RunProgram(1, std::string(kDemo) + "--prompt 'And God said' --temperature 0 --max-tokens 12 --stats --echo");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out.rfind("And God said", 0), 0u) << run.out;
  EXPECT_THAT(run.out, HasSubstr("prefill: "));
  EXPECT_THAT(run.out, HasSubstr("decode: 11 tokens"));
  EXPECT_THAT(run.out, HasSubstr("bytes/token (MLA"));
  EXPECT_THAT(run.out, HasSubstr("GQA-8"));
  EXPECT_THAT(run.out, HasSubstr("MQA"));
  EXPECT_THAT(run.err, HasSubstr("layout: "));
  EXPECT_THAT(run.err, HasSubstr("rank 0: "));
}

TEST(Generate, JsonHasIdsTextReasonAndTimings) {
  Outcome run = RunProgram(
      1, std::string(kDemo) + "--prompt 'And God said' --max-tokens 5 --n 2 --logprobs 1 --ignore-eos --format json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  auto lines = JsonLines(run.out);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].at("prompt"), "And God said");
  EXPECT_EQ(lines[0].at("output_ids").as_array().size(), 5u);
  EXPECT_EQ(lines[0].at("finish_reason"), "length");
  ASSERT_EQ(lines[0].at("choices").as_array().size(), 2u);
  EXPECT_NE(lines[0].at("choices").at(0).at("output_ids"), lines[0].at("choices").at(1).at("output_ids"));
  EXPECT_EQ(lines[0].at("choices").at(1).at("logprobs").as_array().size(), 5u);
  EXPECT_GT(lines[0].at("timings").at("total_s").to_number<double>(), 0);
}

TEST(Generate, JsonHasAcceptanceWhenDraftsAreOn) {
  std::string base = std::string(kDemo) + "--prompt 'And God said' --temperature 0 --max-tokens 24 --ignore-eos --format json";
  auto plain = JsonLines(RunProgram(1, base).out).at(0);
  EXPECT_FALSE(plain.as_object().contains("speculation"));
  auto drafted = JsonLines(RunProgram(1, base + " --speculative-tokens 2 --speculative-fixed").out).at(0);
  EXPECT_EQ(Ids(drafted), Ids(plain));
  const json::value& s = drafted.at("speculation");
  double steps = s.at("drafts").to_number<double>(), drafts = s.at("draft_tokens").to_number<double>();
  double accepted = s.at("accepted_tokens").to_number<double>();
  EXPECT_GT(steps, 0);
  EXPECT_GT(drafts, steps);
  EXPECT_GT(accepted, 0);
  EXPECT_NEAR(s.at("acceptance_rate").to_number<double>(), accepted / drafts, 1e-5);
  EXPECT_NEAR(s.at("acceptance_length").to_number<double>(), 1 + accepted / steps, 1e-4);
}

TEST(Generate, PromptsFileIdsAndChat) {
  Outcome run =
      RunProgram(1, std::string(kDemo) + "--prompt-ids 0,5,6 --prompts-file .gitignore --max-tokens 3 --format json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  auto lines = JsonLines(run.out);
  ASSERT_GE(lines.size(), 2u);
  EXPECT_EQ(json::serialize(lines[0].at("prompt_ids")), "[0,5,6]");
  Outcome chat = RunProgram(1, std::string(kDemo) + "--chat --prompt Hello --max-tokens 3 --format json");
  ASSERT_EQ(chat.exit_code, 0) << chat.err;
  Outcome rendered =
      RunProgram(1, std::string(kDemo) + "--prompt '<｜User｜>Hello<｜Assistant｜>' --max-tokens 3 --format json");
  EXPECT_EQ(json::serialize(JsonLines(chat.out)[0].at("prompt_ids")),
            json::serialize(JsonLines(rendered.out)[0].at("prompt_ids")));
}

TEST(Generate, StopStringEndsTheTextBeforeIt) {
  std::string base =
      std::string(kDemo) + "--prompt '1 And it came to pass' --temperature 0 --max-tokens 40 --format json";
  auto whole = JsonLines(RunProgram(1, base).out).at(0);
  std::string text(whole.at("text").as_string());
  ASSERT_GT(text.size(), 20u);
  std::string stop = text.substr(10, 5);      // somewhere inside, not at a token's border in general
  auto cut = JsonLines(RunProgram(1, base + " --stop " + ShellQuote(stop)).out).at(0);
  EXPECT_EQ(std::string(cut.at("text").as_string()), text.substr(0, text.find(stop)));
  EXPECT_EQ(cut.at("finish_reason"), "stop");
  EXPECT_EQ(cut.at("stop_reason"), json::string_view(stop));
}

TEST(Generate, SeedsGiveTheSameTokensOnEveryLayout) {
  std::string arguments = "generate --model tests/golden/v3-tiny --dtype f32 --kv-dtype f32 --threads 1 --seed 11 "
                          "--prompt-ids 3,1,4,1,5,9,2,6 --prompt-ids 27,18,28 --prompt-ids 1 --max-tokens 24 "
                          "--temperature 0.9 --n 2 --ignore-eos --format json";
  std::string first;
  for (Layout layout : {Layout{}, Layout{.tp = 2}, Layout{.dp = 2}, Layout{.pp = 2}, Layout{.tp = 2, .dp = 2},
                        Layout{.tp = 4, .cp = 2}}) {
    Outcome run = RunProgram(layout, arguments);
    ASSERT_EQ(run.exit_code, 0) << layout.name() << run.err;
    std::string ids;
    for (const json::value& line : JsonLines(run.out)) {
      for (const json::value& choice : line.at("choices").as_array()) ids += Ids(choice) + "\n";
    }
    if (first.empty()) first = ids;
    EXPECT_EQ(ids, first) << layout.name();
  }
  Outcome other = RunProgram(1, arguments + " --seed 12");
  EXPECT_NE(other.exit_code, 0) << "a flag given twice is refused";
}

TEST(Generate, IdleRanksTakePart) {
  // One sequence on two data parallel ranks: one of them has no tokens at any step.
  Outcome one = RunProgram(1,
                           "generate --model tests/golden/v3-tiny --dtype f32 --prompt-ids 3,1,4 --max-tokens 8 "
                           "--temperature 0 --format json");
  Outcome two = RunProgram(2,
                           "generate --model tests/golden/v3-tiny --dtype f32 --dp 2 --prompt-ids 3,1,4 --max-tokens 8 "
                           "--temperature 0 --format json");
  ASSERT_EQ(two.exit_code, 0) << two.err;
  EXPECT_EQ(Ids(JsonLines(one.out).at(0)), Ids(JsonLines(two.out).at(0)));
}

TEST(Generate, HelpIsPrintedOnce) {
  Outcome run = RunProgram(2, "generate --help");
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_EQ(run.out.find("--prompts-file"), run.out.rfind("--prompts-file")) << run.out;
  EXPECT_THAT(run.err, Not(HasSubstr("error")));
}

TEST(Version, NamesTransportAndRanks) {
  Outcome run = RunProgram(2, "version");
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, HasSubstr("latentmesh "));
  EXPECT_THAT(run.out, HasSubstr("ranks: 2"));
}

TEST(Bench, ThroughputPrintsTheKnownLineAndJson) {
  TempFolder folder;
  Outcome run = RunProgram(2,
                           "bench throughput --model launch/demo --tp 2 --input-len 16 --output-len 4 --num-prompts 6 "
                           "--output-json " +
                               (folder / "result.json"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("Throughput: "));
  EXPECT_THAT(run.out, HasSubstr(" requests/s, "));
  EXPECT_THAT(run.out, HasSubstr("Total generated tokens: 24"));
  json::value result = JsonFile(folder / "result.json");
  for (const char* key :
       {"elapsed_time", "num_requests", "total_num_tokens", "requests_per_second", "tokens_per_second"}) {
    EXPECT_TRUE(result.as_object().contains(key)) << key;
  }
  EXPECT_EQ(result.at("total_num_tokens"), 6 * 20);
}

TEST(Bench, LatencyPrintsPercentiles) {
  Outcome run =
      RunProgram(1, "bench latency --model launch/demo --input-len 8 --output-len 4 --num-iters 2 --batch-size 2");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("Avg latency: "));
  EXPECT_THAT(run.out, HasSubstr("99% percentile latency: "));
}

}  // namespace
}  // namespace latentmesh
