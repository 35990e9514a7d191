// FrontEnd: the OpenAI-compatible service between HttpServer and Engine.
//
// Threads: the I/O thread owns everything here. Workers parse and tokenise bodies and write whole answers; the engine's
// thread puts outputs into a queue that the I/O thread empties.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "launch/http/api_exchange.h"
#include "launch/http/metrics.h"
#include "launch/http/output_queue.h"
#include "launch/http/server.h"
#include "launch/openai_request.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

struct FrontEndOptions {
  std::string served_model = "model";      // what /v1/models calls the model
  std::string api_key;                     // empty: none is asked for
  std::string cors_origin;                 // empty: no CORS headers
  int max_queue = 1024;                    // requests that wait for their first token
  double request_timeout = 0;              // seconds from arrival to the last token; 0: none
  double health_timeout = 30;              // seconds without a step or an idle round of the engine
  size_t max_lag = 4 << 20;                // bytes a streaming client may fall behind
  std::function<std::string()> layout;     // for the page; may change
};

class FrontEnd {
 public:
  // All must outlive the front end; the server must be stopped before the front end goes.
  FrontEnd(Engine& engine, HttpServer& server, ApiContext context, FrontEndOptions options);

  Status Start();                          // starts the server
  // Thread-safe. New requests get 503 from now on; `drained` is called on the I/O thread once none is left.
  void Drain(std::function<void()> drained);

 private:
  using CallPtr = std::shared_ptr<Call>;
  using ExchangePtr = std::shared_ptr<ApiExchange>;
  struct Route {
    const char* path;
    const char* method;
    bool open;                             // needs no API key
    void (FrontEnd::*handle)(CallPtr);
  };
  static const std::vector<Route>& Routes();

  // front_end.cc: routing
  void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply);
  void HandleOptions(const CallPtr& call, const Route& route);
  bool Authorized(const HttpRequest& request) const;
  void AddCommonHeaders(const std::string& request_id, HttpResponse& response) const;
  void Respond(const CallPtr& call, HttpResponse response);
  void RespondError(const CallPtr& call, const ApiError& error);
  void RespondJson(const CallPtr& call, std::string body);
  void Tick();
  void CheckDrained();

  // front_end_api.cc: completions and chats
  void Completions(CallPtr call) { StartApi(ApiEndpoint::kCompletions, std::move(call)); }
  void ChatCompletions(CallPtr call) { StartApi(ApiEndpoint::kChatCompletions, std::move(call)); }
  void StartApi(ApiEndpoint endpoint, CallPtr call);
  bool Admit(const CallPtr& call);
  void Submit(ApiEndpoint endpoint, CallPtr call, ApiRequest request);
  Status SubmitPart(const ExchangePtr& exchange, size_t prompt);
  void Cancel(const ExchangePtr& exchange);
  void TakeOutputs();
  void Observe(ApiExchange& exchange, const QueuedOutput& item);
  void ObserveFinished(const ApiExchange& exchange, const RequestOutput& output);
  void Flush(const ExchangePtr& exchange);
  void FlushStream(const ExchangePtr& exchange);
  void SendWhole(const ExchangePtr& exchange);
  void MarkStarted(ApiExchange& exchange);
  void ForgetIfDone(const ExchangePtr& exchange);
  void TimeOut(const ExchangePtr& exchange);

  // front_end_info.cc: everything that is answered at once
  void Models(CallPtr call);
  void Tokenize(CallPtr call);
  void Detokenize(CallPtr call);
  void Health(CallPtr call);
  void Version(CallPtr call);
  void MetricsText(CallPtr call);
  void Page(CallPtr call);
  void StatsStream(CallPtr call);
  void SendStats();
  std::string StatsJson();

  Engine& engine_;
  HttpServer& server_;
  ApiContext context_;
  FrontEndOptions options_;
  OutputQueue outputs_;
  std::vector<QueuedOutput> batch_;        // scratch of TakeOutputs
  std::unordered_set<ExchangePtr> exchanges_;
  std::unordered_set<std::shared_ptr<HttpReply>> watchers_;      // of /stats/stream
  int64_t waiting_ = 0;                    // calls with a worker, and exchanges without a first token
  int64_t in_workers_ = 0;
  int64_t next_id_ = 0;
  int64_t started_ = 0;                    // Unix seconds
  std::string id_stem_;
  bool draining_ = false;
  std::function<void()> drained_;
  ServeMetrics metrics_;
};

// How "Bearer KEY" compares with the key, in time that does not depend on where they differ.
bool SameSecret(std::string_view given, std::string_view expected);

// The page at /.
std::string_view PageHtml();

}  // namespace latentmesh
