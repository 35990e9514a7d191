// What `latentmesh preflight` says, as text for people and as JSON.
#pragma once

#include <string>
#include <vector>

#include "launch/preflight_judge.h"

namespace latentmesh {

struct PreflightAnswer {
  std::vector<RankProbe> probes;     // by rank
  Verdict verdict;
  double seconds = 0;                // the whole of it
};

std::string PreflightText(const PreflightAnswer& answer);
std::string PreflightJson(const PreflightAnswer& answer);

std::string FormatRanges(const std::vector<int>& numbers);     // "0-3,8"

}  // namespace latentmesh
