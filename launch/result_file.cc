#include "launch/result_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "launch/files.h"

namespace latentmesh {
namespace {

Status Failed(const std::string& action, const std::string& path) {
  return IoError(fmt::format("cannot {} {}: {}", action, path, std::strerror(errno)));
}

// A repeated custom_id was refused on this line; its first line may still be unanswered.
bool RefusedCustomId(const boost::json::object& line) {
  const boost::json::value* error = line.if_contains("error");
  if (error == nullptr || !error->is_object()) return false;
  const boost::json::value* param = error->get_object().if_contains("param");
  return param != nullptr && param->is_string() && param->get_string() == "custom_id";
}

}  // namespace

Result<ResultFile> ResultFile::Open(const std::string& path) {
  ResultFile result;
  result.path_ = path;
  result.file_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (result.file_ < 0) return Failed("write to", path);
  LM_RETURN_IF_ERROR(result.Load());
  return result;
}

ResultFile::ResultFile(ResultFile&& other) noexcept
    : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)), repaired_(other.repaired_),
      pending_(std::move(other.pending_)), custom_ids_(std::move(other.custom_ids_)), ids_(std::move(other.ids_)) {}

ResultFile::~ResultFile() {
  if (file_ >= 0) close(file_);
}

Status ResultFile::Load() {
  struct stat info = {};
  if (fstat(file_, &info) != 0) return Failed("read", path_);
  if (!S_ISREG(info.st_mode)) return Status::Ok();      // a pipe or a device holds no earlier answers
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(path_));
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    boost::system::error_code error;
    boost::json::value line = boost::json::parse(std::string_view(text).substr(begin, end - begin), error);
    if (error || !line.is_object()) continue;
    auto remember = [&](const char* field, std::unordered_set<std::string>& set) {
      const boost::json::value* value = line.get_object().if_contains(field);
      if (value != nullptr && value->is_string()) set.emplace(value->get_string());
    };
    remember("id", ids_);
    if (!RefusedCustomId(line.get_object())) remember("custom_id", custom_ids_);
  }
  if (begin == text.size()) return Status::Ok();
  repaired_ = true;
  return ftruncate(file_, static_cast<off_t>(begin)) == 0 ? Status::Ok() : Failed("truncate", path_);
}

Status ResultFile::Flush() {
  size_t done = 0;
  while (done < pending_.size()) {
    ssize_t written = write(file_, pending_.data() + done, pending_.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Failed("write to", path_);
    done += static_cast<size_t>(written);
  }
  bool any = !pending_.empty();
  pending_.clear();
  // A pipe or a device has nothing to wait for.
  if (any && fdatasync(file_) != 0 && errno != EINVAL && errno != EROFS) return Failed("flush", path_);
  return Status::Ok();
}

}  // namespace latentmesh
