// TokenDispatcher with exact counts. Four exchanges a dispatch: counts and metadata once, rows out and rows back a
// round. The host waits for the router's choice and for the counts; rows stay on the device. All exchanges are started
// calls: the counts travel from StartPlan to FinishPlan, the metadata from there to the first FinishDispatch.
#include <algorithm>
#include <utility>
#include <vector>

#include "moe/dispatch_buffers.h"
#include "moe/exchange_plan.h"
#include "moe/parted_dispatcher.h"
#include "moe/slot_sorter.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

// Byte counts and offsets for each peer, packed one after the other.
struct ByteRuns {
  std::vector<size_t> bytes, offsets;
  void Assign(int peers) { bytes.assign(peers, 0), offsets.assign(peers, 0); }
  void Set(int peer, size_t count) {
    bytes[peer] = count;
    offsets[peer] = peer == 0 ? 0 : offsets[peer - 1] + bytes[peer - 1];
  }
  size_t total() const { return bytes.empty() ? 0 : offsets.back() + bytes.back(); }
};

class ExactDispatcher : public PartedDispatcher {
 public:
  ExactDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits)
      : ops_(ops), ep_(ep), limits_(ResolveLimits(limits, ep.size())), buffers_(&ops.device(), limits_, ep.size()),
        sorter_(ops, limits_) {
    for (ByteRuns* runs : {&send_, &recv_, &send_metadata_, &recv_metadata_}) runs->Assign(ep.size());
    std::vector<float> ones(buffers_.ones.view.size(), 1.0f);
    auto stream = ops.device().CreateStream();
    if (!ones.empty()) Upload(ones, buffers_.ones.view.data, *stream);
    stream->Synchronize();
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
  bool casts() const { return limits_.payload != limits_.activation; }
  int64_t row_bytes() const { return limits_.hidden * static_cast<int64_t>(DTypeSize(limits_.payload)); }
  template <typename T>
  void Upload(const std::vector<T>& host, void* device, Stream& stream) {
    if (!host.empty()) ops_.device().CopyToDevice(device, host.data(), host.size() * sizeof(T), stream);
  }

  void CountLoads() const;
  void StartMetadata(Stream& stream);
  void FinishMetadata(Stream& stream);
  void SetRowRuns(int round);
  struct Exchange {
    StartedCall call;
    TraceFlight flight;
  };
  void Start(Exchange& exchange, const void* send, const ByteRuns& send_runs, void* recv, const ByteRuns& recv_runs, Stream& stream);
  void Finish(Exchange& exchange, const char* waiting, const char* flown);
  void SendRows(Stream& stream);
  TensorView ReceivedRows(Stream& stream);
  void ReturnRows(const TensorView& partial, Stream& stream);
  TensorView ReturnedRows(Stream& stream);
  void AddReturned(const TensorView& returned, const TensorView& out, Stream& stream);
  int64_t CountNodeRows() const;

  Ops& ops_;
  Communicator& ep_;
  DispatchLimits limits_;
  DispatchBuffers buffers_;
  SlotSorter sorter_;

  // State between Plan and the last Combine.
  DispatchParams params_;
  HostRouting routing_;
  RoutedRows out_rows_, in_rows_;    // by destination, by source
  CountMatrix counts_;
  std::vector<PairCount> from_;      // counts of this rank's sources
  int rounds_ = 0;
  int32_t slots_per_row_ = 1;
  Exchange counting_, describing_, moving_;   // of counts, metadata, rows
  bool described_ = false;           // in_rows_ is complete

  // State of one round.
  int round_ = 0;
  std::vector<RowRun> out_runs_;
  int64_t rows_out_ = 0, rows_in_ = 0;
  ByteRuns send_, recv_, send_metadata_, recv_metadata_;
  std::vector<int32_t> host_index_;
  std::vector<char> host_bytes_;
};

void ExactDispatcher::StartPlan(const DispatchParams& params, Stream& stream) {
  CheckDispatch(params, limits_, ep_.size());
  params_ = params;
  slots_per_row_ = std::max(1, std::min(params.k, params.placement->MaxLocalCount()));
  routing_.Read(ops_.device(), params, stream);
  BuildRoutedRows({routing_.ids, routing_.weights, params.k, ep_.rank()}, *params.placement, out_rows_);
  CountLoads();
  int ranks = ep_.size();
  from_.resize(ranks);
  for (int p = 0; p < ranks; ++p)
    from_[p] = {static_cast<int32_t>(out_rows_.rows(p)), static_cast<int32_t>(out_rows_.slots(p))};
  Upload(from_, buffers_.counts_out.data(), stream);
  counting_.flight.Begin();
  counting_.call = ep_.StartAllGather(buffers_.counts_out.data(), buffers_.counts_in.data(), from_.size() * sizeof(PairCount), stream);
}

