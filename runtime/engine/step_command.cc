#include "runtime/engine/step_command.h"

#include <cstring>

namespace latentmesh {
namespace {

Status Damaged(const std::string& bytes) {
  return {StatusCode::kCommunication, "a step command of " + std::to_string(bytes.size()) + " bytes is damaged"};
}

constexpr size_t kHeader = 4 + sizeof(uint32_t);

}  // namespace

// attention u8, capture u8, draft u8, micro-batches u8, number of sources u32, sources i32 each in the order of shards, plan
std::string EncodeCommand(const StepCommand& command) {
  std::string bytes{static_cast<char>(command.attention), static_cast<char>(command.capture_hidden),
                    static_cast<char>(command.draft), static_cast<char>(command.micro_batches)};
  uint32_t count = 0;
  std::string sources;
  for (const auto& shard : command.sources) {
    count += static_cast<uint32_t>(shard.size());
    sources.append(reinterpret_cast<const char*>(shard.data()), shard.size() * sizeof(int32_t));
  }
  bytes.append(reinterpret_cast<const char*>(&count), sizeof count);
  return bytes + sources + SerializePlan(command.plan);
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
  uint32_t count = 0;
  std::memcpy(&count, bytes.data() + 4, sizeof count);
  if ((bytes.size() - kHeader) / sizeof(int32_t) < count) return Damaged(bytes);
  LM_ASSIGN_OR_RETURN(command.plan, ParsePlan(bytes.substr(kHeader + count * sizeof(int32_t))));
  if (command.draft == DraftRound::kNone) return count == 0 ? Result<StepCommand>(std::move(command)) : Damaged(bytes);
  const char* at = bytes.data() + kHeader;
  for (const ShardStep& shard : command.plan.shards) {
    if (count < shard.sequences.size()) return Damaged(bytes);
    count -= static_cast<uint32_t>(shard.sequences.size());
    auto& sources = command.sources.emplace_back(shard.sequences.size());
    std::memcpy(sources.data(), at, sources.size() * sizeof(int32_t));
    at += sources.size() * sizeof(int32_t);
  }
  return command;
}

}  // namespace latentmesh
