// What `latentmesh plan` says, as text for people, as JSON and as charts.
#pragma once

#include <string>
#include <vector>

#include "launch/cache_report.h"
#include "launch/plan_options.h"

namespace latentmesh {

struct PlanAnswer {
  PlanQuestion question;
  std::vector<LayoutPlan> plans;  // best first
  RankWeights published;          // the whole model as its checkpoint stores it
  int top = 8;                    // layouts to show
};

std::string PlanText(const PlanAnswer& answer);
std::string PlanJson(const PlanAnswer& answer);
std::string PlanSvg(const PlanAnswer& answer);

// The model's own cache cost in the format of the plan, then the other attention forms with the same heads (bf16, or
// f32 when the plan's is).
std::vector<CacheCost> PlanCacheCosts(const PlanAnswer& answer);

// A table whose columns are as wide as their content; the first row is the heading, numbers are right-aligned.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

}  // namespace latentmesh
