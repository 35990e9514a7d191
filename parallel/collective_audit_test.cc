#include "parallel/collective_audit.h"

#include <gtest/gtest.h>

#include "parallel/host_stream.h"
#include "parallel/local_communicator.h"
#include "parallel/self_check.h"

namespace latentmesh {
namespace {

constexpr std::chrono::milliseconds kLong{60'000};
constexpr ParallelConfig kConfig{.tp = 2, .dp = 2};

// Runs `step` on 4 audited ranks and returns what all of them agreed on.
template <typename Step>
Status Audit(Step step) {
  auto sets = CreateLocalMesh(kConfig, kLong);
  auto control = CreateLocalControl(4, kLong);
  std::vector<Status> verdicts(4);
  RunLocalRanks(4, [&](int rank) {
    HostStream stream;
    CollectiveAudit audit(*ProcessMesh::Create(kConfig, 4, rank));
    CommunicatorSet set = audit.Wrap(std::move(sets[rank]));
    set.ep->SetContext(5, "layer 3 dispatch");
    step(rank, set, stream);
    verdicts[rank] = audit.Compare(*control[rank]);
    EXPECT_TRUE(audit.Compare(*control[rank]).ok()) << "the logs were not started anew";
    sets[rank] = std::move(set);
  });
  for (const Status& verdict : verdicts) EXPECT_EQ(verdict.message(), verdicts[0].message());
  return verdicts[0];
}

TEST(CollectiveAudit, IsSilentWhenAllIsWell) {
  Status status = Audit([](int, CommunicatorSet& set, Stream& stream) {
    for (Communicator* group :
         {set.world.get(), set.tp.get(), set.cp.get(), set.dp.get(), set.ep.get(), set.pp.get()}) {
      Status right = CheckCollectives(*group, stream, {.rounds = 3});
      EXPECT_TRUE(right.ok()) << right.message();
    }
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

// Finished in an order of its own on each rank: messages are compared in the order of starting.
TEST(CollectiveAudit, FollowsStartedCalls) {
  Status status = Audit([](int rank, CommunicatorSet& set, Stream& stream) {
    std::vector<int32_t> sent(12), received(12);
    for (int i = 0; i < 12; ++i) sent[i] = rank * 100 + i;
    std::vector<size_t> bytes(4, sizeof(int32_t));
    StartedCall calls[3];
    for (size_t c = 0; c < 3; ++c) {
      std::vector<size_t> at;
      for (size_t r = 0; r < 4; ++r) at.push_back((4 * c + r) * sizeof(int32_t));
      calls[c] = set.ep->StartAllToAllV({sent.data(), bytes, at, received.data(), bytes, at}, stream);
    }
    for (int c = 0; c < 3; ++c) set.ep->Finish(calls[(c + rank) % 3]);
    for (int i = 0; i < 12; ++i) EXPECT_EQ(received[i], i % 4 * 100 + i / 4 * 4 + rank);
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

// As many bytes, so that no transport notices: a sum of one type on one rank and of another on the other.
TEST(CollectiveAudit, NamesTheFirstCallThatDiffers) {
  Status status = Audit([](int rank, CommunicatorSet& set, Stream& stream) {
    std::vector<int32_t> data(10);
    set.ep->Barrier(stream);
    set.ep->AllReduceSum(TensorView(data.data(), rank == 2 ? DType::kI32 : DType::kF32, {10}), stream);
    set.ep->Barrier(stream);
  });
  EXPECT_EQ(status.code(), StatusCode::kCommunication);
  EXPECT_NE(status.message().find("group ep: rank 2 and rank 0 differ at call 1: the first calls \"step 5, layer 3 "
                                  "dispatch: AllReduceSum i32, 40 bytes\", the second \"step 5, layer 3 dispatch: "
                                  "AllReduceSum f32, 40 bytes\""),
            std::string::npos)
      << status.message();
}

// A transport that damages one byte of what arrives.
class Damaging : public Communicator {
 public:
  explicit Damaging(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  TrafficCounters traffic() const override { return inner_->traffic(); }
  void SetContext(int64_t step, const char* operation) override { inner_->SetContext(step, operation); }
  void AllReduceSum(const TensorView& v, Stream& s) override { inner_->AllReduceSum(v, s); }
  void ReduceScatterSum(const TensorView& a, const TensorView& b, Stream& s) override {
    inner_->ReduceScatterSum(a, b, s);
  }
  void AllGather(const void* a, void* b, size_t n, Stream& s) override { inner_->AllGather(a, b, n, s); }
  void AllGatherV(const void* a, size_t n, void* b, std::span<const size_t> c, Stream& s) override {
    inner_->AllGatherV(a, n, b, c, s);
  }
  void Broadcast(void* data, size_t bytes, int root, Stream& s) override {
    inner_->Broadcast(data, bytes, root, s);
    static_cast<char*>(data)[bytes / 2] ^= 4;
  }
  void AllToAllV(const AllToAllVParams& p, Stream& s) override {
    inner_->AllToAllV(p, s);
    static_cast<char*>(p.recv)[p.recv_offsets[1]] ^= 64;
  }
  void Send(const void* a, size_t n, int peer, Stream& s) override { inner_->Send(a, n, peer, s); }
  void Recv(void* a, size_t n, int peer, Stream& s) override { inner_->Recv(a, n, peer, s); }
  void SendRecv(const void* a, size_t n, int to, void* b, size_t m, int from, Stream& s) override {
    inner_->SendRecv(a, n, to, b, m, from, s);
  }
  void Barrier(Stream& s) override { inner_->Barrier(s); }
  StartedCall StartAllToAllV(const AllToAllVParams& p, Stream& s) override {
    damaged_ = static_cast<char*>(p.recv) + p.recv_offsets[1];
    return inner_->StartAllToAllV(p, s);
  }
  void Finish(StartedCall call) override {
    inner_->Finish(call);
    *damaged_ ^= 64;
  }

 private:
  std::unique_ptr<Communicator> inner_;
  char* damaged_ = nullptr;
};

template <typename Step>
Status AuditDamaged(Step step) {
  auto sets = CreateLocalMesh(kConfig, kLong);
  auto control = CreateLocalControl(4, kLong);
  Status verdict;
  sets[3].ep = std::make_unique<Damaging>(std::move(sets[3].ep));
  RunLocalRanks(4, [&](int rank) {
    HostStream stream;
    CollectiveAudit audit(*ProcessMesh::Create(kConfig, 4, rank));
    sets[rank] = audit.Wrap(std::move(sets[rank]));
    sets[rank].ep->SetContext(5, "layer 3 dispatch");
    step(*sets[rank].ep, stream);
    Status mine = audit.Compare(*control[rank]);
    if (rank == 2) verdict = mine;
  });
  return verdict;
}

TEST(CollectiveAudit, NamesBothEndsOfADamagedMessage) {
  for (bool started : {false, true}) {
    Status status = AuditDamaged([started](Communicator& ep, Stream& stream) {
      std::vector<char> send(400, 'a'), recv(400);
      std::vector<size_t> bytes(4, 100), at{0, 100, 200, 300};
      const AllToAllVParams parts{send.data(), bytes, at, recv.data(), bytes, at};
      if (started) ep.Finish(ep.StartAllToAllV(parts, stream));
      else ep.AllToAllV(parts, stream);
    });
    EXPECT_EQ(status.code(), StatusCode::kCommunication);
    EXPECT_NE(status.message().find("group ep: what rank 3 received from rank 1 is not what that sent"),
              std::string::npos)
        << status.message();
  }
}

TEST(CollectiveAudit, NamesTheCallWhoseDataDiffer) {
  Status status = AuditDamaged([](Communicator& ep, Stream& stream) {
    std::vector<char> data(1001, 'b');
    ep.Broadcast(data.data(), data.size(), 1, stream);
  });
  EXPECT_NE(status.message().find("group ep: rank 3 and rank 0 differ at call 0: \"step 5, layer 3 dispatch: Broadcast "
                                  "from rank 1, 1001 bytes\" gave them different data"),
            std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace latentmesh
