#include "runtime/engine/fault_injection.h"

#include <gtest/gtest.h>

#include "parallel/local_communicator.h"

namespace latentmesh {
namespace {

TEST(FaultInjection, ReadsKindRankStepAndSeconds) {
  EXPECT_EQ(ParseFault("")->kind, FaultKind::kNone);
  Fault fault = *ParseFault("slow@2:17:0.5");
  EXPECT_EQ(fault.kind, FaultKind::kSlow);
  EXPECT_EQ(fault.rank, 2);
  EXPECT_EQ(fault.step, 17);
  EXPECT_EQ(fault.seconds, 0.5);
  EXPECT_EQ(ParseFault("throw@0:5")->kind, FaultKind::kThrow);
  EXPECT_EQ(ParseFault("corrupt@1:3")->kind, FaultKind::kCorrupt);
  for (const char* bad : {"throw", "throw@", "throw@1", "throw@1:", "throw@1:x", "throw@1:2:3", "slow@1:2", "slow@1:2:",
                          "slow@1:2:-1", "slow@1:2:nan", "burn@1:2", "@1:2"})
    EXPECT_EQ(ParseFault(bad).status().code(), StatusCode::kInvalidArgument) << bad;
}

TEST(FaultInjection, ThrowsOnItsRankAndStepOnly) {
  Fault fault = *ParseFault("throw@1:5");
  InjectFault(fault, 0, 5);
  InjectFault(fault, 1, 4);
  EXPECT_THROW(InjectFault(fault, 1, 5), Error);
}

TEST(FaultInjection, ChangesOneMessageOnce) {
  Fault fault = *ParseFault("corrupt@1:3");
  auto sets = CreateLocalMesh({.tp = 2, .dp = 1, .pp = 1, .cp = 1}, std::chrono::milliseconds(60'000));
  auto device = CreateDevice(DeviceKind::kCpu, {});
  ASSERT_TRUE(device.ok());
  RunLocalRanks(2, [&](int rank) {
    CommunicatorSet set = WithFault(std::move(sets[rank]), fault, rank);
    auto stream = (*device)->CreateStream();
    for (int64_t step = 0; step < 6; ++step) {
      int32_t values[3] = {1, 2, 3};
      set.tp->SetContext(step, "test");
      set.tp->AllReduceSum(TensorView(values, DType::kI32, {3}), *stream);
      bool right = values[0] == 2 && values[1] == 4 && values[2] == 6;
      EXPECT_EQ(right, rank == 0 || step != 3) << "rank " << rank << " step " << step;
    }
  });
}

}  // namespace
}  // namespace latentmesh
