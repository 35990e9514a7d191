#include <fmt/format.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "runtime/checkpoint/safetensors.h"

namespace latentmesh {

namespace json = boost::json;

void SafetensorsWriter::Add(const std::string& name, DType dtype, const std::vector<int64_t>& shape, const void* data) {
  size_t bytes = DTypeSize(dtype);
  for (int64_t dimension : shape) bytes *= static_cast<size_t>(dimension);
  const std::byte* begin = static_cast<const std::byte*>(data);
  tensors_.push_back({name, dtype, shape, std::vector<std::byte>(begin, begin + bytes)});
}

std::string SafetensorsWriter::Serialize() const {
  json::object header;
  if (!metadata_.empty()) {
    json::object& metadata = header["__metadata__"].emplace_object();
    for (const auto& [key, value] : metadata_) metadata[key] = value;
  }
  size_t offset = 0;
  for (const HostTensor& tensor : tensors_) {
    LM_CHECK_MSG(!header.contains(tensor.name), tensor.name);
    header[tensor.name] = {{"dtype", SafetensorsDType(tensor.dtype)},
                           {"shape", json::array(tensor.shape.begin(), tensor.shape.end())},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin aligned
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(text.size() >> (8 * i)));
  file += text;
  for (const HostTensor& tensor : tensors_) {
    file.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return file;
}

Status SafetensorsWriter::Write(const std::string& path) const {
  const std::string temporary = path + ".part";
  std::ofstream file(temporary, std::ios::binary);
  const std::string contents = Serialize();
  file.write(contents.data(), static_cast<std::streamsize>(contents.size()));
  file.close();
  if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
    return IoError(fmt::format("{}: cannot be written ({})", path, std::strerror(errno)));
  }
  return Status::Ok();
}

}  // namespace latentmesh
