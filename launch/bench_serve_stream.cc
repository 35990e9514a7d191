#include "launch/bench_serve_stream.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr size_t kMaxErrorBody = 4096;

const json::value* Find(const json::object& object, const char* name) {
  const json::value* value = object.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const json::object* FindObject(const json::object& object, const char* name) {
  const json::value* value = Find(object, name);
  return value == nullptr ? nullptr : value->if_object();
}

// Sets *number when the field is a whole number.
void ReadCount(const json::object& object, const char* name, int64_t* number) {
  const json::value* value = Find(object, name);
  if (value != nullptr && (value->is_int64() || value->is_uint64())) *number = value->to_number<int64_t>();
}

bool HasText(const json::object& object, const char* name) {
  const json::value* value = Find(object, name);
  return value != nullptr && value->is_string() && !value->get_string().empty();
}

// Whether the event tells of a token. The opening of a chat (the role) and an end without text do not; a token may have
// no text of its own, as part of a longer character.
bool TellsOfToken(const json::object& choice) {
  const json::object* delta = FindObject(choice, "delta");
  if (HasText(choice, "text")) return true;
  if (delta != nullptr && (HasText(*delta, "content") || HasText(*delta, "reasoning_content"))) return true;
  return Find(choice, "finish_reason") == nullptr && (delta == nullptr || Find(*delta, "role") == nullptr);
}

// {"error": {"message": ".."}} or {"error": ".."} or {"message": ".."}; else the text itself.
std::string ErrorMessage(const std::string& body) {
  boost::system::error_code error;
  json::value root = json::parse(body, error);
  const json::object* object = error ? nullptr : root.if_object();
  if (object != nullptr && FindObject(*object, "error") != nullptr) object = FindObject(*object, "error");
  for (const char* field : {"message", "error", "detail"}) {
    if (object != nullptr && HasText(*object, field)) return std::string(object->at(field).get_string());
  }
  return fmt::format("{:.300}", body);
}

}  // namespace

std::string ServeRequestBody(const ServePrompt& prompt, const ServeRequestOptions& options) {
  json::object body = {{"model", options.model}, {"max_tokens", prompt.output_len},
                       {"temperature", options.temperature}, {"stream", true},
                       {"stream_options", json::object{{"include_usage", true}}}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  if (options.chat) {
    body["messages"] = json::array{json::object{{"role", "user"}, {"content", prompt.text}}};
  } else if (prompt.ids.empty()) {
    body["prompt"] = prompt.text;
  } else {
    body["prompt"] = json::array(prompt.ids.begin(), prompt.ids.end());
  }
  return json::serialize(body);
}

AnswerReader::AnswerReader(ServedRequest* request)
    : request_(request), events_([this](const std::string& data) { OnEvent(data); }) {}

void AnswerReader::Feed(int http_status, std::string_view body, double now) {
  now_ = now;
  if (http_status == 200) return events_.Feed(body);
  error_body_ += body.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, error_body_.size()));
}

void AnswerReader::OnEvent(const std::string& data) {
  if (data == "[DONE]") {
    finished_ = true;
    return;
  }
  boost::system::error_code error;
  json::value root = json::parse(data, error);
  const json::object* event = error ? nullptr : root.if_object();
  if (event == nullptr) {
    event_error_ = fmt::format("a streamed event is not a JSON object: {:.100}", data);
    return;
  }
  if (Find(*event, "error") != nullptr) event_error_ = ErrorMessage(data);
  if (const json::object* usage = FindObject(*event, "usage")) {
    ReadCount(*usage, "prompt_tokens", &request_->input_tokens);
    ReadCount(*usage, "completion_tokens", &request_->output_tokens);
  }
  const json::value* choices = Find(*event, "choices");
  if (choices == nullptr || !choices->is_array() || choices->get_array().empty()) return;
  const json::object* choice = choices->get_array()[0].if_object();
  if (choice == nullptr) return;
  any_choice_ = true;
  last_choice_ = now_;
  if (Find(*choice, "finish_reason") != nullptr) finished_ = true;
  if (TellsOfToken(*choice)) request_->events.push_back(now_);
}

std::string AnswerReader::Failure(const Status& status, int http_status) const {
  if (http_status != 0 && http_status != 200) return fmt::format("HTTP {}: {}", http_status, ErrorMessage(error_body_));
  if (!event_error_.empty()) return event_error_;
  if (!status.ok()) return status.message();
  if (!any_choice_) return "the answer holds no streamed choice";
  return finished_ ? "" : "the stream ended without finish_reason or [DONE]";
}

void AnswerReader::Finish(const Status& status, int http_status, double now) {
  request_->error = Failure(status, http_status);
  request_->ok = request_->error.empty();
  request_->end = any_choice_ ? last_choice_ : now;
  if (!request_->ok) return;
  if (request_->events.empty()) request_->events.push_back(last_choice_);      // its tokens had no text
  if (request_->output_tokens == 0) request_->output_tokens = static_cast<int64_t>(request_->events.size());
}

}  // namespace latentmesh
