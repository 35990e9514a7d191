#include "runtime/checkpoint/weight_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <new>

#include "parallel/host_stream.h"
#include "runtime/checkpoint/load_plan.h"
#include "runtime/checkpoint/shard_reader.h"

namespace latentmesh {
namespace {

constexpr size_t kPiece = 256ull << 20;        // MPI counts are 32 bits wide
constexpr uint64_t kRoundBytes = 64ull << 20;  // several rounds a second, for progress
constexpr uint64_t kMostRounds = 4096;

// Before each payload goes one of these, so that a failed read stops the receivers instead of leaving them waiting.
enum class Marker : uint64_t { kData = 0x6c6d64617461, kFailed = 0x6c6d6661696c };

TensorSlice SliceOf(const TensorRequest& request, const TensorInfo& tensor) {
  const TensorSlice slice{request.row_begin, request.rows, request.col_begin, request.cols};
  return slice == TensorSlice{} ? TensorSlice{0, tensor.rows(), 0, tensor.cols()} : slice;
}

// What can be refused before any data moves.
Status CheckRequest(const Checkpoint& checkpoint, const TensorRequest& request) {
  LM_RETURN_IF_ERROR(checkpoint.StoredDType(request.name).status());
  const TensorInfo& tensor = *checkpoint.Find(request.name);
  if (tensor.shape != request.shape) {
    return InvalidModel(
        fmt::format("{}: tensor '{}' has shape {}, but config.json implies {}; do both come from one model?",
                    checkpoint.PathOf(tensor), tensor.name, tensor.ShapeString(), ShapeString(request.shape)));
  }
  const TensorSlice slice = SliceOf(request, tensor);
  if (slice.FitsIn(tensor.rows(), tensor.cols())) return Status::Ok();
  return {StatusCode::kInternal,
          fmt::format("tensor '{}' of shape {}: rows [{}, +{}) and columns [{}, +{}) are no part of it", tensor.name,
                      tensor.ShapeString(), slice.row_begin, slice.rows, slice.col_begin, slice.cols)};
}

// The requests that the checkpoint can answer. `requests` loses absent optional ones, so that indices agree.
Result<std::vector<PlainRequest>> ToPlain(const Checkpoint& checkpoint, std::vector<TensorRequest>& requests) {
  std::erase_if(requests, [&](const TensorRequest& r) { return r.optional && checkpoint.Find(r.name) == nullptr; });
  std::vector<PlainRequest> plain;
  for (const TensorRequest& request : requests) {
    LM_RETURN_IF_ERROR(CheckRequest(checkpoint, request));
    const TensorInfo* tensor = checkpoint.Find(request.name);
    plain.push_back({static_cast<uint32_t>(tensor - checkpoint.tensors().data()), 0, SliceOf(request, *tensor)});
  }
  return plain;
}

std::vector<std::vector<PlainRequest>> GatherRequests(const std::vector<PlainRequest>& mine, Communicator& world,
                                                      Stream& stream) {
  const size_t bytes = mine.size() * sizeof(PlainRequest);
  std::vector<size_t> sizes(world.size());
  world.AllGather(&bytes, sizes.data(), sizeof bytes, stream);
  size_t total = 0;
  for (const size_t size : sizes) total += size;
  std::vector<PlainRequest> all(total / sizeof(PlainRequest));
  world.AllGatherV(mine.data(), bytes, all.data(), sizes, stream);
  std::vector<std::vector<PlainRequest>> by_rank;
  auto begin = all.begin();
  for (const size_t size : sizes) {
    by_rank.emplace_back(begin, begin + static_cast<ptrdiff_t>(size / sizeof(PlainRequest)));
    begin += static_cast<ptrdiff_t>(size / sizeof(PlainRequest));
  }
  return by_rank;
}

std::vector<uint32_t> TensorsReadBy(int rank, const LoadPlan& plan) {
  std::vector<uint32_t> tensors;
  for (const LoadStep& step : plan.steps) {
    if (step.reader == rank) tensors.push_back(step.tensor);
  }
  return tensors;
}

Status Consume(const TensorRequest& request, const LoadedSlice& slice) {
  try {
    return request.consume(slice);
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("no memory left while a weight was stored");
  } catch (const std::exception& error) {
    return {StatusCode::kInternal, error.what()};
  }
}

// One rank's part in a plan. After a failure anywhere it still makes every transfer of the round, as markers where data
// is missing, because its peers count on them; the end of the round tells all ranks to stop.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const LoadPlan& plan, const std::vector<TensorRequest>& requests,
         Communicator& world, const LoadOptions& options)
      : checkpoint_(checkpoint),
        plan_(plan),
        requests_(requests),
        world_(world),
        options_(options),
        reader_(checkpoint, TensorsReadBy(world.rank(), plan), options.window_bytes) {}

