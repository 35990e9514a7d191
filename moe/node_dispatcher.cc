// TokenDispatcher of CPU ranks, by nodes: a token travels at most once to each other node, to the rank with the sender's
// place there; within a node everything lies in a shared window, written once by its owner and read in place.
//
//   Plan      publishes the choices and all tokens as rows of the wire's type; barrier
//   Dispatch  tells this rank's experts where their rows lie; they read them there, and write a weighted sum for each row
//             into the window
//   Combine   barrier; each host reads its tokens' sums in place
//
// Between nodes there are four exchanges among ranks of the same place: counts, choices, rows, sums; and one of the number
// of rounds. Counts, rows and sums travel from a Start to its Finish, all in started calls. Reuse of the window: a rank's tokens are read before the barrier in Combine, its sums before the next Plan's
// barrier or the one that begins a later round.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "moe/node_buffers.h"
#include "moe/node_plan.h"
#include "moe/parted_dispatcher.h"
#include "moe/peer_exchange.h"
#include "moe/row_sums.h"
#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

class NodeDispatcher : public PartedDispatcher {
 public:
  NodeDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits)
      : ops_(ops), ep_(ep), limits_(ResolveLimits(limits, ep.size())), peers_(ep) {
    OpenWindow();
    buffers_ = NodeBuffers(&ops.device(), limits_, ep.size(), shape().per_node);
  }

  const DispatchLimits& limits() const override { return limits_; }
  DispatchVolume last_volume() const override;
  void StartPlan(const DispatchParams& params, Stream& stream) override;
  int FinishPlan(Stream& stream) override;
  void StartDispatch(int round, Stream& stream) override;
  DispatchHandle FinishDispatch(Stream& stream) override;
  void StartCombine(const DispatchHandle& handle, const TensorView& expert_out, Stream& stream) override;
  void FinishCombine(const TensorView& out, Stream& stream) override;

 private:
  const NodeShape& shape() const { return lists_.shape; }
  bool one_node() const { return shape().nodes() == 1; }
  void OpenWindow();
  char* Part(int member) { return window_->part(member); }
  char* Mine() { return window_->part(shape().member()); }
  int32_t* Tokens(int member) { return reinterpret_cast<int32_t*>(Part(member) + layout_.tokens); }
  WireChoice* Choices(int member, int node) {
    return reinterpret_cast<WireChoice*>(Part(member) + layout_.choices + static_cast<size_t>(node) * layout_.list_choices);
  }

  void Publish(Stream& stream);
  void StartCounts(Stream& stream);
  void SendChoices(Stream& stream);
  void FindLists();
  int AgreeOnRounds(Stream& stream);
  using Run = PeerExchange::Run;
  void SetRun(int node, const Run& send, const Run& recv) { peers_.Set(shape().Peer(node), send, recv); }
  Range Share(int64_t tokens) const { return SplitRange(tokens, rounds_, round_); }
  size_t HostedOffset(int member, int node) const;
  void SendRows(Stream& stream);
  const char* RowAt(const NodeRows::Row& row);
  void FindRows();
  void SortSlots();
  void AddResults(int node, int64_t token, std::vector<int32_t>& next);
  void SumOwn(const TensorView& out);
  void SumHosted();
  void ReturnHosted(Stream& stream);
  void AddReturned(const TensorView& out);
  void RunSums(DType to, bool accumulate) {
    sums_.Run(ops_.device(), limits_.hidden, {layout_.back_format.dtype, to, accumulate});
  }

  Ops& ops_;
  Communicator& ep_;
  DispatchLimits limits_;
  NodeWindowLayout layout_;
  std::unique_ptr<SharedWindow> window_;
  NodeBuffers buffers_;
  PeerExchange peers_;

  // From Plan to the last Combine.
  DispatchParams params_;
  HostRouting routing_;
  NodeLists lists_;
  std::vector<std::vector<int32_t>> to_node_;   // [nodes] this rank's tokens that go there
  std::vector<int32_t> counts_;                 // [nodes] of these
  int rounds_ = 1;
  DispatchVolume volume_;

  // One round.
  int round_ = 0;
  NodeRows rows_;
  std::vector<const void*> received_;      // [rows] where they lie
  std::vector<int32_t> source_, next_;     // [slots] sorted by expert -> row; [experts] next free place
  std::vector<float> slot_weights_;        // [slots]
  RowSums sums_;
};

