// Reference versions of norms, products and rotations.
#include <cmath>
#include <functional>
#include <vector>

#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/scalar_access.h"

namespace latentmesh::reference {
namespace {

std::vector<float> WeightRow(const WeightView& w, int64_t row) {
  std::vector<float> numbers(w.cols);
  for (int64_t i = 0; i < w.cols; ++i) numbers[i] = WeightAt(w, row, i);
  return numbers;
}

std::vector<float> Row(const TensorView& x, int64_t row) {
  std::vector<float> numbers(x.cols());
  for (int64_t i = 0; i < x.cols(); ++i) numbers[i] = At(x, row, i);
  return numbers;
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double InverseRms(const float* x, int64_t n, float eps) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  return 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
}

void RotateRow(const TensorView& cos_sin, int64_t position, bool interleaved, std::vector<float>& x) {
  const int64_t half = static_cast<int64_t>(x.size()) / 2;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
    const double c = At(cos_sin, position, i), s = At(cos_sin, position, half + i), xa = x[a], xb = x[b];
    x[a] = static_cast<float>(xa * c - xb * s);
    x[b] = static_cast<float>(xb * c + xa * s);
  }
}

// out[t][n] = f(x[t] . gate[n], x[t] . up[n])
double SiluTimes(double gate, double up) { return gate / (1.0 + std::exp(-gate)) * up; }

}  // namespace

void Embed(const EmbedParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t row = p.ids[t] - p.vocab_begin;
    const bool here = row >= 0 && row < p.table.rows();
    for (int64_t i = 0; i < p.out.cols(); ++i) SetAt(p.out, t, i, here ? At(p.table, row, i) : 0.0f);
  }
}

void RmsNorm(const RmsNormParams& p) {
  const int64_t n = p.x.cols();
  for (int64_t t = 0; t < p.x.rows(); ++t) {
    std::vector<float> x = Row(p.x, t);
    if (p.residual.data != nullptr) {
      for (int64_t i = 0; i < n; ++i) SetAt(p.residual, t, i, x[i] + At(p.residual, t, i));
      x = Row(p.residual, t);
    }
    const double inverse = InverseRms(x.data(), n, p.eps);
    for (int64_t i = 0; i < n; ++i) SetAt(p.out, t, i, static_cast<float>(x[i] * inverse * p.weight.f32()[i]));
  }
}

void Gemm(const GemmParams& p) {
  std::vector<std::vector<float>> rows;
  for (int64_t t = 0; t < p.x.rows(); ++t) rows.push_back(Row(p.x, t));
  for (int64_t n = 0; n < p.w.rows && !rows.empty(); ++n) {
    const std::vector<float> w = WeightRow(p.w, n);
    for (int64_t t = 0; t < p.x.rows(); ++t) {
      double sum = Dot(rows[t], w);
      if (p.bias.data != nullptr) sum += p.bias.f32()[n];
      if (p.accumulate) sum += At(p.out, t, n);
      SetAt(p.out, t, n, static_cast<float>(sum));
    }
  }
}

void HeadGemm(const HeadGemmParams& p) {
  for (int64_t h = 0; h < p.x.heads; ++h) {
    const int64_t first = h * p.rows_per_head + p.row_begin;
    for (int64_t t = 0; t < p.x.tokens; ++t) {
      for (int64_t o = 0; o < p.out.dim; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < p.x.dim; ++i) {
          sum += static_cast<double>(At(p.x, t, h, i)) *
                 (p.transpose ? WeightAt(p.w, first + i, o) : WeightAt(p.w, first + o, i));
        }
        SetAt(p.out, t, h, o, static_cast<float>(sum));
      }
    }
  }
}

