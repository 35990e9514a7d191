#include "runtime/engine/engine_impl.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr auto kIdleWait = std::chrono::milliseconds(100);
constexpr auto kSnapshotEvery = std::chrono::milliseconds(100);
constexpr int64_t kLoadBytesPerStep = 64 << 20;   // of a rank, from lower tiers: what a step may be held up for
constexpr auto kHeartbeatEvery = std::chrono::milliseconds(500);

SchedulerOptions SchedulerOptionsOf(const RankSetup& setup) {
  SchedulerOptions options;
  options.dp = setup.shard.layout.dp;
  options.block_size = setup.limits.block_size * setup.shard.layout.cp;
  options.blocks_per_shard = setup.cache.num_blocks;
  options.max_batch_tokens = static_cast<int32_t>(setup.limits.max_tokens);
  options.max_seqs = static_cast<int32_t>(setup.limits.max_seqs);
  options.max_model_len = static_cast<int32_t>(setup.limits.max_model_len);
  options.prefix_caching = setup.options.prefix_caching;
  options.lookahead = setup.runs_ahead() ? 1 : 0;
  options.migrate = options.fetch_prefixes = setup.options.migration && options.dp > 1;
  options.prefill_shards = setup.options.prefill_ranks;
  options.stream_prefills = !setup.drafts_with_layer();   // the draft layer computes its rows after the step
  if (!setup.has_tiers()) return options;
  int64_t block = static_cast<int64_t>(setup.cache.BytesPerBlock());
  options.kv.host_slots = setup.plan.offload_blocks;
  options.kv.disk = !setup.options.kv_store.empty();
  options.kv.ranks = setup.shard.layout.pp * setup.shard.layout.tp;
  options.kv.loads_per_step = static_cast<int32_t>(std::clamp<int64_t>(kLoadBytesPerStep / block, 1, 1024));
  options.kv.fetches = static_cast<int32_t>(std::clamp<int64_t>(kLoadBytesPerStep / block, 2, 256));
  return options;
}

constexpr int64_t kKeepDraftCacheSteps = 64;   // steps without drafts after which the draft layer's cache is given up

StepCommand ModelCommand(int micro_batches, AttentionMode attention, const StepPlan& plan, bool capture_hidden = false) {
  StepCommand command;
  command.micro_batches = static_cast<uint8_t>(micro_batches);
  command.attention = attention;
  command.capture_hidden = capture_hidden;
  command.plan = plan;
  return command;
}

const float* Row(const StepResult::Shard& shard, int64_t row, int64_t vocab) {
  if (!shard.host_rows.empty()) {
    auto found = std::lower_bound(shard.host_rows.begin(), shard.host_rows.end(), row);
    LM_CHECK(found != shard.host_rows.end() && *found == row);
    row = found - shard.host_rows.begin();
  }
  LM_CHECK((row + 1) * vocab <= static_cast<int64_t>(shard.logits.size()));
  return shard.logits.data() + row * vocab;
}

}  // namespace

bool EngineImpl::Live::finished() const {
  return std::all_of(choices.begin(), choices.end(), [](const ChoiceState& c) { return c.finished(); });
}

Result<std::unique_ptr<EngineImpl>> EngineImpl::Create(Worker& worker, ControlChannel& control,
                                                       std::unique_ptr<Tokenizer> tokenizer) {
  LM_ASSIGN_OR_RETURN(auto scheduler, Scheduler::Create(SchedulerOptionsOf(worker.setup())));
  return std::unique_ptr<EngineImpl>(new EngineImpl(worker, control, std::move(tokenizer), std::move(scheduler)));
}

EngineImpl::EngineImpl(Worker& worker, ControlChannel& control, std::unique_ptr<Tokenizer> tokenizer,
                       std::unique_ptr<Scheduler> scheduler)
    : worker_(worker), control_(control), tokenizer_(std::move(tokenizer)), scheduler_(std::move(scheduler)),
      drafter_([this](StepCommand command) { return RunPlan(std::move(command)); }, scheduler_->options().block_size,
               scheduler_->options().max_model_len, worker.setup().options.sample_on_ranks),
      controller_(worker.setup().options.speculative_tokens, worker.setup().options.speculative_adapt),
      micro_batches_(worker.setup()),
      next_seed_(worker.setup().options.seed),
      balancer_(worker.setup()) {
  for (int64_t id : config().eos_token_ids) eos_ids_.push_back(static_cast<int32_t>(id));
}

