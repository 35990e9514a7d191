#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>
#include <numeric>
#include <variant>

#include "launch/api_fields.h"
#include "launch/http/front_end.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr size_t kMaxWatchers = 64;

std::variant<json::object, ApiError> ParseObject(const std::string& body) {
  boost::system::error_code error;
  json::value root = json::parse(body, error);
  if (error) return ApiError{.message = "the body is not valid JSON: " + error.message()};
  if (!root.is_object()) return ApiError{.message = "the body must be a JSON object"};
  return std::move(root.get_object());
}

// The ids of a text, or of a conversation as the chat template renders it.
std::variant<std::vector<int32_t>, ApiError> TokenizeBody(const json::object& body, const ApiContext& context,
                                                          const Tokenizer* tokenizer) {
  ApiFields fields(body);
  std::string prompt;
  ChatInput chat;
  bool special = true;
  fields.Text("prompt", &prompt);
  fields.Bool("add_special_tokens", &special);
  fields.Bool("add_generation_prompt", &chat.add_generation_prompt);
  const json::value* messages = fields.Find("messages");
  if (messages == nullptr && !fields.Has("prompt")) fields.Fail("prompt", "is missing");
  if (fields.error().has_value()) return *fields.error();
  if (messages != nullptr) chat.messages = json::serialize(*messages);
  auto ids = messages != nullptr || tokenizer == nullptr || special
                 ? (messages != nullptr ? context.codec->EncodeChat(chat) : context.codec->EncodePrompt(prompt))
                 : Result<std::vector<int32_t>>(tokenizer->Encode(prompt, false));
  const char* field = messages != nullptr ? "messages" : "prompt";
  if (!ids.ok()) return ApiError{.message = fmt::format("{}: {}", field, ids.status().message()), .param = field};
  return std::move(ids).value();
}

std::variant<std::string, ApiError> DetokenizeBody(const json::object& body, const ApiContext& context) {
  ApiFields fields(body);
  std::vector<int32_t> ids;
  if (!fields.Has("tokens")) fields.Fail("tokens", "is missing");
  fields.IdList("tokens", context.vocab_size, &ids);
  if (fields.error().has_value()) return *fields.error();
  return context.codec->Decode(ids);
}

json::object Percentiles(const Histogram& histogram) {
  return {{"p50", histogram.RecentPercentile(0.5)},
          {"p90", histogram.RecentPercentile(0.9)},
          {"p99", histogram.RecentPercentile(0.99)},
          {"count", histogram.count()}};
}

// Tokens of the last windows that each rank's experts took, summed over layers; empty until they were gathered.
json::array LoadByRank(const EngineStats& stats) {
  std::vector<double> sums(static_cast<size_t>(stats.expert_ranks));
  for (size_t i = 0; i < stats.expert_rank_load.size() && !sums.empty(); ++i)
    sums[i % sums.size()] += stats.expert_rank_load[i];
  return json::array(sums.begin(), sums.end());
}

// [layers][experts] tokens since the start, in percent of the layer's mean; empty until gathered.
json::array LoadByExpert(const EngineStats& stats) {
  json::array layers;
  size_t experts = stats.expert_layers == 0 ? 0 : stats.expert_load.size() / static_cast<size_t>(stats.expert_layers);
  for (size_t begin = 0; experts > 0 && begin + experts <= stats.expert_load.size(); begin += experts) {
    auto first = stats.expert_load.begin() + static_cast<std::ptrdiff_t>(begin), end = first + static_cast<std::ptrdiff_t>(experts);
    double mean = static_cast<double>(std::accumulate(first, end, int64_t{0})) / static_cast<double>(experts);
    json::array& layer = layers.emplace_back(json::array()).as_array();
    for (auto load = first; load != end; ++load)
      layer.push_back(mean == 0 ? 0 : std::llround(100 * static_cast<double>(*load) / mean));
  }
  return layers;
}

}  // namespace

void FrontEnd::Models(CallPtr call) {
  json::object model = {{"id", options_.served_model}, {"object", "model"}, {"created", started_},
                        {"owned_by", "latentmesh"}, {"root", options_.served_model}, {"parent", nullptr},
                        {"max_model_len", context_.max_model_len}, {"vocab_size", context_.vocab_size}};
  RespondJson(call, json::serialize(json::object{{"object", "list"}, {"data", json::array{std::move(model)}}}));
}

// Long texts take a while: workers encode them.
void FrontEnd::Tokenize(CallPtr call) {
  server_.PostToWorker([this, call = std::move(call)]() mutable {
    auto body = ParseObject(call->request.body);
    std::variant<std::vector<int32_t>, ApiError> ids;
    if (auto* error = std::get_if<ApiError>(&body)) ids = *error;
    else ids = TokenizeBody(std::get<json::object>(body), context_, engine_.tokenizer());
    server_.Post([this, call = std::move(call), ids = std::move(ids)] {
      if (auto* error = std::get_if<ApiError>(&ids)) return RespondError(call, *error);
      const auto& tokens = std::get<std::vector<int32_t>>(ids);
      RespondJson(call, json::serialize(json::object{{"count", tokens.size()},
                                                     {"max_model_len", context_.max_model_len},
                                                     {"tokens", json::array(tokens.begin(), tokens.end())}}));
    });
  });
}

