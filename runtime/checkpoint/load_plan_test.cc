#include "runtime/checkpoint/load_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "runtime/checkpoint/checkpoint_test_util.h"

namespace latentmesh {
namespace {

using ::testing::ElementsAre;

// `count` tensors of `rows` x 4 bytes in one file.
Checkpoint MakeCheckpoint(const std::vector<int64_t>& rows) {
  TempFolder folder;
  SafetensorsWriter writer;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string data(static_cast<size_t>(rows[i]) * 4, '\0');
    writer.Add("t" + std::to_string(100 + i), DType::kU8, {rows[i], 4}, data.data());
  }
  EXPECT_TRUE(writer.Write(folder.File("model.safetensors")).ok());
  return *Checkpoint::Open(folder.path());
}

PlainRequest Whole(const Checkpoint& checkpoint, uint32_t tensor) {
  return {tensor, 0, {0, checkpoint.tensors()[tensor].rows(), 0, 4}};
}

TEST(LoadPlanTest, ATensorOfOneRankIsReadByThatRank) {
  const Checkpoint c = MakeCheckpoint({8, 8, 8});
  const LoadPlan plan = MakeLoadPlan(c, {{Whole(c, 0), Whole(c, 1)}, {Whole(c, 2)}}, 1 << 20);
  EXPECT_EQ(plan.total_bytes, 96u);
  for (const LoadStep& step : plan.steps) {
    EXPECT_EQ(step.reader, step.tensor == 2 ? 1 : 0);
    EXPECT_FALSE(step.broadcast);
  }
  EXPECT_THAT(plan.round_ends, ElementsAre(3));
}

TEST(LoadPlanTest, SharedTensorsEvenOutTheReading) {
  const Checkpoint c = MakeCheckpoint({30, 10, 10, 10, 10, 10});
  std::vector<std::vector<PlainRequest>> requests(2);
  requests[0].push_back(Whole(c, 0));  // 120 bytes of its own
  for (uint32_t t = 1; t < 6; ++t)
    for (auto& mine : requests) mine.push_back(Whole(c, t));
  std::map<int, uint64_t> bytes;
  for (const LoadStep& step : MakeLoadPlan(c, requests, 1 << 20).steps) {
    bytes[step.reader] += c.tensors()[step.tensor].bytes;
    EXPECT_EQ(step.broadcast, step.tensor != 0);
  }
  EXPECT_EQ(bytes[0], 160u);
  EXPECT_EQ(bytes[1], 160u);
}

TEST(LoadPlanTest, BroadcastOnlyWhenAllWantAll) {
  const Checkpoint c = MakeCheckpoint({8});
  PlainRequest half = Whole(c, 0);
  half.slice.rows = 4;
  EXPECT_FALSE(MakeLoadPlan(c, {{Whole(c, 0)}, {half}}, 1).steps[0].broadcast);
  EXPECT_FALSE(MakeLoadPlan(c, {{Whole(c, 0)}, {Whole(c, 0)}, {}}, 1).steps[0].broadcast);
  EXPECT_FALSE(MakeLoadPlan(c, {{Whole(c, 0)}}, 1).steps[0].broadcast);
  EXPECT_FALSE(MakeLoadPlan(c, {{Whole(c, 0), half}, {Whole(c, 0)}}, 1).steps[0].broadcast);
  EXPECT_TRUE(MakeLoadPlan(c, {{Whole(c, 0), Whole(c, 0)}, {Whole(c, 0)}}, 1).steps[0].broadcast);
}

TEST(LoadPlanTest, NoRequestsNoSteps) {
  const Checkpoint c = MakeCheckpoint({8});
  const LoadPlan plan = MakeLoadPlan(c, {{}, {}}, 1);
  EXPECT_TRUE(plan.steps.empty());
  EXPECT_TRUE(plan.round_ends.empty());
}

// Two pipeline stages whose layers lie one after the other in the file: side by side, not one after the other.
TEST(LoadPlanTest, StagesLoadSideBySide) {
  const Checkpoint c = MakeCheckpoint(std::vector<int64_t>(20, 25));  // 100 bytes each
  std::vector<std::vector<PlainRequest>> requests(2);
  for (uint32_t t = 0; t < 20; ++t) requests[t / 10].push_back(Whole(c, t));
  const LoadPlan plan = MakeLoadPlan(c, requests, 200);
  ASSERT_EQ(plan.round_ends.size(), 6u);  // 10 x 100 bytes a rank, from tick 100 on
  size_t begin = 0;
  for (const size_t end : plan.round_ends) {
    std::map<int, int> steps;
    for (size_t i = begin; i < end; ++i) ++steps[plan.steps[i].reader];
    EXPECT_EQ(steps[0], steps[1]);
    begin = end;
  }
}

TEST(LoadPlanTest, RandomRequestsKeepTheRules) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<int64_t> rows(1 + random() % 40);
    for (int64_t& n : rows) n = static_cast<int64_t>(random() % 50);
    const Checkpoint c = MakeCheckpoint(rows);
    std::vector<std::vector<PlainRequest>> requests(1 + random() % 6);
    for (auto& mine : requests) {
      for (uint32_t t = 0; t < rows.size(); ++t) {
        for (int n = static_cast<int>(random() % 3); n > 0; --n) mine.push_back(Whole(c, t));
      }
    }
    const LoadPlan plan = MakeLoadPlan(c, requests, 1 + random() % 300);

