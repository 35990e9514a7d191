#include "launch/heat_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

TEST(HeatMap, HasACellForEachValueWithItsStrength) {
  std::string svg = RenderSvg(HeatMap{"loads <1>", "", "layer", "expert", 3, {0, 1, 2, 4, 8, 2}, 4, "times"});
  EXPECT_THAT(svg, testing::HasSubstr("<title>loads &lt;1&gt;</title>"));
  EXPECT_THAT(svg, testing::ContainsRegex("fill-opacity=.0\\.500.><title>layer 0, expert 2: 2</title>"));
  EXPECT_THAT(svg, testing::ContainsRegex("fill-opacity=.1\\.000.><title>layer 1, expert 1: 8</title>"));   // above full
  EXPECT_THAT(svg, testing::ContainsRegex("fill-opacity=.0\\.000.><title>layer 0, expert 0: 0</title>"));
  EXPECT_THAT(RenderSvg(HeatMap{"none", "", "layer", "expert", 2, {0, 0}, 0, ""}), testing::HasSubstr("</svg>"));
}

}  // namespace
}  // namespace latentmesh
