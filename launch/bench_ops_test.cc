// `bench ops` on the smallest selection: what it reports is consistent, and its check tells right from wrong.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "launch/bench_ops_run.h"

namespace latentmesh {
namespace {

TEST(BenchOps, MeasuresLimitsAndSelectedOperations) {
  OpsBench bench({.threads = 1, .seconds = 1e-3, .filter = "mini q_proj int"});
  bench.Run();
  EXPECT_TRUE(bench.wrong().empty());
  const CpuLimits& m = bench.limits();
  for (double limit : {m.read, m.copy, m.flops, m.int8_ops}) EXPECT_GT(limit, 1e6);
  ASSERT_EQ(bench.rows().size(), 8u);                   // int8 and int4, 1 to 512 tokens
  const OpsBenchRow& row = bench.rows()[3];
  EXPECT_EQ(row.name, "mini q_proj int8");
  EXPECT_EQ(row.tokens, 512);
  EXPECT_TRUE(row.int8);
  EXPECT_DOUBLE_EQ(row.operations, 2.0 * 512 * 1536 * 1024);
  EXPECT_DOUBLE_EQ(row.bytes, 1536.0 * 1024 * 34 / 32 + 4.0 * 512 * (1536 + 1024));
}

TEST(BenchOps, AttentionOfSeveralSequencesIsChecked) {
  OpsBench bench({.threads = 2, .seconds = 1e-3, .filter = "mini mla 4096 bf16"});
  bench.Run();
  EXPECT_TRUE(bench.wrong().empty());
  EXPECT_EQ(bench.rows().size(), 2u);
}

TEST(BenchOps, SharesAreOfThePeakThatCounts) {
  const CpuLimits limits{100, 150, 1000, 4000};
  const OpsBenchRow row{"x", 1, 2, 100, 4000, true};
  EXPECT_DOUBLE_EQ(row.ReadShare(limits), 0.5);
  EXPECT_DOUBLE_EQ(row.PeakShare(limits), 0.5);
}

TEST(BenchOps, ErrorsAreSeen) {
  const auto device = CreateCpuDevice({1}).value();
  const Tensor a(device.get(), DType::kF32, {2, 2}), b(device.get(), DType::kF32, {2, 2});
  for (int i = 0; i < 4; ++i) a.view.f32()[i] = b.view.f32()[i] = static_cast<float>(i);
  EXPECT_EQ(RelativeError(a.view, b.view), 0);
  a.view.f32()[3] = 3 + std::sqrt(14.0f);
  EXPECT_NEAR(RelativeError(a.view, b.view), 1, 1e-6);
  a.view.f32()[0] = NAN;
  EXPECT_TRUE(std::isnan(RelativeError(a.view, b.view)));
}

}  // namespace
}  // namespace latentmesh
