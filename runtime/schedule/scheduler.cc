#include "runtime/schedule/scheduler.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include <fmt/format.h>

namespace latentmesh {

Result<std::unique_ptr<Scheduler>> Scheduler::Create(const SchedulerOptions& options) {
  LM_RETURN_IF_ERROR(ValidateSchedulerOptions(options));
  return std::unique_ptr<Scheduler>(new Scheduler(options));
}

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options) {
  for (int32_t i = 0; i < options.dp; ++i) shards_.push_back(std::make_unique<ShardScheduler>(options, i));
}

Scheduler::~Scheduler() = default;

// ---- requests ----

Status Scheduler::CheckFits(const RequestSpec& spec) const {
  const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
  if (prompt == 0) return InvalidArgument(fmt::format("request {}: the prompt has no tokens", spec.id));
  if (spec.n < 1) return InvalidArgument(fmt::format("request {}: n = {} must be at least 1", spec.id, spec.n));
  if (spec.max_tokens < 0) {
    return InvalidArgument(fmt::format("request {}: max_tokens = {} is negative", spec.id, spec.max_tokens));
  }
  const int64_t length = prompt + spec.max_tokens;
  if (length > options_.max_model_len) {
    return InvalidArgument(fmt::format(
        "request {}: {} prompt tokens + max_tokens {} = {} exceed the model length of {} tokens; shorten the prompt or "
        "lower max_tokens", spec.id, prompt, spec.max_tokens, length, options_.max_model_len));
  }
  const int64_t stored = std::max(prompt, length - 1);   // the last token is never written to the cache
  const int64_t blocks = (stored + options_.block_size - 1) / options_.block_size;
  if (blocks > options_.blocks_per_shard) {
    return ResourceExhausted(fmt::format(
        "request {}: {} prompt tokens + max_tokens {} need {} cache blocks of {} tokens, a shard has {}; lower "
        "max_tokens or give more --kv-memory", spec.id, prompt, spec.max_tokens, blocks, options_.block_size,
        options_.blocks_per_shard));
  }
  return Status::Ok();
}

Status Scheduler::AddRequest(RequestSpec spec) {
  if (HasRequest(spec.id)) return InvalidArgument(fmt::format("request {}: the id is in use", spec.id));
  LM_RETURN_IF_ERROR(CheckFits(spec));
  const int64_t id = spec.id;
  Request& request = requests_[id];
  request.spec = std::move(spec);
  request.arrival = next_arrival_++;
  // Without sampling there is nothing that n choices could differ in.
  if (request.spec.max_tokens == 0) request.spec.n = 1;
  const auto begun = [](const GeneratedTokens& choice) { return !choice.tokens.empty(); };
  if (std::any_of(request.spec.generated.begin(), request.spec.generated.end(), begun)) {
    AddGenerated(request);
    return Status::Ok();
  }
  Sequence* leader = NewSequence(request, 0, request.spec.n);
  if (request.spec.prompt_logprobs) leader->next_scored = 1;
  waiting_.insert(leader);
  return Status::Ok();
}

void Scheduler::AddGenerated(Request& request) {
  LM_CHECK(static_cast<int32_t>(request.spec.generated.size()) == request.spec.n);
  for (int32_t choice = 0; choice < request.spec.n; ++choice) {
    const GeneratedTokens& generated = request.spec.generated[choice];
    if (generated.finished) continue;
    LM_CHECK(static_cast<int32_t>(generated.tokens.size()) < request.spec.max_tokens);
    Sequence* sequence = NewSequence(request, choice, 1);
    sequence->tokens.insert(sequence->tokens.end(), generated.tokens.begin(), generated.tokens.end());
    waiting_.insert(sequence);
  }
  LM_CHECK_MSG(!request.live.empty(), "every choice has finished");
}

Sequence* Scheduler::NewSequence(Request& request, int32_t choice, int32_t choices) {
  auto owned = std::make_unique<Sequence>();
  Sequence* sequence = owned.get();
  sequence->id = next_sequence_++;
  sequence->request = request.spec.id;
  sequence->arrival = request.arrival;
  sequence->choice = choice;
  sequence->choices = choices;
  sequence->tokens = request.spec.prompt;
  sequence->prompt_size = static_cast<int32_t>(request.spec.prompt.size());
  sequence->next_scored = sequence->prompt_size;
  sequence->max_tokens = request.spec.max_tokens;
  sequence->salt = request.spec.cache_salt;
  if (options_.kv.enabled()) ExtendKeys(sequence, options_.block_size);
  sequences_[sequence->id] = std::move(owned);
  request.live.push_back(sequence);
  return sequence;
}

