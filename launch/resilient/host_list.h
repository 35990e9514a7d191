// HostList: which of a job's hosts the next start may use.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace latentmesh {

// Not thread-safe.
class HostList {
 public:
  // A host on which ranks were killed `most_deaths` times is not used any more, unless none would be left.
  HostList(std::vector<std::string> hosts, int most_deaths) : hosts_(std::move(hosts)), most_deaths_(most_deaths) {}

  const std::vector<std::string>& all() const { return hosts_; }
  // `line` of a job's messages: notes the host when it says that a rank was killed there (launch/rank.sh). A job counts
  // once, by its first such line: the others follow from it.
  void ReadLine(const std::string& line);
  void JobStarts() { noted_ = false; }
  // Those to use, of those that answer; empty: none answers.
  std::vector<std::string> Usable(const std::vector<std::string>& answering) const;
  int deaths(const std::string& host) const;

 private:
  std::vector<std::string> hosts_;
  int most_deaths_;
  std::map<std::string, int> deaths_;
  bool noted_ = false;
};

// "a,b , c" -> {"a", "b", "c"}.
std::vector<std::string> SplitHosts(const std::string& text);
std::string JoinHosts(const std::vector<std::string>& hosts);
// The text with every {name} replaced.
std::string FillIn(std::string text, const std::string& name, const std::string& value);

}  // namespace latentmesh