Status EngineImpl::Submit(Request request) {
  LM_RETURN_IF_ERROR(CheckRequest(request, config().vocab_size));
  std::lock_guard lock(mutex_);
  if (ids_.count(request.id)) return InvalidArgument("request id " + request.id + " is in use by a live request");
  std::unique_ptr<Live> live = MakeLive(std::move(request));
  LM_RETURN_IF_ERROR(scheduler_->AddRequest(SpecOf(*live)));
  if (!live->request.sampling.seed.has_value()) ++next_seed_;
  ids_[live->request.id] = next_id_;
  live_[next_id_++] = std::move(live);
  work_.notify_one();
  return Status::Ok();
}

RequestSpec EngineImpl::SpecOf(const Live& live) const {
  const Request& request = live.request;
  RequestSpec spec;
  spec.id = next_id_;
  spec.prompt = request.prompt_ids;
  spec.n = request.sampling.n;
  spec.max_tokens = request.sampling.max_tokens;
  spec.prompt_logprobs = request.sampling.prompt_logprobs.has_value();
  spec.generated = request.generated;
  return spec;
}

std::unique_ptr<EngineImpl::Live> EngineImpl::MakeLive(Request request) {
  auto live = std::make_unique<Live>();
  live->request = std::move(request);
  live->submitted = Clock::now();
  live->output.request_id = live->request.id;
  live->output.prompt_tokens = static_cast<int32_t>(live->request.prompt_ids.size());
  uint64_t seed = live->request.sampling.seed.value_or(ChoiceSeed(next_seed_, -1));
  for (int32_t i = 0; i < live->request.sampling.n; ++i)
    live->choices.emplace_back(i, ChoiceSeed(seed, i), live->request, tokenizer_.get(), eos_ids_);
  for (size_t i = 0; i < live->request.generated.size(); ++i) {
    live->choices[i].Resume(live->request.generated[i]);
    live->output.completion_tokens += static_cast<int32_t>(live->choices[i].output().size());
  }
  return live;
}

void EngineImpl::Cancel(const std::string& request_id) {
  std::lock_guard lock(mutex_);
  auto found = ids_.find(request_id);
  if (found == ids_.end() || live_[found->second]->cancelled) return;
  scheduler_->Cancel(found->second);
  live_[found->second]->cancelled = true;
  cancelled_.push_back(found->second);
  work_.notify_one();
}

EngineStats EngineImpl::Stats() const {
  std::lock_guard lock(mutex_);
  SchedulerStats s = scheduler_->Stats();
  EngineStats stats;
  stats.running = s.running;
  stats.waiting = s.waiting;
  stats.cache_usage = s.cache_usage();
  stats.steps = s.steps;
  stats.steps_ahead = steps_ahead_;
  stats.seconds_since_active = std::chrono::duration<double>(Clock::now() - last_active_.load()).count();
  stats.prompt_tokens = prompt_tokens_;
  stats.generated_tokens = generated_tokens_;
  stats.preemptions = s.preemptions;
  stats.prefix_queries = s.prefix_queries;
  stats.prefix_hits = s.prefix_hits;
  stats.prefix_fetched = s.prefix_fetched;
  stats.migrated_sequences = s.migrated;
  stats.handed_over_sequences = s.handed_over;
  stats.moved_blocks = s.moved_blocks;
  stats.kv = s.kv;
  stats.draft_tokens = speculation_.drafts;
  stats.accepted_tokens = speculation_.accepted;
  stats.verified_steps = speculation_.verifications;
  stats.expert_load = expert_load_;
  BalanceState balance = balancer_.state();
  if (balance.layers == 0) return stats;
  stats.expert_load = std::move(balance.loads);
  stats.expert_layers = balance.layers;
  stats.expert_ranks = balance.ranks;
  stats.expert_rank_load = std::move(balance.rank_loads);
  stats.expert_spread = std::move(balance.spread);
  stats.expert_max_over_mean = balance.max_over_mean;
  stats.expert_contiguous_max_over_mean = balance.contiguous_max_over_mean;
  stats.expert_layers_moved = balance.layers_moved;
  stats.experts_sent = balance.experts_sent;
  return stats;
}

