// Expert migration: brings a layer's expert weights from one placement to another, between two steps.
// The plan is pure arithmetic and the same on all ranks; no byte is sent to a rank that holds it already.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "moe/expert_balance.h"
#include "moe/expert_placement.h"
#include "parallel/communicator.h"

namespace latentmesh {

struct ExpertMove {
  int32_t expert = 0;
  ExpertSite from;                   // in the old placement; from.rank == to.rank: a copy within the rank
  ExpertSite to;                     // in the new placement
};

// One move for each site of `to`, by target rank, then local index. Copies within a rank are preferred; otherwise the
// source that has the least to send so far serves, so that replicas share the work.
std::vector<ExpertMove> PlanMigration(const ExpertPlacement& from, const ExpertPlacement& to);
int64_t CountTransfers(std::span<const ExpertMove> moves);       // moves between ranks

// `to` with its ranks renamed, within nodes where the shape is hierarchical, so that ranks keep many of the experts
// they hold in `from`. Rank loads are permuted, MaxOverMean stays.
ExpertPlacement AlignPlacement(const ExpertPlacement& from, const ExpertPlacement& to, const BalanceShape& shape);

// `to` with each rank's experts in such a local order that those it holds in `from` keep their slots there where these
// exist in `to`; the others fill the slots left. A move with from == to then needs no copy.
ExpertPlacement KeepPlaces(const ExpertPlacement& from, const ExpertPlacement& to);

// One array of weights (gate, up, down, or scales) in device memory, experts one after the other.
struct ExpertArray {
  const void* from = nullptr;        // [experts of this rank in the old placement] x bytes
  void* to = nullptr;                // [experts of this rank in the new placement] x bytes; does not overlap `from`
  size_t bytes = 0;                  // one expert; the same on all ranks
};

// Collective over the ep group; all ranks pass the same moves and arrays of the same sizes. Needs no staging memory.
void MigrateExperts(std::span<const ExpertMove> moves, std::span<const ExpertArray> arrays, Communicator& ep,
                    Device& device, Stream& stream);

}  // namespace latentmesh
