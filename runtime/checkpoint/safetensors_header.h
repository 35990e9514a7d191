// The header of a safetensors file (https://github.com/huggingface/safetensors, section "Format"): 8 bytes of length,
// little endian, a JSON object of that length, then the tensors' bytes without holes. Nothing in it is trusted.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/status.h"

namespace latentmesh {

struct TensorInfo {
  std::string name;
  std::string dtype_name;          // as in the file: "BF16"
  std::optional<DType> dtype;      // nullopt: the format knows the type, latentmesh does not compute with it
  std::vector<int64_t> shape;      // any rank, also 0
  uint64_t offset = 0;             // of the first byte, in the file
  uint64_t bytes = 0;
  uint32_t file = 0;               // index of the file within a checkpoint

  // Seen as a matrix: 1-D tensors are [1, n], more than two dimensions fold into rows.
  int64_t rows() const;
  int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
  std::string ShapeString() const;   // "[3, 64]"
};
std::string ShapeString(const std::vector<int64_t>& shape);

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;             // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

inline constexpr uint64_t kSafetensorsPrefix = 8;
inline constexpr uint64_t kLargestSafetensorsHeader = 100'000'000;

// The format's name of a dtype ("BF16"), and the dtype of a name.
const char* SafetensorsDType(DType dtype);

// From the file's first 8 bytes; checked against the file's size. All errors here are kInvalidModel, naming `file`.
Result<uint64_t> SafetensorsHeaderLength(const unsigned char prefix[8], uint64_t file_size, const std::string& file);

// `json` is the header without the prefix. Checks JSON, dtypes, shape x dtype = bytes, bounds, order without overlaps
// and holes up to the end of the file, and that no name comes twice.
Result<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t file_size, const std::string& file);

}  // namespace latentmesh
