// ApiExchange: one completion or chat request between its arrival and its last byte.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/collector.h"
#include "launch/http/http_types.h"
#include "launch/http/stream_writer.h"
#include "launch/openai_request.h"
#include "launch/openai_response.h"

namespace latentmesh {

// An HTTP request on its way through the front end.
struct Call {
  HttpRequest request;
  std::shared_ptr<HttpReply> reply;
  std::string request_id;                  // the client's X-Request-Id, or one of ours
  std::chrono::steady_clock::time_point received;
  bool gone = false;                       // the client left while a worker had the call
};

// Each prompt of the request is one request to the engine. Made on the I/O thread, then read there and by the worker
// that writes the whole answer.
class ApiExchange {
 public:
  using Clock = std::chrono::steady_clock;
  struct Part {
    std::string engine_id;
    bool submitted = false;
    bool finished = false;
    std::vector<Clock::time_point> last_output;     // of each choice
  };

  ApiExchange(std::shared_ptr<Call> call_in, ApiRequest request_in, ApiAnswerMeta meta_in)
      : call(std::move(call_in)), request(std::move(request_in)), meta(std::move(meta_in)) {
    parts.resize(request.prompts.size());
    for (Part& part : parts) part.last_output.resize(static_cast<size_t>(request.sampling.n));
    if (!request.stream) answers.resize(parts.size());
  }

  bool engine_done() const {
    for (const Part& part : parts)
      if (part.submitted && !part.finished) return false;
    return true;
  }
  bool waiting() const { return !first_token; }     // counts towards the queue

  std::shared_ptr<Call> call;
  ApiRequest request;
  ApiAnswerMeta meta;
  std::vector<Part> parts;
  std::vector<Collector> answers;                   // not streamed
  std::unique_ptr<StreamWriter> stream;             // streamed
  bool first_token = false;
  bool answered = false;                            // the reply is complete, or nobody waits for it any more
  bool touched = false;                             // by the outputs taken just now
  Clock::time_point oldest_pending{};               // of the outputs not written yet
};

}  // namespace latentmesh
