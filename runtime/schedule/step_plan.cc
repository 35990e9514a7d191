// The wire form of a StepPlan, little-endian:
//   header   magic u32, version u32, payload bytes u64, checksum of the payload u64
//   payload  kind u8, step i64, kv_report u8, shards u32, then for each shard
//     sequences u32: id i64, start i32, logits_from i32, tokens u32 + i32 each, blocks u32 + i32 each
//     moves u32: kind u8, block i32, slot i32, key u64 u64
//     copies u32: from i32, to i32
//   transfers u32: sequence i64, from i32, to i32, streamed u8, blocks u32: from i32, to i32
#include "runtime/schedule/step_plan.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>

namespace latentmesh {
namespace {

constexpr uint32_t kMagic = 0x504c4d4c;   // "LMLP"
constexpr uint32_t kVersion = 3;
constexpr size_t kHeaderBytes = 24;
constexpr size_t kSequenceBytes = 24;     // the least that a sequence, a shard and a copy take: bounds the counts
constexpr size_t kShardBytes = 12;
constexpr size_t kCopyBytes = 8;
constexpr size_t kMoveBytes = 25;
constexpr size_t kTransferBytes = 21;

Status Damaged(std::string_view what) {
  return {StatusCode::kCommunication, fmt::format("step plan: {}; the ranks run different builds or the message was "
                                                  "damaged on its way", what)};
}

// FNV-1a over 64-bit words with a final mix (Fowler, Noll, Vo).
uint64_t Checksum(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u ^ bytes.size();
  for (size_t i = 0; i < bytes.size(); i += 8) {
    uint64_t word = 0;
    for (size_t j = i; j < std::min(i + 8, bytes.size()); ++j) {
      word |= uint64_t{static_cast<uint8_t>(bytes[j])} << (8 * (j - i));
    }
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  return hash ^ (hash >> 32);
}

class Writer {
 public:
  template <typename T>
  void Put(T value) {
    const auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<char>((uint64_t{bits} >> (8 * i)) & 0xff));
  }
  void PutCount(size_t count) { Put(static_cast<uint32_t>(count)); }
  void PutAll(const std::vector<int32_t>& values) {
    PutCount(values.size());
    for (int32_t value : values) Put(value);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Past the end every Get answers 0 and ok() turns false, so that callers check once.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    if (!Require(sizeof(T))) return 0;
    uint64_t bits = 0;
    for (size_t i = 0; i < sizeof(T); ++i) bits |= uint64_t{static_cast<uint8_t>(bytes_[i])} << (8 * i);
    bytes_.remove_prefix(sizeof(T));
    return static_cast<T>(bits);
  }
  // A number of elements of at least `bytes` each; 0 when the message could not hold them.
  uint32_t GetCount(size_t bytes) {
    const uint32_t count = Get<uint32_t>();
    return Require(count * uint64_t{bytes}) ? count : 0;
  }
  std::vector<int32_t> GetAll() {
    std::vector<int32_t> values(GetCount(sizeof(int32_t)));
    for (int32_t& value : values) value = Get<int32_t>();
    return values;
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && bytes_.empty(); }

 private:
  bool Require(uint64_t bytes) { return ok_ = ok_ && bytes <= bytes_.size(); }

  std::string_view bytes_;
  bool ok_ = true;
};

void PutCopies(Writer& out, const std::vector<BlockCopy>& copies) {
  out.PutCount(copies.size());
  for (const BlockCopy& copy : copies) {
    out.Put(copy.from);
    out.Put(copy.to);
  }
}

void PutShard(Writer& out, const ShardStep& shard) {
  out.PutCount(shard.sequences.size());
  for (const SequenceStep& sequence : shard.sequences) {
    out.Put(sequence.sequence_id);
    out.Put(sequence.start);
    out.Put(sequence.logits_from);
    out.PutAll(sequence.tokens);
    out.PutAll(sequence.blocks);
  }
  out.PutCount(shard.kv.size());
  for (const KvOp& op : shard.kv) {
    out.Put(static_cast<uint8_t>(op.kind));
    out.Put(op.block);
    out.Put(op.slot);
    out.Put(op.key.high);
    out.Put(op.key.low);
  }
  PutCopies(out, shard.copies);
}

void PutTransfer(Writer& out, const BlockTransfer& transfer) {
  out.Put(transfer.sequence_id);
  out.Put(transfer.from_shard);
  out.Put(transfer.to_shard);
  out.Put(static_cast<uint8_t>(transfer.streamed));
  PutCopies(out, transfer.blocks);
}

std::vector<BlockCopy> GetCopies(Reader& in) {
  std::vector<BlockCopy> copies(in.GetCount(kCopyBytes));
  for (BlockCopy& copy : copies) {
    copy.from = in.Get<int32_t>();
    copy.to = in.Get<int32_t>();
  }
  return copies;
}

BlockTransfer GetTransfer(Reader& in) {
  BlockTransfer transfer;
  transfer.sequence_id = in.Get<int64_t>();
  transfer.from_shard = in.Get<int32_t>();
  transfer.to_shard = in.Get<int32_t>();
  transfer.streamed = in.Get<uint8_t>() != 0;
  transfer.blocks = GetCopies(in);
  return transfer;
}

ShardStep GetShard(Reader& in) {
  ShardStep shard;
  shard.sequences.resize(in.GetCount(kSequenceBytes));
  for (SequenceStep& sequence : shard.sequences) {
    sequence.sequence_id = in.Get<int64_t>();
    sequence.start = in.Get<int32_t>();
    sequence.logits_from = in.Get<int32_t>();
    sequence.tokens = in.GetAll();
    sequence.blocks = in.GetAll();
  }
  shard.kv.resize(in.GetCount(kMoveBytes));
  for (KvOp& op : shard.kv) {
    op.kind = static_cast<KvOpKind>(in.Get<uint8_t>());
    op.block = in.Get<int32_t>();
    op.slot = in.Get<int32_t>();
    op.key.high = in.Get<uint64_t>();
    op.key.low = in.Get<uint64_t>();
  }
  shard.copies = GetCopies(in);
  return shard;
}

// What workers rely on without looking again.
bool Sensible(const SequenceStep& sequence) {
  const int64_t tokens = static_cast<int64_t>(sequence.tokens.size());
  bool good = tokens >= 1 && sequence.start >= 0 && sequence.start + tokens <= std::numeric_limits<int32_t>::max();
  good = good && sequence.logits_from >= 0 && sequence.logits_from <= tokens && !sequence.blocks.empty();
  for (int32_t block : sequence.blocks) good = good && block >= 0;
  return good;
}

bool Sensible(const KvOp& op) {
  bool no_block = op.kind == KvOpKind::kFetch || op.kind == KvOpKind::kDrop;
  bool has_slot = op.kind == KvOpKind::kOffload || op.kind == KvOpKind::kRestore;
  return op.kind <= KvOpKind::kDrop && (no_block || op.block >= 0) && (!has_slot || op.slot >= 0);
}

bool Sensible(const std::vector<BlockCopy>& copies) {
  return std::all_of(copies.begin(), copies.end(),
                     [](const BlockCopy& copy) { return copy.from >= 0 && copy.to >= 0; });
}

bool Sensible(const BlockTransfer& transfer, int64_t shards) {
  const int32_t from = transfer.from_shard, to = transfer.to_shard;
  return from >= 0 && from < shards && to >= 0 && to < shards && from != to && !transfer.blocks.empty() &&
         Sensible(transfer.blocks);
}

bool Sensible(const ShardStep& shard) {
  bool good = true;
  for (const KvOp& op : shard.kv) good = good && Sensible(op);
  for (const SequenceStep& sequence : shard.sequences) good = good && Sensible(sequence);
  return good && Sensible(shard.copies);
}

Result<StepPlan> ParsePayload(std::string_view payload) {
  Reader in(payload);
  StepPlan plan;
  const uint8_t kind = in.Get<uint8_t>();
  if (kind > static_cast<uint8_t>(StepKind::kTransfer)) return Damaged(fmt::format("unknown kind {}", kind));
  plan.kind = static_cast<StepKind>(kind);
  plan.step = in.Get<int64_t>();
  plan.kv_report = in.Get<uint8_t>() != 0;
  plan.shards.resize(in.GetCount(kShardBytes));
  for (ShardStep& shard : plan.shards) {
    shard = GetShard(in);
    if (!in.ok()) return Damaged("a count exceeds the message");
    if (!Sensible(shard)) return Damaged(fmt::format("step {} has a sequence, move or copy out of range", plan.step));
  }
  plan.transfers.resize(in.GetCount(kTransferBytes));
  for (BlockTransfer& transfer : plan.transfers) {
    transfer = GetTransfer(in);
    if (!in.ok()) return Damaged("a count exceeds the message");
    if (!Sensible(transfer, static_cast<int64_t>(plan.shards.size()))) {
      return Damaged(fmt::format("step {} has a transfer between shards out of range", plan.step));
    }
  }
  if (!in.at_end()) return Damaged("length and content disagree");
  return plan;
}

}  // namespace

int64_t ShardStep::tokens() const {
  int64_t sum = 0;
  for (const SequenceStep& sequence : sequences) sum += static_cast<int64_t>(sequence.tokens.size());
  return sum;
}

int64_t ShardStep::logits_rows() const {
  int64_t sum = 0;
  for (const SequenceStep& sequence : sequences) {
    sum += static_cast<int64_t>(sequence.tokens.size()) - sequence.logits_from;
  }
  return sum;
}

std::string SealPlan(const std::string& payload) {
  Writer header;
  header.Put(kMagic);
  header.Put(kVersion);
  header.Put(static_cast<uint64_t>(payload.size()));
  header.Put(Checksum(payload));
  return header.Take() + payload;
}

std::string SerializePlan(const StepPlan& plan) {
  Writer body;
  body.Put(static_cast<uint8_t>(plan.kind));
  body.Put(plan.step);
  body.Put(static_cast<uint8_t>(plan.kv_report));
  body.PutCount(plan.shards.size());
  for (const ShardStep& shard : plan.shards) PutShard(body, shard);
  body.PutCount(plan.transfers.size());
  for (const BlockTransfer& transfer : plan.transfers) PutTransfer(body, transfer);
  return SealPlan(body.Take());
}

Result<StepPlan> ParsePlan(const std::string& bytes) {
  if (bytes.size() < kHeaderBytes) return Damaged(fmt::format("{} bytes are no header", bytes.size()));
  Reader in(bytes);
  if (in.Get<uint32_t>() != kMagic) return Damaged("wrong magic number");
  if (const uint32_t version = in.Get<uint32_t>(); version != kVersion) {
    return Damaged(fmt::format("version {} instead of {}", version, kVersion));
  }
  const std::string_view payload = std::string_view(bytes).substr(kHeaderBytes);
  if (const uint64_t length = in.Get<uint64_t>(); length != payload.size()) {
    return Damaged(fmt::format("{} bytes instead of {}", payload.size(), length));
  }
  if (in.Get<uint64_t>() != Checksum(payload)) return Damaged("wrong checksum");
  return ParsePayload(payload);
}

}  // namespace latentmesh
