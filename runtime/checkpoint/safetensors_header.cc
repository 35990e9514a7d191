#include "runtime/checkpoint/safetensors_header.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>

namespace latentmesh {
namespace {

namespace json = boost::json;

struct FormatDType {
  std::string_view name;
  uint64_t bytes;
  std::optional<DType> dtype;
};
constexpr FormatDType kFormatDTypes[] = {
    {"F32", 4, DType::kF32},      {"BF16", 2, DType::kBF16}, {"F16", 2, DType::kF16},  {"F8_E4M3", 1, DType::kF8E4M3},
    {"I8", 1, DType::kI8},        {"U8", 1, DType::kU8},     {"I32", 4, DType::kI32},  {"I64", 8, DType::kI64},
    {"BOOL", 1, std::nullopt},    {"F64", 8, std::nullopt},  {"I16", 2, std::nullopt}, {"U16", 2, std::nullopt},
    {"U32", 4, std::nullopt},     {"U64", 8, std::nullopt},  {"C64", 8, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
    {"F8_E8M0", 1, std::nullopt},
};

const FormatDType* FindDType(std::string_view name) {
  for (const FormatDType& known : kFormatDTypes) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

Status Damaged(const std::string& file, const std::string& problem) {
  return InvalidModel(file + ": damaged safetensors header: " + problem + "; download the file again");
}

Status BadTensor(const std::string& file, std::string_view name, const std::string& problem) {
  return InvalidModel(fmt::format("{}: tensor '{}' {}; download the file again", file, name, problem));
}

std::optional<uint64_t> ToUnsigned(const json::value& value) {
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_int64() && value.get_int64() >= 0) return static_cast<uint64_t>(value.get_int64());
  return std::nullopt;
}

std::optional<std::vector<uint64_t>> ToUnsigneds(const json::object& object, const char* name) {
  const json::value* list = object.if_contains(name);
  if (list == nullptr || !list->is_array()) return std::nullopt;
  std::vector<uint64_t> result;
  for (const json::value& element : list->get_array()) {
    std::optional<uint64_t> number = ToUnsigned(element);
    if (!number) return std::nullopt;
    result.push_back(*number);
  }
  return result;
}

// Bytes of a tensor; nullopt when they do not fit 63 bits.
std::optional<uint64_t> SpanOf(const std::vector<uint64_t>& shape, uint64_t element) {
  int64_t total = static_cast<int64_t>(element);
  for (uint64_t dimension : shape) {
    if (dimension > uint64_t{INT64_MAX} || __builtin_mul_overflow(total, static_cast<int64_t>(dimension), &total)) {
      return std::nullopt;
    }
  }
  return static_cast<uint64_t>(total);
}

Status ReadTensorEntry(const json::object& entry, uint64_t data_bytes, const std::string& file, TensorInfo& info) {
  const json::value* dtype = entry.if_contains("dtype");
  if (dtype == nullptr || !dtype->is_string()) return BadTensor(file, info.name, "has no dtype");
  info.dtype_name = std::string(dtype->get_string());
  const FormatDType* known = FindDType(info.dtype_name);
  if (known == nullptr) return BadTensor(file, info.name, "has the unknown dtype '" + info.dtype_name + "'");
  info.dtype = known->dtype;

  const auto shape = ToUnsigneds(entry, "shape");
  const auto offsets = ToUnsigneds(entry, "data_offsets");
  if (!shape) return BadTensor(file, info.name, "has no shape of non-negative integers");
  if (!offsets || offsets->size() != 2) return BadTensor(file, info.name, "has no pair of data_offsets");
  const uint64_t begin = (*offsets)[0], end = (*offsets)[1];
  if (end < begin)
    return BadTensor(file, info.name, fmt::format("has data_offsets [{}, {}] that run backwards", begin, end));
  if (end > data_bytes) {
    return BadTensor(
        file, info.name,
        fmt::format("ends at byte {} of the data, but the file holds {}: the file is truncated", end, data_bytes));
  }
  const std::optional<uint64_t> span = SpanOf(*shape, known->bytes);
  if (!span || *span != end - begin) {
    return BadTensor(file, info.name,
                     fmt::format("of shape [{}] and dtype {} does not fill its {} bytes", fmt::join(*shape, ", "),
                                 info.dtype_name, end - begin));
  }
  info.shape.assign(shape->begin(), shape->end());
  info.offset = begin;
  info.bytes = end - begin;
  return Status::Ok();
}

// Members of all objects in well-formed JSON, duplicates included: the colons outside strings.
size_t CountMembers(std::string_view text) {
  size_t members = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string && text[i] == '\\')
      ++i;
    else if (text[i] == '"')
      in_string = !in_string;
    else if (!in_string && text[i] == ':')
      ++members;
  }
  return members;
}

size_t CountMembers(const json::value& value) {
  size_t members = 0;
  if (value.is_object()) {
    for (const auto& member : value.get_object()) members += 1 + CountMembers(member.value());
  } else if (value.is_array()) {
    for (const json::value& element : value.get_array()) members += CountMembers(element);
  }
  return members;
}

Status ReadMetadata(const json::value& value, const std::string& file, std::map<std::string, std::string>& metadata) {
  if (!value.is_object()) return Damaged(file, "__metadata__ is not an object");
  for (const auto& member : value.get_object()) {
    if (!member.value().is_string()) return Damaged(file, "__metadata__ may hold strings only");
    metadata[std::string(member.key())] = std::string(member.value().get_string());
  }
  return Status::Ok();
}

// The format allows neither overlaps nor holes: what it does not name could carry anything.
Status CheckLayout(std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != end) {
      return BadTensor(file, tensor.name,
                       fmt::format("starts at byte {} of the data instead of {}: {}", tensor.offset, end,
                                   tensor.offset < end ? "it overlaps another" : "there is a hole"));
    }
    end += tensor.bytes;
  }
  if (end != data_bytes) return Damaged(file, fmt::format("{} bytes of data belong to no tensor", data_bytes - end));
  return Status::Ok();
}

}  // namespace

