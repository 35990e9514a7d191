#include "runtime/engine/trace_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

namespace latentmesh {
namespace {

constexpr int kPings = 8;

std::string Bytes(int64_t value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }

int64_t Number(const std::string& bytes) {
  int64_t value = 0;
  LM_CHECK(bytes.size() >= sizeof value);
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

int64_t Ping(ControlChannel& control, int rank) {
  int64_t best = 0, shortest = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < kPings; ++i) {
    int64_t sent = TraceClock();
    control.Send("time", rank);
    int64_t there = Number(control.Recv(rank)), back = TraceClock();
    if (back - sent >= shortest) continue;
    shortest = back - sent;
    best = there - (sent + back) / 2;
  }
  return best;
}

}  // namespace

int64_t MeasureClockAhead(ControlChannel& control) {
  if (control.rank() == 0) {
    for (int rank = 1; rank < control.size(); ++rank) control.Send(Bytes(Ping(control, rank)), rank);
    return 0;
  }
  for (int i = 0; i < kPings; ++i) {
    control.Recv(0);
    control.Send(Bytes(TraceClock()), 0);
  }
  return Number(control.Recv(0));
}

Status WriteTrace(const TraceBuffer& mine, int64_t clock_ahead_ns, const std::string& path, ControlChannel& control) {
  std::vector<std::string> gathered = control.Gather(Bytes(clock_ahead_ns) + EncodeTrace(mine));
  if (control.rank() != 0) return Status::Ok();
  std::vector<RankTrace> ranks;
  for (size_t rank = 0; rank < gathered.size(); ++rank) {
    int64_t ahead = Number(gathered[rank]);
    LM_ASSIGN_OR_RETURN(RankTrace trace, DecodeTrace(gathered[rank].substr(sizeof ahead)));
    trace.process = control.DescribeRank(static_cast<int>(rank));
    trace.clock_ahead_ns = ahead;
    ranks.push_back(std::move(trace));
  }
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << FormatChromeTrace(ranks);
  file.close();
  return file ? Status::Ok() : IoError("--trace " + path + ": cannot be written: " + std::strerror(errno));
}

}  // namespace latentmesh
