// SvgCanvas: the elements that the charts of svg.h are drawn with.
#pragma once

#include <string>
#include <vector>

namespace latentmesh {

class SvgCanvas {
 public:
  SvgCanvas(int width, int height, const std::string& title);

  // `anchor`: start, middle or end. `kind`: a class of the style sheet: "title", "label", "tick".
  void Text(double x, double y, const std::string& text, const char* kind, const char* anchor = "start");
  void TextUpwards(double x, double y, const std::string& text);       // turned a quarter, centred on (x, y)
  void Line(double x1, double y1, double x2, double y2, const char* kind);   // "axis", "grid", "limit"
  void Path(const std::vector<std::pair<double, double>>& points, size_t colour, bool dashed);
  void Dot(double x, double y, size_t colour, const std::string& tip);
  void Bar(double x, double y, double width, double height, size_t colour, const std::string& tip);
  // One line of names with their colours from `x` on, broken at `right`; returns the height used.
  double Legend(double x, double y, double right, const std::vector<std::string>& names);
  std::string Finish() { return body_ + "</svg>\n"; }

 private:
  std::string body_;
};

// About how wide a text of the 12 pixel font is.
double TextWidth(const std::string& text);

// A value's place between two pixel positions, along a linear or logarithmic axis.
class AxisScale {
 public:
  AxisScale(std::vector<double> ticks, bool log, double begin, double end);
  double At(double value) const;
  bool Shows(double value) const;
  const std::vector<double>& ticks() const { return ticks_; }

 private:
  std::vector<double> ticks_;
  bool log_;
  double begin_, end_;
};

}  // namespace latentmesh
