#include "launch/resilient/open_requests.h"

#include <fmt/format.h>

#include <utility>

namespace latentmesh {
namespace {

Status Nonsense(const RequestOutput& output, const std::string& what) {
  return {StatusCode::kCommunication, fmt::format("rank 0 answered request {} with {}", output.request_id, what)};
}

}  // namespace

void OpenRequests::Add(Request request) {
  LM_CHECK(!Contains(request.id));
  request.generated.resize(static_cast<size_t>(request.sampling.n));
  by_id_[request.id] = next_;
  open_[next_++].request = std::move(request);
}

bool OpenRequests::MarkSent(const std::string& id) {
  Open& open = open_.at(by_id_.at(id));
  open.sent = true;
  open.offset = std::chrono::duration<double>(Clock::now() - open.submitted).count();
  return open.cancelled;
}

bool OpenRequests::Cancel(const std::string& id) {
  auto found = by_id_.find(id);
  return found != by_id_.end() && !std::exchange(open_.at(found->second).cancelled, true);
}

std::vector<const Request*> OpenRequests::InOrder() const {
  std::vector<const Request*> all;
  for (const auto& [number, open] : open_) all.push_back(&open.request);
  return all;
}

Status OpenRequests::Check(const Open& open, const RequestOutput& output) const {
  int32_t gained = 0;
  for (const ChoiceDelta& delta : output.choices) {
    if (delta.index < 0 || delta.index >= open.request.sampling.n)
      return Nonsense(output, fmt::format("choice {} of {}", delta.index, open.request.sampling.n));
    if (delta.finish > FinishReason::kAbort) return Nonsense(output, "an unknown finish reason");
    if (open.request.generated[static_cast<size_t>(delta.index)].finished)
      return Nonsense(output, fmt::format("more of choice {}, which has ended", delta.index));
    gained += static_cast<int32_t>(delta.token_ids.size());
  }
  if (open.completion_tokens + gained == output.completion_tokens) return Status::Ok();
  return Nonsense(output, fmt::format("{} tokens in all, where {} were delivered and {} come now", output.completion_tokens,
                                      open.completion_tokens, gained));
}

void OpenRequests::Record(Open& open, RequestOutput& output) {
  for (const ChoiceDelta& delta : output.choices) {
    GeneratedTokens& generated = open.request.generated[static_cast<size_t>(delta.index)];
    generated.tokens.insert(generated.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
    generated.finished = delta.finish != FinishReason::kNone;
  }
  if (!std::exchange(open.begun, true)) {
    open.cached_tokens = output.cached_tokens;
    open.times.first_scheduled = open.offset + output.times.first_scheduled;
    open.times.first_token = open.offset + output.times.first_token;
  }
  open.completion_tokens = output.completion_tokens;
  open.jobs_lost = 0;
  output.cached_tokens = open.cached_tokens;
  double finished = output.finished ? open.offset + output.times.finished : 0;
  output.times = open.times;
  output.times.finished = finished;
}

Result<std::optional<OpenRequests::Delivery>> OpenRequests::Take(RequestOutput output) {
  auto found = by_id_.find(output.request_id);
  if (found == by_id_.end()) return std::optional<Delivery>();
  Open& open = open_.at(found->second);
  LM_RETURN_IF_ERROR(Check(open, output));
  Record(open, output);
  if (output.finished) return std::optional<Delivery>(Remove(found->second, std::move(output)));
  return std::optional<Delivery>({open.request.on_output, std::move(output)});
}

OpenRequests::Delivery OpenRequests::Remove(int64_t number, RequestOutput output) {
  auto node = open_.extract(number);
  by_id_.erase(node.mapped().request.id);
  return {std::move(node.mapped().request.on_output), std::move(output)};
}

std::optional<OpenRequests::Delivery> OpenRequests::Abort(const std::string& id) {
  auto found = by_id_.find(id);
  if (found == by_id_.end()) return std::nullopt;
  Open& open = open_.at(found->second);
  RequestOutput output;
  output.request_id = id;
  output.finished = true;
  output.prompt_tokens = static_cast<int32_t>(open.request.prompt_ids.size());
  output.cached_tokens = open.cached_tokens;
  output.completion_tokens = open.completion_tokens;
  output.times = open.times;
  output.times.finished = std::chrono::duration<double>(Clock::now() - open.submitted).count();
  for (int32_t i = 0; i < open.request.sampling.n; ++i) {
    if (open.request.generated[static_cast<size_t>(i)].finished) continue;
    ChoiceDelta& delta = output.choices.emplace_back();
    delta.index = i;
    delta.finish = FinishReason::kAbort;
  }
  return Remove(found->second, std::move(output));
}

std::vector<OpenRequests::Delivery> OpenRequests::AbortAll(const std::function<bool(const Open&)>& condition) {
  std::vector<std::string> ended;
  for (const auto& [number, open] : open_)
    if (condition(open)) ended.push_back(open.request.id);
  std::vector<Delivery> deliveries;
  for (const std::string& id : ended) deliveries.push_back(*Abort(id));
  return deliveries;
}

std::vector<OpenRequests::Delivery> OpenRequests::EndCancelled() {
  return AbortAll([](const Open& open) { return open.cancelled; });
}

std::vector<OpenRequests::Delivery> OpenRequests::JobLost(int most) {
  for (auto& [number, open] : open_)
    if (std::exchange(open.sent, false)) ++open.jobs_lost;
  return AbortAll([most](const Open& open) { return open.cancelled || open.jobs_lost >= most; });
}

}  // namespace latentmesh
