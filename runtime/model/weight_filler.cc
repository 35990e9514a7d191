#include "runtime/model/weight_filler.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace latentmesh {
namespace {

Status RequireNumbers(const LoadedSlice& slice) {
  switch (slice.dtype) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16:
    case DType::kF8E4M3: return Status::Ok();
    default: return InvalidModel(std::string("has dtype ") + DTypeName(slice.dtype) + ", which no weight may have");
  }
}

// Writes host data to where a weight lives, converting on the way. The stream is made once a consumer call: loading is
// bound by reading, not by this.
Status Store(Device& device, const LoadedSlice& slice, void* target, DType as) {
  LM_RETURN_IF_ERROR(RequireNumbers(slice));
  auto stream = device.CreateStream();
  size_t n = static_cast<size_t>(slice.rows * slice.cols);
  if (slice.dtype == as) {
    device.CopyToDevice(target, slice.data, n * DTypeSize(as), *stream);
    stream->Synchronize();
    return Status::Ok();
  }
  std::vector<float> wide(n);
  ConvertToFloat(slice.data, slice.dtype, wide.data(), n);
  if (as == DType::kF32) {
    device.CopyToDevice(target, wide.data(), n * sizeof(float), *stream);
  } else {
    std::vector<char> narrow(n * DTypeSize(as));
    ConvertFromFloat(wide.data(), narrow.data(), as, n);
    device.CopyToDevice(target, narrow.data(), narrow.size(), *stream);
    stream->Synchronize();
  }
  stream->Synchronize();
  return Status::Ok();
}

// Collects an FP8 matrix and its scales, in whichever order they arrive, and multiplies them out.
struct Dequantizer {
  WeightView view;                 // blocks and offsets; data and scales are set below
  std::vector<uint8_t> data;
  std::vector<float> scales;
  Device* device = nullptr;
  void* target = nullptr;
  DType as = DType::kF32;

  Status FinishIfComplete() {
    if (data.empty() || scales.empty()) return Status::Ok();
    std::vector<float> wide(data.size());
    ConvertToFloat(data.data(), DType::kF8E4M3, wide.data(), wide.size());
    for (int64_t i = 0; i < view.rows; ++i)
      for (int64_t j = 0; j < view.cols; ++j) {
        int64_t block = (i + view.row_offset) / view.block_rows * view.scale_cols + (j + view.col_offset) / view.block_cols;
        wide[i * view.cols + j] *= scales[block];
      }
    LoadedSlice slice{DType::kF32, wide.data(), view.rows, view.cols};
    return Store(*device, slice, target, as);
  }
};

Range BlockRange(Range part, int64_t block) {
  if (part.count == 0) return {0, 0};
  int64_t first = part.begin / block, last = (part.end() + block - 1) / block;
  return {first, last - first};
}

}  // namespace

DType WeightFiller::Stored(const std::string& tensor) {
  Result<DType> dtype = stored_(tensor);
  if (dtype.ok()) return *dtype;
  if (status_.ok()) status_ = dtype.status();
  return DType::kF32;
}

DType WeightFiller::KeptAs(const std::string& tensor) {
  DType dtype = Stored(tensor);
  if (options_.round_to_bf16 && (dtype == DType::kF32 || dtype == DType::kF16)) return DType::kBF16;
  return dtype;
}

void WeightFiller::Request(const std::string& tensor, const Slice& slice, void* target, DType as) {
  if (requests_ == nullptr || slice.rows.count == 0 || slice.cols.count == 0) return;
  TensorRequest request;
  request.name = tensor;
  request.shape = slice.shape;
  request.row_begin = slice.rows.begin;
  request.rows = slice.rows.count;
  request.col_begin = slice.cols.begin;
  request.cols = slice.cols.count;
  Device* device = arena_.device();
  request.consume = [device, target, as](const LoadedSlice& loaded) { return Store(*device, loaded, target, as); };
  requests_->push_back(std::move(request));
}

TensorView WeightFiller::Matrix(const std::string& tensor, MatrixShape shape, Range rows, Range cols) {
  TensorView view = arena_.Reserve(KeptAs(tensor), {rows.count, cols.count});
  Request(tensor, {{shape.rows, shape.cols}, rows, cols}, view.data, view.dtype);
  return view;
}

TensorView WeightFiller::Float(const std::string& tensor, MatrixShape shape) {
  Stored(tensor);
  TensorView view = arena_.Reserve(DType::kF32, {shape.rows, shape.cols});
  Request(tensor, {{shape.rows, shape.cols}, {0, shape.rows}, {0, shape.cols}}, view.data, DType::kF32);
  return view;
}

TensorView WeightFiller::Vector(const std::string& tensor, int64_t size) { return VectorPart(tensor, size, {0, size}); }

TensorView WeightFiller::VectorPart(const std::string& tensor, int64_t size, Range part) {
  Stored(tensor);
  TensorView view = arena_.Reserve(DType::kF32, {part.count});
  Request(tensor, {{size}, {0, 1}, part}, view.data, DType::kF32);
  return view;
}

WeightView WeightFiller::ScaledView(DType dtype, void* data, Range rows, Range cols) const {
  WeightView view{dtype, data, rows.count, cols.count};
  if (dtype != DType::kF8E4M3) return view;
  view.block_rows = quantization_.block_rows;
  view.block_cols = quantization_.block_cols;
  view.row_offset = static_cast<int32_t>(rows.begin % view.block_rows);
  view.col_offset = static_cast<int32_t>(cols.begin % view.block_cols);
  view.scale_cols = BlockRange(cols, view.block_cols).count;
  return view;
}

