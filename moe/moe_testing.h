// For the tests of this room: random experts and routings, and the mixture of experts computed densely in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "moe/dispatcher.h"
#include "moe/experts.h"
#include "moe/moe_layer.h"

namespace latentmesh::moe_testing {

inline std::vector<float> RandomFloats(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

// All experts of a model: gate, up [E, W, H], down [E, H, W], f32.
struct DenseExperts {
  DenseExperts(int experts, int64_t hidden, int64_t width, uint32_t seed)
      : experts(experts), hidden(hidden), width(width),
        gate(RandomFloats(experts * hidden * width, seed, 1 / std::sqrt(static_cast<float>(hidden)))),
        up(RandomFloats(experts * hidden * width, seed + 1, 1 / std::sqrt(static_cast<float>(hidden)))),
        down(RandomFloats(experts * hidden * width, seed + 2, 1 / std::sqrt(static_cast<float>(width)))) {}

  // out += weight * expert(x), in double
  void Add(int expert, const float* x, double weight, double* out) const {
    std::vector<double> inner(width);
    for (int64_t w = 0; w < width; ++w) {
      double g = 0, u = 0;
      for (int64_t h = 0; h < hidden; ++h) {
        g += double{gate[(expert * width + w) * hidden + h]} * x[h];
        u += double{up[(expert * width + w) * hidden + h]} * x[h];
      }
      inner[w] = g / (1 + std::exp(-g)) * u;
    }
    for (int64_t h = 0; h < hidden; ++h)
      for (int64_t w = 0; w < width; ++w) out[h] += weight * down[(expert * hidden + h) * width + w] * inner[w];
  }

  int experts;
  int64_t hidden, width;
  std::vector<float> gate, up, down;
};

// The experts one rank holds, as the checkpoint loader would lay them out.
class LocalWeights {
 public:
  LocalWeights(const DenseExperts& all, std::span<const int32_t> local) : all_(all) {
    size_t each = all.hidden * all.width;
    for (int32_t e : local) {
      gate_.insert(gate_.end(), all.gate.begin() + e * each, all.gate.begin() + (e + 1) * each);
      up_.insert(up_.end(), all.up.begin() + e * each, all.up.begin() + (e + 1) * each);
      down_.insert(down_.end(), all.down.begin() + e * each, all.down.begin() + (e + 1) * each);
    }
    count_ = static_cast<int32_t>(local.size());
  }
  ExpertWeights view() const {
    return {View(gate_, all_.width, all_.hidden), View(up_, all_.width, all_.hidden),
            View(down_, all_.hidden, all_.width)};
  }

 private:
  ExpertWeightsView View(const std::vector<float>& data, int64_t rows, int64_t cols) const {
    ExpertWeightsView v;
    v.first.data = data.data();
    v.first.rows = rows;
    v.first.cols = cols;
    v.count = count_;
    v.data_stride = rows * cols * 4;
    return v;
  }
  const DenseExperts& all_;
  std::vector<float> gate_, up_, down_;
  int32_t count_ = 0;
};

// One rank's tokens and where they go.
struct RankTokens {
  int64_t tokens = 0;
  int32_t k = 0;
  std::vector<float> x;              // [T, H]
  std::vector<int32_t> ids;          // [T, k]
  std::vector<float> weights;        // [T, k]
  std::vector<float> before;         // [T, H] what out holds before
};

// k different experts a token, drawn evenly from [0, pool).
inline RankTokens RandomTokens(int64_t tokens, int32_t k, int pool, int64_t hidden, uint32_t seed) {
  RankTokens r{tokens, k, RandomFloats(tokens * hidden, seed), {}, {}, RandomFloats(tokens * hidden, seed + 7)};
  std::mt19937 random(seed + 3);
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> experts(pool);
    for (int e = 0; e < pool; ++e) experts[e] = e;
    std::shuffle(experts.begin(), experts.end(), random);
    r.ids.insert(r.ids.end(), experts.begin(), experts.begin() + k);
    for (int32_t j = 0; j < k; ++j) r.weights.push_back(std::uniform_real_distribution<float>(0.05f, 1.0f)(random));
  }
  return r;
}

inline std::vector<double> DenseOutput(const DenseExperts& experts, const RankTokens& r) {
  std::vector<double> out(r.before.begin(), r.before.end());
  for (int64_t t = 0; t < r.tokens; ++t)
    for (int32_t j = 0; j < r.k; ++j)
      experts.Add(r.ids[t * r.k + j], r.x.data() + t * experts.hidden, r.weights[t * r.k + j],
                  out.data() + t * experts.hidden);
  return out;
}

// Largest difference, relative to the largest value of `expected` (0 when there is nothing to compare).
inline double RelativeError(const std::vector<float>& actual, const std::vector<double>& expected) {
  if (actual.size() != expected.size()) return INFINITY;
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < actual.size(); ++i) {
    double difference = std::abs(actual[i] - expected[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    largest = std::max(largest, std::abs(expected[i]));
  }
  return worst / largest;
}

// One rank's device, operations and stream.
struct RankKit {
  RankKit() {
    DeviceOptions options;
    options.threads = 1;
    device = CreateDevice(DeviceKind::kCpu, options).value();
    ops = CreateOps(*device);
    stream = device->CreateStream();
  }
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Stream> stream;
};

}  // namespace latentmesh::moe_testing
