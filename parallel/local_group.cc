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

void LocalGroup::Take(Lock& lock, const CallSite& site, const Exchange& e) {
  auto& box = mailbox(e.from, site.rank);
  Wait(lock, site, e.call, [&] { return !box.empty(); }, [&] { return std::vector<int>{e.from}; });
  Post* post = box.front();
  if (post->bytes != e.recv_bytes)
    AbortLocked(site.Fail(StatusCode::kCommunication, e.call,
                    "expected " + std::to_string(e.recv_bytes) + " bytes from rank " + std::to_string(e.from) +
                        ", which sent " + std::to_string(post->bytes)));
  box.pop_front();
  if (post->bytes > 0) std::memcpy(e.recv, post->data, post->bytes);
  post->taken = true;
  changed_.notify_all();
}

void LocalGroup::Transfer(const CallSite& site, const Exchange& e) {
  Lock lock(mutex_);
  if (!aborted_.empty()) throw site.Fail(StatusCode::kCommunication, e.call, "the group has failed: " + aborted_);
  Post post{e.send, e.send_bytes};
  if (e.to >= 0) mailbox(site.rank, e.to).push_back(&post);
  changed_.notify_all();
  try {
    if (e.from >= 0) Take(lock, site, e);
    if (e.to >= 0) Wait(lock, site, e.call, [&] { return post.taken; }, [&] { return std::vector<int>{e.to}; });
  } catch (...) {                          // `post` dies with this call
    if (e.to >= 0 && !post.taken) std::erase(mailbox(site.rank, e.to), &post);
    throw;
  }
}

void LocalGroup::Leave(int rank) {
  std::lock_guard lock(mutex_);
  left_[rank] = true;
  changed_.notify_all();
}

}  // namespace latentmesh
