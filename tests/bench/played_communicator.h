// PlayedCommunicator: an ep group whose started calls can be left out, for measuring what they cost. Once recorded, a step
// that is repeated gets the bytes it got then, from memory; nothing is sent. Only for repetitions of one and the same step:
// anything else gets wrong answers. Recordings lie in memory of the device (on a GPU playing is a copy there, ordered on the
// step's stream, and part of its time). One thread.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "parallel/communicator.h"
#include "parallel/trace.h"

namespace latentmesh {

class PlayedCommunicator : public Communicator {
 public:
  enum class Mode { kPass, kRecord, kPlay };
  // The device outlives it.
  PlayedCommunicator(std::unique_ptr<Communicator> inner, Device& device) : inner_(std::move(inner)), device_(device) {}

  // Before a step. Recordings are kept by `key`; a recording starts anew.
  void Begin(Mode mode, int key) {
    mode_ = mode;
    tape_ = &tapes_[key];
    next_ = 0;
    copy_ns_ = 0;
    if (mode == Mode::kRecord) tape_->clear();
  }
  // Of this step: time the host spent playing, which would not pass if the bytes had come by themselves.
  double copy_seconds() const { return static_cast<double>(copy_ns_) / 1e9; }

  StartedCall StartAllGather(const void* send, void* recv, size_t bytes, Stream& stream) override {
    size_t whole = bytes * static_cast<size_t>(size());
    if (mode_ == Mode::kPlay) return Play({{recv, whole}}, stream);
    StartedCall call = inner_->StartAllGather(send, recv, bytes, stream);
    return Keep(call, {{recv, whole}}, stream);
  }
  StartedCall StartAllToAllV(const AllToAllVParams& p, Stream& stream) override {
    std::vector<Part> parts;
    for (int r = 0; r < size(); ++r)
      parts.push_back({static_cast<char*>(p.recv) + p.recv_offsets[r], p.recv_bytes[r]});
    if (mode_ == Mode::kPlay) return Play(parts, stream);
    StartedCall call = inner_->StartAllToAllV(p, stream);
    return Keep(call, parts, stream);
  }
  void Finish(StartedCall call) override {
    if (mode_ == Mode::kPlay) return;
    inner_->Finish(call);
    auto open = open_.find(call.id);
    if (open == open_.end()) return;
    Message message(&device_, TotalBytes(open->second.parts));
    char* to = static_cast<char*>(message.data());
    for (const Part& part : open->second.parts) {
      device_.CopyOnDevice(to, part.data, part.bytes, *open->second.stream);
      to += part.bytes;
    }
    (*tape_)[open->second.index] = std::move(message);
    open_.erase(open);
  }
  void Finish() override { inner_->Finish(); }
  void Poll() override {
    if (mode_ != Mode::kPlay) inner_->Poll();
  }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  TrafficCounters traffic() const override { return inner_->traffic(); }
  void SetContext(int64_t step, const char* operation) override { inner_->SetContext(step, operation); }
  void AllReduceSum(const TensorView& inout, Stream& s) override { inner_->AllReduceSum(inout, s); }
  void ReduceScatterSum(const TensorView& in, const TensorView& out, Stream& s) override { inner_->ReduceScatterSum(in, out, s); }
  void AllGather(const void* send, void* recv, size_t bytes, Stream& s) override { inner_->AllGather(send, recv, bytes, s); }
  void AllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes, Stream& s) override {
    inner_->AllGatherV(send, bytes, recv, recv_bytes, s);
  }
  void Broadcast(void* data, size_t bytes, int root, Stream& s) override { inner_->Broadcast(data, bytes, root, s); }
  void AllToAllV(const AllToAllVParams& p, Stream& s) override { inner_->AllToAllV(p, s); }
  void Send(const void* data, size_t bytes, int peer, Stream& s) override { inner_->Send(data, bytes, peer, s); }
  void Recv(void* data, size_t bytes, int peer, Stream& s) override { inner_->Recv(data, bytes, peer, s); }
  void SendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from, Stream& s) override {
    inner_->SendRecv(send, send_bytes, to, recv, recv_bytes, from, s);
  }
  void Barrier(Stream& s) override { inner_->Barrier(s); }
  std::unique_ptr<SharedWindow> CreateWindow(size_t bytes, int run) override { return inner_->CreateWindow(bytes, run); }
  void CountShared(size_t bytes) override { inner_->CountShared(bytes); }

 private:
  struct Part {
    void* data;
    size_t bytes;
  };
  struct Open {
    size_t index;                    // in the tape
    std::vector<Part> parts;
    Stream* stream;
  };
  using Message = Buffer;

  static size_t TotalBytes(const std::vector<Part>& parts) {
    size_t sum = 0;
    for (const Part& part : parts) sum += part.bytes;
    return sum;
  }
  StartedCall Keep(StartedCall call, std::vector<Part> parts, Stream& stream) {
    if (mode_ != Mode::kRecord) return call;
    open_[call.id] = {tape_->size(), std::move(parts), &stream};
    tape_->emplace_back();
    return call;
  }
  StartedCall Play(const std::vector<Part>& parts, Stream& stream) {
    int64_t begin = TraceClock();
    if (next_ >= tape_->size()) throw std::logic_error("this step makes more calls than the recorded one");
    const Message& message = (*tape_)[next_++];
    if (TotalBytes(parts) != message.size()) throw std::logic_error("this step is not the recorded one");
    const char* from = static_cast<const char*>(message.data());
    for (const Part& part : parts) {
      device_.CopyOnDevice(part.data, from, part.bytes, stream);
      from += part.bytes;
    }
    copy_ns_ += TraceClock() - begin;
    return {};
  }

  std::unique_ptr<Communicator> inner_;
  Device& device_;
  Mode mode_ = Mode::kPass;
  std::map<int, std::deque<Message>> tapes_;
  std::deque<Message>* tape_ = nullptr;
  std::map<uint64_t, Open> open_;
  size_t next_ = 0;
  int64_t copy_ns_ = 0;
};

}  // namespace latentmesh
