#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "parallel/control_channel_base.h"
#include "parallel/local_communicator.h"
#include "parallel/local_group.h"

namespace latentmesh {
namespace {

// Shared by the ranks of one channel.
struct Mail {
  using Key = std::pair<int, std::pair<int, int>>;      // stream, (from, to)
  std::mutex mutex;
  std::map<Key, std::deque<std::pair<int, std::string>>> boxes;   // messages with their tag
  std::vector<char> left;
};

class LocalControl : public ControlChannelBase {
 public:
  LocalControl(CallSite site, ControlTimeouts timeouts, std::shared_ptr<Mail> mail)
      : ControlChannelBase(std::move(site), timeouts), mail_(std::move(mail)) {}
  ~LocalControl() override {
    std::lock_guard lock(mail_->mutex);
    mail_->left[rank()] = true;
  }

 protected:
  void Post(Tag tag, int to, std::string_view message) override {
    LM_CHECK(to >= 0 && to < size() && to != rank());
    std::lock_guard lock(mail_->mutex);
    mail_->boxes[Key(tag, rank(), to)].emplace_back(static_cast<int>(tag), message);
  }

  bool TryGet(Tag& tag, int from, std::string& message) override {
    LM_CHECK(from >= 0 && from < size() && from != rank());
    std::lock_guard lock(mail_->mutex);
    auto& box = mail_->boxes[Key(tag, from, rank())];
    if (box.empty()) {
      CheckPeer(tag, from);
      return false;
    }
    tag = static_cast<Tag>(box.front().first);
    message = std::move(box.front().second);
    box.pop_front();
    return true;
  }

  void Flush(const char*) override {}

 private:
  // Heartbeats and plans share a stream, so that they stay in order.
  static Mail::Key Key(Tag tag, int from, int to) {
    return {static_cast<int>(tag == Tag::kHeartbeat ? Tag::kPlan : tag), {from, to}};
  }
  void CheckPeer(Tag tag, int from) const {
    if (LocalRunFailed()) throw site().Fail(StatusCode::kCommunication, "control", "another rank has failed");
    if (mail_->left[from] && tag != Tag::kAlive)
      throw site().Fail(StatusCode::kCommunication, "control", "rank " + std::to_string(from) + " has left the job");
  }

  std::shared_ptr<Mail> mail_;
};

}  // namespace

std::vector<std::unique_ptr<ControlChannel>> CreateLocalControl(int size, std::chrono::milliseconds timeout) {
  LM_CHECK(size >= 1);
  auto mail = std::make_shared<Mail>();
  mail->left.resize(size);
  std::vector<std::unique_ptr<ControlChannel>> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.push_back(std::make_unique<LocalControl>(
        CallSite{.group = "control", .rank = rank, .size = size, .timeout = timeout},
        ControlTimeouts{timeout, timeout}, mail));
  return ranks;
}

}  // namespace latentmesh
