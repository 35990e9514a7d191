#include "launch/resilient/host_list.h"

#include <algorithm>
#include <regex>
#include <utility>

namespace latentmesh {
namespace {

// Messages carry the short name, the list may have a longer one.
std::string ShortName(const std::string& host) { return host.substr(0, host.find('.')); }

}  // namespace

void HostList::ReadLine(const std::string& line) {
  static const std::regex kKilled("latentmesh: error: rank [0-9]+ on ([^: ]+): .*: killed by (signal|the kernel).*");
  std::smatch match;
  if (noted_ || !std::regex_match(line, match, kKilled)) return;
  noted_ = true;
  ++deaths_[ShortName(match[1])];
}

int HostList::deaths(const std::string& host) const {
  auto found = deaths_.find(ShortName(host));
  return found == deaths_.end() ? 0 : found->second;
}

std::vector<std::string> HostList::Usable(const std::vector<std::string>& answering) const {
  std::vector<std::string> good;
  for (const std::string& host : hosts_) {
    bool answers = std::find(answering.begin(), answering.end(), host) != answering.end();
    if (answers && deaths(host) < most_deaths_) good.push_back(host);
  }
  return good.empty() ? answering : good;
}

std::vector<std::string> SplitHosts(const std::string& text) {
  std::vector<std::string> hosts;
  std::string host;
  for (char c : text + ",") {
    if (c != ',' && c != ' ' && c != '\n') host += c;
    else if (!host.empty()) hosts.push_back(std::exchange(host, {}));
  }
  return hosts;
}

std::string JoinHosts(const std::vector<std::string>& hosts) {
  std::string text;
  for (const std::string& host : hosts) text += (text.empty() ? "" : ",") + host;
  return text;
}

std::string FillIn(std::string text, const std::string& name, const std::string& value) {
  std::string place = "{" + name + "}";
  for (size_t at = 0; (at = text.find(place, at)) != std::string::npos; at += value.size()) text.replace(at, place.size(), value);
  return text;
}

}  // namespace latentmesh
