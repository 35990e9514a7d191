// Steps in two halves that are under way at once, over MPI.
#include <fstream>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/program.h"

namespace latentmesh {
namespace {

using ::testing::HasSubstr;

TEST(MicroBatches, StayWithinTheBoundsOfTheGoldens) {
  for (const char* flags : {"--dtype f32 --kv-dtype f32 --tolerance 1e-5", "--dispatch-dtype bf16 --kv-dtype f32 --tolerance 0.02"}) {
    Outcome run = RunProgram({.tp = 2, .dp = 2}, std::string("verify --micro-batches 2 --threads 1 --model tests/golden/v3-tiny "
                             "--expected tests/golden/v3-tiny/expected.safetensors ") + flags);
    EXPECT_EQ(run.exit_code, 0) << flags << run.out << run.err;
  }
}

TEST(MicroBatches, AreCountedAndSeenInTheTimeline) {
  TempFolder folder;
  std::string generate = "generate --model launch/demo --threads 1 --prompt 'And it came to pass' --max-tokens 4 --temperature 0 --stats ";
  Outcome one = RunProgram({.dp = 2}, generate + "--micro-batches 1");
  Outcome two = RunProgram({.dp = 2}, generate + "--micro-batches 2 --trace " + folder / "trace.json");
  EXPECT_EQ(two.exit_code, 0) << two.err;
  EXPECT_EQ(one.out.substr(0, one.out.find('\n')), two.out.substr(0, two.out.find('\n')));
  EXPECT_THAT(two.out + two.err, HasSubstr("two micro-batches in 1 of 4 steps"));        // the prompt's; then there is one token
  EXPECT_EQ((one.out + one.err).find("two micro-batches in"), std::string::npos);
  std::ifstream file(folder / "trace.json");
  std::string trace((std::istreambuf_iterator<char>(file)), {});
  for (const char* name : {"\"half\"", "\"tokens under way\"", "\"results under way\"", "\"wait for tokens\""}) EXPECT_THAT(trace, HasSubstr(name));
}

TEST(MicroBatches, RankThatHangsBetweenTheirPartsIsNamed) {
  Outcome run = RunProgram({.dp = 2}, "generate --model launch/demo --threads 1 --prompt 'In the beginning God' --max-tokens 8 "
                                      "--micro-batches 2 --step-timeout 2 --inject-fault slow@1:0:30");
  EXPECT_EQ(run.exit_code, 9) << run.err;
  EXPECT_THAT(run.err, HasSubstr("waiting for rank 1"));
  EXPECT_THAT(run.err, HasSubstr("expert dispatch and combine"));
  EXPECT_LT(run.seconds, 25);
}

}  // namespace
}  // namespace latentmesh
