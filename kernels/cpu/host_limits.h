// What the operating system lets this process use: cores (affinity, cpuset, quota) and memory (cgroup v1 and v2).
#pragma once

#include <cstddef>
#include <string>

namespace latentmesh {

std::string CpuModelName();

// Cores for one of `local_size` ranks of this host: the cores the rank is bound to, or its share when it is not bound.
int UsableThreads(int local_size);

// Bytes for one of `local_size` ranks: the smallest of MemAvailable and the free part of each enclosing memory cgroup,
// divided evenly.
size_t UsableMemory(int local_size);

}  // namespace latentmesh