std::vector<std::string> EngineImpl::RunBalance(const BalanceCommand& command) {
  std::string bytes = EncodeBalanceCommand(command);
  control_.Broadcast(bytes);
  return worker_.Balance(command);
}

StepResult EngineImpl::RunPlan(StepCommand command, std::span<const SampleSpec> ahead) {
  {
    TraceSpan span("broadcast");
    std::string bytes = EncodeCommand(command);
    control_.Broadcast(bytes);
  }
  double exchanging = worker_.exchange_seconds();
  auto began = Clock::now();
  StepResult result = worker_.Execute(command, ahead);
  micro_batches_.Observe(std::chrono::duration<double>(Clock::now() - began).count(), worker_.exchange_seconds() - exchanging);
  if (const auto& keep_alive = worker_.setup().options.keep_alive) keep_alive();
  return result;
}

bool EngineImpl::Step() {
  std::vector<Delivery> deliveries = TakeCancelled();
  ScheduledStep step;
  StepSampling sampling;
  std::vector<SampleSpec> ahead;
  {
    TraceSpan span("schedule");
    std::lock_guard lock(mutex_);
    bool admits = !worker_.runs_ahead();   // what is queued has no place for others
    step = scheduler_->Schedule(admits);
    if (step.empty() && !admits) step = scheduler_->Schedule(admits = true);
    sampling = PlanSampling(step);
    ahead = PlanAhead(step, sampling, admits);
    for (const ScheduledSequence& entry : step.sequences)
      if (auto found = live_.find(entry.request); found != live_.end() && found->second->output.times.first_scheduled == 0)
        found->second->output.times.first_scheduled = Since(*found->second);
    if (step.empty() && scheduler_->HasWork())
      throw Error(StatusCode::kInternal, "the scheduler has requests but no step for them");
  }
  bool worked = !step.empty() || !deliveries.empty(), runs_model = !step.sequences.empty();
  std::vector<DraftSeed> seeds;
  auto started = Clock::now();
  if (!step.empty()) {
    StepCommand command = ModelCommand(micro_batches_.Choose(step.plan), worker_.setup().options.attention, step.plan);
    command.sampling = std::move(sampling.shards);
    StepResult result = RunPlan(std::move(command), ahead);
    if (worker_.setup().options.migration)
      ObserveCosts(step.plan, result, std::chrono::duration<double>(Clock::now() - started).count());
    if (runs_model) Collect(step, sampling, result, deliveries, seeds);
    std::vector<std::string> warnings;
    {
      std::lock_guard lock(mutex_);
      warnings = TakeKvReports(result.kv_reports);
    }
    Warn(warnings);
  }
  double seconds = std::chrono::duration<double>(Clock::now() - started).count();
  for (const Delivery& d : deliveries)
    if (d.on_output) d.on_output(d.output);
  if (!seeds.empty()) Speculate(step, std::move(seeds), seconds);
  if (runs_model) balancer_.AfterStep([this](const BalanceCommand& command) { return RunBalance(command); });
  return worked;
}

void EngineImpl::ObserveCosts(const StepPlan& plan, const StepResult& result, double seconds) {
  const RankSetup& setup = worker_.setup();
  if (setup.shard.layout.dp == 1) return;
  int64_t tokens = 0;
  for (const ShardStep& shard : plan.shards) tokens = std::max(tokens, shard.tokens());
  move_costs_.ObserveStep(tokens, seconds - result.move_seconds);
  const int64_t blocks = static_cast<int64_t>(result.moved_bytes / std::max<uint64_t>(1, setup.cache.BytesPerBlock()));
  move_costs_.ObserveMove(blocks * scheduler_->options().block_size, result.move_seconds);
  std::lock_guard lock(mutex_);
  scheduler_->SetFetchThreshold(move_costs_.LeastTokens());
}

