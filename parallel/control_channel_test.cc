#include "parallel/control_channel.h"

#include <gtest/gtest.h>

#include <thread>

#include "parallel/local_communicator.h"

namespace latentmesh {
namespace {

using std::chrono::milliseconds;

TEST(ControlChannel, BroadcastGatherSendBarrierForManySizes) {
  for (int size : {1, 2, 3, 5, 8, 13}) {
    auto control = CreateLocalControl(size, milliseconds(60'000));
    RunLocalRanks(size, [&](int rank) {
      ControlChannel& c = *control[rank];
      for (int round = 0; round < 5; ++round) {
        std::string expected = "plan " + std::to_string(round) + std::string(round * 1000, 'x');
        std::string message = rank == 0 ? expected : "";
        c.Broadcast(message);
        EXPECT_EQ(message, expected);
        auto all = c.Gather(std::string(rank, 'a' + rank));
        ASSERT_EQ(static_cast<int>(all.size()), rank == 0 ? size : 0);
        for (int r = 0; r < static_cast<int>(all.size()); ++r) EXPECT_EQ(all[r], std::string(r, 'a' + r));
        if (size > 1) {
          c.Send(std::to_string(rank), (rank + 1) % size);
          EXPECT_EQ(c.Recv((rank + size - 1) % size), std::to_string((rank + size - 1) % size));
        }
        c.Barrier();
      }
      EXPECT_EQ(c.IsSpeaker(), rank == 0);
    });
  }
}

TEST(ControlChannel, AllRanksAgreeOnTheLowestFailure) {
  auto control = CreateLocalControl(4, milliseconds(60'000));
  RunLocalRanks(4, [&](int rank) {
    EXPECT_TRUE(control[rank]->Agree(Status::Ok()).ok());
    Status mine = rank < 2 ? Status::Ok() : Status(rank == 2 ? StatusCode::kInvalidModel : StatusCode::kIo,
                                                   "shard " + std::to_string(rank) + " is truncated");
    Status agreed = control[rank]->Agree(mine);
    EXPECT_EQ(agreed.code(), StatusCode::kInvalidModel);
    EXPECT_EQ(agreed.message(), "shard 2 is truncated (rank 2)");
    EXPECT_TRUE(control[rank]->Agree(Status::Ok()).ok());
  });
}

TEST(ControlChannel, HeartbeatsKeepWaitingWorkersAlive) {
  constexpr milliseconds kIdle{2000};
  auto control = CreateLocalControl(5, kIdle);
  RunLocalRanks(5, [&](int rank) {
    std::string message;
    if (rank == 0) {
      for (int beat = 0; beat < 300; ++beat) {         // 6 s, three times the timeout
        control[0]->Heartbeat();
        std::this_thread::sleep_for(milliseconds(20));
      }
      message = "at last";
    }
    control[rank]->Broadcast(message);
    EXPECT_EQ(message, "at last");
  });
}

TEST(ControlChannel, SilenceOfTheSchedulerIsNoticed) {
  auto control = CreateLocalControl(2, milliseconds(100));
  std::string message;
  try {
    control[1]->Broadcast(message);
    FAIL() << "waited for ever";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kDeadlineExceeded);
    EXPECT_NE(std::string(error.what()).find("waiting for rank 0"), std::string::npos) << error.what();
  }
}

TEST(ControlChannel, AWorkerThatStopsAnsweringHeartbeatsIsNamed) {
  auto control = CreateLocalControl(3, milliseconds(2000));
  try {
    RunLocalRanks(3, [&](int rank) {
      std::string message;
      if (rank == 1) control[1]->Broadcast(message);   // answers
      while (rank == 0) {
        control[0]->Heartbeat();
        std::this_thread::sleep_for(milliseconds(10));
      }                                                // rank 2 does nothing
    });
    FAIL() << "not noticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kDeadlineExceeded);
    EXPECT_NE(std::string(error.what()).find("waiting for rank 2"), std::string::npos) << error.what();
  }
}

TEST(ControlChannel, GatherNamesTheMissingRank) {
  auto control = CreateLocalControl(3, milliseconds(1500));
  try {
    RunLocalRanks(3, [&](int rank) {
      if (rank != 1) control[rank]->Gather("here");
    });
    FAIL() << "waited for ever";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("waiting for rank 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace latentmesh
