#include "runtime/engine/kv_mover.h"

#include <cstring>
#include <utility>

#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr size_t kEventBytes = 1 + sizeof(BlockKey);

}  // namespace

// events u32, then kind u8 and key each; warnings to the end, each ended by a zero
std::string EncodeKvReport(const KvReport& report) {
  uint32_t count = static_cast<uint32_t>(report.events.size());
  std::string bytes(reinterpret_cast<const char*>(&count), sizeof count);
  for (const KvEvent& event : report.events) {
    bytes.push_back(static_cast<char>(event.kind));
    bytes.append(reinterpret_cast<const char*>(&event.key), sizeof event.key);
  }
  for (const std::string& warning : report.warnings) bytes += warning + '\0';
  return bytes;
}

Result<KvReport> DecodeKvReport(const std::string& bytes) {
  Status damaged{StatusCode::kCommunication, "a report of cache tiers of " + std::to_string(bytes.size()) + " bytes is damaged"};
  uint32_t count = 0;
  if (bytes.size() < sizeof count) return damaged;
  std::memcpy(&count, bytes.data(), sizeof count);
  if ((bytes.size() - sizeof count) / kEventBytes < count) return damaged;
  KvReport report;
  size_t at = sizeof count;
  for (uint32_t i = 0; i < count; ++i, at += kEventBytes) {
    KvEvent event;
    event.kind = static_cast<KvEventKind>(bytes[at]);
    if (event.kind > KvEventKind::kFailed) return damaged;
    std::memcpy(&event.key, bytes.data() + at + 1, sizeof event.key);
    report.events.push_back(event);
  }
  while (at < bytes.size()) {
    report.warnings.emplace_back(bytes.c_str() + at);
    at += report.warnings.back().size() + 1;
  }
  return report;
}

KvMover::KvMover(LatentKvCache& cache, Stream& stream, int64_t host_slots, std::unique_ptr<DiskStore> store)
    : cache_(cache), stream_(stream), block_bytes_(cache.shape().BytesPerBlock()), slots_(host_slots),
      host_(new char[block_bytes_ * static_cast<size_t>(host_slots)]), store_(std::move(store)) {}

std::span<char> KvMover::Slot(int32_t slot) {
  LM_CHECK(slot >= 0 && slot < slots_);
  return {host_.get() + static_cast<size_t>(slot) * block_bytes_, block_bytes_};
}

void KvMover::Run(const std::vector<KvOp>& ops) {
  if (ops.empty()) return;
  TraceSpan span("cache tiers", static_cast<int64_t>(ops.size()));
  for (const KvOp& op : ops) {
    LM_CHECK(op.kind <= KvOpKind::kRestore || store_ != nullptr);
    switch (op.kind) {
      case KvOpKind::kOffload: cache_.ExportBlock(op.block, Slot(op.slot), stream_); break;
      case KvOpKind::kRestore: cache_.ImportBlock(op.block, Slot(op.slot), stream_); break;
      case KvOpKind::kFetch: store_->Fetch(op.key); break;
      case KvOpKind::kAccept: cache_.ImportBlock(op.block, store_->Take(op.key), stream_); break;
      case KvOpKind::kDrop: store_->Drop(op.key); break;
      case KvOpKind::kStore: {
        std::string bytes(block_bytes_, 0);
        cache_.ExportBlock(op.block, bytes, stream_);
        store_->Store(op.key, std::move(bytes));
        break;
      }
    }
  }
}

void KvMover::Finish() {
  if (store_ != nullptr) store_->Finish();
}

KvReport KvMover::TakeReport(std::chrono::milliseconds wait) {
  if (store_ == nullptr) return {};
  KvReport report;
  report.events = store_->TakeEvents(wait);
  report.warnings = store_->TakeWarnings();
  return report;
}

}  // namespace latentmesh
