#include "launch/preflight_file.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include "launch/files.h"

namespace latentmesh {

namespace json = boost::json;

Status ApplyMeasured(const std::string& path, Hardware& hardware) {
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(path));
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  const json::object* file = error ? nullptr : value.if_object();
  const json::value* found = file == nullptr ? nullptr : file->if_contains("measured");
  const json::object* measured = found == nullptr ? nullptr : found->if_object();
  if (measured == nullptr)
    return InvalidArgument(
        fmt::format("--measured {}: has no object 'measured'; give a file of `latentmesh preflight --json`", path));
  const std::pair<const char*, double*> rates[] = {
      {"memory_bandwidth", &hardware.memory_bandwidth}, {"flops", &hardware.flops},
      {"link_bandwidth", &hardware.link_bandwidth},     {"node_bandwidth", &hardware.node_bandwidth},
      {"link_latency", &hardware.link_latency},         {"node_latency", &hardware.node_latency}};
  for (auto [key, target] : rates) {
    const json::value* rate = measured->if_contains(key);
    if (rate == nullptr) continue;  // one rank, or one host: there is no such link
    if (!rate->is_number() || !(rate->to_number<double>() > 0))
      return InvalidArgument(fmt::format("--measured {}: '{}' must be a number above 0", path, key));
    *target = rate->to_number<double>();
  }
  if (const json::value* ranks = file->if_contains("ranks_per_host");
      ranks != nullptr && ranks->is_int64() && ranks->as_int64() > 0)
    hardware.ranks_per_node = static_cast<int>(ranks->as_int64());
  hardware.name += " as measured";
  return Status::Ok();
}

}  // namespace latentmesh
