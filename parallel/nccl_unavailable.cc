#include "parallel/nccl_communicator.h"

namespace latentmesh {
namespace {

Status NotBuiltIn() { return Unavailable("this build has no NCCL: configure with -DLATENTMESH_CUDA=ON"); }

}  // namespace

std::string NcclVersion() { return {}; }
Status CreateNcclGroupId(NcclGroupId*) { return NotBuiltIn(); }
Result<std::unique_ptr<Communicator>> CreateNcclCommunicator(CallSite, const NcclGroupId&, std::vector<std::string>) {
  return NotBuiltIn();
}

}  // namespace latentmesh
