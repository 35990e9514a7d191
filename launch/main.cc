// latentmesh: every rank runs this program; rank 0 speaks.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <exception>

#include "launch/command.h"
#include "launch/log.h"
#include "parallel/bootstrap.h"
#include "parallel/flight_record.h"
#include "parallel/launch_environment.h"

namespace latentmesh {
namespace {

// Prints the failure once and returns the exit code. Expected failures are the same on all ranks, so rank 0 speaks.
int Report(const Status& status, int rank) {
  if (!status.ok() && rank == 0) PrintError(status.message());
  return ExitCode(status.code());
}

// A failure of this rank alone (transport, deadline, bug): the others cannot know, so the job is ended.
int EndJob(Job& job, StatusCode code, const std::string& what) {
  PrintError(fmt::format("rank {} on {}: {}", job.rank(), job.host(), what));
  std::signal(SIGTERM, SIG_IGN);      // the launcher sends it to all ranks now; the exit code shall be this rank's own
  job.Abort(code);
  return ExitCode(code);      // not reached
}

int RunCommand(Job& job, Command& command) {
  try {
    return Report(command.Run(job), job.rank());
  } catch (const Error& error) {
    return EndJob(job, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return EndJob(job, StatusCode::kResourceExhausted, "out of memory");
  } catch (const std::exception& error) {
    return EndJob(job, StatusCode::kInternal, error.what());
  }
}

// launch/rank.sh names a file in which it looks up what a killed rank was doing.
Status StartFlightRecord() {
  std::string path = EnvironmentVariable("LATENTMESH_FLIGHT_RECORD");
  return path.empty() ? Status::Ok() : OpenFlightRecord(path);
}

int Main(int argc, char** argv) {
  if (Status record = StartFlightRecord(); !record.ok()) return Report(record, 0);
  auto job = Job::Join(&argc, &argv);
  if (!job.ok()) return Report(job.status(), 0);
  int rank = (*job)->rank();
  InitLog(rank, (*job)->size());
  auto commands = MakeAllCommands();
  auto line = ParseCommandLine(argc, argv, commands);
  if (!line.ok()) return Report(line.status(), rank);
  if (line->command == nullptr) {
    if (rank == 0) std::fputs(line->print.c_str(), stdout);
    return 0;
  }
  return RunCommand(**job, *line->command);
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Main(argc, argv); }