// Feeds the scheduler; returns what the user should hear.
std::vector<std::string> EngineImpl::TakeKvReports(const std::vector<KvReport>& reports) {
  const ParallelConfig& layout = worker_.setup().shard.layout;
  std::vector<std::string> warnings;
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    scheduler_->OnKvEvents(static_cast<int32_t>(rank) / layout.tp % layout.dp, reports[rank].events);
    for (const std::string& warning : reports[rank].warnings)
      warnings.push_back(control_.DescribeRank(static_cast<int>(rank)) + ": " + warning);
  }
  return warnings;
}

void EngineImpl::Warn(const std::vector<std::string>& warnings) const {
  const auto& warn = worker_.setup().options.warn;
  for (const std::string& warning : warnings)
    if (warn) warn(warning);
}

std::vector<EngineImpl::Delivery> EngineImpl::TakeCancelled() {
  std::lock_guard lock(mutex_);
  std::vector<Delivery> deliveries;
  for (int64_t id : std::exchange(cancelled_, {})) {
    Live& live = *live_.at(id);
    for (ChoiceState& choice : live.choices) {
      if (choice.finished()) continue;
      ChoiceDelta delta;
      choice.Abort(delta);
      live.output.choices.push_back(std::move(delta));
    }
    Finish(id, deliveries);
  }
  return deliveries;
}

// Moves the request's last output out and forgets it.
void EngineImpl::Finish(int64_t id, std::vector<Delivery>& deliveries) {
  auto node = live_.extract(id);
  Live& live = *node.mapped();
  live.output.finished = true;
  live.output.times.finished = Since(live);
  ids_.erase(live.request.id);
  deliveries.push_back({std::move(live.request.on_output), std::move(live.output)});
}

// Rows that are neither chosen on the ranks nor scored stay where they are.
StepSampling EngineImpl::PlanSampling(const ScheduledStep& step) const {
  StepSampling sampling;
  sampling.first_spec.assign(step.sequences.size(), -1);
  if (!worker_.setup().options.sample_on_ranks || step.sequences.empty()) return sampling;
  sampling.shards.resize(step.plan.shards.size());
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const ScheduledSequence& entry = step.sequences[i];
    auto found = live_.find(entry.request);
    if (found == live_.end() || found->second->cancelled) continue;
    ShardSampling& shard = sampling.shards[static_cast<size_t>(entry.shard)];
    int64_t first = static_cast<int64_t>(shard.specs.size());
    int32_t from_host = entry.prompt_rows;
    if (entry.samples && AddSpecs(entry, *found->second, shard.specs)) sampling.first_spec[i] = first;
    else from_host = entry.rows;
    for (int32_t row = 0; row < from_host; ++row) shard.host_rows.push_back(entry.first_row + row);
  }
  for (ShardSampling& shard : sampling.shards) std::sort(shard.host_rows.begin(), shard.host_rows.end());
  return sampling;
}

// Those who wait, and may find room in the next step, wait for one step at most.
std::vector<SampleSpec> EngineImpl::PlanAhead(const ScheduledStep& step, const StepSampling& sampling, bool admits) const {
  if (!worker_.setup().runs_ahead() || sampling.shards.empty() || (!admits && scheduler_->Stats().waiting > 0)) return {};
  std::vector<SampleSpec> specs;
  bool goes_on = false;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const ScheduledSequence& entry = step.sequences[i];
    bool decodes = entry.samples && entry.choices == 1 && entry.rows == 1 && entry.prompt_rows == 0;
    auto found = live_.find(entry.request);
    if (!decodes || sampling.first_spec[i] < 0 || found == live_.end()) return {};
    const ChoiceState& choice = found->second->choices[static_cast<size_t>(entry.first_choice)];
    int64_t generated = static_cast<int64_t>(choice.output().size()) + 1;
    SampledRow row{&found->second->request.sampling, choice.seed(), generated, choice.constrained(), entry.first_row};
    if (!RanksCanChoose(row, true)) return {};
    specs.push_back(SampleSpecOf(row));
    goes_on = goes_on || generated < found->second->request.sampling.max_tokens;
  }
  return goes_on ? specs : std::vector<SampleSpec>();
}

