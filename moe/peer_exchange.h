// PeerExchange: an AllToAllV with some ranks of a group: runs of bytes are set for each of them; the others get nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "parallel/communicator.h"

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
  void Exchange(const void* send, void* recv, Stream& stream);

 private:
  Communicator& group_;
  std::vector<size_t> send_bytes_, send_offsets_, recv_bytes_, recv_offsets_;   // [ranks]
};

}  // namespace latentmesh
