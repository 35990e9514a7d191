// LoadRecorder: how many tokens chose each expert of each layer, over the last few windows of steps, so that placements
// follow the traffic. Host memory; one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// loads[layer][expert]
struct LoadMatrix {
  LoadMatrix() = default;
  LoadMatrix(int layers, int experts) : layers(layers), experts(experts), values(size_t{1} * layers * experts, 0) {}
  std::span<int64_t> Layer(int layer) { return {values.data() + size_t{1} * layer * experts, size_t(experts)}; }
  std::span<const int64_t> Layer(int layer) const {
    return {values.data() + size_t{1} * layer * experts, size_t(experts)};
  }
  std::vector<double> LayerAsDouble(int layer) const { return {Layer(layer).begin(), Layer(layer).end()}; }
  int64_t total() const;
  bool operator==(const LoadMatrix&) const = default;

  int layers = 0;
  int experts = 0;
  std::vector<int64_t> values;       // [layers, experts]; all ranks' values add up by AllReduce or Gather
};

class LoadRecorder {
 public:
  // Keeps the last `windows` closed windows besides the open one.
  LoadRecorder(int layers, int experts, int windows);

  // Adds to the open window. loads [experts].
  void Add(int layer, std::span<const int64_t> loads);
  void CloseWindow();
  int closed_windows() const { return static_cast<int>(closed_.size()); }

  const LoadMatrix& open() const { return open_; }
  LoadMatrix Recent() const;                       // sum of the closed windows kept
  const LoadMatrix& window(int age) const { return closed_[age]; }   // 0: closed last
  const LoadMatrix& all() const { return all_; }   // since the start

 private:
  int windows_;
  LoadMatrix open_, all_;
  std::deque<LoadMatrix> closed_;                  // newest first
};

// Text form of recorded loads: a header `layer,e0,e1,...`, then a line a layer. Lines after it that begin with # say more and
// are left out.
std::string FormatLoads(const LoadMatrix& loads);
// kInvalidArgument names the line.
Result<LoadMatrix> ParseLoads(const std::string& text, const std::string& file_name);

}  // namespace latentmesh