  // Before the first round: all memory for transfers. Later there is no way to refuse one.
  Status Prepare();
  // False when a rank has failed; the reason, if it lies here, is in status().
  bool RunRound(size_t begin, size_t end);
  const Status& status() const { return status_; }
  bool failed() const { return failed_; }
  const LoadProgress& progress() const { return progress_; }

 private:
  void RunStep(const LoadStep& step);
  void ReadAndDeliver(const LoadStep& step, const TensorInfo& tensor);
  void ReceiveBroadcast(const LoadStep& step, const TensorInfo& tensor);
  void Receive(const LoadStep& step, const TensorInfo& tensor);
  void SendSlice(const std::byte* whole, const TensorInfo& tensor, const Delivery& delivery);
  void ConsumeOwn(const std::byte* whole, const LoadStep& step, const TensorInfo& tensor);
  void ConsumeSlice(const std::byte* data, const TensorInfo& tensor, const Delivery& delivery);
  const std::byte* Packed(const std::byte* whole, const TensorInfo& tensor, const TensorSlice& slice);
  void SendMarker(Marker marker, int to) { world_.Send(&marker, sizeof marker, to, stream_); }
  bool ReceiveMarker(Marker marker);
  template <typename Transfer>
  void InPieces(size_t bytes, const Transfer& transfer);
  void Fail(const Status& status);
  bool EndRound();
  void ReportProgress(bool last);
  bool Wants(const LoadStep& step) const;

  const Checkpoint& checkpoint_;
  const LoadPlan& plan_;
  const std::vector<TensorRequest>& requests_;
  Communicator& world_;
  const LoadOptions& options_;
  HostStream stream_;
  ShardReader reader_;
  std::unique_ptr<std::byte[]> received_;  // the largest slice that comes from a peer
  std::unique_ptr<std::byte[]> packed_;    // the largest slice of columns on its way out
  Status status_;
  bool failed_ = false;  // here, or at a peer whose data is missing
  LoadProgress progress_;
  std::chrono::steady_clock::time_point last_report_;
};

size_t SliceBytes(const TensorSlice& slice, const TensorInfo& tensor) {
  return static_cast<size_t>(slice.size()) * DTypeSize(*tensor.dtype);
}

Status Loader::Prepare() {
  size_t largest_received = 0, largest_packed = 0;
  for (const LoadStep& step : plan_.steps) {
    const TensorInfo& tensor = checkpoint_.tensors()[step.tensor];
    const bool reads = step.reader == world_.rank();
    for (const Delivery& delivery : step.deliveries) {
      const size_t bytes = SliceBytes(delivery.slice, tensor);
      if (!reads && delivery.rank == world_.rank()) largest_received = std::max(largest_received, bytes);
      if (reads && !delivery.slice.IsContiguous(tensor.cols())) largest_packed = std::max(largest_packed, bytes);
    }
  }
  progress_.bytes_total = plan_.total_bytes;
  received_.reset(new (std::nothrow) std::byte[largest_received]);
  packed_.reset(new (std::nothrow) std::byte[largest_packed]);
  if (received_ != nullptr && packed_ != nullptr) return Status::Ok();
  return ResourceExhausted(fmt::format("no memory for transfer buffers of {} and {} bytes while loading weights",
                                       largest_received, largest_packed));
}

