#include <algorithm>
#include <cmath>
#include <cstdlib>

#include <fmt/format.h>

#include "launch/svg.h"
#include "launch/svg_canvas.h"

namespace latentmesh {
namespace {

struct Extent {
  double low = 0, high = 0;
  bool any = false;
  void Add(double value, bool log) {
    if (!std::isfinite(value) || (log && value <= 0)) return;
    low = any ? std::min(low, value) : value;
    high = any ? std::max(high, value) : value;
    any = true;
  }
  std::vector<double> Ticks(const ChartAxis& axis, int count) const {
    if (!any) return axis.log ? std::vector<double>{1, 10} : std::vector<double>{0, 1};
    double from = !axis.log && axis.from_zero ? std::min(low, 0.0) : low;
    return AxisTicks(from, high, count, axis.log);
  }
};

// Title, subtitle and legend; returns the y below them.
double Head(SvgCanvas& canvas, const std::string& title, const std::string& subtitle,
            const std::vector<std::string>& names, int width) {
  canvas.Text(16, 24, title, "title");
  double y = 24;
  if (!subtitle.empty()) canvas.Text(16, y += 18, subtitle, "label");
  y += 22;
  return y + (names.size() > 1 ? canvas.Legend(16, y, width - 16, names) : 0);
}

template <typename Series>
std::vector<std::string> Names(const std::vector<Series>& series) {
  std::vector<std::string> names;
  for (const Series& s : series) names.push_back(s.name);
  return names;
}

void DrawSeries(SvgCanvas& canvas, const LineSeries& series, size_t colour, const AxisScale& x, const AxisScale& y) {
  std::vector<std::pair<double, double>> points;
  for (auto [px, py] : series.points)
    if (x.Shows(px) && y.Shows(py)) points.emplace_back(x.At(px), y.At(py));
  canvas.Path(points, colour, series.dashed);
  if (!series.markers && points.size() > 1) return;
  for (auto [px, py] : series.points)
    if (x.Shows(px) && y.Shows(py))
      canvas.Dot(x.At(px), y.At(py), colour, fmt::format("{}: {}, {}", series.name, AxisNumber(px), AxisNumber(py)));
}

double ValueOf(const BarSeries& series, size_t category) {
  double value = category < series.values.size() ? series.values[category] : 0;
  return std::isfinite(value) ? value : 0;
}

Extent BarExtent(const BarChart& chart) {
  Extent extent;
  if (!chart.log) extent.Add(0, false);
  if (chart.limit > 0) extent.Add(chart.limit, chart.log);
  for (size_t c = 0; c < chart.categories.size(); ++c) {
    double sum = 0;
    for (const BarSeries& s : chart.series) {
      sum = chart.stacked ? sum + ValueOf(s, c) : ValueOf(s, c);
      extent.Add(sum, chart.log);
    }
  }
  return extent;
}

struct BarRow {
  double top, thick;  // of one bar
};

void DrawCategory(SvgCanvas& canvas, const BarChart& chart, size_t category, const AxisScale& x, BarRow row) {
  double base = x.At(x.ticks().front()), y = row.top, sum = 0;
  for (size_t s = 0; s < chart.series.size(); ++s) {
    double value = ValueOf(chart.series[s], category);
    std::string tip = fmt::format("{}, {}: {}", chart.categories[category], chart.series[s].name, AxisNumber(value));
    double from = chart.stacked ? x.At(sum) : base;
    sum += value;
    double to = x.Shows(value) ? x.At(chart.stacked ? sum : value) : from;
    canvas.Bar(std::min(from, to), y, std::abs(to - from), row.thick, s, tip);
    if (!chart.stacked) {
      canvas.Text(to + 4, y + row.thick - 3, AxisNumber(value), "tick");
      y += row.thick;
    }
  }
  if (chart.stacked) canvas.Text(x.At(sum) + 4, y + row.thick - 4, AxisNumber(sum), "tick");
}

// The number after `name="` in the first tag of a rendered chart.
int HeadNumber(const std::string& svg, const std::string& name) {
  size_t at = svg.find(" " + name + "=\"");
  return at == std::string::npos ? 0 : std::atoi(svg.c_str() + at + name.size() + 3);
}

}  // namespace

std::string RenderSvg(const LineChart& chart) {
  SvgCanvas canvas(chart.width, chart.height, chart.title);
  double top = Head(canvas, chart.title, chart.subtitle, Names(chart.series), chart.width) + 4;
  double left = 74, right = chart.width - 24, bottom = chart.height - 52;
  Extent ex, ey;
  for (const LineSeries& s : chart.series)
    for (auto [px, py] : s.points) {
      ex.Add(px, chart.x.log);
      ey.Add(py, chart.y.log);
    }
  AxisScale x(ex.Ticks(chart.x, 8), chart.x.log, left, right), y(ey.Ticks(chart.y, 6), chart.y.log, bottom, top);
  for (double tick : y.ticks()) {
    canvas.Line(left, y.At(tick), right, y.At(tick), "grid");
    canvas.Text(left - 8, y.At(tick) + 4, AxisNumber(tick), "tick", "end");
  }
  for (double tick : x.ticks()) {
    canvas.Line(x.At(tick), bottom, x.At(tick), bottom + 5, "axis");
    canvas.Text(x.At(tick), bottom + 19, AxisNumber(tick), "tick", "middle");
  }
  canvas.Line(left, bottom, right, bottom, "axis");
  canvas.Line(left, top, left, bottom, "axis");
  canvas.Text((left + right) / 2, chart.height - 12, chart.x.label, "label", "middle");
  canvas.TextUpwards(18, (top + bottom) / 2, chart.y.label);
  for (size_t s = 0; s < chart.series.size(); ++s) DrawSeries(canvas, chart.series[s], s, x, y);
  return canvas.Finish();
}

std::string RenderSvg(const BarChart& chart) {
  double left = 90;
  for (const std::string& name : chart.categories) left = std::max(left, TextWidth(name) + 24);
  left = std::min(left, chart.width * 0.45);
  double bars = chart.stacked ? 1 : static_cast<double>(std::max<size_t>(1, chart.series.size()));
  double thick = chart.stacked ? 20 : 15, step = thick * bars + 10, right = chart.width - 64;
  double content = step * static_cast<double>(chart.categories.size());
  SvgCanvas measure(chart.width, 0, "");
  double top = Head(measure, chart.title, chart.subtitle, Names(chart.series), chart.width) + 6, bottom = top + content;
  SvgCanvas canvas(chart.width, static_cast<int>(bottom + 54), chart.title);
  Head(canvas, chart.title, chart.subtitle, Names(chart.series), chart.width);
  AxisScale x(BarExtent(chart).Ticks({"", chart.log, true}, 6), chart.log, left, right);
  for (double tick : x.ticks()) {
    canvas.Line(x.At(tick), top, x.At(tick), bottom, "grid");
    canvas.Text(x.At(tick), bottom + 17, AxisNumber(tick), "tick", "middle");
  }
  for (size_t c = 0; c < chart.categories.size(); ++c) {
    double y = top + step * static_cast<double>(c) + 5;
    canvas.Text(left - 8, y + thick * bars / 2 + 4, chart.categories[c], "label", "end");
    DrawCategory(canvas, chart, c, x, {y, thick});
  }
  canvas.Line(left, top, left, bottom, "axis");
  canvas.Text((left + right) / 2, bottom + 40, chart.value_label, "label", "middle");
  if (chart.limit > 0 && x.Shows(chart.limit)) {
    canvas.Line(x.At(chart.limit), top - 4, x.At(chart.limit), bottom, "limit");
    canvas.Text(x.At(chart.limit) - 4, bottom - 4, chart.limit_label, "tick", "end");
  }
  return canvas.Finish();
}

std::string StackSvgs(const std::vector<std::string>& charts) {
  int width = 0, height = 0;
  std::string inner;
  for (const std::string& chart : charts) {
    inner += fmt::format("<svg y=\"{}\"", height) + chart.substr(4);
    width = std::max(width, HeadNumber(chart, "width"));
    height += HeadNumber(chart, "height");
  }
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\">\n", width,
             height) +
         inner + "</svg>\n";
}

}  // namespace latentmesh
