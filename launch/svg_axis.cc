#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "launch/svg.h"

namespace latentmesh {
namespace {

std::vector<double> LogTicks(double low, double high) {
  std::vector<double> ticks;
  double first = std::floor(std::log10(low) + 1e-9), last = std::ceil(std::log10(high) - 1e-9);
  bool few = last - first <= 2;
  int stride = std::max(1, static_cast<int>((last - first) / 8));
  for (double e = first; e <= last; e += stride) {
    ticks.push_back(std::pow(10, e));
    if (few && e < last) for (double m : {2, 5}) ticks.push_back(m * std::pow(10, e));
  }
  if (ticks.back() < high) ticks.push_back(std::pow(10, last));
  // The decades are wide: drop what lies outside but for the ticks next to the ends.
  while (ticks.size() > 2 && ticks[1] <= low) ticks.erase(ticks.begin());
  while (ticks.size() > 2 && ticks[ticks.size() - 2] >= high) ticks.pop_back();
  if (ticks.size() < 2) ticks.push_back(ticks[0] * 10);
  return ticks;
}

double RoundStep(double step) {
  double power = std::pow(10, std::floor(std::log10(step)));
  for (double m : {1.0, 2.0, 5.0})
    if (m * power >= step * (1 - 1e-9)) return m * power;
  return 10 * power;
}

}  // namespace

std::vector<double> AxisTicks(double low, double high, int count, bool log) {
  if (log) return LogTicks(low, std::max(high, low));
  if (!(high > low)) high = low + (low == 0 ? 1 : std::abs(low));
  double step = RoundStep((high - low) / std::max(1, count));
  double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  std::vector<double> ticks;
  for (double i = first; i <= last; ++i) ticks.push_back(i * step);
  return ticks;
}

std::string AxisNumber(double value) {
  double size = std::abs(value);
  if (size == 0) return "0";
  if (size < 1e-3) return fmt::format("{:.3g}", value);
  const std::pair<double, const char*> units[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
  for (auto [unit, name] : units)
    if (size >= unit * (1 - 1e-9)) return fmt::format("{:.4g}{}", value / unit, name);
  return fmt::format("{:.4g}", value);
}

std::string EscapeXml(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

}  // namespace latentmesh
