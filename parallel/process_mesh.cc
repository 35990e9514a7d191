#include "parallel/process_mesh.h"

#include <algorithm>

namespace latentmesh {

std::string ToString(const ParallelConfig& c) {
  return "tp" + std::to_string(c.tp) + " dp" + std::to_string(c.dp) + " pp" + std::to_string(c.pp) + " cp" +
         std::to_string(c.cp);
}

Result<ProcessMesh> ProcessMesh::Create(const ParallelConfig& config, int world_size, int rank) {
  const struct { const char* flag; int value; } sizes[] = {
      {"--tp", config.tp}, {"--dp", config.dp}, {"--pp", config.pp}, {"--cp", config.cp}};
  for (const auto& size : sizes)
    if (size.value < 1)
      return InvalidArgument(std::string(size.flag) + " " + std::to_string(size.value) + ": must be at least 1");
  if (int64_t{config.tp} * config.dp * config.pp != world_size)
    return InvalidArgument("layout " + ToString(config) + " needs pp x dp x tp = " +
                           std::to_string(int64_t{config.tp} * config.dp * config.pp) + " ranks, but the job has " +
                           std::to_string(world_size) + ": start that many ranks or change --tp, --dp or --pp");
  if (config.tp % config.cp != 0)
    return InvalidArgument("--cp " + std::to_string(config.cp) + " does not divide --tp " + std::to_string(config.tp) +
                           ": context parallelism splits a tp group into equal parts");
  return ProcessMesh(config, rank);
}

std::vector<int> ProcessMesh::TpGroup() const {
  std::vector<int> ranks;
  for (int t = 0; t < config_.tp; ++t) ranks.push_back(RankOf(pp_rank(), dp_rank(), t));
  return ranks;
}

std::vector<int> ProcessMesh::CpGroup() const {
  std::vector<int> ranks;
  int first = tp_rank() - cp_rank();
  for (int c = 0; c < config_.cp; ++c) ranks.push_back(RankOf(pp_rank(), dp_rank(), first + c));
  return ranks;
}

std::vector<int> ProcessMesh::DpGroup() const {
  std::vector<int> ranks;
  for (int d = 0; d < config_.dp; ++d) ranks.push_back(RankOf(pp_rank(), d, tp_rank()));
  return ranks;
}

std::vector<int> ProcessMesh::EpGroup() const {
  std::vector<int> ranks;
  for (int e = 0; e < ep_size(); ++e) ranks.push_back(pp_rank() * ep_size() + e);
  return ranks;
}

std::vector<int> ProcessMesh::PpGroup() const {
  std::vector<int> ranks;
  for (int p = 0; p < config_.pp; ++p) ranks.push_back(RankOf(p, dp_rank(), tp_rank()));
  return ranks;
}

Range SplitRange(int64_t total, int parts, int index, int64_t unit) {
  int64_t units = (total + unit - 1) / unit, base = units / parts, extra = units % parts;
  int64_t begin = base * index + std::min<int64_t>(index, extra);
  int64_t count = base + (index < extra ? 1 : 0);
  int64_t first = std::min(begin * unit, total), last = std::min((begin + count) * unit, total);
  return {first, last - first};
}

}  // namespace latentmesh
