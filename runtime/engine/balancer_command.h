// BalanceCommand: what rank 0 tells all ranks between two steps, on the control channel where plans come otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// The first byte of an encoded command; that of a StepCommand is an attention mode, far below.
enum class BalanceKind : uint8_t {
  kGatherLoads = 0x40,                 // every rank sends its expert loads
  kPlaceLayer = 0x41,                  // the ranks of one stage move one layer's experts
};

struct BalanceCommand {
  BalanceKind kind = BalanceKind::kGatherLoads;
  int32_t stage = 0;                   // kPlaceLayer: pipeline stage
  int32_t layer = 0;                   // index among the stage's layers with routed experts
  std::vector<std::vector<int32_t>> table;   // [ep ranks] experts in local order, as ExpertPlacement::FromTable
};

bool IsBalanceCommand(const std::string& bytes);
std::string EncodeBalanceCommand(const BalanceCommand& command);
Result<BalanceCommand> DecodeBalanceCommand(const std::string& bytes);   // kCommunication when damaged

}  // namespace latentmesh
