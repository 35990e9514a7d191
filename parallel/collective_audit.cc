#include "parallel/collective_audit.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>

#include "parallel/communicator_base.h"

namespace latentmesh {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {            // FNV-1a over 64-bit words, with the high bits folded in
  hash = (hash ^ value) * 0x100000001b3ull;
  return hash ^ (hash >> 29);
}

uint64_t HashBytes(const void* data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325ull;
  const char* at = static_cast<const char*>(data);
  for (; bytes >= 8; at += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    hash = Mix(hash, word);
  }
  for (; bytes > 0; ++at, --bytes) hash = Mix(hash, static_cast<unsigned char>(*at));
  return hash;
}

class AuditedCommunicator : public Communicator {
 public:
  AuditedCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<CollectiveLog> log)
      : inner_(std::move(inner)), log_(std::move(log)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  TrafficCounters traffic() const override { return inner_->traffic(); }
  void SetContext(int64_t step, const char* operation) override {
    step_ = step, operation_ = operation;
    inner_->SetContext(step, operation);
  }

  void AllReduceSum(const TensorView& inout, Stream& stream) override {
    Log(std::string("AllReduceSum ") + DTypeName(inout.dtype), inout.bytes());
    inner_->AllReduceSum(inout, stream);
    SameEverywhere(inout.data, inout.bytes(), stream);
  }
  void ReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) override {
    Log(std::string("ReduceScatterSum ") + DTypeName(in.dtype), in.bytes());
    inner_->ReduceScatterSum(in, out, stream);
  }
  void AllGather(const void* send, void* recv, size_t bytes, Stream& stream) override {
    Log("AllGather", bytes);
    inner_->AllGather(send, recv, bytes, stream);
    SameEverywhere(recv, bytes * size(), stream);
  }
  void AllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                  Stream& stream) override {
    size_t total = std::accumulate(recv_bytes.begin(), recv_bytes.end(), size_t{0});
    Log("AllGatherV", total);
    inner_->AllGatherV(send, bytes, recv, recv_bytes, stream);
    SameEverywhere(recv, total, stream);
  }
  void Broadcast(void* data, size_t bytes, int root, Stream& stream) override {
    Log("Broadcast from rank " + std::to_string(root), bytes);
    inner_->Broadcast(data, bytes, root, stream);
    SameEverywhere(data, bytes, stream);
  }
  void AllToAllV(const AllToAllVParams& p, Stream& stream) override {
    Log("AllToAllV", 0);
    for (int r = 0; r < size(); ++r)
      Message(log_->sent, r, static_cast<const char*>(p.send) + p.send_offsets[r], p.send_bytes[r], stream);
    inner_->AllToAllV(p, stream);
    for (int r = 0; r < size(); ++r)
      Message(log_->received, r, static_cast<const char*>(p.recv) + p.recv_offsets[r], p.recv_bytes[r], stream);
  }
  void Send(const void* data, size_t bytes, int peer, Stream& stream) override {
    Message(log_->sent, peer, data, bytes, stream);
    inner_->Send(data, bytes, peer, stream);
  }
  void Recv(void* data, size_t bytes, int peer, Stream& stream) override {
    inner_->Recv(data, bytes, peer, stream);
    Message(log_->received, peer, data, bytes, stream);
  }
  void SendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                Stream& stream) override {
    Message(log_->sent, to, send, send_bytes, stream);
    inner_->SendRecv(send, send_bytes, to, recv, recv_bytes, from, stream);
    Message(log_->received, from, recv, recv_bytes, stream);
  }
  void Barrier(Stream& stream) override {
    Log("Barrier", 0);
    inner_->Barrier(stream);
  }

  StartedCall StartSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                            Stream& stream) override {
    Message(log_->sent, to, send, send_bytes, stream);
    StartedCall call = inner_->StartSendRecv(send, send_bytes, to, recv, recv_bytes, from, stream);
    return Await(call, {{from, recv, recv_bytes, 0}}, stream);
  }
  StartedCall StartAllGather(const void* send, void* recv, size_t bytes, Stream& stream) override {
    Log("StartAllGather", bytes);
    for (int r = 0; r < size(); ++r) Message(log_->sent, r, send, bytes, stream);
    StartedCall call = inner_->StartAllGather(send, recv, bytes, stream);
    std::vector<Part> parts;
    for (int r = 0; r < size(); ++r) parts.push_back({r, static_cast<const char*>(recv) + bytes * r, bytes, 0});
    return Await(call, std::move(parts), stream);
  }
  StartedCall StartAllToAllV(const AllToAllVParams& p, Stream& stream) override {
    Log("StartAllToAllV", 0);
    for (int r = 0; r < size(); ++r)
      Message(log_->sent, r, static_cast<const char*>(p.send) + p.send_offsets[r], p.send_bytes[r], stream);
    StartedCall call = inner_->StartAllToAllV(p, stream);
    std::vector<Part> parts;
    for (int r = 0; r < size(); ++r)
      parts.push_back({r, static_cast<const char*>(p.recv) + p.recv_offsets[r], p.recv_bytes[r], 0});
    return Await(call, std::move(parts), stream);
  }
  void Poll() override { inner_->Poll(); }
  void Finish(StartedCall call) override {
    inner_->Finish(call);
    for (Pending& pending : pending_)
      if (pending.call.id == call.id && !pending.finished) Arrived(pending);
    LogArrived();
  }
  void Finish() override {
    inner_->Finish();
    for (Pending& pending : pending_)
      if (!pending.finished) Arrived(pending);
    LogArrived();
  }

 private:
  struct Part {
    int from;
    const void* data;
    size_t bytes;
    uint64_t sum;                          // once it has arrived
  };
  struct Pending {
    StartedCall call;
    bool on_host = true, finished = false;
    std::vector<Part> parts;
  };

  StartedCall Await(StartedCall call, std::vector<Part> parts, Stream& stream) {
    pending_.push_back({call, stream.native() == nullptr, false, std::move(parts)});
    if (call.id == 0) Arrived(pending_.back());              // made whole at once
    LogArrived();
    return call;
  }
  void Arrived(Pending& pending) {
    for (Part& part : pending.parts) part.sum = pending.on_host ? HashBytes(part.data, part.bytes) : part.bytes;
    pending.finished = true;
  }
  // In the order of starting, which is that of the senders, whatever the order of finishing.
  void LogArrived() {
    for (; !pending_.empty() && pending_.front().finished; pending_.pop_front())
      for (const Part& part : pending_.front().parts)
        log_->received[part.from] = Mix(log_->received[part.from], part.sum);
  }

  void Log(const std::string& call, size_t bytes) {
    std::string text = call + (bytes > 0 ? ", " + std::to_string(bytes) + " bytes" : "");
    log_->call_hashes.push_back(HashBytes(text.data(), text.size()));
    log_->calls.push_back("step " + std::to_string(step_) + ", " + operation_ + ": " + text);
    log_->hash = Mix(log_->hash, log_->call_hashes.back());
  }
  // After the call; adds the result to the hash of the call just logged.
  void SameEverywhere(const void* data, size_t bytes, Stream& stream) {
    if (stream.native() != nullptr) return;
    log_->call_hashes.back() = Mix(log_->call_hashes.back(), HashBytes(data, bytes));
    log_->hash = Mix(log_->hash, log_->call_hashes.back());
  }
  void Message(std::vector<uint64_t>& sums, int peer, const void* data, size_t bytes, Stream& stream) {
    sums[peer] = Mix(sums[peer], stream.native() == nullptr ? HashBytes(data, bytes) : bytes);
  }

  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<CollectiveLog> log_;
  int64_t step_ = -1;
  const char* operation_ = "";
  std::deque<Pending> pending_;            // started calls not yet in the log of what was received
};

