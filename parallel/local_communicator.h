// Communicators between threads of one process: each thread plays a rank. Deterministic, used by tests and by
// single-process runs. Host memory only.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "parallel/process_mesh.h"

namespace latentmesh {

// Rank i of the group is element i; each is used by one thread. They share state and may be destroyed in any order.
std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(const std::string& name, int size,
                                                            std::chrono::milliseconds timeout);
std::vector<std::unique_ptr<ControlChannel>> CreateLocalControl(int size, std::chrono::milliseconds timeout);

// All groups of all ranks of a mesh; element r belongs to world rank r.
std::vector<CommunicatorSet> CreateLocalMesh(const ParallelConfig& config, std::chrono::milliseconds timeout);

// Runs body(rank) on `size` threads and waits for all; rethrows the first exception after all have ended.
void RunLocalRanks(int size, const std::function<void(int rank)>& body);

}  // namespace latentmesh
