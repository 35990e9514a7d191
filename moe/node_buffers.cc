#include "moe/node_buffers.h"

#include <algorithm>
#include <vector>

namespace latentmesh {
namespace {

size_t Align(size_t bytes) { return (bytes + 63) / 64 * 64; }

class PrivateWindow : public SharedWindow {
 public:
  explicit PrivateWindow(size_t bytes) : lines_(bytes / sizeof(Line) + 1) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  char* part(int) override { return lines_.data()->bytes; }
  void Barrier(const char*) override {}

 private:
  struct alignas(64) Line {
    char bytes[64] = {};
  };
  std::vector<Line> lines_;
};

size_t WireBufferBytes(const DispatchLimits& l, int ranks, int per_node) {
  if (ranks == per_node) return 0;
  NodeWindowLayout layout(l, ranks, per_node);
  size_t rows = static_cast<size_t>(l.max_rows) * std::max(layout.out_row, layout.back_row);
  return std::max(rows, static_cast<size_t>(ranks / per_node) * layout.list_choices);
}

}  // namespace

NodeWindowLayout::NodeWindowLayout(const DispatchLimits& l, int ranks, int per_node) {
  size_t nodes = static_cast<size_t>(ranks / per_node), max_tokens = static_cast<size_t>(l.max_tokens);
  out_format = {l.payload, l.hidden};
  back_format = {ReturnType(l.payload), l.hidden};
  out_row = WireRowBytes(out_format);
  back_row = WireRowBytes(back_format);
  auto place = [this](size_t size) {
    size_t at = bytes;
    bytes += Align(size);
    return at;
  };
  tokens = place(nodes * 4);
  first = place(static_cast<size_t>(per_node) * nodes * 4);
  list_choices = Align(max_tokens * static_cast<size_t>(l.top_k) * sizeof(WireChoice));
  choices = place(nodes * list_choices);
  own = place(max_tokens * out_row);
  hosted = place(nodes > 1 ? static_cast<size_t>(l.max_rows) * out_row : 0);
  results = place(static_cast<size_t>(l.max_rows) * back_row);
}

NodeBuffers::NodeBuffers(Device* device, const DispatchLimits& l, int ranks, int per_node)
    : offsets(device, DType::kI32, {int64_t{l.max_local_experts} + 1}),
      send(device, WireBufferBytes(l, ranks, per_node)),
      recv(device, WireBufferBytes(l, ranks, per_node)) {}

size_t NodeBuffers::Bytes(const DispatchLimits& l, int ranks, int per_node) {
  return 4 * (static_cast<size_t>(l.max_local_experts) + 1) + 2 * WireBufferBytes(l, ranks, per_node);
}

std::unique_ptr<SharedWindow> CreatePrivateWindow(size_t bytes) { return std::make_unique<PrivateWindow>(bytes); }

}  // namespace latentmesh
