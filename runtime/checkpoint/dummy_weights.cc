#include "runtime/checkpoint/dummy_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

namespace latentmesh {
namespace {

// Numbers come from one table, read from a place that depends on the tensor; its length is prime, so that rows of no
// matrix begin at the same place again and again.
constexpr uint64_t kTableSize = 1048573;
constexpr float kCodeDeviation = 64.0f;  // of FP8 codes: well inside e4m3's range of normal numbers
constexpr const char kScaleSuffix[] = "weight_scale_inv";

uint64_t Mix(uint64_t x) {  // splitmix64 (Steele et al. 2014)
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

uint64_t HashName(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  return Mix(hash);
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

class DummyMaker {
 public:
  Status Make(const TensorRequest& request, DType dtype) {
    const bool whole = request.rows == 0 && request.cols == 0;
    const bool vector = request.shape.size() == 1;
    const int64_t all_cols = vector ? request.shape[0] : request.shape.back();
    int64_t all_rows = 1;
    for (size_t i = 0; i + 1 < request.shape.size(); ++i) all_rows *= request.shape[i];
    LoadedSlice slice{dtype, nullptr, whole ? all_rows : request.rows, whole ? all_cols : request.cols};
    bytes_.resize(static_cast<size_t>(slice.rows * slice.cols) * DTypeSize(dtype));
    if (EndsWith(request.name, kScaleSuffix)) {
      FillConstant(dtype, ScaleOf(request));
    } else if (vector) {
      FillConstant(dtype, EndsWith(request.name, ".weight") ? 1.0f : 0.0f);
    } else {
      const float deviation = dtype == DType::kF8E4M3 ? kCodeDeviation : 1 / std::sqrt(static_cast<float>(all_cols));
      FillRandom(request, slice, all_cols, Table(dtype, deviation));
    }
    slice.data = bytes_.data();
    return request.consume(slice);
  }

  uint64_t bytes() const { return bytes_.size(); }

 private:
  // Scales know the blocks of a row, not its columns: 128 each is near enough for a deviation.
  static float ScaleOf(const TensorRequest& request) {
    return 1 / (kCodeDeviation * std::sqrt(128.0f * static_cast<float>(request.shape.back())));
  }

  void FillConstant(DType dtype, float value) {
    std::vector<float> numbers(bytes_.size() / DTypeSize(dtype), value);
    ConvertFromFloat(numbers.data(), bytes_.data(), dtype, numbers.size());
  }

  void FillRandom(const TensorRequest& request, const LoadedSlice& slice, int64_t all_cols, const std::vector<char>& table) {
    const size_t size = DTypeSize(slice.dtype);
    const uint64_t start = HashName(request.name) % kTableSize;
    char* out = bytes_.data();
    for (int64_t r = 0; r < slice.rows; ++r) {
      const auto first = static_cast<uint64_t>((request.row_begin + r) * all_cols + request.col_begin);
      uint64_t at = (start + first) % kTableSize;
      for (int64_t left = slice.cols; left > 0;) {
        const auto n = std::min<int64_t>(left, static_cast<int64_t>(kTableSize - at));
        std::memcpy(out, table.data() + at * size, static_cast<size_t>(n) * size);
        out += static_cast<size_t>(n) * size;
        left -= n;
        at = 0;
      }
    }
  }

  // Made once for each dtype and width: a model has few.
  const std::vector<char>& Table(DType dtype, float deviation) {
    std::vector<char>& table = tables_[{dtype, deviation}];
    if (!table.empty()) return table;
    std::vector<float> numbers(kTableSize);
    for (uint64_t i = 0; i < kTableSize; ++i) {
      const double unit = static_cast<double>(Mix(i) >> 11) * 0x1p-53;
      numbers[i] = static_cast<float>((2 * unit - 1) * std::sqrt(3.0)) * deviation;
    }
    table.resize(kTableSize * DTypeSize(dtype));
    ConvertFromFloat(numbers.data(), table.data(), dtype, kTableSize);
    return table;
  }

  std::map<std::pair<DType, float>, std::vector<char>> tables_;
  std::vector<char> bytes_;
};

}  // namespace

Result<LoadProgress> MakeDummyWeights(const std::vector<TensorRequest>& requests,
                                      const std::function<Result<DType>(const std::string&)>& stored) {
  DummyMaker maker;
  LoadProgress progress;
  for (const TensorRequest& request : requests) {
    LM_ASSIGN_OR_RETURN(const DType dtype, stored(request.name));
    const Status made = maker.Make(request, dtype);
    if (!made.ok()) return Status(made.code(), request.name + " (--load-format dummy): " + made.message());
    progress.bytes_done = progress.bytes_total += maker.bytes();
  }
  return progress;
}

}  // namespace latentmesh