bool Loader::RunRound(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) RunStep(plan_.steps[i]);
  if (!EndRound()) return false;
  ReportProgress(end == plan_.steps.size());
  return true;
}

bool Loader::Wants(const LoadStep& step) const {
  return std::any_of(step.deliveries.begin(), step.deliveries.end(),
                     [&](const Delivery& delivery) { return delivery.rank == world_.rank(); });
}

void Loader::RunStep(const LoadStep& step) {
  const TensorInfo& tensor = checkpoint_.tensors()[step.tensor];
  if (step.reader == world_.rank()) return ReadAndDeliver(step, tensor);
  if (step.broadcast) return ReceiveBroadcast(step, tensor);
  if (Wants(step)) Receive(step, tensor);
}

void Loader::ReadAndDeliver(const LoadStep& step, const TensorInfo& tensor) {
  const Result<const std::byte*> data = reader_.Next();
  Marker marker = data.ok() ? Marker::kData : Marker::kFailed;
  if (!data.ok()) Fail(data.status());
  const std::byte* whole = data.ok() ? *data : nullptr;
  if (step.broadcast) {
    world_.Broadcast(&marker, sizeof marker, step.reader, stream_);
    if (whole == nullptr) return;
    InPieces(tensor.bytes, [&](size_t offset, size_t bytes) {
      world_.Broadcast(const_cast<std::byte*>(whole) + offset, bytes, step.reader, stream_);  // the root's is only read
    });
  } else {
    for (const Delivery& delivery : step.deliveries) SendSlice(whole, tensor, delivery);
  }
  if (whole != nullptr) ConsumeOwn(whole, step, tensor);
}

void Loader::SendSlice(const std::byte* whole, const TensorInfo& tensor, const Delivery& delivery) {
  if (delivery.rank == world_.rank() || delivery.slice.empty()) return;
  SendMarker(whole == nullptr ? Marker::kFailed : Marker::kData, delivery.rank);
  if (whole == nullptr) return;
  const std::byte* data = Packed(whole, tensor, delivery.slice);
  InPieces(SliceBytes(delivery.slice, tensor),
           [&](size_t offset, size_t bytes) { world_.Send(data + offset, bytes, delivery.rank, stream_); });
}

// Slices of whole rows are sent and consumed where they lie.
const std::byte* Loader::Packed(const std::byte* whole, const TensorInfo& tensor, const TensorSlice& slice) {
  const size_t element = DTypeSize(*tensor.dtype);
  if (slice.IsContiguous(tensor.cols())) return whole + SliceOffset(slice, tensor.cols(), element);
  CopySlice(whole, tensor.cols(), element, slice, packed_.get());
  return packed_.get();
}

void Loader::ConsumeOwn(const std::byte* whole, const LoadStep& step, const TensorInfo& tensor) {
  for (const Delivery& delivery : step.deliveries) {
    if (delivery.rank == world_.rank()) ConsumeSlice(Packed(whole, tensor, delivery.slice), tensor, delivery);
  }
}

void Loader::ReceiveBroadcast(const LoadStep& step, const TensorInfo& tensor) {
  Marker marker{};
  world_.Broadcast(&marker, sizeof marker, step.reader, stream_);
  if (!ReceiveMarker(marker)) return;
  InPieces(tensor.bytes, [&](size_t offset, size_t bytes) {
    world_.Broadcast(received_.get() + offset, bytes, step.reader, stream_);
  });
  progress_.bytes_received_here += tensor.bytes;
  for (const Delivery& delivery : step.deliveries) {
    if (delivery.rank == world_.rank()) ConsumeSlice(received_.get(), tensor, delivery);
  }
}