Sequence* Scheduler::FindChoice(int64_t request, int32_t choice) const {
  const auto found = requests_.find(request);
  if (found == requests_.end()) return nullptr;
  for (Sequence* sequence : found->second.live) {
    if (sequence->choice == choice && sequence->choices == 1) return sequence;
  }
  return nullptr;
}

void Scheduler::Cancel(int64_t request) {
  const auto found = requests_.find(request);
  if (found == requests_.end()) return;
  const std::vector<Sequence*> live = std::move(found->second.live);
  requests_.erase(found);
  for (Sequence* sequence : live) Drop(sequence);
}

void Scheduler::CancelChoice(int64_t request, int32_t choice) {
  const auto found = requests_.find(request);
  if (found == requests_.end() || choice < 0 || choice >= found->second.spec.n) return;
  if (Sequence* sequence = FindChoice(request, choice)) return Drop(sequence);
  Request& record = found->second;
  const bool unforked = record.live.size() == 1 && record.live[0]->choices > 1;
  if (!unforked) return;
  record.skipped.insert(choice);
  if (static_cast<int32_t>(record.skipped.size()) == record.spec.n) Cancel(request);
}

void Scheduler::Drop(Sequence* sequence) {
  if (sequence->scheduled == 0) return Destroy(sequence);
  sequence->dropped = true;
  Forget(sequence);
}

// The request no longer knows the sequence; the last one takes the request with it.
void Scheduler::Forget(Sequence* sequence) {
  const auto found = requests_.find(sequence->request);
  if (found == requests_.end()) return;
  auto& live = found->second.live;
  if (std::erase(live, sequence) > 0 && live.empty()) requests_.erase(found);
}

void Scheduler::Destroy(Sequence* sequence) {
  Forget(sequence);
  if (sequence->shard < 0) {
    waiting_.erase(sequence);
  } else {
    shards_[sequence->shard]->Remove(sequence);
  }
  sequences_.erase(sequence->id);
}

void Scheduler::ProposeDrafts(int64_t request, int32_t choice, std::vector<int32_t> drafts) {
  Sequence* sequence = FindChoice(request, choice);
  if (sequence == nullptr || sequence->shard < 0 || sequence->scheduled > 0) return;
  const size_t most = std::max(0, sequence->max_tokens - sequence->outputs() - 1);
  drafts.resize(std::min(drafts.size(), most));
  sequence->drafts = std::move(drafts);
}

// ---- making a step ----

ScheduledStep Scheduler::Schedule(bool admits) {
  ScheduledStep step;
  for (auto& shard : shards_) shard->Begin();
  MoveSequences();
  for (auto& shard : shards_) {
    shard->ScheduleRunning();
    waiting_.insert(shard->preempted().begin(), shard->preempted().end());
  }
  while (admits && !waiting_.empty()) {
    Sequence* next = *waiting_.begin();
    ShardScheduler* shard = ChooseShard(*next);
    if (shard == nullptr) break;   // first come, first served: nobody overtakes
    waiting_.erase(waiting_.begin());
    AddTransfer(shard->Admit(next, PrefixSource(*next, *shard)));
  }
  ReservePlaces();
  step.plan.shards.resize(shards_.size());
  for (size_t i = 0; i < shards_.size(); ++i) Describe(step, static_cast<int32_t>(i));
  const bool moves = TakeMoves(step.plan);
  for (auto& shard : shards_) shard->ReleaseHeld();   // later plans may use them
  if (step.sequences.empty()) {
    if (moves) step.plan.kind = StepKind::kTransfer;
    step.plan.step = next_step_;
    return step;
  }
  for (size_t i = 0; i < shards_.size(); ++i) step.plan.shards[i].copies = shards_[i]->TakeCopies();
  step.plan.step = next_step_++;
  in_flight_.push_back({step.plan.step, step.sequences});
  return step;
}

// True when there are moves to make, between tiers or shards, or sequences wait for the disk.
bool Scheduler::TakeMoves(StepPlan& plan) {
  plan.transfers = std::exchange(transfers_, {});
  bool moves = !plan.transfers.empty();
  for (size_t i = 0; i < shards_.size(); ++i) {
    KvTiers* tiers = shards_[i]->tiers();
    if (tiers == nullptr) continue;
    plan.shards[i].kv = tiers->TakeOps();
    plan.kv_report = plan.kv_report || tiers->awaits_report();
    moves = moves || !plan.shards[i].kv.empty() || shards_[i]->loading();
  }
  return moves;
}

void Scheduler::OnKvEvents(int32_t shard, std::span<const KvEvent> events) {
  KvTiers* tiers = shards_[shard]->tiers();
  LM_CHECK(tiers != nullptr || events.empty());
  for (const KvEvent& event : events) tiers->OnEvent(event);
}