int ExactDispatcher::FinishPlan(Stream& stream) {
  int ranks = ep_.size();
  Finish(counting_, "wait for counts", "counts under way");
  counts_.resize(static_cast<size_t>(ranks) * ranks);
  ops_.device().CopyToHost(counts_.data(), buffers_.counts_in.data(), counts_.size() * sizeof(PairCount), stream);
  stream.Synchronize();
  for (int p = 0; p < ranks; ++p) from_[p] = counts_[p * ranks + ep_.rank()];
  rounds_ = CountRounds(counts_, ranks, {limits_.max_rows, limits_.max_slots, slots_per_row_});
  StartMetadata(stream);
  return rounds_;
}

void ExactDispatcher::CountLoads() const {
  if (params_.spread != nullptr)
    CountSpread(routing_.ids, params_.k, ep_.rank(), *params_.placement, params_.ranks_per_node, *params_.spread);
  if (params_.loads == nullptr) return;
  for (int32_t id : routing_.ids) ++params_.loads[id];
}

void ExactDispatcher::StartMetadata(Stream& stream) {
  int ranks = ep_.size(), me = ep_.rank();
  for (int p = 0; p < ranks; ++p) {
    send_metadata_.Set(p, MetadataBytes(counts_[me * ranks + p]));
    recv_metadata_.Set(p, MetadataBytes(from_[p]));
  }
  host_bytes_.resize(send_metadata_.total());
  for (int p = 0; p < ranks; ++p) PackMetadata(out_rows_, p, host_bytes_.data() + send_metadata_.offsets[p]);
  Upload(host_bytes_, buffers_.metadata_out.data(), stream);
  Start(describing_, buffers_.metadata_out.data(), send_metadata_, buffers_.metadata_in.data(), recv_metadata_, stream);
  described_ = false;
}

void ExactDispatcher::FinishMetadata(Stream& stream) {
  if (described_) return;
  Finish(describing_, "wait for choices", "choices under way");
  host_bytes_.resize(recv_metadata_.total());
  if (!host_bytes_.empty())
    ops_.device().CopyToHost(host_bytes_.data(), buffers_.metadata_in.data(), host_bytes_.size(), stream);
  stream.Synchronize();
  UnpackMetadata(from_, host_bytes_.data(), params_.placement->LocalCount(ep_.rank()), in_rows_);
  described_ = true;
}

void ExactDispatcher::Start(Exchange& exchange, const void* send, const ByteRuns& send_runs, void* recv,
                            const ByteRuns& recv_runs, Stream& stream) {
  AllToAllVParams p;
  p.send = send;
  p.send_bytes = send_runs.bytes;
  p.send_offsets = send_runs.offsets;
  p.recv = recv;
  p.recv_bytes = recv_runs.bytes;
  p.recv_offsets = recv_runs.offsets;
  exchange.flight.Begin();
  exchange.call = ep_.StartAllToAllV(p, stream);
}

void ExactDispatcher::Finish(Exchange& exchange, const char* waiting, const char* flown) {
  {
    TraceSpan span(waiting);
    ep_.Finish(exchange.call);
  }
  exchange.flight.End(flown);
}

// In one round the counts tell how many rows come; how several rounds share them, only the metadata.
void ExactDispatcher::SetRowRuns(int round) {
  out_runs_.clear();
  for (int p = 0; p < ep_.size(); ++p) {
    out_runs_.push_back(RoundRows(out_rows_, p, rounds_, round));
    int64_t coming = rounds_ == 1 ? from_[p].rows : RoundRows(in_rows_, p, rounds_, round).count();
    send_.Set(p, static_cast<size_t>(out_runs_[p].count() * row_bytes()));
    recv_.Set(p, static_cast<size_t>(coming * row_bytes()));
  }
  rows_out_ = static_cast<int64_t>(send_.total()) / row_bytes();
  rows_in_ = static_cast<int64_t>(recv_.total()) / row_bytes();
}

void ExactDispatcher::StartDispatch(int round, Stream& stream) {
  LM_CHECK(round >= 0 && round < rounds_);
  round_ = round;
  if (rounds_ > 1) FinishMetadata(stream);
  SetRowRuns(round);
  SendRows(stream);
}

DispatchHandle ExactDispatcher::FinishDispatch(Stream& stream) {
  FinishMetadata(stream);
  TensorView rows = ReceivedRows(stream);
  sorter_.Begin(slots_per_row_);
  for (int p = 0; p < ep_.size(); ++p) {
    RowRun run = RoundRows(in_rows_, p, rounds_, round_);
    for (int64_t i = run.begin; i < run.end; ++i) {
      size_t first = in_rows_.slot_begin[i], count = in_rows_.slot_begin[i + 1] - in_rows_.slot_begin[i];
      sorter_.AddRow({in_rows_.expert.data() + first, count}, {in_rows_.weight.data() + first, count});
    }
  }
  DispatchHandle handle = sorter_.Sort(rows, params_.placement->LocalCount(ep_.rank()), stream);
  handle.round = round_;
  return handle;
}

