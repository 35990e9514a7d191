// Logging to stderr, each line with level and rank. Results go to stdout, from rank 0 only.
#pragma once

#include <string>

namespace latentmesh {

void InitLog(int rank, int world_size);
void SetLogLevel(const std::string& level);      // a name that --log-level takes
void LogDebug(const std::string& line);
void LogInfo(const std::string& line);
void LogWarning(const std::string& line);

// The one message of a failed run: "latentmesh: error: ...". Printed whatever the log level is.
void PrintError(const std::string& message);

}  // namespace latentmesh
