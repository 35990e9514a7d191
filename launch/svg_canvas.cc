#include "launch/svg_canvas.h"

#include <cmath>

#include <fmt/format.h>

#include "launch/svg.h"

namespace latentmesh {
namespace {

// Middle tones that stand out on white and on near black, told apart also by people who see few colours.
constexpr const char* kColours[] = {"#3b82c4", "#e08a1e", "#2f9e77", "#c4527f",
                                    "#8a6fd1", "#8a8f98", "#b59a1f", "#4fb3bf"};
constexpr size_t kColourCount = std::size(kColours);

constexpr const char* kStyle =
    "<style>text{font:12px "
    "system-ui,sans-serif;fill:#4a5058}.title{font-size:15px;font-weight:600}.tick{font-size:11px}"
    ".axis{stroke:#7d838c;stroke-width:1}.grid{stroke:#8a8f98;stroke-opacity:.25;stroke-width:1}"
    ".limit{stroke:#7d838c;stroke-width:1.5;stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){text{fill:#c3c8cf}}</style>\n";

const char* Colour(size_t i) { return kColours[i % kColourCount]; }

}  // namespace

double TextWidth(const std::string& text) { return 6.6 * static_cast<double>(text.size()); }

SvgCanvas::SvgCanvas(int width, int height, const std::string& title) {
  body_ = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "role=\"img\">\n<title>{2}</title>\n",
      width, height, EscapeXml(title));
  body_ += kStyle;
}

void SvgCanvas::Text(double x, double y, const std::string& text, const char* kind, const char* anchor) {
  body_ += fmt::format("<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", kind, x, y,
                       anchor, EscapeXml(text));
}

void SvgCanvas::TextUpwards(double x, double y, const std::string& text) {
  body_ += fmt::format(
      "<text class=\"label\" text-anchor=\"middle\" transform=\"translate({:.1f} {:.1f}) rotate(-90)\">{}"
      "</text>\n",
      x, y, EscapeXml(text));
}

void SvgCanvas::Line(double x1, double y1, double x2, double y2, const char* kind) {
  body_ += fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kind, x1, y1,
                       x2, y2);
}

void SvgCanvas::Path(const std::vector<std::pair<double, double>>& points, size_t colour, bool dashed) {
  if (points.size() < 2) return;
  std::string list;
  for (auto [x, y] : points) list += fmt::format("{}{:.1f},{:.1f}", list.empty() ? "" : " ", x, y);
  body_ += fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{} points=\"{}\"/>\n", Colour(colour),
                       dashed ? " stroke-dasharray=\"6 4\"" : "", list);
}

void SvgCanvas::Dot(double x, double y, size_t colour, const std::string& tip) {
  body_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\" fill=\"{}\"><title>{}</title></circle>\n", x, y,
                       Colour(colour), EscapeXml(tip));
}

void SvgCanvas::Bar(double x, double y, double width, double height, size_t colour, const std::string& tip) {
  body_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"><title>{}</title></rect>\n", x, y,
      width, height, Colour(colour), EscapeXml(tip));
}

double SvgCanvas::Legend(double x, double y, double right, const std::vector<std::string>& names) {
  double at = x, line = y;
  for (size_t i = 0; i < names.size(); ++i) {
    double wide = TextWidth(names[i]) + 34;
    if (at + wide > right && at > x) {
      at = x;
      line += 18;
    }
    body_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{}\"/>\n", at,
                         line - 10, Colour(i));
    Text(at + 17, line, names[i], "label");
    at += wide;
  }
  return names.empty() ? 0 : line - y + 18;
}

AxisScale::AxisScale(std::vector<double> ticks, bool log, double begin, double end)
    : ticks_(std::move(ticks)), log_(log), begin_(begin), end_(end) {}

double AxisScale::At(double value) const {
  auto along = [this](double v) { return log_ ? std::log10(v) : v; };
  double low = along(ticks_.front()), high = along(ticks_.back());
  return begin_ + (along(value) - low) / (high - low) * (end_ - begin_);
}

bool AxisScale::Shows(double value) const { return std::isfinite(value) && (!log_ || value > 0); }

}  // namespace latentmesh
