// Small file helpers; every failure is kIo with file name and reason.
#pragma once

#include <string>

#include "kernels/status.h"

namespace latentmesh {

Result<std::string> ReadFile(const std::string& path);
Status WriteFile(const std::string& path, const std::string& text);

}  // namespace latentmesh
