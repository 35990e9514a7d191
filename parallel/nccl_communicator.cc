#include "parallel/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>

#include "parallel/communicator_base.h"
#include "parallel/nccl_started.h"
#include "parallel/nccl_watch.h"

namespace latentmesh {
namespace {

const char* At(const void* data, size_t offset) { return static_cast<const char*>(data) + offset; }
char* At(void* data, size_t offset) { return static_cast<char*>(data) + offset; }
cudaStream_t Native(Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

// Sums of bf16 are rounded to bf16 at every addition inside NCCL.
ncclDataType_t NcclType(DType dtype) {
  return dtype == DType::kF32 ? ncclFloat32 : dtype == DType::kBF16 ? ncclBfloat16 : ncclInt32;
}

// Sends and receives that start together. NCCL must hear the end of a group even after an error in it.
class Group {
 public:
  explicit Group(ncclComm_t comm, cudaStream_t stream) : comm_(comm), stream_(stream) { Note(ncclGroupStart()); }
  void Send(const void* data, size_t bytes, int peer) {
    if (bytes > 0) Note(ncclSend(data, bytes, ncclUint8, peer, comm_, stream_));
  }
  void Recv(void* data, size_t bytes, int peer) {
    if (bytes > 0) Note(ncclRecv(data, bytes, ncclUint8, peer, comm_, stream_));
  }
  ncclResult_t End() {
    ncclResult_t end = ncclGroupEnd();
    return worst_ == ncclSuccess ? end : worst_;
  }

 private:
  void Note(ncclResult_t rc) {
    if (worst_ == ncclSuccess && rc != ncclInProgress) worst_ = rc;
  }
  ncclComm_t comm_;
  cudaStream_t stream_;
  ncclResult_t worst_ = ncclSuccess;
};

class NcclCommunicator : public CommunicatorBase {
 public:
  NcclCommunicator(const CallSite& site, const NcclGroupId& id, std::vector<std::string> peers)
      : CommunicatorBase(site), link_(site, id, std::move(peers)), started_(site) {
    CheckCuda(cudaMalloc(&flag_, sizeof(int)), site, "cudaMalloc");
    CheckCuda(cudaMemset(flag_, 0, sizeof(int)), site, "cudaMemset");
  }
  ~NcclCommunicator() override { cudaFree(flag_); }
  void WatchQueued(Stream& stream) override { link_.WatchQueued(site(), Native(stream)); }

 protected:
  void DoAllReduceSum(const TensorView& inout, Stream& stream) override {
    if (inout.empty()) return;
    Run("AllReduceSum", stream, [&](ncclComm_t comm) {
      return ncclAllReduce(inout.data, inout.data, inout.size(), NcclType(inout.dtype), ncclSum, comm, Native(stream));
    });
  }

  void DoReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) override {
    if (out.empty()) return;
    Run("ReduceScatterSum", stream, [&](ncclComm_t comm) {
      return ncclReduceScatter(in.data, out.data, out.size(), NcclType(out.dtype), ncclSum, comm, Native(stream));
    });
  }

  void DoAllGather(const void* send, void* recv, size_t bytes, Stream& stream) override {
    if (bytes == 0) return;
    Run("AllGather", stream, [&](ncclComm_t comm) {
      return ncclAllGather(send, recv, bytes, ncclUint8, comm, Native(stream));
    });
  }

  void DoAllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                    Stream& stream) override {
    if (std::all_of(recv_bytes.begin(), recv_bytes.end(), [&](size_t b) { return b == bytes; }))
      return DoAllGather(send, recv, bytes, stream);
    size_t mine = 0;
    for (int r = 0; r < rank(); ++r) mine += recv_bytes[r];
    CopyLocal(At(recv, mine), send, bytes, stream);
    Run("AllGatherV", stream, [&](ncclComm_t comm) {
      Group group(comm, Native(stream));
      size_t offset = 0;
      for (int r = 0; r < size(); offset += recv_bytes[r++]) {
        if (r == rank()) continue;
        group.Send(send, bytes, r);
        group.Recv(At(recv, offset), recv_bytes[r], r);
      }
      return group.End();
    });
  }

