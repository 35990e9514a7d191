#include "launch/resilient/messages.h"

namespace latentmesh {

WireRequest ToWire(const Request& request) {
  WireRequest wire{request.id, request.prompt_ids, request.sampling, std::nullopt, request.generated};
  if (request.constraint != nullptr) wire.constraint = request.constraint->source();
  return wire;
}

void AppendMessage(std::string& out, MessageType type, std::string_view payload) {
  AppendFrame(out, static_cast<uint8_t>(type), payload);
}

}  // namespace latentmesh
