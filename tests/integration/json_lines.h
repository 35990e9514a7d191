// JSON lines of a program's output, for tests.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "launch/files.h"

namespace latentmesh {

inline std::vector<boost::json::value> JsonLines(const std::string& text) {
  std::vector<boost::json::value> lines;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(boost::json::parse(text.substr(begin, end - begin)));
  }
  return lines;
}

inline boost::json::value JsonFile(const std::string& path) {
  auto text = ReadFile(path);
  return text.ok() ? boost::json::parse(*text) : boost::json::value();
}

}  // namespace latentmesh
