// Folders and files for checkpoint tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace latentmesh {

// A folder that goes with the test.
class TempFolder {
 public:
  TempFolder() {
    static int next = 0;
    path_ = ::testing::TempDir() + "latentmesh_checkpoint_" + std::to_string(::getpid()) + "_" + std::to_string(next++);
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void WriteFile(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

// The bytes of a safetensors file with this header and `data_bytes` bytes of data.
inline std::string RawSafetensors(const std::string& header, size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i)));
  return file + header + std::string(data_bytes, '\1');
}

}  // namespace latentmesh
