// One streamed completion of `bench serve`: the request's JSON, and what is learned from the answer as it arrives.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/status.h"
#include "launch/bench_serve_reader.h"
#include "launch/bench_serve_report.h"
#include "launch/serve_dataset.h"

namespace latentmesh {

struct ServeRequestOptions {
  std::string model;
  bool chat = false;             // messages instead of a prompt
  bool ignore_eos = false;
  double temperature = 0;
};
// The body of a request: streamed, with usage at the end. A chat needs a prompt with text.
std::string ServeRequestBody(const ServePrompt& prompt, const ServeRequestOptions& options);

// Fills in one ServedRequest. Event times are those of the piece that completed the event.
class AnswerReader {
 public:
  explicit AnswerReader(ServedRequest* request);
  AnswerReader(const AnswerReader&) = delete;
  AnswerReader& operator=(const AnswerReader&) = delete;

  void Feed(int http_status, std::string_view body, double now);
  // The answer is complete, or `status` says why it is not.
  void Finish(const Status& status, int http_status, double now);

 private:
  void OnEvent(const std::string& data);
  std::string Failure(const Status& status, int http_status) const;

  ServedRequest* request_;
  EventReader events_;
  double now_ = 0, last_choice_ = 0;
  bool any_choice_ = false, finished_ = false;      // [DONE] or a finish_reason was seen
  std::string error_body_, event_error_;
};

}  // namespace latentmesh
