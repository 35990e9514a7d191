#include "runtime/model/weight_store.h"

#include <algorithm>
#include <cmath>

namespace latentmesh {
namespace {

constexpr float kLargestF8 = 448.0f;

int64_t BlockOf(const WeightView& w, int64_t row, int64_t col) {
  return (row + w.row_offset) / w.block_rows * w.scale_cols + (col + w.col_offset) / w.block_cols;
}

void AddError(double kept, double given, WeightError& error) {
  error.error += (kept - given) * (kept - given);
  error.norm += given * given;
}

WeightError StorePacked(const WeightTarget& target, const std::vector<float>& numbers) {
  const PackedShape shape = target.view.packed_shape();
  std::vector<char> packed(static_cast<size_t>(shape.bytes()));
  const PackingError error = PackWeights(numbers.data(), shape, packed.data());
  target.copier->Copy(const_cast<void*>(target.view.data), packed.data(), packed.size());
  return {{}, error.error, error.norm};
}

// One scale a block: its largest number becomes the largest of FP8. Blocks that a slice cuts see only their part of it.
std::vector<float> BlockScales(const WeightView& w, const std::vector<float>& numbers) {
  const int64_t rows = (w.rows + w.row_offset + w.block_rows - 1) / w.block_rows;
  std::vector<float> scales(static_cast<size_t>(rows * w.scale_cols), 0.0f);
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t j = 0; j < w.cols; ++j) {
      float& scale = scales[BlockOf(w, i, j)];
      scale = std::max(scale, std::fabs(numbers[i * w.cols + j]) / kLargestF8);
    }
  for (float& scale : scales)
    if (scale == 0) scale = 1;
  return scales;
}

WeightError StoreF8(const WeightTarget& target, const std::vector<float>& numbers) {
  const WeightView& w = target.view;
  const std::vector<float> scales = BlockScales(w, numbers);
  std::vector<uint8_t> codes(numbers.size());
  WeightError error;
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t j = 0; j < w.cols; ++j) {
      const float scale = scales[BlockOf(w, i, j)], given = numbers[i * w.cols + j];
      const uint8_t code = FloatToF8E4M3(given / scale);
      codes[i * w.cols + j] = code;
      AddError(static_cast<double>(F8E4M3ToFloat(code)) * scale, given, error);
    }
  target.copier->Copy(const_cast<void*>(w.data), codes.data(), codes.size());
  target.copier->Copy(const_cast<float*>(w.scales), scales.data(), scales.size() * sizeof(float));
  return error;
}

WeightError StoreNarrow(const WeightTarget& target, const std::vector<float>& numbers) {
  const WeightView& w = target.view;
  std::vector<char> narrow(numbers.size() * DTypeSize(w.dtype));
  ConvertFromFloat(numbers.data(), narrow.data(), w.dtype, numbers.size());
  target.copier->Copy(const_cast<void*>(w.data), narrow.data(), narrow.size());
  std::vector<float> kept(numbers.size());
  ConvertToFloat(narrow.data(), w.dtype, kept.data(), kept.size());
  WeightError error;
  for (size_t i = 0; i < kept.size(); ++i) AddError(kept[i], numbers[i], error);
  return error;
}

}  // namespace

Status RequireNumbers(const LoadedSlice& slice) {
  switch (slice.dtype) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16:
    case DType::kF8E4M3: return Status::Ok();
    default: return InvalidModel(std::string("has dtype ") + DTypeName(slice.dtype) + ", which no weight may have");
  }
}

void WeightCopier::Copy(void* target, const void* data, size_t bytes) {
  device_.CopyToDevice(target, data, bytes, *stream_);
  stream_->Synchronize();
}

Status StorePlain(WeightCopier& copier, const LoadedSlice& slice, void* target, DType as) {
  LM_RETURN_IF_ERROR(RequireNumbers(slice));
  size_t n = static_cast<size_t>(slice.rows * slice.cols);
  if (slice.dtype == as) {
    copier.Copy(target, slice.data, n * DTypeSize(as));
    return Status::Ok();
  }
  std::vector<float> wide(n);
  ConvertToFloat(slice.data, slice.dtype, wide.data(), n);
  if (as == DType::kF32) {
    copier.Copy(target, wide.data(), n * sizeof(float));
  } else {
    std::vector<char> narrow(n * DTypeSize(as));
    ConvertFromFloat(wide.data(), narrow.data(), as, n);
    copier.Copy(target, narrow.data(), narrow.size());
  }
  return Status::Ok();
}

WeightError StoreMatrix(const WeightTarget& target, const std::vector<float>& numbers) {
  if (target.view.packed()) return StorePacked(target, numbers);
  if (target.view.dtype == DType::kF8E4M3) return StoreF8(target, numbers);
  return StoreNarrow(target, numbers);
}

Status ScaledMatrix::TakeData(const LoadedSlice& slice) {
  if (slice.dtype != DType::kF8E4M3) return InvalidModel("is not f8e4m3 as its scales say");
  const auto* bytes = static_cast<const uint8_t*>(slice.data);
  data_.assign(bytes, bytes + slice.rows * slice.cols);
  FinishIfComplete();
  return Status::Ok();
}

Status ScaledMatrix::TakeScales(const LoadedSlice& slice) {
  LM_RETURN_IF_ERROR(RequireNumbers(slice));
  scales_.resize(static_cast<size_t>(slice.rows * slice.cols));
  ConvertToFloat(slice.data, slice.dtype, scales_.data(), scales_.size());
  FinishIfComplete();
  return Status::Ok();
}

void ScaledMatrix::FinishIfComplete() {
  if (data_.empty() || scales_.empty()) return;
  std::vector<float> wide(data_.size());
  ConvertToFloat(data_.data(), DType::kF8E4M3, wide.data(), wide.size());
  for (int64_t i = 0; i < blocks_.rows; ++i)
    for (int64_t j = 0; j < blocks_.cols; ++j) wide[i * blocks_.cols + j] *= scales_[BlockOf(blocks_, i, j)];
  finish_(wide);
  data_ = {};
  scales_ = {};
}

}  // namespace latentmesh
