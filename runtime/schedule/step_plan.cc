// The wire form of a StepPlan, little-endian:
//   header   magic u32, version u32, payload bytes u64, checksum of the payload u64
//   payload  kind u8, step i64, kv_report u8, shards u32, then for each shard
//     sequences u32: id i64, start i32, logits_from i32, tokens u32 + i32 each, blocks u32 + i32 each
//     moves u32: kind u8, block i32, slot i32, key u64 u64
//     copies u32: from i32, to i32
#include "runtime/schedule/step_plan.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>

namespace latentmesh {
namespace {

constexpr uint32_t kMagic = 0x504c4d4c;   // "LMLP"
constexpr uint32_t kVersion = 2;
constexpr size_t kHeaderBytes = 24;
constexpr size_t kSequenceBytes = 24;     // the least that a sequence, a shard and a copy take: bounds the counts
constexpr size_t kShardBytes = 12;
constexpr size_t kCopyBytes = 8;
constexpr size_t kMoveBytes = 25;

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
  out.PutCount(shard.copies.size());
  for (const BlockCopy& copy : shard.copies) {
    out.Put(copy.from);
    out.Put(copy.to);
  }
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
  shard.copies.resize(in.GetCount(kCopyBytes));
  for (BlockCopy& copy : shard.copies) {
    copy.from = in.Get<int32_t>();
    copy.to = in.Get<int32_t>();
  }
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

bool Sensible(const ShardStep& shard) {
  bool good = true;
  for (const KvOp& op : shard.kv) good = good && Sensible(op);
  for (const SequenceStep& sequence : shard.sequences) good = good && Sensible(sequence);
  for (const BlockCopy& copy : shard.copies) good = good && copy.from >= 0 && copy.to >= 0;
  return good;
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
