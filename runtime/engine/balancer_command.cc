#include "runtime/engine/balancer_command.h"

#include <cstring>

namespace latentmesh {
namespace {

constexpr size_t kNumber = sizeof(int32_t);

void Put(std::string& bytes, int32_t value) { bytes.append(reinterpret_cast<const char*>(&value), kNumber); }

std::vector<int32_t> Numbers(const std::string& bytes) {
  std::vector<int32_t> numbers((bytes.size() - 1) / kNumber);
  std::memcpy(numbers.data(), bytes.data() + 1, numbers.size() * kNumber);
  return numbers;
}

}  // namespace

bool IsBalanceCommand(const std::string& bytes) {
  return !bytes.empty() && (bytes[0] == static_cast<char>(BalanceKind::kGatherLoads) ||
                            bytes[0] == static_cast<char>(BalanceKind::kPlaceLayer));
}

// kind u8, then i32 each: stage, layer, ranks, and for each rank its count and experts
std::string EncodeBalanceCommand(const BalanceCommand& command) {
  std::string bytes(1, static_cast<char>(command.kind));
  Put(bytes, command.stage);
  Put(bytes, command.layer);
  Put(bytes, static_cast<int32_t>(command.table.size()));
  for (const std::vector<int32_t>& experts : command.table) {
    Put(bytes, static_cast<int32_t>(experts.size()));
    for (int32_t expert : experts) Put(bytes, expert);
  }
  return bytes;
}

Result<BalanceCommand> DecodeBalanceCommand(const std::string& bytes) {
  Status damaged{StatusCode::kCommunication, "a balance command of " + std::to_string(bytes.size()) + " bytes is damaged"};
  if (!IsBalanceCommand(bytes) || (bytes.size() - 1) % kNumber != 0) return damaged;
  std::vector<int32_t> numbers = Numbers(bytes);
  if (numbers.size() < 3 || numbers[0] < 0 || numbers[1] < 0 || numbers[2] < 0) return damaged;
  BalanceCommand command{static_cast<BalanceKind>(bytes[0]), numbers[0], numbers[1], {}};
  size_t at = 3;
  for (int32_t rank = 0; rank < numbers[2]; ++rank) {
    if (at == numbers.size() || numbers[at] < 0 || static_cast<size_t>(numbers[at]) > numbers.size() - at - 1) return damaged;
    auto first = numbers.begin() + static_cast<std::ptrdiff_t>(at) + 1;
    command.table.emplace_back(first, first + numbers[at]);
    at += 1 + static_cast<size_t>(numbers[at]);
  }
  return at == numbers.size() ? Result<BalanceCommand>(std::move(command)) : damaged;
}

}  // namespace latentmesh