// Rows of x set out to their destinations.
void ExactDispatcher::SendRows(Stream& stream) {
  TensorView x = params_.x;
  if (casts() && rows_out_ > 0) {
    TensorView cast = buffers_.cast.view.Rows(0, x.dim(0));
    ops_.Cast({x, cast}, stream);
    x = cast;
  }
  host_index_.clear();
  for (const RowRun& run : out_runs_)
    host_index_.insert(host_index_.end(), out_rows_.token.begin() + run.begin, out_rows_.token.begin() + run.end);
  Upload(host_index_, buffers_.send_index.view.data, stream);
  TensorView out = buffers_.rows_out.view.Rows(0, rows_out_);
  if (rows_out_ > 0) ops_.GatherRows({x, buffers_.send_index.view.i32(), rows_out_, 1, out}, stream);
  Start(moving_, out.data, send_, buffers_.rows_in.view.data, recv_, stream);
}

// As activations.
TensorView ExactDispatcher::ReceivedRows(Stream& stream) {
  Finish(moving_, "wait for tokens", "tokens under way");
  TensorView in = buffers_.rows_in.view.Rows(0, rows_in_);
  if (!casts()) return in;
  TensorView local = buffers_.local.view.Rows(0, rows_in_);
  if (rows_in_ > 0) ops_.Cast({in, local}, stream);
  return local;
}

void ExactDispatcher::StartCombine(const DispatchHandle& handle, const TensorView& expert_out, Stream& stream) {
  LM_CHECK(expert_out.dim(0) == handle.rows && handle.round == round_);
  TensorView partial = (casts() ? buffers_.local : buffers_.rows_in).view.Rows(0, rows_in_);
  if (rows_in_ > 0)
    ops_.CombineRows({expert_out, handle.sorted_row, handle.weights, handle.slots_per_row, partial, false}, stream);
  ReturnRows(partial, stream);
}

void ExactDispatcher::FinishCombine(const TensorView& out, Stream& stream) {
  LM_CHECK(out.dim(0) == params_.x.dim(0));
  AddReturned(ReturnedRows(stream), out, stream);
}

// Partial sums set out to the tokens' ranks.
void ExactDispatcher::ReturnRows(const TensorView& partial, Stream& stream) {
  TensorView in = buffers_.rows_in.view.Rows(0, rows_in_);
  if (casts() && rows_in_ > 0) ops_.Cast({partial, in}, stream);
  Start(moving_, in.data, recv_, buffers_.rows_out.view.data, send_, stream);
}

// This rank's results in the order in which its rows were sent.
TensorView ExactDispatcher::ReturnedRows(Stream& stream) {
  Finish(moving_, "wait for results", "results under way");
  TensorView out = buffers_.rows_out.view.Rows(0, rows_out_);
  if (!casts()) return out;
  TensorView local = buffers_.local.view.Rows(0, rows_out_);
  if (rows_out_ > 0) ops_.Cast({out, local}, stream);
  return local;
}

// A token's results stand in order of rank, so that sums do not depend on timing.
void ExactDispatcher::AddReturned(const TensorView& returned, const TensorView& out, Stream& stream) {
  if (rows_out_ == 0) return;
  int32_t width = std::min<int32_t>(limits_.top_k, ep_.size());
  std::vector<int32_t> used(out.dim(0), 0);
  host_index_.assign(static_cast<size_t>(out.dim(0)) * width, -1);
  int32_t row = 0;
  for (const RowRun& run : out_runs_)
    for (int64_t i = run.begin; i < run.end; ++i, ++row) {
      int32_t token = out_rows_.token[i];
      host_index_[static_cast<size_t>(token) * width + used[token]++] = row;
    }
  Upload(host_index_, buffers_.return_index.view.data, stream);
  ops_.CombineRows({returned, buffers_.return_index.view.i32(), buffers_.ones.view.f32(), width, out, true}, stream);
}

int64_t ExactDispatcher::CountNodeRows() const {
  if (limits_.ranks_per_node < 1) return 0;
  int mine = ep_.rank() / limits_.ranks_per_node;
  int64_t pairs = 0;
  std::vector<int> last_node(params_.x.dim(0), -1);       // ranks rise, so that a node's ranks come in a row
  for (int p = 0; p < ep_.size(); ++p) {
    int node = p / limits_.ranks_per_node;
    for (int64_t i = out_rows_.row_begin[p]; node != mine && i < out_rows_.row_begin[p + 1]; ++i) {
      int& last = last_node[out_rows_.token[i]];
      pairs += last != node;
      last = node;
    }
  }
  return pairs;
}

DispatchVolume ExactDispatcher::last_volume() const {
  DispatchVolume volume;
  int me = ep_.rank();
  for (int p = 0; p < ep_.size(); ++p) {
    if (p == me) continue;
    volume.rows_sent += out_rows_.rows(p);
    volume.slots_sent += out_rows_.slots(p);
    volume.rows_received += in_rows_.rows(p);
  }
  volume.node_rows_sent = CountNodeRows();
  return volume;
}

}  // namespace

std::unique_ptr<TokenDispatcher> CreateExactDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits) {
  if (ep.size() == 1) return CreateLocalDispatcher(ops, 0, 1, limits);
  LM_CHECK_MSG(limits.payload != DType::kF8E4M3, "FP8 rows travel by nodes");
  return std::make_unique<ExactDispatcher>(ops, ep, limits);
}

}  // namespace latentmesh
