#include "launch/heat_map.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "kernels/status.h"
#include "launch/svg.h"

namespace latentmesh {
namespace {

constexpr double kLeft = 56, kTop = 56, kRight = 16, kBottom = 76, kGridWidth = 900;

// One hue whose opacity is the value, so that the page shows through where there is nothing.
std::string Cell(double x, double y, double width, double height, double strength, const std::string& tip) {
  return fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"#d2601a\" fill-opacity=\"{:.3f}\">"
                     "<title>{}</title></rect>\n", x, y, width, height, strength, EscapeXml(tip));
}

std::string Text(double x, double y, const char* anchor, const std::string& text, bool title = false) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor,
                     title ? " style=\"font-size:15px;font-weight:600\"" : "", EscapeXml(text));
}

std::string Legend(const HeatMap& map, double full, double y) {
  std::string out;
  for (int i = 0; i <= 8; ++i) out += Cell(kLeft + 24 * i, y, 24, 12, i / 8.0, AxisNumber(full * i / 8));
  out += Text(kLeft, y + 28, "middle", "0") + Text(kLeft + 216, y + 28, "middle", AxisNumber(full));
  return out + Text(kLeft + 230, y + 11, "start", map.unit);
}

}  // namespace

std::string RenderSvg(const HeatMap& map) {
  LM_CHECK(map.columns > 0 && map.values.size() % static_cast<size_t>(map.columns) == 0);
  auto rows = static_cast<int>(map.values.size() / static_cast<size_t>(map.columns));
  double full = map.full;
  if (full <= 0) full = map.values.empty() ? 1 : std::max(1e-30, *std::max_element(map.values.begin(), map.values.end()));
  double width = kGridWidth / map.columns, height = std::clamp(400.0 / std::max(rows, 1), 7.0, 28.0);
  double bottom = kTop + height * rows, total_width = kLeft + kGridWidth + kRight, total_height = bottom + kBottom;
  std::string out = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
                                "height=\"{1:.0f}\" role=\"img\">\n<title>{2}</title>\n", total_width, total_height, EscapeXml(map.title));
  out += "<style>text{font:12px system-ui,sans-serif;fill:#4a5058}@media(prefers-color-scheme:dark){text{fill:#c3c8cf}}</style>\n";
  out += Text(kLeft, 20, "start", map.title, true) + Text(kLeft, 40, "start", map.subtitle);
  for (int r = 0; r < rows; ++r) {
    double y = kTop + height * r;
    if (rows <= 24 || r % 5 == 0) out += Text(kLeft - 6, y + height / 2 + 4, "end", std::to_string(r));
    for (int c = 0; c < map.columns; ++c) {
      double value = map.values[static_cast<size_t>(r) * static_cast<size_t>(map.columns) + static_cast<size_t>(c)];
      std::string tip = fmt::format("{} {}, {} {}: {}", map.row_label, r, map.column_label, c, AxisNumber(value));
      out += Cell(kLeft + width * c, y, width, height, std::clamp(value / full, 0.0, 1.0), tip);
    }
  }
  int every = std::max(1, map.columns / 16);
  for (int c = 0; c < map.columns; c += every) out += Text(kLeft + width * (c + 0.5), bottom + 14, "middle", std::to_string(c));
  out += Text(kLeft + kGridWidth, bottom + 32, "end", map.column_label) + Text(kLeft - 6, kTop - 6, "end", map.row_label);
  return out + Legend(map, full, bottom + 36) + "</svg>\n";
}

}  // namespace latentmesh