// Where hosts share no memory after all, every rank is a node of its own.
void NodeDispatcher::OpenWindow() {
  int ranks = ep_.size(), per_node = limits_.ranks_per_node;
  LM_CHECK(per_node >= 1 && ranks % per_node == 0);
  layout_ = NodeWindowLayout(limits_, ranks, per_node);
  if (per_node > 1) window_ = ep_.CreateWindow(layout_.bytes, per_node);
  if (window_ == nullptr) {
    per_node = 1;
    layout_ = NodeWindowLayout(limits_, ranks, 1);
    window_ = CreatePrivateWindow(layout_.bytes);
  }
  lists_.shape = {ranks, per_node, ep_.rank()};
  lists_.k = limits_.top_k;
}

void NodeDispatcher::StartPlan(const DispatchParams& params, Stream& stream) {
  CheckDispatch(params, limits_, ep_.size());
  params_ = params;
  volume_ = {};
  routing_.Read(ops_.device(), params, stream);
  if (params_.spread != nullptr)
    CountSpread(routing_.ids, params_.k, ep_.rank(), *params_.placement, params_.ranks_per_node, *params_.spread);
  Publish(stream);
  if (!one_node()) StartCounts(stream);
}

int NodeDispatcher::FinishPlan(Stream& stream) {
  if (!one_node()) {
    peers_.Finish("wait for counts", "counts under way");
    SendChoices(stream);
  }
  window_->Barrier("dispatch: tokens");
  FindLists();
  rounds_ = AgreeOnRounds(stream);
  return rounds_;
}

void NodeDispatcher::Publish(Stream&) {
  int32_t k = params_.k, nodes[64];
  LM_CHECK(k <= 64);
  int64_t tokens = params_.x.dim(0);
  RoutingChoice choice{routing_.ids, routing_.weights, k, ep_.rank()};
  Tokens(shape().member())[shape().node()] = static_cast<int32_t>(tokens);
  WireChoice* mine = Choices(shape().member(), shape().node());
  to_node_.assign(static_cast<size_t>(shape().nodes()), {});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = t * k; i < (t + 1) * k; ++i) {
      ExpertSite site = ChosenSite(choice, *params_.placement, i);
      mine[i] = {static_cast<uint16_t>(site.rank), static_cast<uint16_t>(site.local), routing_.weights[static_cast<size_t>(i)]};
      if (params_.loads != nullptr) ++params_.loads[routing_.ids[static_cast<size_t>(i)]];
    }
    int count = OtherNodesOf(mine + t * k, k, shape(), nodes);
    for (int i = 0; i < count; ++i) to_node_[static_cast<size_t>(nodes[i])].push_back(static_cast<int32_t>(t));
  }
  const TensorView& x = params_.x;
  char* own = Mine() + layout_.own;
  ForWireRows(ops_.device(), tokens, limits_.hidden, [&](int64_t t) {
    EncodeWireRow(x.f32() + t * x.row_stride, layout_.out_format, own + static_cast<size_t>(t) * layout_.out_row);
  });
}

// Straight into the window, as the choices.
void NodeDispatcher::StartCounts(Stream& stream) {
  counts_.resize(static_cast<size_t>(shape().nodes()));
  for (int n = 0; n < shape().nodes(); ++n) {
    counts_[static_cast<size_t>(n)] = static_cast<int32_t>(to_node_[static_cast<size_t>(n)].size());
    size_t bytes = n == shape().node() ? 0 : 4;
    Run run{bytes, static_cast<size_t>(n) * 4};
    SetRun(n, run, run);
  }
  peers_.Start(counts_.data(), Tokens(shape().member()), stream);
}