// What the ranks need to choose all of the entry's tokens; false, and nothing added, where they cannot.
bool EngineImpl::AddSpecs(const ScheduledSequence& entry, const Live& live, std::vector<SampleSpec>& specs) const {
  bool whole_rows = worker_.setup().shard.layout.tp == 1;
  size_t before = specs.size(), most = static_cast<size_t>(worker_.setup().limits.max_tokens);
  for (int32_t c = entry.first_choice; c < entry.first_choice + entry.choices; ++c) {
    const ChoiceState& choice = live.choices[static_cast<size_t>(c)];
    int64_t generated = static_cast<int64_t>(choice.output().size());
    for (int32_t draft = 0; draft <= entry.drafts; ++draft) {
      SampledRow row{&live.request.sampling, choice.seed(), generated + draft, choice.constrained(),
                     entry.first_row + entry.rows - 1 - entry.drafts + draft};
      if (!RanksCanChoose(row, whole_rows) || specs.size() == most) {
        specs.resize(before);
        return false;
      }
      specs.push_back(SampleSpecOf(row));
    }
  }
  return true;
}

void EngineImpl::Collect(const ScheduledStep& step, const StepSampling& sampling, StepResult& result,
                         std::vector<Delivery>& deliveries, std::vector<DraftSeed>& seeds) {
  TraceSpan span("sample");
  std::lock_guard lock(mutex_);
  SnapshotLoads();
  steps_ahead_ = worker_.steps_ahead();
  std::vector<ChoiceResult> results;
  std::vector<int64_t> touched;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const ScheduledSequence& entry = step.sequences[i];
    auto found = live_.find(entry.request);
    if (found == live_.end() || found->second->cancelled) continue;
    Live& live = *found->second;
    const StepResult::Shard& shard = result.shards[static_cast<size_t>(entry.shard)];
    const SequenceStep& sequence =
        step.plan.shards[static_cast<size_t>(entry.shard)].sequences[static_cast<size_t>(entry.index)];
    live.output.cached_tokens = std::min(live.output.cached_tokens + entry.cached, live.output.prompt_tokens);
    if (entry.prompt_rows > 0) ScorePrompt(entry, shard, live);
    size_t before = results.size();
    if (entry.samples) {
      std::span<const int32_t> tokens = sequence.tokens;
      SampleChoices(entry, sampling.first_spec[i], shard, live, tokens.last(static_cast<size_t>(entry.drafts)), results);
      touched.push_back(entry.request);
    }
    if (worker_.setup().options.speculative_tokens > 0 && !live.undraftable)
      seeds.push_back(SeedOf(entry, sequence, live, std::span(results).subspan(before)));
  }
  scheduler_->Commit(step.plan.step, results);
  std::vector<Delivery> outputs = TakeOutputs(std::move(touched));
  std::move(outputs.begin(), outputs.end(), std::back_inserter(deliveries));
}

std::vector<EngineImpl::Delivery> EngineImpl::TakeOutputs(std::vector<int64_t> touched) {
  std::vector<Delivery> deliveries;
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  for (int64_t id : touched) {
    Live& live = *live_.at(id);
    live.output.prompt_logprobs = std::exchange(live.prompt_logprobs, {});
    if (live.finished()) {
      Finish(id, deliveries);
      continue;
    }
    RequestOutput now = live.output;
    live.output.choices.clear();
    live.output.prompt_logprobs.clear();
    deliveries.push_back({live.request.on_output, std::move(now)});
  }
  return deliveries;
}

