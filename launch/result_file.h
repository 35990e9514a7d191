// ResultFile: the output of `batch`, one JSON object a line, appended as results come and kept over restarts.
#pragma once

#include <string>
#include <unordered_set>

#include "kernels/status.h"

namespace latentmesh {

// Owned by rank 0's main thread. A run that is killed leaves at most one unfinished last line; Open removes it.
class ResultFile {
 public:
  // Reads what an earlier run left (creating the file if there is none). kIo names file and reason.
  static Result<ResultFile> Open(const std::string& path);
  ~ResultFile();
  ResultFile(ResultFile&& other) noexcept;
  ResultFile& operator=(ResultFile&&) = delete;

  bool HasCustomId(const std::string& custom_id) const { return custom_ids_.count(custom_id) != 0; }
  bool HasId(const std::string& id) const { return ids_.count(id) != 0; }
  size_t answered() const { return ids_.size(); }
  bool repaired() const { return repaired_; }        // an unfinished line was removed

  void Add(const std::string& line) { pending_ += line + "\n"; }
  Status Flush();                                    // writes what was added and waits until it is on disk

 private:
  ResultFile() = default;
  Status Load();
  std::string path_;
  int file_ = -1;
  bool repaired_ = false;
  std::string pending_;
  std::unordered_set<std::string> custom_ids_, ids_;
};

}  // namespace latentmesh