void Rope(const RopeParams& p) {
  std::vector<float> row(p.x.dim);
  for (int64_t t = 0; t < p.x.tokens; ++t) {
    for (int64_t h = 0; h < p.x.heads; ++h) {
      for (int64_t i = 0; i < p.x.dim; ++i) row[i] = At(p.x, t, h, i);
      RotateRow(p.cos_sin, p.positions[t], p.interleaved, row);
      for (int64_t i = 0; i < p.x.dim; ++i) SetAt(p.x, t, h, i, row[i]);
    }
  }
}

void LatentWrite(const LatentWriteParams& p) {
  const int64_t latent = p.cache.latent;
  for (int64_t t = 0; t < p.kv_a.rows(); ++t) {
    if (p.slots[t] < 0) continue;
    std::vector<float> record = Row(p.kv_a, t);
    const double inverse = InverseRms(record.data(), latent, p.eps);
    for (int64_t i = 0; i < latent; ++i) record[i] = static_cast<float>(record[i] * inverse * p.norm_weight.f32()[i]);
    std::vector<float> key(record.begin() + latent, record.end());
    RotateRow(p.cos_sin, p.positions[t], p.interleaved, key);
    std::copy(key.begin(), key.end(), record.begin() + latent);
    EncodeCacheRecord(p.cache.format, latent, p.cache.rope, record.data(), CacheSlot(p.cache, p.slots[t]));
  }
}

void GateUp(const GateUpParams& p) {
  for (int64_t n = 0; n < p.gate.rows && p.x.rows() > 0; ++n) {
    const std::vector<float> gate = WeightRow(p.gate, n), up = WeightRow(p.up, n);
    for (int64_t t = 0; t < p.x.rows(); ++t) {
      const std::vector<float> x = Row(p.x, t);
      SetAt(p.out, t, n, static_cast<float>(SiluTimes(Dot(x, gate), Dot(x, up))));
    }
  }
}

void GroupedGateUp(const GroupedGateUpParams& p) {
  for (int e = 0; e < p.gate.count; ++e) {
    const int64_t begin = p.offsets[e], count = p.offsets[e + 1] - begin;
    GateUp({p.x.Rows(begin, count), p.gate.At(e), p.up.At(e), p.out.Rows(begin, count)});
  }
}

void GroupedGemm(const GroupedGemmParams& p) {
  for (int e = 0; e < p.w.count; ++e) {
    const int64_t begin = p.offsets[e], count = p.offsets[e + 1] - begin;
    Gemm({p.x.Rows(begin, count), p.w.At(e), {}, p.out.Rows(begin, count)});
  }
}

void GatherGateUp(const GatherGateUpParams& p) {
  const int64_t cols = p.rows.cols, slots = p.offsets[p.gate.count];
  std::vector<float> x(static_cast<size_t>(slots * cols));
  for (int64_t i = 0; i < slots; ++i) {
    for (int64_t k = 0; k < cols; ++k) x[i * cols + k] = WireNumber(p.rows, p.source[i], k);
  }
  const TensorView view(x.data(), DType::kF32, {slots, cols});
  GroupedGateUp({view, p.offsets, p.gate, p.up, p.out.Rows(0, slots)});
}

void GroupedDownSum(const GroupedDownSumParams& p) {
  std::vector<double> sums(static_cast<size_t>(p.out.rows() * p.out.cols()));
  for (int e = 0; e < p.w.count; ++e) {
    for (int64_t n = 0; n < p.out.cols() && p.offsets[e] < p.offsets[e + 1]; ++n) {
      const std::vector<float> w = WeightRow(p.w.At(e), n);
      for (int64_t i = p.offsets[e]; i < p.offsets[e + 1]; ++i)
        sums[p.source[i] * p.out.cols() + n] += p.weights[i] * Dot(Row(p.x, i), w);
    }
  }
  for (int64_t r = 0; r < p.out.rows(); ++r) {
    for (int64_t n = 0; n < p.out.cols(); ++n) SetAt(p.out, r, n, static_cast<float>(sums[r * p.out.cols() + n]));
  }
}

}  // namespace latentmesh::reference
