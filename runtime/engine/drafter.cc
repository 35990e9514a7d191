#include "runtime/engine/drafter.h"

#include <algorithm>
#include <utility>

namespace latentmesh {
namespace {

const SequenceStep& EntryOf(const StepPlan& plan, const DraftSeed& seed) {
  return plan.shards[static_cast<size_t>(seed.shard)].sequences[static_cast<size_t>(seed.index)];
}

StepCommand EmptyRound(const StepPlan& plan, bool first) {
  StepCommand command;
  command.draft = first ? DraftRound::kFirst : DraftRound::kLater;
  command.plan.step = plan.step;
  command.plan.shards.resize(plan.shards.size());
  command.sources.resize(plan.shards.size());
  return command;
}

// Takes the likeliest token of each row, in the order in which the plan's wanted sequences stand.
void TakeDrafts(const StepResult& result, std::vector<DraftSeed*>& wanted) {
  std::vector<int64_t> next_row(result.shards.size(), 0);
  for (DraftSeed* seed : wanted) {
    const StepResult::Shard& shard = result.shards[static_cast<size_t>(seed->shard)];
    int64_t index = next_row[static_cast<size_t>(seed->shard)]++;
    if (!shard.ids.empty()) {
      seed->drafts.push_back(std::max(shard.ids[static_cast<size_t>(index)], 0));   // any token will do as a draft
      continue;
    }
    int64_t vocab = static_cast<int64_t>(shard.logits.size()) / std::max<int64_t>(shard.rows, 1);
    auto row = shard.logits.begin() + index * vocab;
    seed->drafts.push_back(static_cast<int32_t>(std::max_element(row, row + vocab) - row));
  }
}

// The ranks choose the likeliest token of each row.
StepCommand ChosenOnRanks(StepCommand command) {
  for (const ShardStep& shard : command.plan.shards) {
    ShardSampling& sampling = command.sampling.emplace_back();
    sampling.specs.resize(static_cast<size_t>(shard.logits_rows()));
    for (size_t row = 0; row < sampling.specs.size(); ++row) sampling.specs[row].row = static_cast<int32_t>(row);
  }
  return command;
}

}  // namespace

StepCommand Drafter::FirstRound(const StepPlan& plan, const std::vector<DraftSeed>& seeds) const {
  StepCommand command = EmptyRound(plan, true);
  for (const DraftSeed& seed : seeds) {
    if (seed.next.empty()) continue;
    const SequenceStep& entry = EntryOf(plan, seed);
    LM_CHECK(seed.next.size() <= entry.tokens.size());
    SequenceStep draft = entry;
    draft.tokens = seed.next;
    draft.logits_from = static_cast<int32_t>(seed.next.size()) - (seed.wanted ? 1 : 0);
    command.plan.shards[static_cast<size_t>(seed.shard)].sequences.push_back(std::move(draft));
    command.sources[static_cast<size_t>(seed.shard)].push_back(seed.index);
  }
  return command;
}

// One token a sequence: the last draft, at the position after the one its hidden state came from.
// Sequences without room leave; a source is the row the sequence had in the last round's results.
StepCommand Drafter::NextRound(const StepPlan& plan, std::vector<DraftSeed*>& live, int32_t round) const {
  StepCommand command = EmptyRound(plan, false);
  std::vector<int32_t> row(plan.shards.size(), 0);
  std::vector<DraftSeed*> staying;
  for (DraftSeed* seed : live) {
    int32_t source = row[static_cast<size_t>(seed->shard)]++;
    if (!HasRoom(EntryOf(plan, *seed), *seed, round)) continue;
    SequenceStep draft = EntryOf(plan, *seed);
    draft.start += static_cast<int32_t>(seed->next.size()) + round - 1;
    draft.tokens = {seed->drafts.back()};
    draft.logits_from = 0;
    command.plan.shards[static_cast<size_t>(seed->shard)].sequences.push_back(std::move(draft));
    command.sources[static_cast<size_t>(seed->shard)].push_back(source);
    staying.push_back(seed);
  }
  live = std::move(staying);
  return command;
}

// The position the next round writes must lie in the blocks of the step, which is all the draft layer may touch.
bool Drafter::HasRoom(const SequenceStep& entry, const DraftSeed& seed, int32_t round) const {
  int64_t position = entry.start + static_cast<int64_t>(seed.next.size()) + round - 1;
  return position < static_cast<int64_t>(entry.blocks.size()) * block_tokens_ && position + 1 < max_model_len_;
}

void Drafter::Run(const StepPlan& plan, int32_t count, std::vector<DraftSeed>& seeds) {
  // In the order of the plan: the rows of a round's results stand in it.
  std::sort(seeds.begin(), seeds.end(), [](const DraftSeed& a, const DraftSeed& b) {
    return std::pair(a.shard, a.index) < std::pair(b.shard, b.index);
  });
  std::vector<DraftSeed*> live;
  for (DraftSeed& seed : seeds) {
    seed.wanted = seed.wanted && count > 0 && !seed.next.empty();
    if (seed.wanted) live.push_back(&seed);
  }
  auto run = [this](StepCommand command) { return run_(on_ranks_ ? ChosenOnRanks(std::move(command)) : std::move(command)); };
  StepResult result = run(FirstRound(plan, seeds));
  TakeDrafts(result, live);
  for (int32_t round = 1; round < count; ++round) {
    StepCommand next = NextRound(plan, live, round);
    if (live.empty()) break;
    result = run(std::move(next));
    TakeDrafts(result, live);
  }
}

std::vector<float> Drafter::Logits(const StepPlan& plan, const DraftSeed& seed) {
  StepCommand command = FirstRound(plan, {seed});
  command.plan.shards[static_cast<size_t>(seed.shard)].sequences[0].logits_from = 0;
  return std::move(run_(std::move(command)).shards[static_cast<size_t>(seed.shard)].logits);
}

}  // namespace latentmesh
