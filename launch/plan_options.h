// The flags of `latentmesh plan`, and the question they put.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "launch/flags.h"
#include "runtime/plan/layout_plan.h"

namespace latentmesh {

struct PlanFlags {
  std::string model;
  int gpus = 0;                      // one of gpus and ranks
  int ranks = 0;
  std::string measured;              // JSON of preflight
  uint64_t gpu_memory = 0, rank_memory = 0;     // 0: not given
  uint64_t reserve = UINT64_MAX;                // this value: not given
  std::optional<int> per_node;
  std::string memory_bandwidth, flops, link_bandwidth, node_bandwidth;
  std::optional<double> link_latency_us, node_latency_us;
  std::string context;
  std::string objective = "throughput";
  int64_t batch = 0, input_len = 1024, output_len = 256;
  EngineOptions engine;
  int top = 8;
  std::string json_file, svg_file;

  void Register(FlagSet& flags);
};

// A model's config, and the dtypes of its tensors with where they come from: the headers of a checkpoint folder's files, or
// config.json alone.
struct ModelSource {
  ModelConfig config;
  StoredDType stored;
  std::string from;
};
Result<ModelSource> ReadModelSource(const std::string& path);

struct PlanQuestion {
  PlanRequest request;
  std::string formats_from;              // where the dtypes come from
  std::vector<std::string> assumed;      // flags of the machine that were not given
};

// Reads config.json (and shard headers, where the folder has them, and preflight's JSON). Messages name the flag.
Result<PlanQuestion> ReadPlanQuestion(const PlanFlags& flags);

// "128k" with k = 1024 for tokens; "680T", "1.2e12", "900GB/s" with k = 1000. kInvalidArgument names the flag.
Result<double> ParseQuantity(const std::string& flag, const std::string& text, double k);

}  // namespace latentmesh
