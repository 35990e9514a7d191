#include "kernels/cpu/wire_rows.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/kernel_table.h"
#include "kernels/status.h"

namespace latentmesh {
namespace {

constexpr int64_t kScaleRun = 128;

constexpr int64_t kDecodeBlock = 8 * kScaleRun;  // numbers decoded between looks at the next row

void Prefetch(const char* from, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line);
}

size_t CodeBytes(int64_t hidden) { return static_cast<size_t>(hidden + 3) / 4 * 4; }

}  // namespace

size_t WireRowBytes(const WireFormat& format) {
  if (format.dtype != DType::kF8E4M3) return static_cast<size_t>(format.hidden) * DTypeSize(format.dtype);
  return CodeBytes(format.hidden) + static_cast<size_t>((format.hidden + kScaleRun - 1) / kScaleRun) * 4;
}

void EncodeWireRow(const float* x, const WireFormat& format, char* row) {
  size_t n = static_cast<size_t>(format.hidden);
  if (format.dtype == DType::kF32) {
    std::memcpy(row, x, n * sizeof(float));
  } else if (format.dtype == DType::kBF16) {
    Kernels().to_bf16(x, reinterpret_cast<uint16_t*>(row), format.hidden);
  } else {
    LM_CHECK(format.dtype == DType::kF8E4M3);
    Kernels().to_f8(x, reinterpret_cast<uint8_t*>(row), reinterpret_cast<float*>(row + CodeBytes(format.hidden)),
                    format.hidden);
  }
}

void DecodeWireRow(const char* row, const WireFormat& format, float* x, const char* next) {
  if (format.dtype == DType::kF8E4M3) {
    const auto* scales = reinterpret_cast<const float*>(row + CodeBytes(format.hidden));
    return Kernels().f8_to_float({reinterpret_cast<const uint8_t*>(row), scales, x, format.hidden, next});
  }
  const auto width = static_cast<int64_t>(DTypeSize(format.dtype));
  for (int64_t begin = 0; begin < format.hidden; begin += kDecodeBlock) {
    const int64_t n = std::min(kDecodeBlock, format.hidden - begin);
    if (next != nullptr) Prefetch(next + begin * width, n * width);
    if (format.dtype == DType::kF32) {
      std::memcpy(x + begin, row + begin * width, static_cast<size_t>(n) * sizeof(float));
    } else {
      Kernels().to_float[static_cast<int>(WeightKind::kBF16)](row + begin * width, x + begin, n, 1.0f);
    }
  }
}

void EndStreamedSums() { Kernels().end_stream(); }

void SumWireRows(const WireSum& s) {
  Kernels().sum_rows[s.row_dtype == DType::kBF16][s.out_dtype == DType::kBF16](
      {s.rows, s.weights, s.count, s.out, s.hidden, s.accumulate, s.stream});
}

}  // namespace latentmesh