// Longest prefix hit, then fewest running sequences, then fewest blocks in use. Shards that are much busier than the
// idlest do not compete: one popular system prompt would otherwise draw all requests to one shard.
ShardScheduler* Scheduler::ChooseShard(const Sequence& sequence) {
  std::vector<std::pair<ShardScheduler*, int64_t>> offers;
  int32_t idlest = std::numeric_limits<int32_t>::max();
  const size_t candidates = options_.prefill_shards > 0 ? options_.prefill_shards : shards_.size();
  for (const auto& shard : std::span(shards_).first(candidates)) {
    const auto offer = shard->OfferFor(sequence);
    if (!offer.possible) continue;
    offers.emplace_back(shard.get(), offer.cached_tokens);
    idlest = std::min(idlest, shard->slots());
  }
  std::erase_if(offers, [&](const auto& offer) { return offer.first->slots() > idlest + options_.max_imbalance; });
  const auto key = [](const auto& offer) {
    return std::make_tuple(-offer.second, offer.first->slots(), offer.first->pool().used());
  };
  const auto best = std::min_element(offers.begin(), offers.end(),
                                     [&](const auto& a, const auto& b) { return key(a) < key(b); });
  return best == offers.end() ? nullptr : best->first;
}

namespace {

SequenceStep MakeEntry(const Sequence& sequence) {
  SequenceStep entry;
  entry.sequence_id = sequence.id;
  entry.start = sequence.computed;
  const auto first = sequence.tokens.begin() + sequence.computed;
  entry.tokens.assign(first, first + (sequence.scheduled - sequence.scheduled_drafts()));
  entry.tokens.insert(entry.tokens.end(), sequence.drafts.begin(), sequence.drafts.end());
  entry.blocks = sequence.blocks;
  return entry;
}

// The prompt tokens whose logits this step must show: prompt[p + 1] for the computed positions p.
int32_t PromptRows(const Sequence& sequence) {
  const int32_t end = std::min(sequence.computed + sequence.scheduled + 1, sequence.prompt_size);
  return std::max(0, end - sequence.next_scored);
}

}  // namespace

void Scheduler::Describe(ScheduledStep& step, int32_t shard) {
  auto& entries = step.plan.shards[shard].sequences;
  int32_t row = 0;
  for (Sequence* sequence : shards_[shard]->scheduled()) {
    SequenceStep entry = MakeEntry(*sequence);
    ScheduledSequence told;
    told.shard = shard;
    told.index = static_cast<int32_t>(entries.size());
    told.request = sequence->request;
    told.sequence = sequence->id;
    told.first_choice = sequence->choice;
    told.choices = sequence->choices;
    told.samples = sequence->samples();
    told.drafts = sequence->scheduled_drafts();
    told.prompt_rows = PromptRows(*sequence);
    told.first_scored = told.prompt_rows > 0 ? sequence->next_scored : 0;
    told.ends_prompt = sequence->computed < sequence->prompt_size &&
                       sequence->computed + sequence->scheduled >= sequence->prompt_size;
    told.cached = std::exchange(sequence->cached, 0);
    const int32_t sampled = told.samples ? 1 + told.drafts : 0;
    entry.logits_from = told.prompt_rows > 0 ? sequence->next_scored - 1 - sequence->computed
                                             : sequence->scheduled - sampled;
    told.first_row = row;
    told.rows = sequence->scheduled - entry.logits_from;
    row += told.rows;
    scheduled_tokens_ += sequence->scheduled;
    entries.push_back(std::move(entry));
    step.sequences.push_back(told);
  }
}

// ---- after a step ----

void Scheduler::Commit(int64_t step, std::span<const ChoiceResult> results) {
  LM_CHECK_MSG(!in_flight_.empty() && in_flight_.front().step == step, "steps are committed in their order");
  const InFlight done = std::move(in_flight_.front());
  in_flight_.erase(in_flight_.begin());
  Results by_choice;
  for (const ChoiceResult& result : results) {
    const bool first = by_choice.emplace(std::pair(result.request, result.choice), &result).second;
    LM_CHECK_MSG(first, "two results for one choice");
  }
  for (const ScheduledSequence& entry : done.sequences) CommitEntry(entry, by_choice);
  for (auto& shard : shards_) shard->ReleaseHeld();
}

void Scheduler::CommitEntry(const ScheduledSequence& entry, const Results& results) {
  const int32_t reserved_at = std::exchange(sequences_.at(entry.sequence)->next_shard, -1);
  CommitSequence(entry, results);
  if (reserved_at >= 0) Settle(entry.sequence, reserved_at);
}