// What rank 0 knows of one rank's log of one group, in the order of Digest.
struct Summary {
  int first = 0, index = 0, size = 0;      // first world rank of the group; the rank's place in it
  uint64_t hash = 0;
  std::vector<uint64_t> sent, received;
};

uint64_t Take(const std::string& bytes, size_t& at) {
  LM_CHECK(at + 8 <= bytes.size());
  uint64_t value;
  std::memcpy(&value, bytes.data() + at, 8);
  at += 8;
  return value;
}

std::vector<Summary> ParseDigest(const std::string& bytes, size_t groups) {
  std::vector<Summary> summaries(groups);
  size_t at = 0;
  for (Summary& s : summaries) {
    s.first = static_cast<int>(Take(bytes, at)), s.index = static_cast<int>(Take(bytes, at));
    s.size = static_cast<int>(Take(bytes, at)), s.hash = Take(bytes, at);
    for (int r = 0; r < s.size; ++r) s.sent.push_back(Take(bytes, at));
    for (int r = 0; r < s.size; ++r) s.received.push_back(Take(bytes, at));
  }
  return summaries;
}

// Two world ranks of a group that disagree; `message` says on a message, otherwise it is on the calls.
struct Difference {
  size_t group = 0;
  int rank = -1, reference = -1;
  bool message = false;
};

// summaries[rank][group]
Difference FindDifference(const std::vector<std::vector<Summary>>& summaries, size_t groups) {
  for (size_t g = 0; g < groups; ++g) {
    std::map<std::pair<int, int>, int> world_rank;       // (first, index) of a group -> world rank
    for (size_t r = 0; r < summaries.size(); ++r)
      world_rank[{summaries[r][g].first, summaries[r][g].index}] = static_cast<int>(r);
    for (size_t r = 0; r < summaries.size(); ++r) {
      const Summary& mine = summaries[r][g];
      int leader = world_rank.at({mine.first, 0});
      if (summaries[leader][g].hash != mine.hash) return {g, static_cast<int>(r), leader, false};
      for (int i = 0; i < mine.size; ++i) {
        int from = world_rank.at({mine.first, i});
        if (summaries[from][g].sent[mine.index] != mine.received[i]) return {g, static_cast<int>(r), from, true};
      }
    }
  }
  return {};
}

