#include "kernels/status.h"

#include <cstdio>
#include <cstdlib>

namespace latentmesh {

const char* StatusCodeName(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return "ok";
    case StatusCode::kInternal: return "internal error";
    case StatusCode::kInvalidArgument: return "invalid argument";
    case StatusCode::kInvalidModel: return "invalid model";
    case StatusCode::kResourceExhausted: return "not enough memory";
    case StatusCode::kMismatch: return "mismatch";
    case StatusCode::kUnavailable: return "unavailable";
    case StatusCode::kIo: return "i/o error";
    case StatusCode::kCommunication: return "communication error";
    case StatusCode::kDeadlineExceeded: return "deadline exceeded";
    case StatusCode::kCancelled: return "cancelled";
  }
  return "unknown";
}

int ExitCode(StatusCode code) { return static_cast<int>(code); }

void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(stderr, "latentmesh: check failed at %s:%d: %s %s\n", file, line, condition, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace latentmesh
