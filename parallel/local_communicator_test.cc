#include "parallel/local_communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <thread>

#include "parallel/bootstrap.h"
#include "parallel/host_stream.h"
#include "parallel/reduce.h"
#include "parallel/self_check.h"

namespace latentmesh {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kLong{60'000};

template <typename Body>
Error ExpectError(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no Error was thrown";
  return Error(StatusCode::kOk, "");
}

bool Contains(const Error& error, const std::string& text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

TEST(LocalCommunicator, AllOperationsOnRandomSizes) {
  for (int size : {1, 2, 3, 4, 8}) {
    auto group = CreateLocalGroup("tp", size, kLong);
    RunLocalRanks(size, [&](int rank) {
      HostStream stream;
      Status status = CheckCollectives(*group[rank], stream, {.seed = uint64_t(size), .rounds = 12});
      EXPECT_TRUE(status.ok()) << status.message();
    });
  }
}

TEST(LocalCommunicator, SumsHaveTheSameBitsOnAllRanksAndFollowRankOrder) {
  constexpr int kRanks = 4, kCount = 5001;
  auto value = [](int rank, int i) { return std::sin(rank * 1.7f + i * 0.13f) * std::exp2(float(i % 20)); };
  auto group = CreateLocalGroup("tp", kRanks, kLong);
  RunLocalRanks(kRanks, [&](int rank) {
    HostStream stream;
    std::vector<float> wide(kCount);
    std::vector<uint16_t> half(kCount);
    for (int i = 0; i < kCount; ++i) wide[i] = value(rank, i), half[i] = FloatToBF16(value(rank, i));
    group[rank]->AllReduceSum(TensorView(wide.data(), DType::kF32, {kCount}), stream);
    group[rank]->AllReduceSum(TensorView(half.data(), DType::kBF16, {kCount}), stream);
    for (int i = 0; i < kCount; ++i) {
      float sum = 0, half_sum = 0;
      for (int r = 0; r < kRanks; ++r) sum += value(r, i), half_sum += BF16ToFloat(FloatToBF16(value(r, i)));
      ASSERT_EQ(wide[i], sum);
      ASSERT_EQ(half[i], FloatToBF16(half_sum));
    }
  });
}

TEST(LocalCommunicator, InPlaceGather) {
  auto group = CreateLocalGroup("dp", 3, kLong);
  RunLocalRanks(3, [&](int rank) {
    HostStream stream;
    int32_t all[3] = {-1, -1, -1};
    all[rank] = rank * 11;
    group[rank]->AllGather(&all[rank], all, sizeof(int32_t), stream);
    for (int r = 0; r < 3; ++r) EXPECT_EQ(all[r], r * 11);
  });
}

TEST(LocalCommunicator, CountsTraffic) {
  auto group = CreateLocalGroup("ep", 4, kLong);
  RunLocalRanks(4, [&](int rank) {
    HostStream stream;
    std::vector<float> data(100);
    group[rank]->AllReduceSum(TensorView(data.data(), DType::kF32, {100}), stream);   // 2 * 400 * 3/4 each way
    group[rank]->Broadcast(data.data(), 40, 2, stream);
    TrafficCounters t = group[rank]->traffic();
    EXPECT_EQ(t.calls, 2u);
    EXPECT_EQ(t.bytes_sent, 600u + (rank == 2 ? 120u : 0u));
    EXPECT_EQ(t.bytes_received, 600u + (rank == 2 ? 0u : 40u));
    EXPECT_GT(t.seconds, 0);
    CallCounters sum;
    for (const CallCounters& c : t.by_collective) {
      sum.calls += c.calls;
      sum.bytes_sent += c.bytes_sent;
      sum.seconds += c.seconds;
    }
    EXPECT_EQ(sum.calls, t.calls);
    EXPECT_EQ(sum.bytes_sent, t.bytes_sent);
    EXPECT_NEAR(sum.seconds, t.seconds, 1e-9);
    EXPECT_EQ(t.by_collective[static_cast<size_t>(Collective::kAllReduce)].bytes_received, 600u);
    EXPECT_EQ(t.by_collective[static_cast<size_t>(Collective::kBroadcast)].calls, 1u);
  });
}

TEST(LocalCommunicator, CountsTimeOfStartedCallsUntilTheyAreFinished) {
  auto group = CreateLocalGroup("ep", 2, kLong);
  RunLocalRanks(2, [&](int rank) {
    HostStream stream;
    std::vector<float> mine(8), all(16);
    StartedCall call = group[rank]->StartAllGather(mine.data(), all.data(), 32, stream);
    const double started = group[rank]->traffic().seconds;
    group[rank]->Finish(call);
    const TrafficCounters t = group[rank]->traffic();
    const CallCounters& gathered = t.by_collective[static_cast<size_t>(Collective::kAllGather)];
    EXPECT_EQ(gathered.calls, 1u);
    EXPECT_EQ(gathered.bytes_sent, 32u);
    EXPECT_GT(gathered.seconds, started);
    EXPECT_EQ(gathered.seconds, t.seconds);
  });
}

TEST(LocalCommunicator, MissingRankPassesTheDeadlineAndIsNamed) {
  auto group = CreateLocalGroup("tp", 3, milliseconds(1500));
  std::atomic<int> failed{0}, in_time{0};
  Error error = ExpectError([&] {
    RunLocalRanks(3, [&](int rank) {
      if (rank == 2) return;
      HostStream stream;
      group[rank]->SetContext(17, "layer 3 reduce");
      try {
        group[rank]->Barrier(stream);
      } catch (const Error& caught) {
        ++failed;
        in_time += caught.code() == StatusCode::kDeadlineExceeded;
        throw;
      }
    });
  });
  EXPECT_EQ(failed, 2);
  EXPECT_EQ(in_time, 1);                   // the other learns of it, perhaps first to return
  EXPECT_TRUE(Contains(error, "rank 2")) << error.what();
  EXPECT_TRUE(Contains(error, "step 17, layer 3 reduce: Barrier")) << error.what();
  HostStream stream;
  EXPECT_EQ(ExpectError([&] { group[2]->Barrier(stream); }).code(), StatusCode::kCommunication);
}

TEST(LocalCommunicator, AThrowingRankEndsTheOthersLongBeforeTheDeadline) {
  auto group = CreateLocalGroup("tp", 4, kLong);
  auto control = CreateLocalControl(4, kLong);
  auto start = std::chrono::steady_clock::now();
  EXPECT_THROW(RunLocalRanks(4,
                             [&](int rank) {
                               HostStream stream;
                               std::string plan;
                               if (rank == 1) throw std::out_of_range("the first failure");
                               if (rank == 3) return control[rank]->Broadcast(plan);
                               group[rank]->Barrier(stream);
                             }),
               std::out_of_range);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(LocalCommunicator, ALeavingRankEndsTheOthers) {
  auto group = CreateLocalGroup("tp", 2, kLong);
  group[1].reset();
  HostStream stream;
  Error error = ExpectError([&] { group[0]->Barrier(stream); });
  EXPECT_TRUE(Contains(error, "rank 1 has left")) << error.what();
}

TEST(LocalCommunicator, DifferentCallsAreAnErrorThatNamesBoth) {
  auto group = CreateLocalGroup("tp", 2, kLong);
  Error error = ExpectError([&] {
    RunLocalRanks(2, [&](int rank) {
      HostStream stream;
      char data[8] = {};
      if (rank == 0) group[rank]->Barrier(stream);
      if (rank == 1) group[rank]->Broadcast(data, 8, 0, stream);
    });
  });
  EXPECT_TRUE(Contains(error, "Barrier") && Contains(error, "Broadcast")) << error.what();
}

TEST(LocalCommunicator, WrongCountsInAllToAllAreAnError) {
  auto group = CreateLocalGroup("ep", 2, kLong);
  Error error = ExpectError([&] {
    RunLocalRanks(2, [&](int rank) {
      HostStream stream;
      char send[16] = {}, recv[16] = {};
      std::vector<size_t> out{4, 4}, in{4, rank == 1 ? size_t{4} : size_t{5}}, at{0, 8};
      group[rank]->AllToAllV({send, out, at, recv, in, at}, stream);
    });
  });
  EXPECT_TRUE(Contains(error, "expected 5 bytes from rank 1")) << error.what();
}

TEST(LocalCommunicator, UnmatchedSendAndWrongSizeAreErrors) {
  auto group = CreateLocalGroup("pp", 2, milliseconds(50));
  HostStream stream;
  char byte = 0;
  EXPECT_EQ(ExpectError([&] { group[0]->Send(&byte, 1, 1, stream); }).code(), StatusCode::kDeadlineExceeded);
  auto other = CreateLocalGroup("pp", 2, kLong);
  Error error = ExpectError([&] {
    RunLocalRanks(2, [&](int rank) {
      HostStream mine;
      char data[8] = {};
      if (rank == 0) other[0]->Send(data, 8, 1, mine);
      if (rank == 1) other[1]->Recv(data, 4, 0, mine);
    });
  });
  EXPECT_TRUE(Contains(error, "expected 4 bytes") && Contains(error, "sent 8")) << error.what();
}

// A rank waits only for others to have started: rank 0 finishes both calls before rank 1, which is in another group then.
TEST(LocalCommunicator, StartedCallsNeedNoOrderOfFinishing) {
  auto group = CreateLocalGroup("dp", 2, kLong), other = CreateLocalGroup("tp", 2, kLong);
  RunLocalRanks(2, [&](int rank) {
    HostStream stream;
    int sent[2] = {rank * 10 + 1, rank * 10 + 2}, received[2] = {};
    StartedCall calls[2];
    for (int i : {0, 1})
      calls[i] = group[rank]->StartSendRecv(&sent[i], sizeof(int), 1 - rank, &received[i], sizeof(int), 1 - rank, stream);
    if (rank == 1) other[rank]->Barrier(stream);
    for (int i : {0, 1}) group[rank]->Finish(calls[rank == 0 ? 1 - i : i]);
    for (int i : {0, 1}) EXPECT_EQ(received[i], (1 - rank) * 10 + 1 + i);
    group[rank]->Finish(calls[0]);         // again: nothing
    if (rank == 0) other[rank]->Barrier(stream);
    group[rank]->Barrier(stream);          // nothing is open
    TrafficCounters t = group[rank]->traffic();
    EXPECT_EQ(t.calls, 3u);
    EXPECT_EQ(t.bytes_sent, 2 * sizeof(int));
    EXPECT_EQ(t.bytes_received, 2 * sizeof(int));
  });
}

TEST(LocalCommunicatorDeathTest, OnlyStartedCallsWhileOneIsOpen) {
  auto group = CreateLocalGroup("dp", 2, kLong);
  HostStream stream;
  char data[8] = {};
  group[0]->StartSendRecv(data, 8, 1, nullptr, 0, 1, stream);
  EXPECT_DEATH(group[0]->Barrier(stream), "while a started SendRecv is not finished, only started calls are made");
}

TEST(LocalCommunicator, StartedCallsThatDoNotMatchAreErrors) {
  auto error_of = [](const std::function<void(Communicator&, int rank, Stream&)>& body) {
    auto group = CreateLocalGroup("ep", 2, milliseconds(1500));
    return ExpectError([&] {
      RunLocalRanks(2, [&](int rank) {
        HostStream stream;
        body(*group[rank], rank, stream);
      });
    });
  };
  char in[16] = {}, out[16] = {};
  Error sizes = error_of([&](Communicator& group, int rank, Stream& stream) {
    group.StartSendRecv(in, 8, 1 - rank, out, rank == 0 ? 8 : 7, 1 - rank, stream);
    group.Finish();
  });
  EXPECT_TRUE(Contains(sizes, "Finish") || Contains(sizes, "SendRecv: expected 7 bytes from rank 0")) << sizes.what();
  Error kinds = error_of([&](Communicator& group, int rank, Stream& stream) {
    if (rank == 0) group.StartAllGather(in, out, 8, stream);
    if (rank == 1) group.StartSendRecv(in, 8, 0, out, 8, 0, stream);
    group.Finish();
  });
  EXPECT_TRUE(Contains(kinds, "has started")) << kinds.what();
  Error missing = error_of([&](Communicator& group, int rank, Stream& stream) {
    group.SetContext(17, "layer 3 dispatch");
    if (rank == 0) group.Finish(group.StartAllGather(in, out, 8, stream));
  });
  EXPECT_EQ(missing.code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Contains(missing, "layer 3 dispatch: Finish of a started AllGather")) << missing.what();
  EXPECT_TRUE(Contains(missing, "rank 1")) << missing.what();
}

TEST(LocalMesh, GroupsAreThoseOfTheProcessMesh) {
  for (ParallelConfig config : {ParallelConfig{2, 2, 2, 2}, ParallelConfig{4, 1, 1, 2}, ParallelConfig{1, 3, 2, 1}}) {
    int world = config.tp * config.dp * config.pp;
    auto sets = CreateLocalMesh(config, kLong);
    RunLocalRanks(world, [&](int rank) {
      HostStream stream;
      ProcessMesh mesh = *ProcessMesh::Create(config, world, rank);
      auto expect = [&](Communicator& group, const std::vector<int>& ranks) {
        ASSERT_EQ(group.size(), static_cast<int>(ranks.size()));
        std::vector<int> gathered(ranks.size());
        group.AllGather(&rank, gathered.data(), sizeof(int), stream);
        EXPECT_EQ(gathered, ranks) << group.name();
      };
      expect(*sets[rank].tp, mesh.TpGroup());
      expect(*sets[rank].cp, mesh.CpGroup());
      expect(*sets[rank].dp, mesh.DpGroup());
      expect(*sets[rank].ep, mesh.EpGroup());
      expect(*sets[rank].pp, mesh.PpGroup());
      EXPECT_EQ(sets[rank].world->size(), world);
    });
  }
}

TEST(SingleRank, AllGroupsHaveOneRankAndCopy) {
  CommunicatorSet set = CreateSingleRankCommunicators();
  HostStream stream;
  for (Communicator* group : {set.world.get(), set.tp.get(), set.cp.get(), set.dp.get(), set.ep.get(), set.pp.get()}) {
    EXPECT_EQ(group->size(), 1);
    Status status = CheckCollectives(*group, stream, {});
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(group->traffic().bytes_sent, 0u);
  }
}

}  // namespace
}  // namespace latentmesh