// A log as text: one line "hash call" for each call.
std::string LogText(const CollectiveLog& log) {
  std::string text;
  for (size_t i = 0; i < log.calls.size(); ++i) text += std::to_string(log.call_hashes[i]) + " " + log.calls[i] + "\n";
  return text;
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

std::string FirstDifferentCall(const std::string& mine_text, const std::string& other_text) {
  std::vector<std::string> mine = Lines(mine_text), other = Lines(other_text);
  size_t i = 0;
  while (i < mine.size() && i < other.size() && mine[i] == other[i]) ++i;
  auto call = [&](const std::vector<std::string>& lines) {
    return i < lines.size() ? "\"" + lines[i].substr(lines[i].find(' ') + 1) + "\"" : std::string("nothing more");
  };
  std::string where = "call " + std::to_string(i) + ": ";
  if (call(mine) == call(other)) return where + call(mine) + " gave them different data";
  return where + "the first calls " + call(mine) + ", the second " + call(other);
}

}  // namespace

CollectiveAudit::CollectiveAudit(const ProcessMesh& mesh) {
  std::vector<int> world(mesh.world_size());
  std::iota(world.begin(), world.end(), 0);
  const std::pair<const char*, std::vector<int>> groups[] = {
      {"world", world}, {"tp", mesh.TpGroup()}, {"cp", mesh.CpGroup()},
      {"dp", mesh.DpGroup()}, {"ep", mesh.EpGroup()}, {"pp", mesh.PpGroup()}};
  for (const auto& [name, ranks] : groups) {
    auto log = std::make_shared<CollectiveLog>();
    log->group = name;
    log->ranks = ranks;
    log->sent.resize(ranks.size());
    log->received.resize(ranks.size());
    logs_.push_back(std::move(log));
  }
}

CommunicatorSet CollectiveAudit::Wrap(CommunicatorSet set) {
  std::unique_ptr<Communicator>* members[] = {&set.world, &set.tp, &set.cp, &set.dp, &set.ep, &set.pp};
  for (size_t g = 0; g < logs_.size(); ++g)
    *members[g] = std::make_unique<AuditedCommunicator>(std::move(*members[g]), logs_[g]);
  return set;
}

std::string CollectiveAudit::Digest(int rank) const {
  std::string digest;
  auto add = [&](uint64_t value) { digest.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (const auto& log : logs_) {
    add(log->ranks.front());
    add(std::find(log->ranks.begin(), log->ranks.end(), rank) - log->ranks.begin());
    add(log->ranks.size());
    add(log->hash);
    for (uint64_t sum : log->sent) add(sum);
    for (uint64_t sum : log->received) add(sum);
  }
  return digest;
}

void CollectiveAudit::Restart() {
  for (auto& log : logs_) {
    log->hash = 0;
    log->calls.clear(), log->call_hashes.clear();
    std::fill(log->sent.begin(), log->sent.end(), 0);
    std::fill(log->received.begin(), log->received.end(), 0);
  }
}

Status CollectiveAudit::Compare(ControlChannel& control) {
  std::vector<std::string> digests = control.Gather(Digest(control.rank()));
  std::vector<std::vector<Summary>> summaries;
  for (const std::string& digest : digests) summaries.push_back(ParseDigest(digest, logs_.size()));
  Difference found = FindDifference(summaries, logs_.size());
  std::string wire(reinterpret_cast<const char*>(&found), sizeof found);
  control.Broadcast(wire);
  LM_CHECK(wire.size() == sizeof found);
  std::memcpy(&found, wire.data(), sizeof found);
  Status status;
  if (found.rank >= 0) status = Explain(found.group, found.rank, found.reference, found.message, control);
  Restart();
  return control.Agree(status);
}

// The two ranks show their logs to rank 0, which alone answers with the difference.
Status CollectiveAudit::Explain(size_t group, int rank, int reference, bool message, ControlChannel& control) const {
  std::string mine = LogText(*logs_[group]), logs[2];
  const int ranks[2] = {rank, reference};
  for (int i = 0; i < 2; ++i) {
    if (control.rank() == ranks[i] && ranks[i] != 0) control.Send(mine, 0);
    if (control.rank() == 0) logs[i] = ranks[i] == 0 ? mine : control.Recv(ranks[i]);
  }
  if (control.rank() != 0) return Status::Ok();
  std::string who = "group " + logs_[group]->group + ": ";
  if (message)
    return Status(StatusCode::kCommunication, who + "what " + control.DescribeRank(rank) + " received from " +
                                                  control.DescribeRank(reference) + " is not what that sent");
  return Status(StatusCode::kCommunication, who + control.DescribeRank(rank) + " and " +
                                                control.DescribeRank(reference) + " differ at " +
                                                FirstDifferentCall(logs[0], logs[1]));
}

}  // namespace latentmesh