void Scheduler::CommitSequence(const ScheduledSequence& entry, const Results& results) {
  Sequence* sequence = sequences_.at(entry.sequence).get();
  const int32_t known = sequence->scheduled - entry.drafts;
  sequence->scheduled = 0;
  if (sequence->dropped) return Destroy(sequence);
  if (!entry.samples) {
    sequence->drafts.clear();
    shards_[sequence->shard]->Advance(sequence, known);
    if (sequence->max_tokens == 0 && sequence->remaining() == 0) Destroy(sequence);
    return;
  }
  if (sequence->choices > 1) {
    shards_[sequence->shard]->Advance(sequence, known);
    return Fork(sequence, results);
  }
  const auto found = results.find({sequence->request, sequence->choice});
  LM_CHECK_MSG(found != results.end(), "no result for a sampled choice");
  Accept(sequence, *found->second, known);
}

// Takes over the tokens of a step that computed `known` tokens and some drafts.
void Scheduler::Accept(Sequence* sequence, const ChoiceResult& result, int32_t known) {
  const int32_t count = static_cast<int32_t>(result.tokens.size());
  LM_CHECK_MSG(count >= 1 && count <= 1 + static_cast<int32_t>(sequence->drafts.size()), "more tokens than computed");
  LM_CHECK_MSG(std::equal(result.tokens.begin(), result.tokens.end() - 1, sequence->drafts.begin()),
               "an accepted token is not the draft");
  sequence->drafts.clear();
  sequence->tokens.insert(sequence->tokens.end(), result.tokens.begin(), result.tokens.end());
  shards_[sequence->shard]->Advance(sequence, known + count - 1);
  LM_CHECK(sequence->outputs() <= sequence->max_tokens);
  if (result.finished || sequence->outputs() == sequence->max_tokens) Destroy(sequence);
}

// Splits a computed prompt into its choices. Those that find no room wait like preempted ones.
void Scheduler::Fork(Sequence* leader, const Results& results) {
  const auto result_of = [&](int32_t choice) {
    const auto found = results.find({leader->request, choice});
    LM_CHECK_MSG(found != results.end() && found->second->tokens.size() == 1, "a first choice takes one token");
    return found->second;
  };
  Request& request = requests_.at(leader->request);
  const int32_t choices = std::exchange(leader->choices, 1);
  for (int32_t choice = 1; choice < choices; ++choice) {
    if (request.skipped.count(choice) != 0) continue;
    const ChoiceResult* result = result_of(choice);
    if (result->finished || leader->max_tokens == 1) continue;
    Sequence* child = NewSequence(request, choice, 1);
    if (!shards_[leader->shard]->Fork(*leader, child)) waiting_.insert(child);
    child->tokens.push_back(result->tokens[0]);
  }
  if (request.skipped.count(0) != 0) return Destroy(leader);
  Accept(leader, *result_of(0), 0);
}

SchedulerStats Scheduler::Stats() const {
  SchedulerStats stats;
  stats.waiting = static_cast<int64_t>(waiting_.size());
  stats.requests = static_cast<int64_t>(requests_.size());
  stats.scheduled_tokens = scheduled_tokens_;
  stats.steps = next_step_;
  stats.migrated = migrated_;
  stats.handed_over = handed_over_;
  stats.moved_blocks = moved_blocks_;
  for (const auto& shard : shards_) {
    stats.running += static_cast<int64_t>(shard->running().size());
    stats.blocks += shard->pool().size();
    stats.blocks_used += shard->pool().used();
    stats.preemptions += shard->preemptions();
    if (shard->cache() == nullptr) continue;
    stats.prefix_queries += shard->cache()->queries();
    stats.prefix_hits += shard->cache()->hits() + shard->loaded_tokens() + shard->fetched_tokens();
    stats.prefix_fetched += shard->fetched_tokens();
    if (shard->tiers() != nullptr) stats.kv += shard->tiers()->stats();
  }
  return stats;
}

void Scheduler::CheckInvariants() const {
  size_t running = 0;
  for (const auto& shard : shards_) {
    shard->CheckInvariants();
    running += shard->running().size();
  }
  LM_CHECK(running + waiting_.size() == sequences_.size());
  for (const Sequence* sequence : waiting_) LM_CHECK(sequence->shard < 0 && sequence->blocks.empty());
  size_t live = 0;
  for (const auto& [id, request] : requests_) {
    LM_CHECK(!request.live.empty());
    live += request.live.size();
    for (const Sequence* sequence : request.live) LM_CHECK(sequence->request == id && !sequence->dropped);
  }
  for (const auto& [id, sequence] : sequences_) live += sequence->dropped;
  LM_CHECK(live == sequences_.size());
}

}  // namespace latentmesh
