#include "runtime/checkpoint/dummy_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <mutex>
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

// Random numbers of one dtype and deviation, made once each: a model has few. Thread-safe.
class DummyTables {
 public:
  const std::vector<char>& Get(DType dtype, float deviation) {
    std::lock_guard lock(mutex_);
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

 private:
  std::mutex mutex_;
  std::map<std::pair<DType, float>, std::vector<char>> tables_;   // entries stay where they are
};

// Makes one tensor at a time in memory of its own.
class DummyMaker {
 public:
  explicit DummyMaker(DummyTables& tables) : tables_(tables) {}

  // Valid until the next Make.
  LoadedSlice Make(const TensorRequest& request, DType dtype) {
    const bool whole = request.rows == 0 && request.cols == 0;
    const bool vector = request.shape.size() == 1;
    const int64_t all_cols = vector ? request.shape[0] : request.shape.back();
    int64_t all_rows = 1;
    for (size_t i = 0; i + 1 < request.shape.size(); ++i) all_rows *= request.shape[i];
    LoadedSlice slice{dtype, nullptr, whole ? all_rows : request.rows, whole ? all_cols : request.cols};
    Reserve(static_cast<size_t>(slice.rows * slice.cols) * DTypeSize(dtype));
    if (EndsWith(request.name, kScaleSuffix)) {
      FillConstant(dtype, ScaleOf(request));
    } else if (vector) {
      FillConstant(dtype, EndsWith(request.name, ".weight") ? 1.0f : 0.0f);
    } else {
      const float deviation = dtype == DType::kF8E4M3 ? kCodeDeviation : 1 / std::sqrt(static_cast<float>(all_cols));
      FillRandom(request, slice, all_cols, tables_.Get(dtype, deviation));
    }
    slice.data = bytes_.get();
    return slice;
  }

  uint64_t bytes() const { return used_; }

 private:
  // Scales know the blocks of a row, not its columns: 128 each is near enough for a deviation.
  static float ScaleOf(const TensorRequest& request) {
    return 1 / (kCodeDeviation * std::sqrt(128.0f * static_cast<float>(request.shape.back())));
  }

  // Not zeroed: every byte is written.
  void Reserve(size_t bytes) {
    used_ = bytes;
    if (bytes <= capacity_) return;
    bytes_.reset(new char[bytes]);
    capacity_ = bytes;
  }

  void FillConstant(DType dtype, float value) {
    std::vector<float> numbers(used_ / DTypeSize(dtype), value);
    ConvertFromFloat(numbers.data(), bytes_.get(), dtype, numbers.size());
  }

  void FillRandom(const TensorRequest& request, const LoadedSlice& slice, int64_t all_cols, const std::vector<char>& table) {
    const size_t size = DTypeSize(slice.dtype);
    const uint64_t start = HashName(request.name) % kTableSize;
    char* out = bytes_.get();
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

  DummyTables& tables_;
  std::unique_ptr<char[]> bytes_;
  size_t used_ = 0, capacity_ = 0;
};

}  // namespace

Result<LoadProgress> MakeDummyWeights(const std::vector<TensorRequest>& requests,
                                      const std::function<Result<DType>(const std::string&)>& stored) {
  // A few tensors are made ahead, each on a thread, while the caller's consumes the one before.
  constexpr size_t kAhead = 4;
  DummyTables tables;
  std::vector<DummyMaker> makers;
  for (size_t i = 0; i < kAhead; ++i) makers.emplace_back(tables);
  std::vector<DType> types;
  for (const TensorRequest& request : requests) {
    LM_ASSIGN_OR_RETURN(const DType dtype, stored(request.name));
    types.push_back(dtype);
  }
  std::array<std::future<LoadedSlice>, kAhead> made;   // ends first: it waits for threads that use the rest
  auto start = [&](size_t i) {
    if (i >= requests.size()) return;
    made[i % kAhead] = std::async(std::launch::async, [&, i] { return makers[i % kAhead].Make(requests[i], types[i]); });
  };
  for (size_t i = 0; i + 1 < kAhead; ++i) start(i);
  LoadProgress progress;
  for (size_t i = 0; i < requests.size(); ++i) {
    start(i + kAhead - 1);   // its memory is that of the tensor consumed last
    const Status consumed = requests[i].consume(made[i % kAhead].get());
    if (!consumed.ok())
      return Status(consumed.code(), requests[i].name + " (--load-format dummy): " + consumed.message());
    progress.bytes_done = progress.bytes_total += makers[i % kAhead].bytes();
  }
  return progress;
}

}  // namespace latentmesh
