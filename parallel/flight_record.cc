#include "parallel/flight_record.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace latentmesh {
namespace {

char* record = nullptr;                    // mapped [kFlightRecordBytes]; stays until the process ends

}  // namespace

Status OpenFlightRecord(const std::string& path) {
  int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, kFlightRecordBytes) != 0) {
    if (file >= 0) close(file);
    return IoError("cannot write the flight record " + path + ": " + std::strerror(errno));
  }
  void* mapped = mmap(nullptr, kFlightRecordBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return IoError("cannot map the flight record " + path + ": " + std::strerror(errno));
  record = static_cast<char*>(mapped);
  RecordFlight(-1, "starting");
  return Status::Ok();
}

void RecordFlight(int64_t step, const char* operation) {
  if (record == nullptr) return;
  char* at = record;
  char* end = record + kFlightRecordBytes - 1;
  if (step >= 0) {
    std::memcpy(at, "step ", 5);
    at = std::to_chars(at + 5, end, step).ptr;
    std::memcpy(at, ", ", 2);
    at += 2;
  }
  size_t length = std::min(std::strlen(operation), static_cast<size_t>(end - at));
  std::memcpy(at, operation, length);
  std::memset(at + length, ' ', static_cast<size_t>(end - at) - length);
  *end = '\n';
}

}  // namespace latentmesh
