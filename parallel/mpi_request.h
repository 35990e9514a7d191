// MPI calls with deadlines: error codes become Error, and requests are tested in a loop instead of waited for, because
// MPI alone never notices a stopped peer or a cut link. Callers: the one communication thread of the rank.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "parallel/call_site.h"

namespace latentmesh {

// Throws kCommunication with MPI's own words unless rc is MPI_SUCCESS.
void CheckMpi(int rc, const CallSite& site, const char* call);

// A communicator handle with the names of its ranks ("rank 3 on node1"). Frees the handle if it owns it and MPI still
// runs.
class MpiGroup {
 public:
  MpiGroup(MPI_Comm comm, std::vector<std::string> peers, bool owned = true);
  ~MpiGroup();
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;
  MPI_Comm comm() const { return comm_; }
  const std::string& peer(int rank) const { return peers_[rank]; }

 private:
  MPI_Comm comm_;
  std::vector<std::string> peers_;
  bool owned_;
};

// Messages in flight that belong to one operation.
class MpiExchange {
 public:
  // More than `piece` bytes travel in several messages; the same on both ends.
  static constexpr size_t kLargestPiece = size_t{1} << 30;      // MPI counts are ints
  explicit MpiExchange(std::shared_ptr<MpiGroup> group, size_t piece = kLargestPiece)
      : group_(std::move(group)), piece_(piece) {}

  // Starts; memory must stay until Finish. Zero bytes are sent as nothing: both ends know the size.
  void Send(const void* data, size_t bytes, int peer, int tag, const CallSite& site, const char* call);
  void Recv(void* data, size_t bytes, int peer, int tag, const CallSite& site, const char* call);
  // An empty message, for barriers.
  void SendSignal(int peer, int tag, const CallSite& site, const char* call);
  void RecvSignal(int peer, int tag, const CallSite& site, const char* call);
  // Adds a request made elsewhere.
  void Add(MPI_Request request, int peer) { Track(request, peer, -1); }

  // Until all have completed; the deadline counts from the last one that did. Throws kDeadlineExceeded naming the ranks
  // waited for, kCommunication when MPI fails or a message has the wrong size. Nothing is in flight afterwards, except
  // sends that could not be completed.
  void Finish(const CallSite& site, const char* call);
  // True when all have completed.
  bool Poll(const CallSite& site, const char* call);
  // Withdraws receives, because their memory may go, and forgets sends, which cannot be withdrawn.
  void Abandon();

 private:
  void Track(MPI_Request request, int peer, int expected_bytes);
  void CheckReceived(int index, const MPI_Status& status, const CallSite& site, const char* call);
  std::string Unfinished() const;

  std::shared_ptr<MpiGroup> group_;
  size_t piece_;
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_, expected_;      // by request; -1: not a receive
  std::vector<int> completed_;             // scratch of Poll
  std::vector<MPI_Status> statuses_;
  size_t open_ = 0;
};

// The exchanges of started calls, by id. After a failure of one all are abandoned: the job ends, and their memory goes.
class MpiStarted {
 public:
  explicit MpiStarted(std::shared_ptr<MpiGroup> group) : group_(std::move(group)) {}
  MpiExchange& Open(uint64_t id);
  void Poll(const CallSite& site);
  // `call`: what was started, for errors.
  void Finish(uint64_t id, const CallSite& site, const char* call);

 private:
  struct Entry {
    uint64_t id = 0;                       // 0: free
    std::unique_ptr<MpiExchange> exchange;
  };
  void AbandonAll();

  std::shared_ptr<MpiGroup> group_;
  std::vector<Entry> entries_;             // reused: their number is that of the calls open at once
};

}  // namespace latentmesh