void NodeDispatcher::SendChoices(Stream& stream) {
  const int32_t* hosted = Tokens(shape().member());
  size_t each = static_cast<size_t>(params_.k) * sizeof(WireChoice), offset = 0;
  char* send = static_cast<char*>(buffers_.send.data());
  for (int n = 0; n < shape().nodes(); ++n) {
    if (n == shape().node()) {
      SetRun(n, {}, {});
      continue;
    }
    LM_CHECK_MSG(hosted[n] >= 0 && hosted[n] <= limits_.max_tokens, "dispatch: damaged count of tokens");
    size_t begin = offset;
    for (int32_t t : to_node_[static_cast<size_t>(n)]) {
      std::memcpy(send + offset, Choices(shape().member(), shape().node()) + int64_t{t} * params_.k, each);
      offset += each;
    }
    SetRun(n, {offset - begin, begin}, {static_cast<size_t>(hosted[n]) * each, static_cast<size_t>(n) * layout_.list_choices});
    volume_.node_rows_sent += static_cast<int64_t>(to_node_[static_cast<size_t>(n)].size());
    volume_.node_rows_received += hosted[n];
  }
  peers_.Start(send, Mine() + layout_.choices, stream);
  peers_.Finish("wait for choices", "choices under way");
}

void NodeDispatcher::FindLists() {
  lists_.lists.clear();
  for (int m = 0; m < shape().per_node; ++m)
    for (int n = 0; n < shape().nodes(); ++n) lists_.lists.push_back({Choices(m, n), Tokens(m)[n]});
}

int NodeDispatcher::AgreeOnRounds(Stream& stream) {
  int32_t slots_per_row = std::max(1, std::min(params_.k, params_.placement->MaxLocalCount()));
  int rounds = RoundsForNode(lists_, {limits_.max_rows, limits_.max_slots, slots_per_row});
  if (one_node()) return rounds;
  auto sent = [&](int r) {
    int64_t rows = 0;
    for (const auto& tokens : to_node_) rows += (static_cast<int64_t>(tokens.size()) + r - 1) / r;
    return rows;
  };
  while (sent(rounds) > limits_.max_rows) ++rounds;
  std::vector<int32_t> all(static_cast<size_t>(ep_.size()));
  int32_t mine = rounds;
  ep_.Finish(ep_.StartAllGather(&mine, all.data(), sizeof mine, stream));
  return *std::max_element(all.begin(), all.end());
}

// Where the rows of one hosted list begin in its host's `hosted` area, this round.
size_t NodeDispatcher::HostedOffset(int member, int node) const {
  int64_t rows = 0;
  for (int n = 0; n < node; ++n)
    if (n != shape().node()) rows += Share(lists_.At(member, n).tokens).count;
  return layout_.hosted + static_cast<size_t>(rows) * layout_.out_row;
}

void NodeDispatcher::SendRows(Stream& stream) {
  char* send = static_cast<char*>(buffers_.send.data());
  const char* own = Mine() + layout_.own;
  size_t offset = 0;
  for (int n = 0; n < shape().nodes(); ++n) {
    const std::vector<int32_t>& tokens = to_node_[static_cast<size_t>(n)];
    Range share = Share(static_cast<int64_t>(tokens.size()));
    size_t begin = offset;
    for (int64_t i = share.begin; i < share.end(); ++i, offset += layout_.out_row)
      std::memcpy(send + offset, own + static_cast<size_t>(tokens[static_cast<size_t>(i)]) * layout_.out_row, layout_.out_row);
    size_t coming = n == shape().node() ? 0 : static_cast<size_t>(Share(lists_.At(shape().member(), n).tokens).count);
    SetRun(n, {offset - begin, begin}, {coming * layout_.out_row, HostedOffset(shape().member(), n)});
  }
  peers_.Start(send, Mine(), stream);
}

const char* NodeDispatcher::RowAt(const NodeRows::Row& row) {
  if (row.node == shape().node()) return Part(row.member) + layout_.own + static_cast<size_t>(row.token) * layout_.out_row;
  int64_t within = row.token - Share(lists_.At(row.member, row.node).tokens).begin;
  return Part(row.member) + HostedOffset(row.member, row.node) + static_cast<size_t>(within) * layout_.out_row;
}

