// Small charts as SVG text: lines, and bars side by side or stacked, with axes, grid and legend. Colours read on a
// light and on a dark page, and the background is transparent. No file is written here; no state; thread-safe.
//
//   LineChart chart{.title = "decode rate", .x = {"batch"}, .y = {"tokens/s"}};
//   chart.series.push_back({"tp8", {{1, 60}, {2, 110}}});
//   WriteFile("rates.svg", RenderSvg(chart));
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace latentmesh {

struct ChartAxis {
  std::string label;
  bool log = false;       // needs values above 0; others are left out
  bool from_zero = true;  // linear axes only
};

struct LineSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x, y; drawn in this order; non-finite points are left out
  bool dashed = false;                            // for limits, ideals and predictions
  bool markers = true;
};

struct LineChart {
  std::string title;
  std::string subtitle;  // smaller, below the title; may be empty
  ChartAxis x;
  ChartAxis y;
  std::vector<LineSeries> series;
  int width = 760;  // pixels, legend included
  int height = 440;
};

struct BarSeries {
  std::string name;
  std::vector<double> values;  // one for each category; missing and non-finite ones count as 0
};

struct BarChart {
  std::string title;
  std::string subtitle;
  std::string value_label;
  std::vector<std::string> categories;  // one row of bars each, top to bottom
  std::vector<BarSeries> series;
  bool stacked = false;
  bool log = false;  // not with stacked
  double limit = 0;  // a dashed line at this value, when above 0
  std::string limit_label;
  int width = 760;  // the height follows from the number of bars
};

std::string RenderSvg(const LineChart& chart);
std::string RenderSvg(const BarChart& chart);

// Several rendered charts in one picture, one below the other.
std::string StackSvgs(const std::vector<std::string>& charts);

// Round values that cover [low, high] in about `count` steps of 1, 2 or 5 times a power of ten (powers of ten and, when
// few, their 2 and 5 fold, for log). Rising; the first is at most low and the last at least high.
std::vector<double> AxisTicks(double low, double high, int count, bool log);
std::string AxisNumber(double value);  // "0", "0.25", "12", "1.5k", "20M", "3.2e-05"
std::string EscapeXml(const std::string& text);

}  // namespace latentmesh
