#include "moe/load_recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LoadRecorder, KeepsTheLastWindows) {
  LoadRecorder recorder(2, 3, 2);
  for (int64_t w = 1; w <= 4; ++w) {
    recorder.Add(0, std::vector<int64_t>{w, 0, 10});
    recorder.Add(1, std::vector<int64_t>{0, w, 0});
    recorder.Add(1, std::vector<int64_t>{0, w, 0});
    recorder.CloseWindow();
  }
  recorder.Add(0, std::vector<int64_t>{100, 0, 0});
  EXPECT_EQ(recorder.closed_windows(), 2);
  EXPECT_THAT(recorder.Recent().values, ElementsAre(7, 0, 20, 0, 14, 0));
  EXPECT_THAT(recorder.window(0).values, ElementsAre(4, 0, 10, 0, 8, 0));
  EXPECT_THAT(recorder.open().values, ElementsAre(100, 0, 0, 0, 0, 0));
  EXPECT_THAT(recorder.all().values, ElementsAre(110, 0, 40, 0, 20, 0));
}

TEST(LoadRecorder, TextFormComesBack) {
  LoadMatrix loads(2, 3);
  loads.values = {1, 2, 3, 0, 5'000'000'000, 6};
  EXPECT_EQ(FormatLoads(loads), "layer,e0,e1,e2\n0,1,2,3\n1,0,5000000000,6\n");
  EXPECT_EQ(ParseLoads(FormatLoads(loads), "x.csv").value(), loads);
  EXPECT_EQ(ParseLoads(FormatLoads(loads) + "# routing,0,5,1.5,2,1,1\n", "x.csv").value(), loads);
}

TEST(LoadRecorder, BadTextNamesTheLine) {
  EXPECT_THAT(ParseLoads("", "a.csv").status().message(), HasSubstr("a.csv, line 1"));
  EXPECT_THAT(ParseLoads("layer,e0\n0,-4\n", "a.csv").status().message(), HasSubstr("line 2"));
  EXPECT_THAT(ParseLoads("layer,e0\n0,4\n1,4,4\n", "a.csv").status().message(), HasSubstr("line 3: 2 loads"));
  EXPECT_THAT(ParseLoads("layer,e0\n1,4\n", "a.csv").status().message(), HasSubstr("expected layer 0"));
  EXPECT_THAT(ParseLoads("layer,e0\n0,4x\n", "a.csv").status().message(), HasSubstr("whole numbers"));
  EXPECT_THAT(ParseLoads("layer,e0\n0,99999999999999999999\n", "a.csv").status().message(), HasSubstr("whole numbers"));
}

}  // namespace
}  // namespace latentmesh
