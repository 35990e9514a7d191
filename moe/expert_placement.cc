#include "moe/expert_placement.h"

#include <algorithm>

#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

std::string ExpertText(int32_t expert) { return "expert " + std::to_string(expert); }

Status ValidateTable(int experts, const std::vector<std::vector<int32_t>>& table) {
  if (experts < 1 || table.empty()) return InvalidArgument("expert placement: needs at least one expert and one rank");
  std::vector<int> last_rank(experts, -1);
  for (size_t r = 0; r < table.size(); ++r) {
    for (int32_t e : table[r]) {
      std::string where = "expert placement, rank " + std::to_string(r) + ": ";
      if (e < 0 || e >= experts)
        return InvalidArgument(where + ExpertText(e) + " is outside [0, " + std::to_string(experts) + ")");
      if (last_rank[e] == static_cast<int>(r))
        return InvalidArgument(where + ExpertText(e) + " stands twice; replicas must lie on different ranks");
      last_rank[e] = static_cast<int>(r);
    }
  }
  for (int e = 0; e < experts; ++e)
    if (last_rank[e] < 0) return InvalidArgument("expert placement: " + ExpertText(e) + " is on no rank");
  return Status::Ok();
}

}  // namespace

ExpertPlacement::ExpertPlacement(int experts, const std::vector<std::vector<int32_t>>& table)
    : rank_begin_{0}, site_begin_(experts + 1, 0) {
  for (const auto& row : table) {
    local_experts_.insert(local_experts_.end(), row.begin(), row.end());
    rank_begin_.push_back(static_cast<int32_t>(local_experts_.size()));
    for (int32_t e : row) ++site_begin_[e + 1];
  }
  for (int e = 0; e < experts; ++e) site_begin_[e + 1] += site_begin_[e];
  sites_.resize(local_experts_.size());
  std::vector<int32_t> next(site_begin_.begin(), site_begin_.end() - 1);
  for (int32_t r = 0; r < static_cast<int32_t>(table.size()); ++r)
    for (int32_t i = 0; i < static_cast<int32_t>(table[r].size()); ++i) sites_[next[table[r][i]]++] = {r, i};
}

ExpertPlacement ExpertPlacement::Contiguous(int experts, int ranks) {
  LM_CHECK(experts >= 1 && ranks >= 1);
  std::vector<std::vector<int32_t>> table(ranks);
  for (int r = 0; r < ranks; ++r) {
    Range range = SplitRange(experts, ranks, r);
    for (int64_t e = range.begin; e < range.end(); ++e) table[r].push_back(static_cast<int32_t>(e));
  }
  return ExpertPlacement(experts, table);
}

Result<ExpertPlacement> ExpertPlacement::FromTable(int experts, const std::vector<std::vector<int32_t>>& table) {
  LM_RETURN_IF_ERROR(ValidateTable(experts, table));
  return ExpertPlacement(experts, table);
}

int ExpertPlacement::MaxLocalCount() const {
  int most = 0;
  for (int r = 0; r < ranks(); ++r) most = std::max(most, LocalCount(r));
  return most;
}

std::string ExpertPlacement::DebugString() const {
  int least = LocalCount(0), most = MaxLocalCount();
  for (int r = 1; r < ranks(); ++r) least = std::min(least, LocalCount(r));
  std::string each = least == most ? std::to_string(most) : std::to_string(least) + " to " + std::to_string(most);
  std::string extra = has_replicas() ? std::to_string(sites() - experts()) + " redundant" : "no replicas";
  return std::to_string(experts()) + " experts over " + std::to_string(ranks()) + " ranks, " + each + " each, " + extra;
}

}  // namespace latentmesh
