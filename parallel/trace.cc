#include "parallel/trace.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <unordered_map>

namespace latentmesh {
namespace {

template <typename T>
void Put(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Reads one value after another; once something is missing, everything is.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    T value{};
    if (!Has(sizeof value)) return value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string Text(size_t size) {
    if (!Has(size)) return {};
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  bool Has(size_t size) { return ok_ = ok_ && size <= bytes_.size() - at_; }
  bool complete() const { return ok_ && at_ == bytes_.size(); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

constexpr size_t kSpanBytes = sizeof(int32_t) + 3 * sizeof(int64_t) + sizeof(uint8_t);

std::string JsonText(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    char code[8];
    if (c == '"' || c == '\\') (out += '\\') += c;
    else if (static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) < 0x7f) out += c;
    else std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned char>(c)), out += code;
  }
  return out + "\"";
}

void AppendSpan(const RankTrace& rank, int number, const RankTrace::Span& span, int64_t origin_ns, std::string& out) {
  char line[160];
  double begin = static_cast<double>(span.begin_ns - rank.clock_ahead_ns - origin_ns) / 1e3;
  std::snprintf(line, sizeof line, ",\n{\"ph\":\"X\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"dur\":%.3f,\"name\":", number, begin,
                static_cast<double>(span.duration_ns) / 1e3);
  out += line;
  out += JsonText(rank.names[static_cast<size_t>(span.name)]);
  if (span.detail >= 0) out += ",\"args\":{\"n\":" + std::to_string(span.detail) + "}";
  out += "}";
}

// A pair of events with a number of its own, because several of one name may be open at once.
void AppendFlight(const RankTrace& rank, int number, size_t id, const RankTrace::Span& span, int64_t origin_ns, std::string& out) {
  char line[160];
  int64_t begin = span.begin_ns - rank.clock_ahead_ns - origin_ns;
  for (auto [phase, at] : {std::pair{'b', begin}, std::pair{'e', begin + span.duration_ns}}) {
    std::snprintf(line, sizeof line, ",\n{\"ph\":\"%c\",\"cat\":\"messages\",\"id\":\"%d.%zu\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"name\":",
                  phase, number, id, number, static_cast<double>(at) / 1e3);
    out += line;
    out += JsonText(rank.names[static_cast<size_t>(span.name)]) + "}";
  }
}

}  // namespace

std::string EncodeTrace(const TraceBuffer& buffer) {
  std::unordered_map<const char*, int32_t> index;
  std::vector<const char*> names;
  std::string spans;
  for (const TraceEvent& e : buffer.events()) {
    auto [found, fresh] = index.try_emplace(e.name, static_cast<int32_t>(names.size()));
    if (fresh) names.push_back(e.name);
    Put(spans, found->second);
    Put(spans, e.detail);
    Put(spans, e.begin_ns);
    Put(spans, e.duration_ns);
    Put(spans, static_cast<uint8_t>(e.flight));
  }
  std::string bytes;
  Put(bytes, static_cast<uint32_t>(names.size()));
  for (const char* name : names) {
    Put(bytes, static_cast<uint32_t>(std::strlen(name)));
    bytes += name;
  }
  Put(bytes, buffer.dropped());
  Put(bytes, static_cast<uint64_t>(buffer.events().size()));
  return bytes + spans;
}

Result<RankTrace> DecodeTrace(const std::string& bytes) {
  Reader in(bytes);
  RankTrace trace;
  auto names = in.Get<uint32_t>();
  for (uint32_t i = 0; i < names && in.Has(sizeof(uint32_t)); ++i) trace.names.push_back(in.Text(in.Get<uint32_t>()));
  trace.dropped = in.Get<int64_t>();
  auto spans = in.Get<uint64_t>();
  bool sane = spans <= bytes.size() / kSpanBytes;
  for (uint64_t i = 0; sane && i < spans; ++i) {
    RankTrace::Span span;
    span.name = in.Get<int32_t>();
    span.detail = in.Get<int64_t>();
    span.begin_ns = in.Get<int64_t>();
    span.duration_ns = in.Get<int64_t>();
    span.flight = in.Get<uint8_t>() != 0;
    sane = span.name >= 0 && static_cast<size_t>(span.name) < trace.names.size();
    trace.spans.push_back(span);
  }
  if (sane && in.complete()) return trace;
  return Status(StatusCode::kCommunication, "a trace of " + std::to_string(bytes.size()) + " bytes is damaged");
}

std::string FormatChromeTrace(const std::vector<RankTrace>& ranks) {
  int64_t origin = std::numeric_limits<int64_t>::max();
  for (const RankTrace& rank : ranks)
    for (const RankTrace::Span& span : rank.spans) origin = std::min(origin, span.begin_ns - rank.clock_ahead_ns);
  std::string out = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{\"ph\":\"M\",\"pid\":0,\"name\":\"trace\",\"args\":{}}";
  for (size_t r = 0; r < ranks.size(); ++r) {
    std::string pid = std::to_string(r);
    out += ",\n{\"ph\":\"M\",\"pid\":" + pid + ",\"name\":\"process_name\",\"args\":{\"name\":" + JsonText(ranks[r].process) + "}}";
    out += ",\n{\"ph\":\"M\",\"pid\":" + pid + ",\"name\":\"process_sort_index\",\"args\":{\"sort_index\":" + pid + "}}";
    if (ranks[r].dropped > 0)
      out += ",\n{\"ph\":\"M\",\"pid\":" + pid + ",\"name\":\"process_labels\",\"args\":{\"labels\":\"" +
             std::to_string(ranks[r].dropped) + " later spans were dropped\"}}";
    size_t flights = 0;
    for (const RankTrace::Span& span : ranks[r].spans)
      if (span.flight) AppendFlight(ranks[r], static_cast<int>(r), flights++, span, origin, out);
      else AppendSpan(ranks[r], static_cast<int>(r), span, origin, out);
  }
  return out + "\n]}\n";
}

}  // namespace latentmesh