    std::set<uint32_t> tensors;
    std::vector<size_t> delivered(requests.size());
    std::vector<uint32_t> last(requests.size());
    uint64_t bytes = 0;
    for (const LoadStep& step : plan.steps) {
      EXPECT_TRUE(tensors.insert(step.tensor).second);  // read once
      bytes += c.tensors()[step.tensor].bytes;
      bool reader_wants_it = false;
      for (const Delivery& delivery : step.deliveries) {
        reader_wants_it |= delivery.rank == step.reader;
        EXPECT_EQ(requests[delivery.rank][delivery.request].tensor, step.tensor);
        EXPECT_GE(step.tensor, last[delivery.rank]);  // file order on each rank
        last[delivery.rank] = step.tensor;
        ++delivered[delivery.rank];
      }
      EXPECT_TRUE(reader_wants_it);
    }
    for (size_t r = 0; r < requests.size(); ++r) EXPECT_EQ(delivered[r], requests[r].size());
    EXPECT_EQ(plan.total_bytes, bytes);
    EXPECT_TRUE(std::is_sorted(plan.round_ends.begin(), plan.round_ends.end()));
    EXPECT_EQ(plan.round_ends.empty() ? 0 : plan.round_ends.back(), plan.steps.size());
  }
}

TEST(TensorSliceTest, CopiesRowsAndColumns) {
  const unsigned char whole[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};  // [3, 4]
  std::vector<std::byte> part(4);
  const TensorSlice slice{1, 2, 1, 2};
  CopySlice(reinterpret_cast<const std::byte*>(whole), 4, 1, slice, part.data());
  EXPECT_THAT(part, ElementsAre(std::byte{5}, std::byte{6}, std::byte{9}, std::byte{10}));
  EXPECT_FALSE(slice.IsContiguous(4));
  EXPECT_TRUE((TensorSlice{1, 2, 0, 4}.IsContiguous(4)));
  EXPECT_TRUE((TensorSlice{2, 1, 1, 2}.IsContiguous(4)));
  EXPECT_EQ(SliceOffset(slice, 4, 2), 10u);
}

TEST(TensorSliceTest, Bounds) {
  EXPECT_TRUE((TensorSlice{0, 3, 0, 4}.FitsIn(3, 4)));
  EXPECT_TRUE((TensorSlice{3, 0, 4, 0}.FitsIn(3, 4)));
  EXPECT_FALSE((TensorSlice{0, 4, 0, 4}.FitsIn(3, 4)));
  EXPECT_FALSE((TensorSlice{2, 2, 0, 4}.FitsIn(3, 4)));
  EXPECT_FALSE((TensorSlice{-1, 1, 0, 4}.FitsIn(3, 4)));
  EXPECT_FALSE((TensorSlice{1, INT64_MAX, 0, 4}.FitsIn(3, 4)));
  EXPECT_FALSE((TensorSlice{0, 1, 0, -1}.FitsIn(3, 4)));
}

}  // namespace
}  // namespace latentmesh
