#include "launch/log.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>

namespace latentmesh {

void InitLog(int rank, int world_size) {
  auto logger = spdlog::stderr_logger_mt("latentmesh");
  int width = static_cast<int>(std::to_string(world_size - 1).size());
  logger->set_pattern(fmt::format("%H:%M:%S.%e {:>{}} %L %v", rank, width));
  spdlog::set_default_logger(std::move(logger));
}

void SetLogLevel(const std::string& level) { spdlog::set_level(spdlog::level::from_str(level)); }
void LogDebug(const std::string& line) { spdlog::debug("{}", line); }
void LogInfo(const std::string& line) { spdlog::info("{}", line); }
void LogWarning(const std::string& line) { spdlog::warn("{}", line); }

void PrintError(const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "latentmesh: error: %s\n", message.c_str());
  std::fflush(stderr);
}

}  // namespace latentmesh
