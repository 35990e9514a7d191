// For this room's tests: files relative to the source root, and random text.
#pragma once

#include <boost/json.hpp>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>

#include "runtime/text/utf8.h"

namespace latentmesh {

constexpr char kDemo[] = "launch/demo";

inline std::string ReadTestFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("run this test from the source root: cannot read " + path);
  std::ostringstream contents;
  contents << file.rdbuf();
  return contents.str();
}

inline boost::json::value ReadTestJson(const std::string& path) { return boost::json::parse(ReadTestFile(path)); }
inline boost::json::array ReadTestArray(const std::string& path) { return ReadTestJson(path).as_array(); }

inline std::string Text(const boost::json::value& v) { return std::string(v.as_string()); }

// Random code points of all lengths and, with `invalid`, random bytes between them.
inline std::string RandomText(std::mt19937& random, int length, bool invalid) {
  std::string text;
  for (int i = 0; i < length; ++i) {
    const uint32_t limits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
    uint32_t c = random() % limits[random() % 5];
    if (c >= 0xD800 && c < 0xE000) c = 0x4E2D;
    if (invalid && random() % 4 == 0) text += static_cast<char>(random());
    else AppendUtf8(text, c);
  }
  return text;
}

}  // namespace latentmesh
