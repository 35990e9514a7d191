#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "launch/preflight_probe.h"
#include "parallel/launch_environment.h"

namespace latentmesh {
namespace {

namespace fs = std::filesystem;

// First line of a small file of /proc or /sys; empty when it cannot be read.
std::string FirstLine(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<fs::path> Entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    entries.push_back(it->path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

std::vector<int> BoundCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

// "0-3,8" -> 0 1 2 3 8
std::vector<int> ParseCpuList(const std::string& text) {
  std::vector<int> cores;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = std::atoi(part.c_str()), last = first;
    if (size_t dash = part.find('-'); dash != std::string::npos) last = std::atoi(part.c_str() + dash + 1);
    for (int core = first; core <= last && core - first < 65536; ++core) cores.push_back(core);
  }
  return cores;
}

std::vector<int> NumaNodesOf(const std::vector<int>& cores) {
  std::vector<int> nodes;
  for (const fs::path& entry : Entries("/sys/devices/system/node")) {
    std::string name = entry.filename().string();
    if (name.rfind("node", 0) != 0 || name.size() == 4) continue;
    std::vector<int> inside = ParseCpuList(FirstLine(entry / "cpulist"));
    bool here = std::any_of(cores.begin(), cores.end(),
                            [&](int core) { return std::find(inside.begin(), inside.end(), core) != inside.end(); });
    if (here) nodes.push_back(std::atoi(name.c_str() + 4));
  }
  return nodes;
}

// "cpu MHz : 2445.404" of the processor with this number.
double ClockOf(int core) {
  std::ifstream file("/proc/cpuinfo");
  bool mine = false;
  for (std::string line; std::getline(file, line);) {
    size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    if (line.rfind("processor", 0) == 0) mine = std::atoi(line.c_str() + colon + 1) == core;
    if (mine && line.rfind("cpu MHz", 0) == 0) return std::atof(line.c_str() + colon + 1);
  }
  return 0;
}

std::string HugePages() {
  std::string modes = FirstLine("/sys/kernel/mm/transparent_hugepage/enabled");
  size_t open = modes.find('['), close = modes.find(']');
  std::string mode = open == std::string::npos || close < open ? "unknown" : modes.substr(open + 1, close - open - 1);
  std::ifstream file("/proc/meminfo");
  int reserved = 0;
  for (std::string line; std::getline(file, line);)
    if (line.rfind("HugePages_Total:", 0) == 0) reserved = std::atoi(line.c_str() + 16);
  return fmt::format("transparent {}, {} reserved", mode, reserved);
}

void AddEthernet(std::vector<NetworkPort>& ports) {
  for (const fs::path& entry : Entries("/sys/class/net")) {
    std::string name = entry.filename().string();
    if (name == "lo" || FirstLine(entry / "type") != "1") continue;
    double megabits = std::atof(FirstLine(entry / "speed").c_str());
    ports.push_back({name, "Ethernet", std::max(0.0, megabits / 1000), FirstLine(entry / "operstate") != "down"});
  }
}

// "4: ACTIVE" and "200 Gb/sec (4X HDR)"; link_layer Ethernet is RoCE.
void AddInfiniBand(std::vector<NetworkPort>& ports) {
  for (const fs::path& device : Entries("/sys/class/infiniband"))
    for (const fs::path& port : Entries(device / "ports")) {
      bool roce = FirstLine(port / "link_layer") == "Ethernet";
      ports.push_back({device.filename().string() + "/" + port.filename().string(), roce ? "RoCE" : "InfiniBand",
                       std::atof(FirstLine(port / "rate").c_str()), FirstLine(port / "state").rfind("4:", 0) == 0});
    }
}

std::vector<std::string> TransportSettings() {
  std::vector<std::string> settings;
  for (const char* name :
       {"OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl", "OMPI_MCA_btl_tcp_if_include", "UCX_TLS", "UCX_NET_DEVICES",
        "FI_PROVIDER", "MPIR_CVAR_CH4_NETMOD", "NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"}) {
    std::string value = EnvironmentVariable(name);
    if (!value.empty()) settings.push_back(std::string(name) + "=" + value);
  }
  return settings;
}

}  // namespace

void ReadHostFacts(RankProbe& probe) {
  probe.version = LATENTMESH_VERSION;
  probe.compiler = "gcc " __VERSION__;
  utsname name{};
  if (uname(&name) == 0) probe.kernel = std::string(name.sysname) + " " + name.release;
  probe.cores = BoundCores();
  probe.numa_nodes = NumaNodesOf(probe.cores);
  probe.clock_mhz = probe.cores.empty() ? 0 : ClockOf(probe.cores.front());
  probe.huge_pages = HugePages();
  AddEthernet(probe.ports);
  AddInfiniBand(probe.ports);
  probe.settings = TransportSettings();
}

}  // namespace latentmesh
