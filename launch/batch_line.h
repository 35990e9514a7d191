// Lines of OpenAI's batch files: requests in, answers out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "launch/openai_request.h"

namespace latentmesh {

struct BatchLine {
  int64_t number = 0;                 // in the file, from 1
  std::string id;                     // "batch_req_<number>": the same in every run over the file
  std::string custom_id;              // empty when the line has none
  ApiEndpoint endpoint = ApiEndpoint::kCompletions;
  std::string body;                   // JSON of the request
  std::optional<ApiError> error;      // what is wrong with the line itself; names line and field
};

// Never fails: a bad line comes back with `error` set and with the custom_id as far as it could be read.
BatchLine ParseBatchLine(const std::string& text, int64_t number);

// {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, without the newline.
std::string BatchAnswer(const BatchLine& line, const std::string& request_id, const std::string& body);
// The same with the error's HTTP status, the error as body, and {"code", "message", "param"} as error.
std::string BatchFailure(const BatchLine& line, const ApiError& error);

}  // namespace latentmesh