int64_t TensorInfo::rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

std::string ShapeString(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }
std::string TensorInfo::ShapeString() const { return latentmesh::ShapeString(shape); }

const char* SafetensorsDType(DType dtype) {
  for (const FormatDType& known : kFormatDTypes) {
    if (known.dtype == dtype) return known.name.data();
  }
  CheckFailed(__FILE__, __LINE__, "known dtype", DTypeName(dtype));
}

Result<uint64_t> SafetensorsHeaderLength(const unsigned char prefix[8], uint64_t file_size, const std::string& file) {
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[i];
  if (length > kLargestSafetensorsHeader) {
    return Damaged(file, fmt::format("its length of {} bytes exceeds the format's limit of 100 MB", length));
  }
  if (file_size < kSafetensorsPrefix || length > file_size - kSafetensorsPrefix) {
    return Damaged(
        file, fmt::format("its length of {} bytes exceeds the file's {}: the file is truncated", length, file_size));
  }
  return length;
}

Result<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text, uint64_t file_size, const std::string& file) {
  const uint64_t data_begin = kSafetensorsPrefix + text.size();
  LM_CHECK(data_begin <= file_size);
  const uint64_t data_bytes = file_size - data_begin;
  boost::system::error_code error;
  const json::value document = json::parse(json::string_view(text.data(), text.size()), error);
  if (error) return Damaged(file, "not valid JSON (" + error.message() + ")");
  if (text.empty() || text[0] != '{' || !document.is_object()) return Damaged(file, "it is not a JSON object");
  if (CountMembers(text) != CountMembers(document)) return Damaged(file, "a name occurs twice");

  SafetensorsHeader header;
  header.tensors.reserve(document.get_object().size());
  for (const auto& member : document.get_object()) {
    if (member.key() == "__metadata__") {
      LM_RETURN_IF_ERROR(ReadMetadata(member.value(), file, header.metadata));
      continue;
    }
    TensorInfo& info = header.tensors.emplace_back();
    info.name = std::string(member.key());
    if (!member.value().is_object()) return BadTensor(file, info.name, "is not described by an object");
    LM_RETURN_IF_ERROR(ReadTensorEntry(member.value().get_object(), data_bytes, file, info));
  }
  LM_RETURN_IF_ERROR(CheckLayout(header.tensors, data_bytes, file));
  for (TensorInfo& tensor : header.tensors) tensor.offset += data_begin;
  return header;
}

}  // namespace latentmesh
