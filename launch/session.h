// What every subcommand that runs a model does first: load it on all ranks and say what was chosen.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "kernels/status.h"
#include "launch/options.h"
#include "parallel/bootstrap.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

// Collective. Sets log level and deadlines, loads the model with progress on stderr, logs layout and memory plan.
Result<std::unique_ptr<Runtime>> StartRuntime(Job& job, const ModelFlags& flags);
Result<std::unique_ptr<Runtime>> StartRuntime(Job& job, const ModelFlags& flags, EngineOptions options);
void ApplyJobFlags(Job& job, const ModelFlags& flags);

// Collective: the body runs on rank 0 with SIGINT and SIGTERM turned into StopSignals::requested().
Status RunOnRankZero(Runtime& runtime, const std::function<Status(Engine&)>& body);

// Steps until all requests have finished; kCancelled when a signal came first (what: what was lost).
Status RunToEnd(Engine& engine, const std::string& what);

// Rank 0 has read an input file: all ranks learn whether it could. Collective.
Status AgreeOnInput(Job& job, const Status& rank_zero_status);

// Which ranks do what, and what each rank's memory holds; several lines, rank 0.
std::string LayoutReport(const Runtime& runtime, const Job& job);
std::string MemoryReport(const Runtime& runtime);
// Logs what --weights did to rank 0's matrices: their error as one line, each matrix with --log-level debug.
void LogWeightErrors(const Runtime& runtime);

class Stopwatch {
 public:
  double Seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace latentmesh
