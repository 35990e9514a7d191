#include "launch/svg.h"

#include <gtest/gtest.h>

#include <cmath>
#include <regex>
#include <sstream>

namespace latentmesh {
namespace {

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

// Every opened element is closed in order: enough to say that an SVG reader will take it.
bool WellFormed(const std::string& svg) {
  static const std::regex tag("<(/?)([a-z]+)([^<>]*?)(/?)>");
  std::vector<std::string> open;
  for (std::sregex_iterator it(svg.begin(), svg.end(), tag), end; it != end; ++it) {
    const std::smatch& m = *it;
    if (m[4].length() > 0) continue;
    if (m[1].length() == 0) {
      open.push_back(m[2]);
    } else {
      if (open.empty() || open.back() != m[2]) return false;
      open.pop_back();
    }
  }
  return open.empty();
}

TEST(AxisTicks, CoverTheRangeWithRoundSteps) {
  EXPECT_EQ(AxisTicks(0, 10, 5, false), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(AxisTicks(1, 1000, 5, true), (std::vector<double>{1, 10, 100, 1000}));
  struct Case {
    double low, high;
    bool log;
  };
  for (auto [low, high, log] : {Case{0, 0, false},
                                {-3, 7.1, false},
                                {5, 5, false},
                                {1e-7, 3e-7, true},
                                {3, 3, true},
                                {0.2, 9e9, true},
                                {12, 19, true},
                                {0, 1.23e15, false}}) {
    auto ticks = AxisTicks(low, high, 6, log);
    ASSERT_GE(ticks.size(), 2u);
    EXPECT_LE(ticks.size(), 20u) << low << " " << high;
    EXPECT_LE(ticks.front(), low * (1 + 1e-9) + 1e-12);
    EXPECT_GE(ticks.back(), high * (1 - 1e-9));
    EXPECT_TRUE(std::is_sorted(ticks.begin(), ticks.end()));
  }
}

TEST(AxisNumber, IsShort) {
  EXPECT_EQ(AxisNumber(0), "0");
  EXPECT_EQ(AxisNumber(0.25), "0.25");
  EXPECT_EQ(AxisNumber(1500), "1.5k");
  EXPECT_EQ(AxisNumber(2e7), "20M");
  EXPECT_EQ(AxisNumber(-3000), "-3k");
}

TEST(LineChart, DrawsEverySeriesInsideThePicture) {
  LineChart chart{.title = "a < b & \"c\"", .x = {"batch", true}, .y = {"rate", true}};
  chart.series.push_back({"one", {{1, 10}, {8, 70}, {64, NAN}, {128, 300}, {0, 5}}});
  chart.series.push_back({"two", {{1, 20}, {128, 2000}}, true, false});
  std::string svg = RenderSvg(chart);
  EXPECT_TRUE(WellFormed(svg)) << svg;
  EXPECT_EQ(Count(svg, "<polyline"), 2);
  EXPECT_EQ(Count(svg, "<circle"), 3);  // NaN and x = 0 on a log axis are left out
  EXPECT_EQ(Count(svg, "a &lt; b &amp; &quot;c&quot;"), 2);
  static const std::regex place("c([xy])=\"([-0-9.]+)\"");
  for (std::sregex_iterator it(svg.begin(), svg.end(), place), end; it != end; ++it) {
    double value = std::stod((*it)[2]);
    EXPECT_GE(value, 0);
    EXPECT_LE(value, (*it)[1] == "x" ? chart.width : chart.height);
  }
}

TEST(BarChart, StacksAddUp) {
  BarChart chart{.title = "memory",
                 .value_label = "GB",
                 .categories = {"tp8", "dp8"},
                 .stacked = true,
                 .limit = 40,
                 .limit_label = "limit"};
  chart.series = {{"weights", {10, 20}}, {"cache", {5}}};
  std::string svg = RenderSvg(chart);
  EXPECT_TRUE(WellFormed(svg));
  static const std::regex bar("<rect x=\"([0-9.]+)\" y=\"[0-9.]+\" width=\"([0-9.]+)\" height=\"20.0\"");
  std::vector<std::pair<double, double>> bars;
  for (std::sregex_iterator it(svg.begin(), svg.end(), bar), end; it != end; ++it)
    bars.emplace_back(std::stod((*it)[1]), std::stod((*it)[2]));
  ASSERT_EQ(bars.size(), 4u);
  EXPECT_NEAR(bars[0].second, 2 * bars[1].second, 0.3);  // 10 and 5
  EXPECT_NEAR(bars[1].first, bars[0].first + bars[0].second, 0.3);
  EXPECT_NEAR(bars[2].second, 2 * bars[0].second, 0.3);  // 20
  EXPECT_EQ(bars[3].second, 0);                          // missing value
}

TEST(Charts, StackOneBelowTheOther) {
  std::string svg =
      StackSvgs({RenderSvg(LineChart{.width = 300, .height = 200}), RenderSvg(LineChart{.width = 500, .height = 100})});
  EXPECT_TRUE(WellFormed(svg));
  EXPECT_EQ(Count(svg, "viewBox=\"0 0 500 300\""), 1);
  EXPECT_EQ(Count(svg, "<svg y=\"200\""), 1);
}

TEST(Charts, EmptyOnesAreStillPictures) {
  EXPECT_TRUE(WellFormed(RenderSvg(LineChart{})));
  EXPECT_TRUE(WellFormed(RenderSvg(BarChart{.log = true})));
  EXPECT_TRUE(WellFormed(RenderSvg(LineChart{.x = {"x", true}, .series = {{"s", {{NAN, NAN}}}}})));
}

}  // namespace
}  // namespace latentmesh
