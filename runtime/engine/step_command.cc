#include "runtime/engine/step_command.h"

#include <cstring>

namespace latentmesh {
namespace {

Status Damaged(const std::string& bytes) {
  return {StatusCode::kCommunication, "a step command of " + std::to_string(bytes.size()) + " bytes is damaged"};
}

constexpr size_t kHeader = 4;

template <typename T>
void Append(std::string& bytes, const std::vector<T>& values) {
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}
void AppendCount(std::string& bytes, size_t count) {
  uint32_t value = static_cast<uint32_t>(count);
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Reads what Append wrote; false from any call once the bytes have run out.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes), at_(kHeader) {}
  bool Count(size_t& count) {
    uint32_t value = 0;
    if (bytes_.size() - at_ < sizeof value) return false;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    count = value;
    return true;
  }
  template <typename T>
  bool Values(size_t count, std::vector<T>& values) {
    if ((bytes_.size() - at_) / sizeof(T) < count) return false;
    values.resize(count);
    if (count > 0) std::memcpy(values.data(), bytes_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
    return true;
  }
  std::string Rest() const { return bytes_.substr(at_); }

 private:
  const std::string& bytes_;
  size_t at_;
};

bool ReadSampling(Reader& reader, std::vector<ShardSampling>& sampling) {
  size_t shards = 0, specs = 0, rows = 0;
  if (!reader.Count(shards)) return false;
  for (size_t i = 0; i < shards; ++i) {
    ShardSampling shard;
    if (!reader.Count(specs) || !reader.Count(rows) || !reader.Values(specs, shard.specs) ||
        !reader.Values(rows, shard.host_rows))
      return false;
    sampling.push_back(std::move(shard));
  }
  return true;
}

// The flat sources, dealt to the plan's sequences.
bool DealSources(const std::vector<int32_t>& flat, StepCommand& command) {
  if (command.draft == DraftRound::kNone) return flat.empty();
  auto at = flat.begin();
  for (const ShardStep& shard : command.plan.shards) {
    if (flat.end() - at < static_cast<std::ptrdiff_t>(shard.sequences.size())) return false;
    command.sources.emplace_back(at, at + static_cast<std::ptrdiff_t>(shard.sequences.size()));
    at += static_cast<std::ptrdiff_t>(shard.sequences.size());
  }
  return true;
}

}  // namespace

// attention u8, capture u8, draft u8, micro-batches u8; number of sources u32, sources i32 each in the order of shards; number
// of shards sampled u32, for each: specs u32, host rows u32, these; plan
std::string EncodeCommand(const StepCommand& command) {
  std::string bytes{static_cast<char>(command.attention), static_cast<char>(command.capture_hidden),
                    static_cast<char>(command.draft), static_cast<char>(command.micro_batches)};
  size_t count = 0;
  std::string sources;
  for (const auto& shard : command.sources) {
    count += shard.size();
    Append(sources, shard);
  }
  AppendCount(bytes, count);
  bytes += sources;
  AppendCount(bytes, command.sampling.size());
  for (const ShardSampling& shard : command.sampling) {
    AppendCount(bytes, shard.specs.size());
    AppendCount(bytes, shard.host_rows.size());
    Append(bytes, shard.specs);
    Append(bytes, shard.host_rows);
  }
  return bytes + SerializePlan(command.plan);
}

Result<StepCommand> DecodeCommand(const std::string& bytes) {
  if (bytes.size() < kHeader || bytes[0] < 0 || bytes[0] > static_cast<char>(AttentionMode::kExpanded) || bytes[2] < 0 ||
      bytes[2] > static_cast<char>(DraftRound::kLater) || bytes[3] < 1 || bytes[3] > 2)
    return Damaged(bytes);
  StepCommand command;
  command.attention = static_cast<AttentionMode>(bytes[0]);
  command.capture_hidden = bytes[1] != 0;
  command.draft = static_cast<DraftRound>(bytes[2]);
  command.micro_batches = static_cast<uint8_t>(bytes[3]);
  Reader reader(bytes);
  size_t count = 0;
  std::vector<int32_t> sources;
  if (!reader.Count(count) || !reader.Values(count, sources) || !ReadSampling(reader, command.sampling)) return Damaged(bytes);
  LM_ASSIGN_OR_RETURN(command.plan, ParsePlan(reader.Rest()));
  bool sampled = command.sampling.empty() || command.sampling.size() == command.plan.shards.size();
  if (!DealSources(sources, command) || !sampled) return Damaged(bytes);
  return command;
}

}  // namespace latentmesh
