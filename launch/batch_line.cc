#include "launch/batch_line.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include "launch/openai_response.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

// The string in field `name`, or an error that names line and field.
std::string RequiredText(const json::object& object, const char* name, BatchLine* line) {
  const json::value* value = object.if_contains(name);
  if (value != nullptr && value->is_string()) return std::string(value->get_string());
  if (!line->error.has_value()) {
    line->error = ApiError{.message = fmt::format("line {}: {} must be a string", line->number, name), .param = name};
  }
  return "";
}

void Fail(BatchLine* line, const char* field, const std::string& message) {
  if (!line->error.has_value()) {
    line->error = ApiError{.message = fmt::format("line {}: {}", line->number, message), .param = field};
  }
}

void ReadEndpoint(const std::string& method, const std::string& url, BatchLine* line) {
  if (method != "POST") Fail(line, "method", fmt::format("method must be POST, is '{}'", method));
  if (url == "/v1/chat/completions") line->endpoint = ApiEndpoint::kChatCompletions;
  else if (url != "/v1/completions") {
    Fail(line, "url", fmt::format("url must be /v1/completions or /v1/chat/completions, is '{}'", url));
  }
}

json::object Envelope(const BatchLine& line, int status, const std::string& request_id, json::value body) {
  return {{"id", line.id},
          {"custom_id", line.custom_id.empty() ? json::value(nullptr) : json::value(line.custom_id)},
          {"response", json::object{{"status_code", status}, {"request_id", request_id}, {"body", std::move(body)}}}};
}

}  // namespace

BatchLine ParseBatchLine(const std::string& text, int64_t number) {
  BatchLine line{.number = number, .id = fmt::format("batch_req_{}", number)};
  boost::system::error_code error;
  json::value root = json::parse(text, error);
  if (error || !root.is_object()) {
    Fail(&line, "", error ? "not valid JSON: " + error.message() : "not a JSON object");
    return line;
  }
  const json::object& object = root.get_object();
  line.custom_id = RequiredText(object, "custom_id", &line);
  if (line.custom_id.empty()) Fail(&line, "custom_id", "custom_id is empty");
  std::string method = RequiredText(object, "method", &line);
  std::string url = RequiredText(object, "url", &line);
  ReadEndpoint(method, url, &line);
  const json::value* body = object.if_contains("body");
  if (body != nullptr && body->is_object()) line.body = json::serialize(*body);
  else Fail(&line, "body", "body must be a JSON object");
  return line;
}

std::string BatchAnswer(const BatchLine& line, const std::string& request_id, const std::string& body) {
  json::object object = Envelope(line, 200, request_id, json::parse(body));
  object["error"] = nullptr;
  return json::serialize(object);
}

std::string BatchFailure(const BatchLine& line, const ApiError& error) {
  json::object object = Envelope(line, error.http_status, line.id, json::parse(ErrorBody(error)));
  object["error"] = {{"code", error.type},
                     {"message", error.message},
                     {"param", error.param.empty() ? json::value(nullptr) : json::value(error.param)}};
  return json::serialize(object);
}

}  // namespace latentmesh