WeightFiller::Slice WeightFiller::ScaleSlice(MatrixShape shape, Range rows, Range cols) const {
  int64_t br = quantization_.block_rows, bc = quantization_.block_cols;
  return {{(shape.rows + br - 1) / br, (shape.cols + bc - 1) / bc}, BlockRange(rows, br), BlockRange(cols, bc)};
}

WeightView WeightFiller::Linear(const std::string& name, MatrixShape shape, Range rows, Range cols) {
  DType dtype = KeptAs(name + ".weight");
  TensorView data = arena_.Reserve(dtype, {rows.count, cols.count});
  WeightView view = ScaledView(dtype, data.data, rows, cols);
  Request(name + ".weight", {{shape.rows, shape.cols}, rows, cols}, data.data, dtype);
  if (dtype != DType::kF8E4M3) return view;
  Stored(name + ".weight_scale_inv");
  Slice slice = ScaleSlice(shape, rows, cols);
  TensorView scales = arena_.Reserve(DType::kF32, {slice.rows.count, slice.cols.count});
  view.scales = scales.f32();
  Request(name + ".weight_scale_inv", slice, scales.data, DType::kF32);
  return view;
}

void WeightFiller::RequestDequantized(const std::string& name, MatrixShape shape, Range rows, Range cols, void* target,
                                      DType as) {
  if (requests_ == nullptr || rows.count == 0) return;
  auto parts = std::make_shared<Dequantizer>();
  parts->view = ScaledView(DType::kF8E4M3, nullptr, rows, cols);
  parts->device = arena_.device();
  parts->target = target;
  parts->as = as;
  Request(name + ".weight", {{shape.rows, shape.cols}, rows, cols}, nullptr, as);
  requests_->back().consume = [parts](const LoadedSlice& slice) {
    if (slice.dtype != DType::kF8E4M3) return InvalidModel("is not f8e4m3 as its scales say");
    const auto* bytes = static_cast<const uint8_t*>(slice.data);
    parts->data.assign(bytes, bytes + slice.rows * slice.cols);
    return parts->FinishIfComplete();
  };
  Request(name + ".weight_scale_inv", ScaleSlice(shape, rows, cols), nullptr, as);
  requests_->back().consume = [parts](const LoadedSlice& slice) {
    LM_RETURN_IF_ERROR(RequireNumbers(slice));
    parts->scales.resize(static_cast<size_t>(slice.rows * slice.cols));
    ConvertToFloat(slice.data, slice.dtype, parts->scales.data(), parts->scales.size());
    return parts->FinishIfComplete();
  };
}

WeightView WeightFiller::Dequantized(const std::string& name, MatrixShape shape, Range rows, Range cols) {
  if (Stored(name + ".weight") != DType::kF8E4M3) return Linear(name, shape, rows, cols);
  Stored(name + ".weight_scale_inv");
  DType as = options_.round_to_bf16 ? DType::kBF16 : DType::kF32;
  TensorView data = arena_.Reserve(as, {rows.count, cols.count});
  RequestDequantized(name, shape, rows, cols, data.data, as);
  return {as, data.data, rows.count, cols.count};
}

ExpertWeightsView WeightFiller::Experts(const std::vector<std::string>& prefixes, const std::string& projection,
                                        MatrixShape shape, const ExpertSlots& room) {
  ExpertWeightsView experts;
  experts.count = static_cast<int32_t>(prefixes.size());
  int64_t slots = std::max(experts.count, room.count);
  if (slots == 0) return experts;
  Range rows{0, shape.rows}, cols{0, shape.cols};
  DType dtype = KeptAs((prefixes.empty() ? room.like : prefixes[0]) + projection + ".weight");
  auto count = static_cast<int64_t>(prefixes.size());
  TensorView data = arena_.Reserve(dtype, {slots, shape.rows, shape.cols});
  experts.first = ScaledView(dtype, data.data, rows, cols);
  experts.data_stride = shape.rows * shape.cols * static_cast<int64_t>(DTypeSize(dtype));
  Slice scale_slice;
  TensorView scales;
  if (dtype == DType::kF8E4M3) {
    scale_slice = ScaleSlice(shape, rows, cols);
    experts.scale_stride = scale_slice.rows.count * scale_slice.cols.count;
    scales = arena_.Reserve(DType::kF32, {slots, experts.scale_stride});
    experts.first.scales = scales.f32();
  }
  for (int64_t e = 0; e < count; ++e) {
    std::string name = prefixes[e] + projection;
    if (KeptAs(name + ".weight") != dtype && status_.ok())
      status_ = InvalidModel(name + ".weight: experts of one layer are stored in different dtypes, which is not supported");
    auto* target = static_cast<char*>(data.data) + e * experts.data_stride;
    Request(name + ".weight", {{shape.rows, shape.cols}, rows, cols}, arena_.counting() ? nullptr : target, dtype);
    if (dtype != DType::kF8E4M3) continue;
    Stored(name + ".weight_scale_inv");
    Request(name + ".weight_scale_inv", scale_slice, arena_.counting() ? nullptr : scales.f32() + e * experts.scale_stride,
            DType::kF32);
  }
  return experts;
}

}  // namespace latentmesh