void Loader::Receive(const LoadStep& step, const TensorInfo& tensor) {
  for (const Delivery& delivery : step.deliveries) {
    if (delivery.rank != world_.rank()) continue;
    if (!delivery.slice.empty()) {
      Marker marker{};
      world_.Recv(&marker, sizeof marker, step.reader, stream_);
      if (!ReceiveMarker(marker)) continue;
      const size_t size = SliceBytes(delivery.slice, tensor);
      InPieces(size, [&](size_t offset, size_t bytes) {
        world_.Recv(received_.get() + offset, bytes, step.reader, stream_);
      });
      progress_.bytes_received_here += size;
    }
    ConsumeSlice(received_.get(), tensor, delivery);
  }
}

bool Loader::ReceiveMarker(Marker marker) {
  if (marker != Marker::kData && marker != Marker::kFailed) {
    throw Error(StatusCode::kCommunication, "loading weights: a peer sent something other than the plan says");
  }
  failed_ |= marker == Marker::kFailed;
  return marker == Marker::kData;
}

void Loader::ConsumeSlice(const std::byte* data, const TensorInfo& tensor, const Delivery& delivery) {
  if (failed_) return;
  const Status status =
      Consume(requests_[delivery.request], {*tensor.dtype, data, delivery.slice.rows, delivery.slice.cols});
  if (status.ok()) return;
  Fail({status.code(), fmt::format("{}: tensor '{}': {}", checkpoint_.PathOf(tensor), tensor.name, status.message())});
}

template <typename Transfer>
void Loader::InPieces(size_t bytes, const Transfer& transfer) {
  for (size_t offset = 0; offset < bytes; offset += kPiece) transfer(offset, std::min(kPiece, bytes - offset));
}

void Loader::Fail(const Status& status) {
  if (status_.ok()) status_ = status;
  failed_ = true;
}

bool Loader::EndRound() {
  const std::array<uint64_t, 2> mine{failed_ ? 1u : 0u, reader_.bytes_read()};
  std::vector<std::array<uint64_t, 2>> all(world_.size());
  world_.AllGather(&mine, all.data(), sizeof mine, stream_);
  progress_.bytes_read_here = mine[1];
  progress_.bytes_done = 0;
  for (const auto& [failed, read] : all) {
    failed_ |= failed != 0;
    progress_.bytes_done += read;
  }
  return !failed_;
}

void Loader::ReportProgress(bool last) {
  if (world_.rank() != 0 || !options_.progress) return;
  const auto now = std::chrono::steady_clock::now();
  if (!last && now - last_report_ < std::chrono::milliseconds(100)) return;
  last_report_ = now;
  options_.progress(progress_);
}

uint64_t RoundBytes(const Checkpoint& checkpoint) {
  return std::max(kRoundBytes, checkpoint.total_bytes() / kMostRounds);
}

}  // namespace

Result<LoadProgress> LoadWeights(const Checkpoint& checkpoint, std::vector<TensorRequest> requests, Communicator& world,
                                 ControlChannel& control, const LoadOptions& options) {
  HostStream stream;
  world.SetContext(0, "loading weights");
  const Result<std::vector<PlainRequest>> mine = ToPlain(checkpoint, requests);
  LM_RETURN_IF_ERROR(control.Agree(mine.status()));
  const LoadPlan plan = MakeLoadPlan(checkpoint, GatherRequests(*mine, world, stream), RoundBytes(checkpoint));
  Loader loader(checkpoint, plan, requests, world, options);
  LM_RETURN_IF_ERROR(control.Agree(loader.Prepare()));
  size_t begin = 0;
  for (const size_t end : plan.round_ends) {
    if (!loader.RunRound(begin, end)) break;
    begin = end;
  }
  LM_RETURN_IF_ERROR(control.Agree(loader.status()));
  LM_CHECK(!loader.failed());  // whoever marks data as missing also has the reason
  return loader.progress();
}

Result<LoadProgress> LoadWeights(const std::string& directory, std::vector<TensorRequest> requests, Communicator& world,
                                 ControlChannel& control, const LoadOptions& options) {
  LM_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::OpenShared(directory, control));
  return LoadWeights(checkpoint, std::move(requests), world, control, options);
}

}  // namespace latentmesh