// Experts will read these rows from wherever they lie.
void NodeDispatcher::FindRows() {
  received_.clear();
  int64_t foreign = 0;
  for (const NodeRows::Row& row : rows_.rows) {
    received_.push_back(RowAt(row));
    foreign += row.member != shape().member();
  }
  ep_.CountShared(static_cast<size_t>(foreign) * layout_.out_row);
  volume_.shared_rows_read += foreign;
}

// Stable counting sort of the slots by expert.
void NodeDispatcher::SortSlots() {
  int32_t experts = params_.placement->LocalCount(ep_.rank()), *offsets = buffers_.offsets.view.i32();
  std::fill_n(offsets, experts + 1, 0);
  for (int32_t e : rows_.expert) {
    LM_CHECK_MSG(e < experts, "dispatch: do all ranks use the same expert placement?");
    ++offsets[e + 1];
  }
  for (int32_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  next_.assign(offsets, offsets + experts);
  source_.resize(rows_.expert.size());
  slot_weights_.resize(rows_.expert.size());
  for (size_t row = 0; row < rows_.rows.size(); ++row) {
    for (auto s = static_cast<size_t>(rows_.slot_begin[row]); s < static_cast<size_t>(rows_.slot_begin[row + 1]); ++s) {
      auto at = static_cast<size_t>(next_[static_cast<size_t>(rows_.expert[s])]++);
      source_[at] = static_cast<int32_t>(row);
      slot_weights_[at] = rows_.weight[s];
    }
  }
}

void NodeDispatcher::StartDispatch(int round, Stream& stream) {
  LM_CHECK(round >= 0 && round < rounds_);
  round_ = round;
  if (round > 0) window_->Barrier("dispatch: round");
  if (!one_node()) SendRows(stream);
}

DispatchHandle NodeDispatcher::FinishDispatch(Stream&) {
  if (!one_node()) {
    peers_.Finish("wait for tokens", "tokens under way");
    window_->Barrier("dispatch: rows of other nodes");
  }
  rows_.Build(lists_, rounds_, round_);
  FindRows();
  SortSlots();
  std::memcpy(Mine() + layout_.first, rows_.first.data(), rows_.first.size() * 4);
  DispatchHandle handle;
  handle.round = round_;
  handle.rows = static_cast<int64_t>(rows_.expert.size());
  auto received = static_cast<int64_t>(received_.size());
  handle.scattered = {received_.data(), received, layout_.out_format.dtype, limits_.hidden};
  handle.source = source_.data();
  handle.slot_weights = slot_weights_.data();
  handle.results = TensorView(Mine() + layout_.results, layout_.back_format.dtype, {received, limits_.hidden});
  handle.offsets = buffers_.offsets.view.i32();
  handle.experts = params_.placement->LocalCount(ep_.rank());
  return handle;
}

void NodeDispatcher::StartCombine(const DispatchHandle& handle, const TensorView& expert_out, Stream& stream) {
  LM_CHECK(handle.round == round_ && expert_out.data == handle.results.data);
  window_->Barrier("combine: results");
  if (one_node()) return;
  SumHosted();
  ReturnHosted(stream);
}

void NodeDispatcher::FinishCombine(const TensorView& out, Stream&) {
  LM_CHECK(out.dim(0) == params_.x.dim(0));
  SumOwn(out);
  if (one_node()) return;
  peers_.Finish("wait for results", "results under way");
  AddReturned(out);
}

// Adds what the members of this node have for one token of a list this rank hosts. `next` counts the list's rows
// of each member.
void NodeDispatcher::AddResults(int node, int64_t token, std::vector<int32_t>& next) {
  int32_t members[64];
  int list = shape().member() * shape().nodes() + node;
  int count = MembersOf(lists_.At(shape().member(), node).choices + token * params_.k, params_.k, shape(), members);
  for (int i = 0; i < count; ++i) {
    char* part = Part(members[i]);
    int32_t first = reinterpret_cast<const int32_t*>(part + layout_.first)[list];
    auto row = static_cast<size_t>(first + next[static_cast<size_t>(members[i])]++);
    sums_.Add(part + layout_.results + row * layout_.back_row);
    if (members[i] != shape().member()) ++volume_.shared_results_read, ep_.CountShared(layout_.back_row);
  }
}

void NodeDispatcher::SumOwn(const TensorView& out) {
  sums_.Clear();
  std::vector<int32_t> next(static_cast<size_t>(shape().per_node), 0);
  Range share = Share(lists_.At(shape().member(), shape().node()).tokens);
  for (int64_t t = share.begin; t < share.end(); ++t) {
    sums_.Begin(out.f32() + t * out.row_stride);
    AddResults(shape().node(), t, next);
  }
  RunSums(DType::kF32, true);
}

// One row for each token of another node, over all members of this one.
void NodeDispatcher::SumHosted() {
  sums_.Clear();
  char* to = static_cast<char*>(buffers_.send.data());
  for (int n = 0; n < shape().nodes(); ++n) {
    if (n == shape().node()) continue;
    std::vector<int32_t> next(static_cast<size_t>(shape().per_node), 0);
    Range share = Share(lists_.At(shape().member(), n).tokens);
    for (int64_t t = share.begin; t < share.end(); ++t, to += layout_.back_row) {
      sums_.Begin(to);
      AddResults(n, t, next);
    }
  }
  RunSums(layout_.back_format.dtype, false);
}

void NodeDispatcher::ReturnHosted(Stream& stream) {
  size_t send = 0, recv = 0;
  for (int n = 0; n < shape().nodes(); ++n) {
    bool other = n != shape().node();
    auto back = static_cast<size_t>(other ? Share(lists_.At(shape().member(), n).tokens).count : 0) * layout_.back_row;
    auto coming = static_cast<size_t>(Share(static_cast<int64_t>(to_node_[static_cast<size_t>(n)].size())).count) * layout_.back_row;
    SetRun(n, {back, send}, {coming, recv});
    send += back, recv += coming;
  }
  peers_.Start(buffers_.send.data(), buffers_.recv.data(), stream);
}

// A token's sums in order of node, so that results do not depend on timing.
void NodeDispatcher::AddReturned(const TensorView& out) {
  std::vector<std::pair<int32_t, const void*>> returned;
  const char* from = static_cast<const char*>(buffers_.recv.data());
  for (const auto& tokens : to_node_) {
    Range share = Share(static_cast<int64_t>(tokens.size()));
    for (int64_t i = share.begin; i < share.end(); ++i, from += layout_.back_row)
      returned.emplace_back(tokens[static_cast<size_t>(i)], from);
  }
  std::stable_sort(returned.begin(), returned.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  sums_.Clear();
  for (size_t i = 0; i < returned.size(); ++i) {
    if (i == 0 || returned[i].first != returned[i - 1].first) sums_.Begin(out.f32() + returned[i].first * out.row_stride);
    sums_.Add(returned[i].second);
  }
  RunSums(DType::kF32, true);
}

DispatchVolume NodeDispatcher::last_volume() const {
  DispatchVolume volume = volume_;
  CountDestinations(lists_, volume);
  return volume;
}

}  // namespace

std::unique_ptr<TokenDispatcher> CreateNodeDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits) {
  LM_CHECK_MSG(ops.device().kind() == DeviceKind::kCpu && limits.activation == DType::kF32, "windows are host memory");
  LM_CHECK(ep.size() <= 65535 && limits.max_local_experts <= 65535 && limits.top_k <= 64);
  if (ep.size() == 1) return CreateLocalDispatcher(ops, 0, 1, limits);
  return std::make_unique<NodeDispatcher>(ops, ep, limits);
}

size_t NodeDispatcherBytes(const DispatchLimits& limits, int ranks) {
  if (ranks == 1) return DispatcherBytes(limits, 1);
  DispatchLimits resolved = ResolveLimits(limits, ranks);
  return NodeWindowLayout(resolved, ranks, limits.ranks_per_node).bytes +
         NodeBuffers::Bytes(resolved, ranks, limits.ranks_per_node);
}

}  // namespace latentmesh