// The routed layers count without locks on the engine's thread; others see this copy.
void EngineImpl::SnapshotLoads() {
  if (Clock::now() - last_snapshot_ < kSnapshotEvery) return;
  last_snapshot_ = Clock::now();
  expert_load_ = worker_.ExpertLoads();
}

void EngineImpl::ScorePrompt(const ScheduledSequence& entry, const StepResult::Shard& shard, Live& live) {
  int64_t vocab = config().vocab_size;
  for (int32_t r = 0; r < entry.prompt_rows; ++r) {
    const float* row = Row(shard, entry.first_row + r, vocab);
    int32_t id = live.request.prompt_ids[static_cast<size_t>(entry.first_scored + r)];
    live.prompt_logprobs.push_back(
        latentmesh::Score({row, static_cast<size_t>(vocab)}, id, live.request.sampling.prompt_logprobs.value_or(0)));
  }
}

// Every row is sampled as in plain decoding; a draft holds when the token sampled in its place equals it.
void EngineImpl::SampleChoices(const ScheduledSequence& entry, int64_t first_spec, const StepResult::Shard& shard, Live& live,
                               std::span<const int32_t> drafts, std::vector<ChoiceResult>& results) {
  int64_t first_row = entry.first_row + entry.rows - 1 - entry.drafts;
  auto token_of = [&](ChoiceState& choice, int32_t index, size_t row) {
    int64_t at = static_cast<int64_t>(row);
    if (first_spec < 0) return SampleOne(Row(shard, first_row + at, config().vocab_size), choice, live);
    int32_t id = shard.ids[static_cast<size_t>(first_spec + index * (entry.drafts + 1) + at)];
    if (id < 0) NoFiniteLogit(choice, live);
    return SampledToken{id, 0, 0, {}};
  };
  for (int32_t c = entry.first_choice; c < entry.first_choice + entry.choices; ++c) {
    ChoiceState& choice = live.choices[static_cast<size_t>(c)];
    if (choice.finished()) continue;
    ChoiceDelta delta;
    ChoiceResult result{entry.request, c, {}, false};
    for (size_t row = 0; row <= drafts.size(); ++row) {
      SampledToken token = token_of(choice, c - entry.first_choice, row);
      choice.Accept(token, delta);
      result.tokens.push_back(token.id);
      if (choice.finished() || row == drafts.size() || token.id != drafts[row]) break;
    }
    result.finished = choice.finished();
    int32_t count = static_cast<int32_t>(result.tokens.size());
    if (!drafts.empty()) {
      ++speculation_.verifications;
      speculation_.drafts += entry.drafts;
      speculation_.accepted += count - 1;
      controller_.ObserveVerification(entry.drafts, count - 1);
    }
    if (live.output.times.first_token == 0) {
      live.output.times.first_token = Since(live);
      prompt_tokens_ += live.output.prompt_tokens;
    }
    live.output.completion_tokens += count;
    generated_tokens_ += count;
    live.output.choices.push_back(std::move(delta));
    results.push_back(std::move(result));
  }
}

// The tokens that follow the entry's positions: the entry's own, shifted by one, then what was sampled or, inside a prompt
// (or what is recomputed), the token already known.
DraftSeed EngineImpl::SeedOf(const ScheduledSequence& entry, const SequenceStep& step, const Live& live,
                             std::span<const ChoiceResult> results) const {
  DraftSeed seed;
  seed.shard = entry.shard;
  seed.index = entry.index;
  seed.request = entry.request;
  seed.choice = entry.first_choice;
  seed.next.assign(step.tokens.begin() + 1, step.tokens.end() - entry.drafts);
  if (!results.empty()) {
    seed.next.insert(seed.next.end(), results[0].tokens.begin(), results[0].tokens.end());
    seed.wanted = entry.choices == 1 && !results[0].finished;
    return seed;
  }
  const std::vector<int32_t>& prompt = live.request.prompt_ids;
  const std::vector<int32_t>& output = live.choices[static_cast<size_t>(entry.first_choice)].output();
  size_t following = static_cast<size_t>(step.context());
  if (following < prompt.size()) seed.next.push_back(prompt[following]);
  else if (following - prompt.size() < output.size()) seed.next.push_back(output[following - prompt.size()]);
  return seed;
}

