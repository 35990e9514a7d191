// Bootstrap: joins the job this process was started in, and makes the communicators of a layout.
// Started alone (no mpirun, no srun) the world has one rank and MPI is not touched.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "kernels/device.h"
#include "kernels/status.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "parallel/process_mesh.h"

namespace latentmesh {

struct JobOptions {
  std::chrono::milliseconds step_timeout{300'000};   // the longest any one wait inside a step may take
  std::chrono::milliseconds idle_timeout{30'000};    // the longest silence of the scheduler rank: no plan, no heartbeat
  bool share_gpu = false;                            // several ranks may use one GPU (correctness tests; slow)
};

class Job {
 public:
  // Initialises MPI (MPI_THREAD_FUNNELED) when a launcher started this process. Call once, from the main thread.
  static Result<std::unique_ptr<Job>> Join(int* argc, char*** argv);
  virtual ~Job() = default;                          // finalises MPI

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& host() const = 0;
  virtual int local_rank() const = 0;                // among the ranks on this host
  virtual int local_size() const = 0;
  virtual std::string transport() const = 0;         // "single process", "Open MPI v4.1.4"
  virtual void SetOptions(const JobOptions& options) = 0;  // before CreateCommunicators, the same on all ranks
  virtual ControlChannel& control() = 0;
  // Collective over all ranks; creates the groups of the mesh in one order on all ranks. For a CUDA device the data
  // groups are NCCL communicators (kUnavailable when NCCL is not built in).
  virtual Result<CommunicatorSet> CreateCommunicators(const ProcessMesh& mesh, Device& device) = 0;
  // Ends every rank of the job within seconds with ExitCode(code). The message is printed once, by the caller.
  [[noreturn]] virtual void Abort(StatusCode code) = 0;
};

// A world of one rank inside this process, for the reference run of `verify` and for tests. Copies are made on `device`
// where given (needed when the memory is not the host's); it outlives the communicators.
CommunicatorSet CreateSingleRankCommunicators(Device* device = nullptr);

}  // namespace latentmesh
