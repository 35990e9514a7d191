#include "parallel/mpi_control_channel.h"

#include <climits>
#include <list>

#include "parallel/backoff.h"

namespace latentmesh {
namespace {

// On the wire a message is its tag in one byte, then its bytes.
class MpiControlChannel : public ControlChannelBase {
 public:
  MpiControlChannel(CallSite site, ControlTimeouts timeouts, std::shared_ptr<MpiGroup> group)
      : ControlChannelBase(std::move(site), timeouts), group_(std::move(group)) {}
  std::string DescribeRank(int rank) const override { return group_->peer(rank); }

 protected:
  void Post(Tag tag, int to, std::string_view message) override {
    LM_CHECK(to >= 0 && to < size() && to != rank());
    LM_CHECK_MSG(message.size() < INT_MAX, "a control message is limited to 2 GiB");
    Reap();
    Outgoing& out = outgoing_.emplace_back();
    out.to = to;
    out.bytes.reserve(message.size() + 1);
    out.bytes.push_back(static_cast<char>(tag));
    out.bytes.append(message);
    CheckMpi(MPI_Isend(out.bytes.data(), static_cast<int>(out.bytes.size()), MPI_BYTE, to, Stream(tag), group_->comm(),
                       &out.request),
             site(), "control");
  }

  bool TryGet(Tag& tag, int from, std::string& message) override {
    int found = 0, count = 0;
    MPI_Message handle;
    MPI_Status status;
    CheckMpi(MPI_Improbe(from, Stream(tag), group_->comm(), &found, &handle, &status), site(), "control");
    if (!found) return false;
    MPI_Get_count(&status, MPI_BYTE, &count);
    if (count < 1) throw site().Fail(StatusCode::kCommunication, "control", "empty message from " + DescribeRank(from));
    message.resize(count);
    MPI_Request request;
    CheckMpi(MPI_Imrecv(message.data(), count, MPI_BYTE, &handle, &request), site(), "control");
    MpiExchange incoming(group_);
    incoming.Add(request, from);
    incoming.Finish(site(), "control");
    tag = static_cast<Tag>(message[0]);
    message.erase(0, 1);
    return true;
  }

  void Flush(const char* call) override {
    Backoff backoff(timeouts().step);
    for (Reap(); !outgoing_.empty(); Reap())
      if (!backoff.Pause()) throw site().TimedOut(call, timeouts().step, DescribeRank(outgoing_.front().to));
  }

 private:
  struct Outgoing {
    int to = 0;
    std::string bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  // Heartbeats and plans share a stream, so that they stay in order.
  static int Stream(Tag tag) { return static_cast<int>(tag == Tag::kHeartbeat ? Tag::kPlan : tag); }
  // Forgets what has left.
  void Reap() {
    for (auto out = outgoing_.begin(); out != outgoing_.end();) {
      int sent = 0;
      CheckMpi(MPI_Test(&out->request, &sent, MPI_STATUS_IGNORE), site(), "control");
      out = sent ? outgoing_.erase(out) : std::next(out);
    }
  }

  std::shared_ptr<MpiGroup> group_;
  std::list<Outgoing> outgoing_;           // a list, because MPI holds pointers to the bytes
};

}  // namespace

std::unique_ptr<ControlChannelBase> CreateMpiControlChannel(CallSite site, ControlTimeouts timeouts,
                                                            std::shared_ptr<MpiGroup> group) {
  return std::make_unique<MpiControlChannel>(std::move(site), timeouts, std::move(group));
}

}  // namespace latentmesh
