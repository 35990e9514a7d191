#include "runtime/checkpoint/shard_reader.h"

#include <fmt/format.h>

#include <new>

#include "runtime/checkpoint/scale_check.h"

namespace latentmesh {

ShardReader::ShardReader(const Checkpoint& checkpoint, std::vector<uint32_t> tensors, uint64_t window_bytes)
    : checkpoint_(checkpoint), tensors_(std::move(tensors)), window_bytes_(window_bytes), thread_([this] { Run(); }) {}

ShardReader::~ShardReader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Result<const std::byte*> ShardReader::Next() {
  std::unique_lock lock(mutex_);
  if (current_) held_ -= current_->bytes;
  current_.reset();
  changed_.notify_all();
  changed_.wait(lock, [this] { return !ready_.empty() || !failure_.ok(); });
  if (ready_.empty()) return failure_;
  current_ = std::move(ready_.front());
  ready_.pop_front();
  return const_cast<const std::byte*>(current_->data.get());
}

uint64_t ShardReader::bytes_read() const {
  std::lock_guard lock(mutex_);
  return bytes_read_;
}

bool ShardReader::WaitForRoom(uint64_t bytes) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stop_ || held_ == 0 || held_ + bytes <= window_bytes_; });
  held_ += bytes;
  return !stop_;
}

Result<ShardReader::Item> ShardReader::ReadOne(const TensorInfo& tensor) {
  const std::string path = checkpoint_.PathOf(tensor);
  if (!file_ || file_->path() != path) {
    LM_ASSIGN_OR_RETURN(file_, FileReader::Open(path));
  }
  Item item;
  item.bytes = tensor.bytes;
  item.data.reset(new (std::nothrow) std::byte[tensor.bytes]);
  if (item.data == nullptr) {
    return ResourceExhausted(
        fmt::format("{}: no memory for the {} bytes of tensor '{}' while loading", path, tensor.bytes, tensor.name));
  }
  const Status read = file_->ReadAt(tensor.offset, item.data.get(), tensor.bytes);
  if (!read.ok()) return Status(read.code(), read.message() + " (tensor '" + tensor.name + "')");
  LM_RETURN_IF_ERROR(CheckScales(tensor, item.data.get(), path));
  return item;
}

void ShardReader::Run() {
  for (const uint32_t index : tensors_) {
    const TensorInfo& tensor = checkpoint_.tensors()[index];
    if (!WaitForRoom(tensor.bytes)) return;
    Result<Item> item = ReadOne(tensor);
    std::lock_guard lock(mutex_);
    if (item.ok())
      ready_.push_back(std::move(*item));
    else
      failure_ = item.status();
    bytes_read_ += item.ok() ? tensor.bytes : 0;
    changed_.notify_all();
    if (!failure_.ok()) return;
  }
}

}  // namespace latentmesh
