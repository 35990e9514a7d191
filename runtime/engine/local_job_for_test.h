// A job whose ranks are threads of the test: the whole engine over any layout in one process.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/bootstrap.h"
#include "parallel/local_communicator.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

class LocalJobForTest : public Job {
 public:
  static constexpr std::chrono::milliseconds kTimeout{60'000};

  // One for each rank of `layout`.
  static std::vector<std::unique_ptr<LocalJobForTest>> Create(const ParallelConfig& layout) {
    int size = layout.tp * layout.dp * layout.pp;
    auto controls = CreateLocalControl(size, kTimeout);
    auto meshes = CreateLocalMesh(layout, kTimeout);
    std::vector<std::unique_ptr<LocalJobForTest>> jobs;
    for (int r = 0; r < size; ++r)
      jobs.emplace_back(new LocalJobForTest(r, size, std::move(controls[r]), std::move(meshes[r])));
    return jobs;
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& host() const override { return host_; }
  int local_rank() const override { return rank_; }
  int local_size() const override { return size_; }
  std::string transport() const override { return "threads"; }
  void SetOptions(const JobOptions&) override {}
  ControlChannel& control() override { return *control_; }
  Result<CommunicatorSet> CreateCommunicators(const ProcessMesh&, Device&) override { return std::move(comms_); }
  void Abort(StatusCode code) override { throw Error(code, "aborted"); }

 private:
  LocalJobForTest(int rank, int size, std::unique_ptr<ControlChannel> control, CommunicatorSet comms)
      : rank_(rank), size_(size), control_(std::move(control)), comms_(std::move(comms)) {}
  int rank_, size_;
  std::string host_ = "test";
  std::unique_ptr<ControlChannel> control_;
  CommunicatorSet comms_;
};

// Runs `body` on rank 0 of a runtime over `layout` and returns its status.
inline Status RunOnThreads(const ParallelConfig& layout, EngineOptions options, const std::function<Status(Engine&)>& body) {
  options.layout = layout;
  auto jobs = LocalJobForTest::Create(layout);
  std::vector<Status> statuses(jobs.size());
  RunLocalRanks(static_cast<int>(jobs.size()), [&](int rank) {
    auto runtime = Runtime::Create(*jobs[rank], options);
    statuses[rank] = runtime.ok() ? (*runtime)->Run(body) : runtime.status();
  });
  return statuses[0];
}

}  // namespace latentmesh
