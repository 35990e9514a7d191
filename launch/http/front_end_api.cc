#include <fmt/format.h>

#include <variant>

#include "launch/http/front_end.h"

namespace latentmesh {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsBetween(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

ApiError ErrorOf(const Status& status) {
  bool mine = status.code() == StatusCode::kInvalidArgument;
  std::string param = status.message().substr(0, status.message().find(':'));
  bool named = mine && param.size() < status.message().size() && param.find(' ') == std::string::npos;
  return {.http_status = mine ? 400 : 500, .message = status.message(), .param = named ? param : "",
          .type = mine ? "invalid_request_error" : "internal_error"};
}

}  // namespace

bool FrontEnd::Admit(const CallPtr& call) {
  if (draining_) {
    RespondError(call, {.http_status = 503, .message = "the server is shutting down", .type = "service_unavailable"});
    return false;
  }
  if (waiting_ < options_.max_queue) return true;
  ++metrics_.rejected;
  RespondError(call, {.http_status = 429,
                      .message = fmt::format("{} requests are waiting already; try again", waiting_),
                      .type = "rate_limit_error"});
  return false;
}

void FrontEnd::StartApi(ApiEndpoint endpoint, CallPtr call) {
  if (!Admit(call)) return;
  ++waiting_;
  ++in_workers_;
  call->reply->on_closed = [call = call.get()] { call->gone = true; };      // the worker's closure keeps the call alive
  server_.PostToWorker([this, endpoint, call = std::move(call)]() mutable {
    auto parsed = std::make_shared<std::variant<ApiRequest, ApiError>>(
        ParseApiRequest(endpoint, call->request.body, context_));
    server_.Post([this, endpoint, call = std::move(call), parsed] {
      --waiting_;
      --in_workers_;
      if (call->gone) return;
      call->request.body = std::string();
      if (auto* error = std::get_if<ApiError>(parsed.get())) return RespondError(call, *error);
      Submit(endpoint, call, std::move(std::get<ApiRequest>(*parsed)));
    });
  });
}

void FrontEnd::Submit(ApiEndpoint endpoint, CallPtr call, ApiRequest request) {
  if (!request.model.empty() && request.model != options_.served_model) {
    return RespondError(call, {.http_status = 404, .message = fmt::format("model: '{}' is not served here; '{}' is",
                                                                          request.model, options_.served_model),
                               .param = "model", .code = "model_not_found"});
  }
  if (static_cast<int64_t>(request.prompts.size()) > options_.max_queue) {
    return RespondError(call, {.message = fmt::format("prompt: a list of {} prompts is more than the queue of {}",
                                                      request.prompts.size(), options_.max_queue), .param = "prompt"});
  }
  ApiAnswerMeta meta{
      fmt::format("{}-{}-{}", endpoint == ApiEndpoint::kCompletions ? "cmpl" : "chatcmpl", id_stem_, ++next_id_),
      UnixSeconds(), options_.served_model};
  auto exchange = std::make_shared<ApiExchange>(call, std::move(request), std::move(meta));
  waiting_ += static_cast<int64_t>(exchange->parts.size());
  exchanges_.insert(exchange);
  if (exchange->request.stream) {
    exchange->stream = std::make_unique<StreamWriter>(exchange->request, exchange->meta, *context_.codec);
  }
  for (size_t prompt = 0; prompt < exchange->parts.size(); ++prompt) {
    Status status = SubmitPart(exchange, prompt);
    if (status.ok()) continue;
    exchange->answered = true;
    Cancel(exchange);
    RespondError(call, ErrorOf(status));
    return ForgetIfDone(exchange);
  }
  std::weak_ptr<ApiExchange> weak = exchange;
  call->reply->on_closed = [this, weak] {
    ExchangePtr exchange = weak.lock();
    if (exchange == nullptr) return;
    exchange->answered = true;
    Cancel(exchange);
    ForgetIfDone(exchange);
  };
  if (!exchange->request.stream) return;
  HttpResponse head{.content_type = "text/event-stream; charset=utf-8", .headers = {{"Cache-Control", "no-cache"}}};
  AddCommonHeaders(call->request_id, head);
  call->reply->on_written = [this, weak] {
    if (ExchangePtr exchange = weak.lock()) Flush(exchange);
  };
  call->reply->StartStream(std::move(head));
}

Status FrontEnd::SubmitPart(const ExchangePtr& exchange, size_t prompt) {
  Request request;
  request.id = fmt::format("{}-{}", exchange->meta.id, prompt);
  request.prompt_ids = exchange->request.prompts[prompt].ids;
  request.sampling = exchange->request.sampling;
  request.constraint = exchange->request.constraint;
  request.on_output = [this, exchange, prompt](const RequestOutput& output) {
    outputs_.Push({exchange, prompt, output, Clock::now()});
  };
  exchange->parts[prompt].engine_id = request.id;
  exchange->parts[prompt].submitted = true;      // before its first output can come
  Status status = engine_.Submit(std::move(request));
  if (!status.ok()) exchange->parts[prompt].submitted = false;
  return status;
}

void FrontEnd::Cancel(const ExchangePtr& exchange) {
  MarkStarted(*exchange);
  for (const ApiExchange::Part& part : exchange->parts)
    if (part.submitted && !part.finished) engine_.Cancel(part.engine_id);
}

// It no longer waits for its first token.
void FrontEnd::MarkStarted(ApiExchange& exchange) {
  if (std::exchange(exchange.first_token, true)) return;
  waiting_ -= static_cast<int64_t>(exchange.parts.size());
}

void FrontEnd::ForgetIfDone(const ExchangePtr& exchange) {
  if (!exchange->answered || !exchange->engine_done()) return;
  exchanges_.erase(exchange);
  CheckDrained();
}

void FrontEnd::TakeOutputs() {
  outputs_.Take(batch_);
  std::vector<ExchangePtr> touched;
  for (QueuedOutput& item : batch_) {
    ApiExchange& exchange = *item.exchange;
    Observe(exchange, item);
    if (item.output.finished) exchange.parts[item.prompt].finished = true;
    if (exchange.answered) {
      ForgetIfDone(item.exchange);
      continue;
    }
    if (exchange.stream != nullptr) exchange.stream->Add(item.prompt, item.output);
    else exchange.answers[item.prompt].Add(item.output);
    if (exchange.oldest_pending == Clock::time_point{}) exchange.oldest_pending = item.time;
    if (!std::exchange(exchange.touched, true)) touched.push_back(item.exchange);
  }
  batch_.clear();
  for (const ExchangePtr& exchange : touched) {
    exchange->touched = false;
    Flush(exchange);
  }
}

void FrontEnd::Observe(ApiExchange& exchange, const QueuedOutput& item) {
  ApiExchange::Part& part = exchange.parts[item.prompt];
  for (const ChoiceDelta& delta : item.output.choices) {
    Clock::time_point& last = part.last_output[static_cast<size_t>(delta.index)];
    if (last != Clock::time_point{} && !delta.token_ids.empty()) {
      metrics_.inter_token_latency.Add(SecondsBetween(last, item.time));
    }
    last = item.time;
    if (delta.finish != FinishReason::kNone) ++metrics_.finished[static_cast<size_t>(delta.finish)];
  }
  if (!exchange.first_token) {
    metrics_.time_to_first_token.Add(SecondsBetween(exchange.call->received, item.time));
    MarkStarted(exchange);
  }
  if (item.output.finished) ObserveFinished(exchange, item.output);
}

void FrontEnd::ObserveFinished(const ApiExchange& exchange, const RequestOutput& output) {
  const RequestTimes& times = output.times;
  metrics_.e2e_latency.Add(SecondsBetween(exchange.call->received, Clock::now()));
  if (times.first_scheduled > 0) metrics_.queue_time.Add(times.first_scheduled);
  if (times.first_token <= 0) return;
  metrics_.prefill_time.Add(times.first_token - times.first_scheduled);
  metrics_.decode_time.Add(times.finished - times.first_token);
}

void FrontEnd::Flush(const ExchangePtr& exchange) {
  if (exchange->answered) return;
  if (exchange->stream != nullptr) return FlushStream(exchange);
  exchange->oldest_pending = {};
  if (exchange->engine_done()) SendWhole(exchange);
}

void FrontEnd::FlushStream(const ExchangePtr& exchange) {
  HttpReply& reply = *exchange->call->reply;
  if (reply.writing()) {
    if (exchange->stream->pending_bytes() <= options_.max_lag) return;
    ++metrics_.slow_readers;
    return reply.Abort();                  // comes back through on_closed
  }
  std::string events = exchange->stream->Take();
  bool done = exchange->engine_done();
  if (done) events += exchange->stream->End();
  reply.Write(events);
  if (exchange->oldest_pending != Clock::time_point{}) {
    metrics_.front_end_delay.Add(SecondsBetween(exchange->oldest_pending, Clock::now()));
  }
  exchange->oldest_pending = {};
  if (!done) return;
  exchange->answered = true;
  reply.EndStream();
  ForgetIfDone(exchange);
}

void FrontEnd::SendWhole(const ExchangePtr& exchange) {
  ++in_workers_;
  server_.PostToWorker([this, exchange] {
    auto body = std::make_shared<std::string>(
        CompletionBody(exchange->request, exchange->meta, exchange->answers, *context_.codec));
    server_.Post([this, exchange, body] {
      --in_workers_;
      if (!std::exchange(exchange->answered, true)) RespondJson(exchange->call, std::move(*body));
      ForgetIfDone(exchange);
      CheckDrained();
    });
  });
}

void FrontEnd::TimeOut(const ExchangePtr& exchange) {
  ApiError error{.http_status = 504,
                 .message = fmt::format("the request took more than {} s", options_.request_timeout),
                 .type = "timeout_error"};
  exchange->answered = true;
  Cancel(exchange);
  if (exchange->stream == nullptr) {
    RespondError(exchange->call, error);
  } else {
    exchange->call->reply->Write(ServerSentEvent(ErrorBody(error)));
    exchange->call->reply->EndStream();
  }
  ForgetIfDone(exchange);
}

}  // namespace latentmesh