void FrontEnd::Detokenize(CallPtr call) {
  server_.PostToWorker([this, call = std::move(call)]() mutable {
    auto body = ParseObject(call->request.body);
    std::variant<std::string, ApiError> text;
    if (auto* error = std::get_if<ApiError>(&body)) text = *error;
    else text = DetokenizeBody(std::get<json::object>(body), context_);
    server_.Post([this, call = std::move(call), text = std::move(text)] {
      if (auto* error = std::get_if<ApiError>(&text)) return RespondError(call, *error);
      RespondJson(call, json::serialize(json::object{{"prompt", std::get<std::string>(text)}}));
    });
  });
}

void FrontEnd::Health(CallPtr call) {
  EngineStats stats = engine_.Stats();
  double quiet = stats.seconds_since_active;
  if (draining_) {
    return RespondError(call,
                        {.http_status = 503, .message = "the server is shutting down", .type = "service_unavailable"});
  }
  if (stats.restarting) {
    return RespondError(call, {.http_status = 503, .message = "the ranks are being restarted; requests wait for them",
                               .type = "service_unavailable"});
  }
  if (quiet > options_.health_timeout) {
    return RespondError(call, {.http_status = 503,
                               .message = fmt::format("the engine has not moved for {:.0f} s", quiet),
                               .type = "service_unavailable"});
  }
  RespondJson(call, "{\"status\":\"ok\"}");
}

void FrontEnd::Version(CallPtr call) {
  RespondJson(call, json::serialize(json::object{{"version", LATENTMESH_VERSION}}));
}

void FrontEnd::MetricsText(CallPtr call) {
  HttpResponse response{.content_type = "text/plain; version=0.0.4; charset=utf-8"};
  response.body = metrics_.PrometheusText(engine_.Stats(), server_.connections().open);
  Respond(call, std::move(response));
}

void FrontEnd::Page(CallPtr call) {
  HttpResponse response{.content_type = "text/html; charset=utf-8", .body = std::string(PageHtml())};
  response.headers.push_back({"Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src "
                              "'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'"});
  response.headers.push_back({"Cache-Control", "no-cache"});
  Respond(call, std::move(response));
}

void FrontEnd::StatsStream(CallPtr call) {
  if (watchers_.size() >= kMaxWatchers) {
    return RespondError(call,
                        {.http_status = 503, .message = "too many pages are open", .type = "service_unavailable"});
  }
  HttpResponse head{.content_type = "text/event-stream; charset=utf-8", .headers = {{"Cache-Control", "no-cache"}}};
  AddCommonHeaders(call->request_id, head);
  head.body = ServerSentEvent(StatsJson());
  watchers_.insert(call->reply);
  call->reply->on_closed = [this, reply = call->reply.get()] {
    std::erase_if(watchers_, [reply](const auto& watcher) { return watcher.get() == reply; });
  };
  call->reply->StartStream(std::move(head));
}

void FrontEnd::SendStats() {
  if (watchers_.empty()) return;
  std::string event = ServerSentEvent(StatsJson());
  std::erase_if(watchers_, [](const auto& watcher) { return !watcher->open(); });
  for (const auto& watcher : std::vector(watchers_.begin(), watchers_.end()))
    if (!watcher->writing()) watcher->Write(event);
}

std::string FrontEnd::StatsJson() {
  EngineStats stats = engine_.Stats();
  return json::serialize(json::object{
      {"model", options_.served_model}, {"layout", options_.layout ? options_.layout() : ""}, {"version", LATENTMESH_VERSION},
      {"running", stats.running}, {"waiting", stats.waiting}, {"queued", waiting_},
      {"cache_usage", stats.cache_usage}, {"steps", stats.steps}, {"prompt_tokens", stats.prompt_tokens},
      {"generated_tokens", stats.generated_tokens}, {"preemptions", stats.preemptions},
      {"prefix_queries", stats.prefix_queries}, {"prefix_hits", stats.prefix_hits},
      {"connections", server_.connections().open.load()}, {"rejected", metrics_.rejected}, {"draining", draining_},
      {"ttft", Percentiles(metrics_.time_to_first_token)}, {"itl", Percentiles(metrics_.inter_token_latency)},
      {"e2e", Percentiles(metrics_.e2e_latency)}, {"front_end", Percentiles(metrics_.front_end_delay)},
      {"experts", engine_.config().n_routed_experts}, {"expert_load", LoadByRank(stats)},
      {"expert_loads", LoadByExpert(stats)}});
}

}  // namespace latentmesh