void EngineImpl::Speculate(const ScheduledStep& step, std::vector<DraftSeed> seeds, double seconds) {
  int64_t decoding = std::count_if(seeds.begin(), seeds.end(), [](const DraftSeed& s) { return s.wanted; });
  int32_t carried = 0;
  bool only_decodes = true;
  for (const ScheduledSequence& entry : step.sequences) {
    carried = std::max(carried, entry.drafts);
    only_decodes = only_decodes && entry.rows == 1 + entry.drafts &&
                   step.plan.shards[static_cast<size_t>(entry.shard)].sequences[static_cast<size_t>(entry.index)].tokens.size() ==
                       static_cast<size_t>(1 + entry.drafts);
  }
  auto started = Clock::now();
  int32_t count = decoding == 0 ? 0 : controller_.Choose(decoding);
  steps_without_drafts_ = count > 0 || decoding == 0 ? 0 : steps_without_drafts_ + 1;
  if (!worker_.setup().drafts_with_layer()) {
    ProposeNgrams(seeds, count);
  } else if (steps_without_drafts_ < kKeepDraftCacheSteps) {
    drafter_.Run(step.plan, count, seeds);
    std::lock_guard lock(mutex_);
    for (DraftSeed& seed : seeds)
      if (!seed.drafts.empty()) scheduler_->ProposeDrafts(seed.request, seed.choice, std::move(seed.drafts));
  } else {
    std::lock_guard lock(mutex_);
    for (const DraftSeed& seed : seeds)
      if (auto found = live_.find(seed.request); found != live_.end()) found->second->undraftable = true;
  }
  if (!only_decodes) return;
  controller_.ObserveStep(static_cast<int64_t>(step.sequences.size()), carried, seconds);
  controller_.ObserveDrafting(decoding, count, std::chrono::duration<double>(Clock::now() - started).count());
}

void EngineImpl::ProposeNgrams(std::span<const DraftSeed> seeds, int32_t count) {
  std::lock_guard lock(mutex_);
  for (const DraftSeed& seed : seeds) {
    auto found = live_.find(seed.request);
    if (count == 0 || !seed.wanted || found == live_.end()) continue;
    scheduler_->ProposeDrafts(seed.request, seed.choice,
                              NgramDraftsOf(*found->second, static_cast<size_t>(seed.choice), count));
  }
}

// The index takes over what came since the last look-up.
std::vector<int32_t> EngineImpl::NgramDraftsOf(Live& live, size_t choice, int32_t count) const {
  live.ngrams.resize(live.choices.size());
  NgramIndex& index = live.ngrams[choice];
  const std::vector<int32_t>& prompt = live.request.prompt_ids;
  if (index.size() == 0) index.Append(prompt);
  index.Append(std::span(live.choices[choice].output()).subspan(index.size() - prompt.size()));
  return index.Drafts(count);
}

void EngineImpl::NoFiniteLogit(const ChoiceState& choice, const Live& live) const {
  throw Error(StatusCode::kInvalidModel, "request " + live.request.id + ": the model gave no finite logit for token " +
                                             std::to_string(choice.output().size()) +
                                             "; the checkpoint is damaged, or its numbers overflow in --dtype " +
                                             worker_.setup().options.dtype);
}

SampledToken EngineImpl::SampleOne(const float* row, ChoiceState& choice, const Live& live) {
  row_.assign(row, row + config().vocab_size);
  if (std::none_of(row_.begin(), row_.end(), [](float x) { return std::isfinite(x); })) NoFiniteLogit(choice, live);
  SampleContext context;
  context.prompt = live.request.prompt_ids;
  context.output = choice.output();
  context.eos_ids = eos_ids_;
  context.seed = choice.seed();
  context.allowed = choice.AllowedTokens(config().vocab_size);
  return Sample(row_, live.request.sampling, context);
}

