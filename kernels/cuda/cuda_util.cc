#include "kernels/cuda/cuda_util.h"

#include <array>
#include <mutex>
#include <string>

namespace latentmesh::cuda {

void Check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  const StatusCode code = error == cudaErrorMemoryAllocation ? StatusCode::kResourceExhausted : StatusCode::kInternal;
  throw Error(code, std::string("CUDA: ") + call + " failed: " + cudaGetErrorString(error) + " (" +
                        cudaGetErrorName(error) + ")");
}

void CheckLaunch(const char* kernel) { Check(cudaGetLastError(), kernel); }

namespace {

int Attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  Check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

CardInfo ReadCard(int device) {
  CardInfo card;
  card.index = device;
  card.multiprocessors = Attribute(cudaDevAttrMultiProcessorCount, device);
  card.major = Attribute(cudaDevAttrComputeCapabilityMajor, device);
  card.minor = Attribute(cudaDevAttrComputeCapabilityMinor, device);
  card.max_shared_bytes = Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  card.l2_bytes = Attribute(cudaDevAttrL2CacheSize, device);
  card.hopper = card.major == 9 && card.minor == 0;
  return card;
}

}  // namespace

const CardInfo& CurrentCard() {
  constexpr int kMaxDevices = 64;
  static std::array<CardInfo, kMaxDevices> cards;
  static std::array<std::once_flag, kMaxDevices> once;
  int device = 0;
  Check(cudaGetDevice(&device), "cudaGetDevice");
  LM_CHECK(device < kMaxDevices);
  std::call_once(once[device], [device] { cards[device] = ReadCard(device); });
  return cards[device];
}

}  // namespace latentmesh::cuda