  void DoBroadcast(void* data, size_t bytes, int root, Stream& stream) override {
    if (bytes == 0) return;
    Run("Broadcast", stream, [&](ncclComm_t comm) {
      return ncclBroadcast(data, data, bytes, ncclUint8, root, comm, Native(stream));
    });
  }

  void DoAllToAllV(const AllToAllVParams& p, Stream& stream) override {
    CopyLocal(At(p.recv, p.recv_offsets[rank()]), At(p.send, p.send_offsets[rank()]), p.send_bytes[rank()], stream);
    Run("AllToAllV", stream, [&](ncclComm_t comm) {
      Group group(comm, Native(stream));
      for (int r = 0; r < size(); ++r) {
        if (r == rank()) continue;
        group.Send(At(p.send, p.send_offsets[r]), p.send_bytes[r], r);
        group.Recv(At(p.recv, p.recv_offsets[r]), p.recv_bytes[r], r);
      }
      return group.End();
    });
  }

  void DoSend(const void* data, size_t bytes, int peer, Stream& stream) override {
    DoSendRecv(data, bytes, peer, nullptr, 0, peer, stream);
  }
  void DoRecv(void* data, size_t bytes, int peer, Stream& stream) override {
    DoSendRecv(nullptr, 0, peer, data, bytes, peer, stream);
  }
  void DoSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                  Stream& stream) override {
    const char* call = recv_bytes == 0 ? "Send" : send_bytes == 0 ? "Recv" : "SendRecv";
    Run(call, stream, [&](ncclComm_t comm) {
      Group group(comm, Native(stream));
      group.Send(send, send_bytes, to);
      group.Recv(recv, recv_bytes, from);
      return group.End();
    });
  }

  // The only call that waits for the host: all work before it on the stream has ended on all ranks.
  void DoBarrier(Stream& stream) override {
    Run("Barrier", stream, [&](ncclComm_t comm) {
      return ncclAllReduce(flag_, flag_, 1, ncclInt32, ncclSum, comm, Native(stream));
    });
    link_.Synchronize(site(), "Barrier", Native(stream));
  }

  void DoStart(uint64_t id, const StartedMessages& messages, Stream& stream) override {
    cudaStream_t second = started_.Fork(site(), Native(stream));
    link_.Enqueue(site(), messages.call, second, [&](ncclComm_t comm) {
      Group group(comm, second);
      for (const auto& part : messages.sends) group.Send(part.data, part.bytes, part.to);
      for (const auto& part : messages.recvs) group.Recv(part.data, part.bytes, part.from);
      return group.End();
    });
    started_.Mark(site(), id, Native(stream));
  }
  void DoFinish(uint64_t id, const char*) override { started_.Join(site(), id); }

  void CopyLocal(void* to, const void* from, size_t bytes, Stream& stream) override {
    if (bytes == 0 || to == from) return;
    CheckCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, Native(stream)), site(), "cudaMemcpyAsync");
  }

 private:
  void Run(const char* call, Stream& stream, const std::function<ncclResult_t(ncclComm_t)>& calls) {
    link_.Enqueue(site(), call, Native(stream), calls);
  }

  NcclLink link_;
  NcclStarted started_;
  void* flag_ = nullptr;                   // device memory, one int: what a barrier sums
};

}  // namespace

std::string NcclVersion() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "NCCL";
  return "NCCL " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Status CreateNcclGroupId(NcclGroupId* id) {
  ncclUniqueId unique;
  ncclResult_t rc = ncclGetUniqueId(&unique);
  if (rc != ncclSuccess)
    return Status(StatusCode::kCommunication, std::string("ncclGetUniqueId: ") + ncclGetErrorString(rc) +
                                                  ": no network interface for NCCL? NCCL_DEBUG=WARN tells more");
  std::memcpy(id->bytes.data(), &unique, sizeof unique);
  return Status::Ok();
}

Result<std::unique_ptr<Communicator>> CreateNcclCommunicator(CallSite site, const NcclGroupId& id,
                                                             std::vector<std::string> peers) {
  try {
    return std::unique_ptr<Communicator>(std::make_unique<NcclCommunicator>(site, id, std::move(peers)));
  } catch (const Error& error) {
    return Status(error.code(), error.what());
  }
}

}  // namespace latentmesh
