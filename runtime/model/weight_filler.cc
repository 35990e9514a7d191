#include "runtime/model/weight_filler.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace latentmesh {
namespace {

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

KeptWeight WeightFiller::Keep(const std::string& tensor, WeightUse use) {
  return KeepWeight(options_.format, use, Stored(tensor), options_.round_to_bf16);
}

TensorRequest* WeightFiller::Request(const std::string& tensor, const Slice& slice) {
  if (requests_ == nullptr || slice.rows.count == 0 || slice.cols.count == 0) return nullptr;
  TensorRequest request;
  request.name = tensor;
  request.shape = slice.shape;
  request.row_begin = slice.rows.begin;
  request.rows = slice.rows.count;
  request.col_begin = slice.cols.begin;
  request.cols = slice.cols.count;
  requests_->push_back(std::move(request));
  return &requests_->back();
}

// Made when the first request needs it: a layout that is only counted has no device.
std::shared_ptr<WeightCopier> WeightFiller::Copier() {
  if (copier_ == nullptr) copier_ = std::make_shared<WeightCopier>(*arena_.device());
  return copier_;
}

void WeightFiller::RequestPlain(const std::string& tensor, const Slice& slice, void* target, DType as) {
  TensorRequest* request = Request(tensor, slice);
  if (request == nullptr) return;
  request->consume = [copier = Copier(), target, as](const LoadedSlice& loaded) {
    return StorePlain(*copier, loaded, target, as);
  };
}

TensorView WeightFiller::Matrix(const std::string& tensor, MatrixShape shape, Range rows, Range cols) {
  TensorView view = arena_.Reserve(Keep(tensor, WeightUse::kEmbedding).dtype, {rows.count, cols.count});
  RequestPlain(tensor, {{shape.rows, shape.cols}, rows, cols}, view.data, view.dtype);
  return view;
}

TensorView WeightFiller::Float(const std::string& tensor, MatrixShape shape) {
  Stored(tensor);
  TensorView view = arena_.Reserve(DType::kF32, {shape.rows, shape.cols});
  RequestPlain(tensor, {{shape.rows, shape.cols}, {0, shape.rows}, {0, shape.cols}}, view.data, DType::kF32);
  return view;
}

TensorView WeightFiller::Vector(const std::string& tensor, int64_t size) { return VectorPart(tensor, size, {0, size}); }

TensorView WeightFiller::VectorPart(const std::string& tensor, int64_t size, Range part) {
  Stored(tensor);
  TensorView view = arena_.Reserve(DType::kF32, {part.count});
  RequestPlain(tensor, {{size}, {0, 1}, part}, view.data, DType::kF32);
  return view;
}

// FP8 weights without data and scales.
WeightView WeightFiller::BlockView(Range rows, Range cols) const {
  WeightView view{DType::kF8E4M3, nullptr, rows.count, cols.count};
  view.block_rows = quantization_.block_rows;
  view.block_cols = quantization_.block_cols;
  view.row_offset = static_cast<int32_t>(rows.begin % view.block_rows);
  view.col_offset = static_cast<int32_t>(cols.begin % view.block_cols);
  view.scale_cols = BlockRange(cols, view.block_cols).count;
  return view;
}

WeightView WeightFiller::ViewOf(const KeptWeight& kept, void* data, Range rows, Range cols) const {
  WeightView view{kept.dtype, nullptr, rows.count, cols.count};
  if (kept.dtype == DType::kF8E4M3) view = BlockView(rows, cols);
  view.packed_bits = kept.packed_bits;
  view.bf16_inputs = options_.format == WeightFormat::kBF16 || IsPacked(options_.format);
  view.data = data;
  return view;
}

WeightFiller::Slice WeightFiller::ScaleSlice(MatrixShape shape, Range rows, Range cols) const {
  int64_t br = quantization_.block_rows, bc = quantization_.block_cols;
  return {{(shape.rows + br - 1) / br, (shape.cols + bc - 1) / bc}, BlockRange(rows, br), BlockRange(cols, bc)};
}

// Writes a matrix to its place and notes what that did to it. Refers to the arena's memory only.
ScaledMatrix::Finish WeightFiller::Writer(const std::string& name, const WeightTarget& target) const {
  return [errors = options_.errors, target, name](const std::vector<float>& numbers) {
    WeightError error = StoreMatrix(target, numbers);
    if (errors == nullptr) return;
    error.name = name;
    errors->push_back(std::move(error));
  };
}

void WeightFiller::FillScaled(const Part& part, const WeightTarget& target) {
  Slice slice{{part.shape.rows, part.shape.cols}, part.rows, part.cols};
  auto matrix = std::make_shared<ScaledMatrix>(BlockView(part.rows, part.cols), Writer(part.name, target));
  if (TensorRequest* data = Request(part.name + ".weight", slice); data != nullptr)
    data->consume = [matrix](const LoadedSlice& loaded) { return matrix->TakeData(loaded); };
  Slice scales = ScaleSlice(part.shape, part.rows, part.cols);
  if (TensorRequest* request = Request(part.name + ".weight_scale_inv", scales); request != nullptr)
    request->consume = [matrix](const LoadedSlice& loaded) { return matrix->TakeScales(loaded); };
}

// Requests what fills `view`: as stored where that is how it is kept, else by way of f32.
void WeightFiller::Fill(const Part& part, const WeightView& view) {
  DType stored = Stored(part.name + ".weight");
  if (stored == DType::kF8E4M3) Stored(part.name + ".weight_scale_inv");
  Slice slice{{part.shape.rows, part.shape.cols}, part.rows, part.cols};
  WeightTarget target{requests_ == nullptr ? nullptr : Copier(), view};
  if (stored == view.dtype) {
    RequestPlain(part.name + ".weight", slice, const_cast<void*>(view.data), stored);
    if (stored == DType::kF8E4M3)
      RequestPlain(part.name + ".weight_scale_inv", ScaleSlice(part.shape, part.rows, part.cols),
                   const_cast<float*>(view.scales), DType::kF32);
  } else if (stored == DType::kF8E4M3) {
    FillScaled(part, target);
  } else if (TensorRequest* request = Request(part.name + ".weight", slice); request != nullptr) {
    request->consume = [write = Writer(part.name, target)](const LoadedSlice& loaded) {
      LM_RETURN_IF_ERROR(RequireNumbers(loaded));
      std::vector<float> numbers(static_cast<size_t>(loaded.rows * loaded.cols));
      ConvertToFloat(loaded.data, loaded.dtype, numbers.data(), numbers.size());
      write(numbers);
      return Status::Ok();
    };
  }
}

WeightView WeightFiller::Linear(const std::string& name, MatrixShape shape, Range rows, Range cols, WeightUse use) {
  KeptWeight kept = Keep(name + ".weight", use);
  WeightView view = ViewOf(kept, arena_.Reserve(kept.Bytes(rows.count, cols.count)), rows, cols);
  if (kept.dtype == DType::kF8E4M3) {
    Slice slice = ScaleSlice(shape, rows, cols);
    view.scales = arena_.Reserve(DType::kF32, {slice.rows.count, slice.cols.count}).f32();
  }
  Fill({name, shape, rows, cols}, view);
  return view;
}

ExpertWeightsView WeightFiller::Experts(const std::vector<std::string>& prefixes, const std::string& projection,
                                        MatrixShape shape, const ExpertSlots& room) {
  ExpertWeightsView experts;
  experts.count = static_cast<int32_t>(prefixes.size());
  int64_t slots = std::max(experts.count, room.count);
  if (slots == 0) return experts;
  Range rows{0, shape.rows}, cols{0, shape.cols};
  std::string first = (prefixes.empty() ? room.like : prefixes[0]) + projection + ".weight";
  KeptWeight kept = Keep(first, WeightUse::kProjection);
  experts.data_stride = static_cast<int64_t>(kept.Bytes(shape.rows, shape.cols));
  experts.first = ViewOf(kept, arena_.Reserve(static_cast<size_t>(slots * experts.data_stride)), rows, cols);
  if (kept.dtype == DType::kF8E4M3) {
    Slice slice = ScaleSlice(shape, rows, cols);
    experts.scale_stride = slice.rows.count * slice.cols.count;
    experts.first.scales = arena_.Reserve(DType::kF32, {slots, experts.scale_stride}).f32();
  }
  for (int32_t e = 0; e < experts.count; ++e) {
    const std::string name = prefixes[static_cast<size_t>(e)] + projection;
    if (Keep(name + ".weight", WeightUse::kProjection) != kept && status_.ok())
      status_ = InvalidModel(name + ".weight: experts of one layer are stored in different dtypes, which is not supported");
    Fill({name, shape, rows, cols}, arena_.counting() ? experts.first : experts.At(e));
  }
  return experts;
}

}  // namespace latentmesh