void EngineImpl::RunUntilIdle() {
  while (Step()) {
  }
}

void EngineImpl::RunUntil(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    bool worked = Step();
    last_active_ = Clock::now();
    if (worked) continue;
    KeepAlive();
    std::unique_lock lock(mutex_);
    work_.wait_for(lock, kIdleWait, [&] { return stop.load() || scheduler_->HasWork() || !cancelled_.empty(); });
  }
}

void EngineImpl::KeepAlive() {
  if (Clock::now() - last_heartbeat_ < kHeartbeatEvery) return;
  last_heartbeat_ = Clock::now();
  control_.Heartbeat();
}

void EngineImpl::Shutdown() {
  StepCommand command;
  command.plan.kind = StepKind::kShutdown;
  std::string bytes = EncodeCommand(command);
  control_.Broadcast(bytes);
}

Result<ScoreResult> EngineImpl::Score(const std::vector<int32_t>& ids, const ScoreOptions& options) {
  LM_RETURN_IF_ERROR(CheckRequest({"score", ids}, config().vocab_size));
  std::lock_guard lock(mutex_);
  if (scheduler_->HasWork()) return InvalidArgument("Score: requests are live; it needs an idle engine");
  if (options.drafts && !worker_.setup().drafts_with_layer())
    return InvalidArgument("Score: draft logits need --speculative-tokens of at least 1 and --speculative mtp");
  RequestSpec spec;
  spec.id = next_id_++;
  spec.prompt = ids;
  spec.max_tokens = 0;
  spec.prompt_logprobs = true;           // every position is computed, none taken from the prefix cache
  LM_RETURN_IF_ERROR(scheduler_->AddRequest(spec));

  ScoreResult score;
  score.vocab = config().vocab_size;
  score.tokens = static_cast<int64_t>(ids.size());
  score.hidden = config().hidden_size;
  if (options.hidden_states) {
    score.layers = config().num_hidden_layers + 1;
    score.hidden_states.resize(static_cast<size_t>(score.layers * score.tokens * score.hidden));
  }
  int64_t done = 0;
  while (scheduler_->HasRequest(spec.id)) {
    ScheduledStep step = scheduler_->Schedule();
    if (!step.runs_model()) {
      Warn(TakeKvReports(RunPlan(ModelCommand(1, options.attention, step.plan)).kv_reports));
      continue;
    }
    LM_CHECK(step.sequences.size() == 1);
    const ScheduledSequence& entry = step.sequences[0];
    SequenceStep& part = step.plan.shards[static_cast<size_t>(entry.shard)].sequences[0];
    int64_t tokens = static_cast<int64_t>(part.tokens.size());
    part.logits_from = static_cast<int32_t>(std::clamp<int64_t>(options.logits_from - done, 0, tokens));
    StepResult result = RunPlan(ModelCommand(micro_batches_.Choose(step.plan), options.attention, step.plan, options.hidden_states));
    const StepResult::Shard& shard = result.shards[static_cast<size_t>(entry.shard)];
    score.rows += shard.rows;
    score.logits.insert(score.logits.end(), shard.logits.begin(), shard.logits.end());
    for (int64_t layer = 0; layer < score.layers; ++layer)
      std::copy_n(shard.hidden.begin() + layer * tokens * score.hidden, tokens * score.hidden,
                  score.hidden_states.begin() + (layer * score.tokens + done) * score.hidden);
    if (options.drafts) {
      DraftSeed seed{entry.shard, entry.index, entry.request, 0, false, {}, {}};
      int64_t known = std::min(tokens, static_cast<int64_t>(ids.size()) - done - 1);
      seed.next.assign(ids.begin() + done + 1, ids.begin() + done + 1 + known);
      std::vector<float> logits = drafter_.Logits(step.plan, seed);
      score.draft_logits.insert(score.draft_logits.end(), logits.begin(), logits.end());
    }
    done += tokens;
    Warn(TakeKvReports(result.kv_reports));
    scheduler_->Commit(step.plan.step, {});
  }
  return score;
}

}  // namespace latentmesh
