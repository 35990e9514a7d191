// PeerExchange: an AllToAllV with some ranks of a group: runs of bytes are set for each of them; the others get nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/trace.h"

namespace latentmesh {

class PeerExchange {
 public:
  // `group` outlives this.
  explicit PeerExchange(Communicator& group);

  struct Run {
    size_t bytes = 0, offset = 0;
  };
  // What goes to `peer` and comes from it, until it is set anew. Offsets are from the pointers given to Exchange.
  void Set(int peer, const Run& send, const Run& recv);
  // Both memories belong to the exchange until it is finished; one at a time.
  void Start(const void* send, void* recv, Stream& stream);
  void Finish(const char* waiting, const char* flown);     // spans of a timeline

 private:
  Communicator& group_;
  StartedCall call_;
  TraceFlight flight_;
  std::vector<size_t> send_bytes_, send_offsets_, recv_bytes_, recv_offsets_;   // [ranks]
};

}  // namespace latentmesh
