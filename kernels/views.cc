#include "kernels/views.h"

namespace latentmesh {
namespace {

constexpr int64_t kGroup = 128;  // latent numbers that share one scale

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

HeadsView HeadsView::Dims(int64_t begin, int64_t count) const {
  LM_CHECK(begin >= 0 && count >= 0 && begin + count <= dim);
  HeadsView view = *this;
  view.dim = count;
  view.data = static_cast<char*>(data) + begin * static_cast<int64_t>(DTypeSize(dtype));
  return view;
}

HeadsView HeadsView::Tokens(int64_t begin, int64_t count) const {
  LM_CHECK(begin >= 0 && count >= 0 && begin + count <= tokens);
  HeadsView view = *this;
  view.tokens = count;
  view.data = static_cast<char*>(data) + begin * token_stride * static_cast<int64_t>(DTypeSize(dtype));
  return view;
}

HeadsView HeadsView::Heads(int64_t begin, int64_t count) const {
  LM_CHECK(begin >= 0 && count >= 0 && begin + count <= heads);
  HeadsView view = *this;
  view.heads = count;
  view.data = static_cast<char*>(data) + begin * head_stride * static_cast<int64_t>(DTypeSize(dtype));
  return view;
}

HeadsView AsHeads(const TensorView& tensor, int64_t heads, int64_t dim) {
  LM_CHECK_MSG(tensor.cols() == heads * dim,
               tensor.DebugString() + " as " + std::to_string(heads) + " heads of " + std::to_string(dim));
  return {tensor.data, tensor.dtype, tensor.rows(), heads, dim, tensor.row_stride, dim};
}

const char* CacheFormatName(CacheFormat format) {
  switch (format) {
    case CacheFormat::kF32: return "f32";
    case CacheFormat::kBF16: return "bf16";
    case CacheFormat::kF8: return "fp8";
    case CacheFormat::k6Bit: return "6bit";
  }
  return "unknown";
}

// The layout of the quantised records is described in kernels/cpu/cache_record.h.
int64_t CacheRecordBytes(CacheFormat format, int64_t latent, int64_t rope) {
  const int64_t scale_bytes = (latent + kGroup - 1) / kGroup * 4;
  switch (format) {
    case CacheFormat::kF32: return (latent + rope) * 4;
    case CacheFormat::kBF16: return (latent + rope) * 2;
    case CacheFormat::kF8: return RoundUp(latent, 4) + scale_bytes + rope * 2;
    case CacheFormat::k6Bit: return RoundUp((latent + 3) / 4 * 3, 4) + scale_bytes + rope * 2;
  }
  CheckFailed(__FILE__, __LINE__, "CacheRecordBytes", "unknown cache format");
}

}  // namespace latentmesh
