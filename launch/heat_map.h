// HeatMap: a grid of cells, one a value, as SVG text: how busy each expert of each layer is. Readable on light and dark pages.
#pragma once

#include <string>
#include <vector>

namespace latentmesh {

struct HeatMap {
  std::string title;
  std::string subtitle;
  std::string row_label, column_label;
  int columns = 0;
  std::vector<double> values;          // [rows, columns]; not below 0
  double full = 0;                     // the value with the strongest colour; 0: the largest
  std::string unit;                    // said in the legend: "times the mean"
};

std::string RenderSvg(const HeatMap& map);

}  // namespace latentmesh
