#include "kernels/cpu/host_limits.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <vector>

namespace latentmesh {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

std::optional<std::string> FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

// "max" and anything that is no number mean no limit.
size_t ReadLimit(const std::string& path) {
  std::istringstream text(FirstLine(path).value_or("max"));
  size_t value;
  return text >> value ? value : kUnlimited;
}

// The value after `key` in a file of "key value" or "key: value kB" lines.
std::optional<size_t> ReadKey(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    size_t value;
    if (words >> word >> value && word == key) return value;
  }
  return std::nullopt;
}

// Folders of this process's cgroup and all that enclose it, innermost first. controller "" is v2.
std::vector<std::string> CgroupFolders(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  std::vector<std::string> folders;
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controllers.find("," + controller + ",") == std::string::npos) continue;
    const std::string root = "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + controller);
    for (std::string path = line.substr(second + 1); !path.empty() && path != "/";) {
      folders.push_back(root + path);
      path.erase(path.find_last_of('/'));
    }
    folders.push_back(root);
    break;
  }
  return folders;
}

// Room left below a limit; file cache that the kernel would drop counts as free.
size_t Room(size_t limit, size_t used, size_t droppable) {
  if (limit == kUnlimited || limit > (size_t{1} << 60)) return kUnlimited;
  used -= std::min(used, droppable);
  return limit - std::min(limit, used);
}

size_t CgroupRoom() {
  size_t room = kUnlimited;
  for (const std::string& folder : CgroupFolders("")) {
    const size_t used =
        ReadKey(folder + "/memory.stat", "anon").has_value() ? ReadLimit(folder + "/memory.current") : 0;
    const size_t cache = ReadKey(folder + "/memory.stat", "inactive_file").value_or(0);
    room = std::min(room, Room(ReadLimit(folder + "/memory.max"), used, cache));
  }
  for (const std::string& folder : CgroupFolders("memory")) {
    const size_t used = FirstLine(folder + "/memory.usage_in_bytes") ? ReadLimit(folder + "/memory.usage_in_bytes") : 0;
    const size_t cache = ReadKey(folder + "/memory.stat", "total_inactive_file").value_or(0);
    room = std::min(room, Room(ReadLimit(folder + "/memory.limit_in_bytes"), used, cache));
  }
  return room;
}

// "0-3,8" -> 5
int CountCpuList(const std::string& list) {
  int count = 0;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    int first, last;
    char dash;
    std::istringstream range(part);
    if (!(range >> first)) continue;
    count += range >> dash >> last ? last - first + 1 : 1;
  }
  return count;
}

int CpusetSize() {
  for (const std::string& folder : CgroupFolders("")) {
    if (auto list = FirstLine(folder + "/cpuset.cpus.effective")) return CountCpuList(*list);
  }
  for (const std::string& folder : CgroupFolders("cpuset")) {
    if (auto list = FirstLine(folder + "/cpuset.effective_cpus")) return CountCpuList(*list);
  }
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

int AffinitySize() {
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(cpus);
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    const int count = ok ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (ok) return count;
  }
  return 1;
}

// Whole cores that a bandwidth quota is worth, at least one.
int QuotaCores() {
  int cores = std::numeric_limits<int>::max();
  for (const std::string& folder : CgroupFolders("")) {
    std::istringstream text(FirstLine(folder + "/cpu.max").value_or("max"));
    double quota, period;
    if (text >> quota >> period && period > 0)
      cores = std::min(cores, std::max(1, static_cast<int>(quota / period + 0.5)));
  }
  return cores;
}

}  // namespace

std::string CpuModelName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

int UsableThreads(int local_size) {
  const int mine = AffinitySize(), all = std::min<int>(CpusetSize(), static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  const bool bound = mine < all;
  const int share = std::max(1, std::min(mine, QuotaCores()) / std::max(1, local_size));
  return bound ? std::max(1, std::min(mine, std::max(share, QuotaCores() / std::max(1, local_size)))) : share;
}

size_t UsableMemory(int local_size) {
  const size_t available = ReadKey("/proc/meminfo", "MemAvailable:").value_or(size_t{1} << 20) * 1024;
  return std::min(available, CgroupRoom()) / std::max(1, local_size);
}

}  // namespace latentmesh
