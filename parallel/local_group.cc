#include "parallel/local_group.h"

#include <cstring>

namespace latentmesh {

using Clock = std::chrono::steady_clock;

std::string RankList(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(ranks[i]);
  return text;
}

void LocalGroup::Abort(const Error& error) {
  std::lock_guard lock(mutex_);
  AbortLocked(error);
}

void LocalGroup::AbortLocked(const Error& error) {
  if (aborted_.empty()) aborted_ = error.what();
  changed_.notify_all();
  throw error;
}

void LocalGroup::Wait(Lock& lock, const CallSite& site, const char* call, const std::function<bool()>& done,
                      const std::function<std::vector<int>()>& missing) {
  // Sliced because a failing RunLocalRanks does not know the groups its ranks wait in.
  constexpr std::chrono::milliseconds kSlice{20};
  auto deadline = Clock::now() + site.timeout;
  while (!done()) {
    if (!aborted_.empty()) throw site.Fail(StatusCode::kCommunication, call, "the group has failed: " + aborted_);
    if (LocalRunFailed()) AbortLocked(site.Fail(StatusCode::kCommunication, call, "another rank has failed"));
    std::vector<int> waiting_for = missing();
    for (int rank : waiting_for)
      if (left_[rank])
        AbortLocked(site.Fail(StatusCode::kCommunication, call, RankList({rank}) + " has left the group"));
    auto now = Clock::now();
    if (now >= deadline) AbortLocked(site.TimedOut(call, site.timeout, RankList(waiting_for)));
    changed_.wait_until(lock, std::min(deadline, now + kSlice));
  }
}

void LocalGroup::Arrive(Lock& lock, const CallSite& site, const char* call) {
  if (!aborted_.empty()) throw site.Fail(StatusCode::kCommunication, call, "the group has failed: " + aborted_);
  arrived_[site.rank] = true;
  if (++arrivals_ == offers_.size()) {
    arrived_.assign(arrived_.size(), false);
    arrivals_ = 0;
    ++generation_;
    changed_.notify_all();
    return;
  }
  uint64_t generation = generation_;
  Wait(lock, site, call, [&] { return generation_ != generation; }, [&] {
    std::vector<int> absent;
    for (size_t r = 0; r < arrived_.size(); ++r)
      if (!arrived_[r]) absent.push_back(static_cast<int>(r));
    return absent;
  });
}

void LocalGroup::Meet(const CallSite& site, const LocalOffer& offer) {
  Lock lock(mutex_);
  offers_[site.rank] = offer;
  Arrive(lock, site, offer.call);
  for (size_t r = 0; r < offers_.size(); ++r) {
    const LocalOffer& other = offers_[r];
    if (std::strcmp(other.call, offer.call) == 0 && other.bytes == offer.bytes && other.root == offer.root) continue;
    AbortLocked(site.Fail(StatusCode::kCommunication, offer.call,
                    "of " + std::to_string(offer.bytes) + " bytes, root " + std::to_string(offer.root) +
                        ", but rank " + std::to_string(r) + " calls " + other.call + " of " +
                        std::to_string(other.bytes) + " bytes, root " + std::to_string(other.root)));
  }
}

void LocalGroup::Part(const CallSite& site) {
  Lock lock(mutex_);
  Arrive(lock, site, offers_[site.rank].call);
}

void LocalGroup::CheckPost(const CallSite& site, const Post& post, const Awaited& expected, int from) {
  const bool started = expected.id != 0;
  if (started != (post.started != nullptr) || (started && std::strcmp(post.started, expected.call) != 0))
    AbortLocked(site.Fail(StatusCode::kCommunication, expected.call,
                          RankList({from}) + (post.started == nullptr ? " has sent outside of a started call"
                                                                      : std::string(" has started ") + post.started)));
  if (post.bytes == expected.bytes) return;
  AbortLocked(site.Fail(StatusCode::kCommunication, expected.call,
                        "expected " + std::to_string(expected.bytes) + " bytes from " + RankList({from}) +
                            ", which sent " + std::to_string(post.bytes)));
}

void LocalGroup::Take(Lock& lock, const CallSite& site, const Exchange& e) {
  auto& box = mailbox(e.from, site.rank).posts;
  Wait(lock, site, e.call, [&] { return !box.empty(); }, [&] { return std::vector<int>{e.from}; });
  std::shared_ptr<Post> post = box.front();
  CheckPost(site, *post, {0, e.call, e.recv, e.recv_bytes}, e.from);
  box.pop_front();
  if (post->bytes > 0) std::memcpy(e.recv, post->data, post->bytes);
  post->taken = true;
  changed_.notify_all();
}

void LocalGroup::Transfer(const CallSite& site, const Exchange& e) {
  Lock lock(mutex_);
  if (!aborted_.empty()) throw site.Fail(StatusCode::kCommunication, e.call, "the group has failed: " + aborted_);
  auto post = std::make_shared<Post>(Post{e.send, e.send_bytes});
  if (e.to >= 0) mailbox(site.rank, e.to).posts.push_back(post);
  changed_.notify_all();
  try {
    if (e.from >= 0) Take(lock, site, e);
    if (e.to >= 0) Wait(lock, site, e.call, [&] { return post->taken; }, [&] { return std::vector<int>{e.to}; });
  } catch (...) {                          // the memory that is sent may go
    if (e.to >= 0 && !post->taken) std::erase(mailbox(site.rank, e.to).posts, post);
    throw;
  }
}

void LocalGroup::Start(const CallSite& site, uint64_t id, const StartedMessages& messages) {
  Lock lock(mutex_);
  if (!aborted_.empty())
    throw site.Fail(StatusCode::kCommunication, messages.call, "the group has failed: " + aborted_);
  for (const auto& part : messages.recvs)
    mailbox(part.from, site.rank).awaited.push_back({id, messages.call, part.data, part.bytes});
  for (const auto& part : messages.sends) {
    auto post = std::make_shared<Post>(Post{nullptr, part.bytes});
    const char* data = static_cast<const char*>(part.data);
    post->started = messages.call;
    post->copy.assign(data, data + part.bytes);
    post->data = post->copy.data();
    mailbox(site.rank, part.to).posts.push_back(std::move(post));
  }
  changed_.notify_all();
}

// In the order of both sides' starting.
void LocalGroup::TakeStarted(const CallSite& site, int from) {
  Mailbox& box = mailbox(from, site.rank);
  while (!box.posts.empty() && !box.awaited.empty()) {
    const Awaited awaited = box.awaited.front();
    CheckPost(site, *box.posts.front(), awaited, from);
    std::memcpy(awaited.data, box.posts.front()->data, awaited.bytes);
    box.posts.pop_front(), box.awaited.pop_front();
  }
}

void LocalGroup::Progress(const CallSite& site) {
  Lock lock(mutex_);
  for (int from = 0; from < site.size; ++from) TakeStarted(site, from);
}

bool LocalGroup::AllTaken(const CallSite& site, uint64_t id) {
  bool all = true;
  for (int from = 0; from < site.size; ++from) {
    TakeStarted(site, from);
    for (const Awaited& awaited : mailbox(from, site.rank).awaited) all = all && awaited.id != id;
  }
  return all;
}

void LocalGroup::Finish(const CallSite& site, uint64_t id, const char* call) {
  const std::string name = std::string("Finish of a started ") + call;
  Lock lock(mutex_);
  Wait(lock, site, name.c_str(), [&] { return AllTaken(site, id); }, [&] {
    std::vector<int> missing;
    for (int from = 0; from < site.size; ++from)
      for (const Awaited& awaited : mailbox(from, site.rank).awaited)
        if (awaited.id == id && (missing.empty() || missing.back() != from)) missing.push_back(from);
    return missing;
  });
}

void LocalGroup::Leave(int rank) {
  std::lock_guard lock(mutex_);
  left_[rank] = true;
  changed_.notify_all();
}

}  // namespace latentmesh
