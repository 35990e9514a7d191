#include "launch/http/front_end.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace latentmesh {
namespace {

constexpr double kTickSeconds = 0.1;
constexpr double kStatsSeconds = 1;
constexpr size_t kMaxRequestId = 128;

// The client's id where it is harmless to echo.
std::string ChooseRequestId(std::string_view given, const std::string& own) {
  bool good = !given.empty() && given.size() <= kMaxRequestId &&
              std::all_of(given.begin(), given.end(), [](char c) { return c > ' ' && c < 0x7f; });
  return good ? std::string(given) : own;
}

}  // namespace

bool SameSecret(std::string_view given, std::string_view expected) {
  size_t difference = given.size() ^ expected.size();
  for (size_t i = 0; i < given.size(); ++i)
    difference |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(expected[i % expected.size()]);
  return difference == 0;
}

FrontEnd::FrontEnd(Engine& engine, HttpServer& server, ApiContext context, FrontEndOptions options)
    : engine_(engine), server_(server), context_(std::move(context)), options_(std::move(options)),
      outputs_([this] { server_.Post([this] { TakeOutputs(); }); }) {
  started_ =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::random_device random;
  id_stem_ = fmt::format("{:08x}{:08x}", random(), random());
}

const std::vector<FrontEnd::Route>& FrontEnd::Routes() {
  static const std::vector<Route> routes = {
      {"/v1/completions", "POST", false, &FrontEnd::Completions},
      {"/v1/chat/completions", "POST", false, &FrontEnd::ChatCompletions},
      {"/v1/models", "GET", false, &FrontEnd::Models},
      {"/tokenize", "POST", false, &FrontEnd::Tokenize},
      {"/detokenize", "POST", false, &FrontEnd::Detokenize},
      {"/health", "GET", true, &FrontEnd::Health},
      {"/version", "GET", true, &FrontEnd::Version},
      {"/metrics", "GET", false, &FrontEnd::MetricsText},
      {"/", "GET", true, &FrontEnd::Page},
      {"/stats/stream", "GET", false, &FrontEnd::StatsStream},
  };
  return routes;
}

Status FrontEnd::Start() {
  server_.Every(kTickSeconds, [this] { Tick(); });
  server_.Every(kStatsSeconds, [this] { SendStats(); });
  return server_.Start([this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    Handle(std::move(request), std::move(reply));
  }, [this](int status, const std::string& message) {
    ++metrics_.http_errors;
    return HttpResponse{
        .status = status, .body = ErrorBody({.http_status = status, .message = message}), .close = true};
  });
}

void FrontEnd::Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  ++metrics_.http_requests;
  auto call = std::make_shared<Call>();
  call->request_id = ChooseRequestId(request.Header("X-Request-Id"), fmt::format("{}-{}", id_stem_, ++next_id_));
  call->request = std::move(request);
  call->reply = std::move(reply);
  call->received = std::chrono::steady_clock::now();
  const auto& routes = Routes();
  auto route = std::find_if(routes.begin(), routes.end(), [&](const Route& r) { return call->request.path == r.path; });
  if (route == routes.end()) {
    return RespondError(call, {.http_status = 404, .message = "there is nothing at " + call->request.path});
  }
  if (call->request.method == "OPTIONS") return HandleOptions(call, *route);
  if (call->request.method != route->method) {
    ApiError error{.http_status = 405, .message = fmt::format("{} takes {}", route->path, route->method)};
    HttpResponse response{.status = 405, .body = ErrorBody(error)};
    response.headers.push_back({"Allow", fmt::format("{}, OPTIONS", route->method)});
    return Respond(call, std::move(response));
  }
  if (!route->open && !Authorized(call->request)) {
    ApiError error{.message = "a valid API key is needed: Authorization: Bearer KEY", .code = "invalid_api_key"};
    HttpResponse response{.status = 401, .body = ErrorBody(error)};
    response.headers.push_back({"WWW-Authenticate", "Bearer"});
    return Respond(call, std::move(response));
  }
  (this->*route->handle)(call);
}

void FrontEnd::HandleOptions(const CallPtr& call, const Route& route) {
  HttpResponse response{.status = 204};
  std::string methods =
      fmt::format("{}{}, OPTIONS", route.method, std::string_view(route.method) == "GET" ? ", HEAD" : "");
  response.headers.push_back({"Allow", methods});
  if (!options_.cors_origin.empty()) {
    response.headers.push_back({"Access-Control-Allow-Methods", methods});
    response.headers.push_back({"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id"});
  }
  Respond(call, std::move(response));
}

bool FrontEnd::Authorized(const HttpRequest& request) const {
  if (options_.api_key.empty()) return true;
  constexpr std::string_view kBearer = "Bearer ";
  std::string_view given = request.Header("Authorization");
  if (given.substr(0, kBearer.size()) != kBearer) return false;
  return SameSecret(given.substr(kBearer.size()), options_.api_key);
}

void FrontEnd::AddCommonHeaders(const std::string& request_id, HttpResponse& response) const {
  response.headers.push_back({"X-Request-Id", request_id});
  if (!options_.cors_origin.empty()) {
    response.headers.push_back({"Access-Control-Allow-Origin", options_.cors_origin});
  }
}

void FrontEnd::Respond(const CallPtr& call, HttpResponse response) {
  if (response.status >= 400) ++metrics_.http_errors;
  AddCommonHeaders(call->request_id, response);
  call->reply->Send(std::move(response));
}

void FrontEnd::RespondError(const CallPtr& call, const ApiError& error) {
  HttpResponse response{.status = error.http_status, .body = ErrorBody(error)};
  if (error.http_status == 429 || error.http_status == 503) response.headers.push_back({"Retry-After", "1"});
  Respond(call, std::move(response));
}

void FrontEnd::RespondJson(const CallPtr& call, std::string body) { Respond(call, {.body = std::move(body)}); }

void FrontEnd::Tick() {
  if (options_.request_timeout > 0) {
    auto limit = std::chrono::steady_clock::now() - std::chrono::duration<double>(options_.request_timeout);
    std::vector<ExchangePtr> late;
    for (const ExchangePtr& exchange : exchanges_)
      if (!exchange->answered && exchange->call->received < limit) late.push_back(exchange);
    for (const ExchangePtr& exchange : late) TimeOut(exchange);
  }
  CheckDrained();
}

void FrontEnd::Drain(std::function<void()> drained) {
  server_.CloseAfterAnswers();
  server_.Post([this, drained = std::move(drained)]() mutable {
    draining_ = true;
    drained_ = std::move(drained);
    CheckDrained();
  });
}

void FrontEnd::CheckDrained() {
  if (!draining_ || !drained_ || !exchanges_.empty() || in_workers_ > 0) return;
  std::exchange(drained_, nullptr)();
}

}  // namespace latentmesh
