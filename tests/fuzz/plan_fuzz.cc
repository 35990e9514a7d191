// Any bytes: ParsePlan answers a plan or kCommunication. What it accepts has one wire form.
// Random bytes hardly ever pass the checksum, so every input is tried as a payload under a right header as well.
#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/schedule/step_plan.h"

namespace {

using latentmesh::ParsePlan;
using latentmesh::SerializePlan;
using latentmesh::StatusCode;

void Check(const std::string& bytes) {
  const auto plan = ParsePlan(bytes);
  if (plan.ok()) {
    LM_CHECK(SerializePlan(*plan) == bytes);
    for (const auto& shard : plan->shards) LM_CHECK(shard.logits_rows() <= shard.tokens());
  } else {
    LM_CHECK(plan.status().code() == StatusCode::kCommunication && !plan.status().message().empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  Check(bytes);
  Check(latentmesh::SealPlan(bytes));
  return 0;
}
