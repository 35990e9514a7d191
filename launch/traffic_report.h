// What a run sent between ranks, as rank 0 saw it.
#pragma once

#include <string>

#include "runtime/engine/engine.h"

namespace latentmesh {

TrafficReport TrafficBetween(const TrafficReport& before, const TrafficReport& after);

// A line for each group that was used, "traffic of rank 0, a step: tp (2 ranks) ...", one for each of its collectives,
// and the cp exchange's bytes a token. Empty for one rank.
std::string TrafficText(const TrafficReport& traffic, const Runtime& runtime);
// {"steps", "tokens", "halved_steps", "groups": [{"group", "ranks", "calls", "bytes_sent", "bytes_received", "seconds",
// "bytes_shared", "collectives": {"all-reduce": {"calls", ...}, ...}}]}, totals.
std::string TrafficJson(const TrafficReport& traffic);

}  // namespace latentmesh
