#include "moe/peer_exchange.h"

namespace latentmesh {

PeerExchange::PeerExchange(Communicator& group) : group_(group) {
  for (std::vector<size_t>* v : {&send_bytes_, &send_offsets_, &recv_bytes_, &recv_offsets_})
    v->assign(static_cast<size_t>(group.size()), 0);
}

void PeerExchange::Set(int peer, const Run& send, const Run& recv) {
  auto at = static_cast<size_t>(peer);
  send_bytes_[at] = send.bytes, send_offsets_[at] = send.offset;
  recv_bytes_[at] = recv.bytes, recv_offsets_[at] = recv.offset;
}

void PeerExchange::Start(const void* send, void* recv, Stream& stream) {
  flight_.Begin();
  call_ = group_.StartAllToAllV({send, send_bytes_, send_offsets_, recv, recv_bytes_, recv_offsets_}, stream);
}

void PeerExchange::Finish(const char* waiting, const char* flown) {
  {
    TraceSpan span(waiting);
    group_.Finish(call_);
  }
  flight_.End(flown);
}

}  // namespace latentmesh
