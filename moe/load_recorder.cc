#include "moe/load_recorder.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <sstream>

namespace latentmesh {
namespace {

void AddTo(LoadMatrix& sum, const LoadMatrix& more) {
  LM_CHECK(sum.values.size() == more.values.size());
  for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += more.values[i];
}

// Comma-separated integers, none negative; false when there is anything else.
bool ParseRow(const std::string& line, std::vector<int64_t>& row) {
  const char* at = line.data();
  const char* end = at + line.size();
  row.clear();
  while (true) {
    int64_t value = 0;
    auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || value < 0) return false;
    row.push_back(value);
    if (next == end) return true;
    if (*next != ',') return false;
    at = next + 1;
  }
}

}  // namespace

int64_t LoadMatrix::total() const { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

LoadRecorder::LoadRecorder(int layers, int experts, int windows)
    : windows_(windows), open_(layers, experts), all_(layers, experts) {
  LM_CHECK(layers >= 0 && experts >= 1 && windows >= 1);
}

void LoadRecorder::Add(int layer, std::span<const int64_t> loads) {
  LM_CHECK(layer >= 0 && layer < open_.layers && static_cast<int>(loads.size()) == open_.experts);
  for (size_t e = 0; e < loads.size(); ++e) {
    open_.Layer(layer)[e] += loads[e];
    all_.Layer(layer)[e] += loads[e];
  }
}

void LoadRecorder::CloseWindow() {
  closed_.push_front(open_);
  if (static_cast<int>(closed_.size()) > windows_) closed_.pop_back();
  std::fill(open_.values.begin(), open_.values.end(), 0);
}

LoadMatrix LoadRecorder::Recent() const {
  LoadMatrix sum(open_.layers, open_.experts);
  for (const LoadMatrix& window : closed_) AddTo(sum, window);
  return sum;
}

std::string FormatLoads(const LoadMatrix& loads) {
  std::ostringstream out;
  out << "layer";
  for (int e = 0; e < loads.experts; ++e) out << ",e" << e;
  for (int l = 0; l < loads.layers; ++l) {
    out << "\n" << l;
    for (int64_t value : loads.Layer(l)) out << "," << value;
  }
  out << "\n";
  return out.str();
}

Result<LoadMatrix> ParseLoads(const std::string& text, const std::string& file_name) {
  std::istringstream in(text);
  std::string line;
  auto bad = [&](int number, const std::string& what) {
    return InvalidArgument(file_name + ", line " + std::to_string(number) + ": " + what);
  };
  if (!std::getline(in, line) || line.rfind("layer,", 0) != 0) return bad(1, "expected a header 'layer,e0,e1,...'");
  int experts = static_cast<int>(std::count(line.begin(), line.end(), ','));
  LoadMatrix loads(0, experts);
  std::vector<int64_t> row;
  for (int number = 2; std::getline(in, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    if (!ParseRow(line, row)) return bad(number, "expected whole numbers separated by commas");
    if (static_cast<int>(row.size()) != experts + 1)
      return bad(number, std::to_string(row.size() - 1) + " loads, but the header names " + std::to_string(experts));
    if (row[0] != loads.layers) return bad(number, "expected layer " + std::to_string(loads.layers));
    loads.values.insert(loads.values.end(), row.begin() + 1, row.end());
    ++loads.layers;
  }
  return loads;
}

}  // namespace latentmesh
