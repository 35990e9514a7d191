#include "runtime/schedule/scheduler.h"

#include <numeric>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

SchedulerOptions Small() {
  SchedulerOptions options;
  options.block_size = 4;
  options.blocks_per_shard = 16;
  options.max_batch_tokens = 8;
  options.max_seqs = 4;
  options.max_model_len = 64;
  options.watermark = 0;
  return options;
}

std::unique_ptr<Scheduler> Make(const SchedulerOptions& options) { return Scheduler::Create(options).value(); }

// `size` tokens that no other `first` shares.
RequestSpec Spec(int64_t id, int size, int max_tokens = 10, int n = 1) {
  RequestSpec spec;
  spec.id = id;
  spec.prompt.resize(size);
  std::iota(spec.prompt.begin(), spec.prompt.end(), static_cast<int32_t>(1000 * id));
  spec.max_tokens = max_tokens;
  spec.n = n;
  return spec;
}

// Runs a step in which everyone samples `token`.
ScheduledStep Step(Scheduler& scheduler, int32_t token = 5, bool finished = false) {
  ScheduledStep step = scheduler.Schedule();
  std::vector<ChoiceResult> results;
  for (const ScheduledSequence& told : step.sequences) {
    for (int32_t c = 0; told.samples && c < told.choices; ++c) {
      results.push_back({told.request, told.first_choice + c, {token + c}, finished});
    }
  }
  if (!step.empty()) scheduler.Commit(step.plan.step, results);
  scheduler.CheckInvariants();
  return step;
}

std::vector<std::pair<int64_t, int>> Tokens(const ScheduledStep& step) {
  std::vector<std::pair<int64_t, int>> tokens;
  for (const ScheduledSequence& told : step.sequences) {
    tokens.emplace_back(told.request, step.plan.shards[told.shard].sequences[told.index].tokens.size());
  }
  return tokens;
}
using Given = std::vector<std::pair<int64_t, int>>;

TEST(Scheduler, OptionsAreValidated) {
  SchedulerOptions options = Small();
  options.max_seqs = 0;
  const auto made = Scheduler::Create(options);
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.status().message().find("max_seqs = 0"), std::string::npos);
}

TEST(Scheduler, SomeShardMustDecode) {
  SchedulerOptions options = Small();
  options.dp = 2;
  options.prefill_shards = 2;
  EXPECT_FALSE(Scheduler::Create(options).ok());
  options.prefill_shards = 1;
  EXPECT_TRUE(Scheduler::Create(options).ok());
}

TEST(Scheduler, RefusesWhatNeverFitsWithTheNumbers) {
  auto scheduler = Make(Small());
  const Status longer = scheduler->AddRequest(Spec(1, 60, 5));
  EXPECT_EQ(longer.code(), StatusCode::kInvalidArgument);
  for (const char* part : {"60 prompt tokens", "max_tokens 5", "65", "64 tokens"}) {
    EXPECT_NE(longer.message().find(part), std::string::npos) << part;
  }
  SchedulerOptions few = Small();
  few.blocks_per_shard = 3;
  scheduler = Make(few);
  EXPECT_TRUE(scheduler->AddRequest(Spec(1, 10, 3)).ok());            // stores 12 tokens: the last is never written
  const Status bigger = scheduler->AddRequest(Spec(2, 10, 4));
  EXPECT_EQ(bigger.code(), StatusCode::kResourceExhausted);
  for (const char* part : {"4 cache blocks of 4 tokens", "has 3"}) {
    EXPECT_NE(bigger.message().find(part), std::string::npos) << part;
  }
  EXPECT_FALSE(scheduler->AddRequest(Spec(1, 2)).ok());               // id in use
  EXPECT_FALSE(scheduler->AddRequest(Spec(3, 0)).ok());
  EXPECT_FALSE(scheduler->AddRequest(Spec(3, 2, 4, 0)).ok());
}

TEST(Scheduler, DecodesFirstThenChunksInOrderOfArrival) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 3)).ok());
  ASSERT_TRUE(scheduler->AddRequest(Spec(2, 12)).ok());
  ASSERT_TRUE(scheduler->AddRequest(Spec(3, 2)).ok());
  ScheduledStep step = Step(*scheduler);
  EXPECT_EQ(Tokens(step), (Given{{1, 3}, {2, 5}}));
  EXPECT_TRUE(step.sequences[0].samples && step.sequences[0].ends_prompt);
  EXPECT_EQ(step.sequences[0].rows, 1);
  EXPECT_FALSE(step.sequences[1].samples || step.sequences[1].ends_prompt);
  EXPECT_EQ(step.sequences[1].rows, 0);
  step = Step(*scheduler);
  EXPECT_EQ(Tokens(step), (Given{{1, 1}, {2, 7}}));
  EXPECT_EQ(step.plan.shards[0].sequences[0].tokens[0], 5);
  EXPECT_EQ(step.plan.shards[0].sequences[1].start, 5);
  EXPECT_EQ(step.sequences[1].first_row, 1);
  step = Step(*scheduler);
  EXPECT_EQ(Tokens(step), (Given{{1, 1}, {2, 1}, {3, 2}}));
}

TEST(Scheduler, EveryShardIsInThePlan) {
  SchedulerOptions options = Small();
  options.dp = 3;
  auto scheduler = Make(options);
  EXPECT_TRUE(scheduler->Schedule().empty());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 3)).ok());
  const ScheduledStep step = scheduler->Schedule();
  EXPECT_EQ(step.plan.shards.size(), 3u);
  EXPECT_EQ(step.plan.shards[1].tokens() + step.plan.shards[2].tokens(), 0);
}

TEST(Scheduler, PreemptsTheMostRecentAndRecomputesItFirst) {
  SchedulerOptions options = Small();
  options.blocks_per_shard = 4;
  options.prefix_caching = false;
  auto scheduler = Make(options);
  for (int id : {1, 2}) ASSERT_TRUE(scheduler->AddRequest(Spec(id, 4, 9)).ok());
  Step(*scheduler);                                         // both prompts: one block each
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Tokens(Step(*scheduler)), (Given{{1, 1}, {2, 1}}));
  ASSERT_TRUE(scheduler->AddRequest(Spec(3, 1, 2)).ok());   // arrives later: stays behind the preempted one
  EXPECT_EQ(Tokens(Step(*scheduler)), (Given{{1, 1}}));     // 1 needs a third block
  EXPECT_EQ(scheduler->Stats().preemptions, 1);
  EXPECT_EQ(scheduler->Stats().waiting, 2);
  while (scheduler->HasRequest(1)) Step(*scheduler);
  const ScheduledStep again = Step(*scheduler);
  // Prompt and the five tokens so far, as far as the budget goes.
  EXPECT_EQ(again.sequences[0].request, 2);
  EXPECT_EQ(Tokens(again)[0].second, 8);
  EXPECT_FALSE(again.sequences[0].samples);
  EXPECT_EQ(Tokens(Step(*scheduler)), (Given{{2, 1}, {3, 1}}));
}

TEST(Scheduler, PrefixHitsSkipWholeBlocksButNeverTheLastToken) {
  auto scheduler = Make(Small());
  RequestSpec spec = Spec(1, 8, 1);
  ASSERT_TRUE(scheduler->AddRequest(spec).ok());
  const ScheduledStep first = Step(*scheduler);
  EXPECT_FALSE(scheduler->HasRequest(1));
  spec.id = 2;
  ASSERT_TRUE(scheduler->AddRequest(spec).ok());
  const ScheduledStep second = Step(*scheduler);
  EXPECT_EQ(second.sequences[0].cached, 4);                 // 8 would leave nothing to compute
  const SequenceStep& entry = second.plan.shards[0].sequences[0];
  EXPECT_EQ(entry.start, 4);
  EXPECT_EQ(entry.tokens.size(), 4u);
  EXPECT_EQ(entry.blocks[0], first.plan.shards[0].sequences[0].blocks[0]);
  spec.id = 3;
  spec.cache_salt = 1;
  ASSERT_TRUE(scheduler->AddRequest(spec).ok());
  EXPECT_EQ(Step(*scheduler).sequences[0].cached, 0);
  EXPECT_EQ(scheduler->Stats().prefix_queries, 24);
  EXPECT_EQ(scheduler->Stats().prefix_hits, 4);
}

TEST(Scheduler, ChoicesShareThePromptAndCopyItsLastBlock) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 6, 5, 3)).ok());
  const ScheduledStep prompt = Step(*scheduler);
  ASSERT_EQ(prompt.sequences.size(), 1u);
  EXPECT_EQ(prompt.sequences[0].choices, 3);
  EXPECT_EQ(prompt.sequences[0].rows, 1);
  EXPECT_EQ(scheduler->Stats().running, 3);
  const ScheduledStep step = Step(*scheduler);
  const ShardStep& shard = step.plan.shards[0];
  ASSERT_EQ(shard.sequences.size(), 3u);
  ASSERT_EQ(shard.copies.size(), 2u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(step.sequences[i].first_choice, i);
    EXPECT_EQ(shard.sequences[i].tokens, std::vector<int32_t>{5 + i});
    EXPECT_EQ(shard.sequences[i].blocks[0], shard.sequences[0].blocks[0]);
  }
  for (int i : {1, 2}) {
    EXPECT_EQ(shard.copies[i - 1].from, shard.sequences[0].blocks[1]);
    EXPECT_EQ(shard.copies[i - 1].to, shard.sequences[i].blocks[1]);
  }
  EXPECT_TRUE(Step(*scheduler).plan.shards[0].copies.empty());
  scheduler->CancelChoice(1, 0);
  EXPECT_EQ(Tokens(Step(*scheduler)).size(), 2u);
}

TEST(Scheduler, CancelFreesWithinOneStep) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 6)).ok());
  ScheduledStep step = scheduler->Schedule();
  scheduler->Cancel(1);                                     // in flight: the workers still write its blocks
  EXPECT_FALSE(scheduler->HasRequest(1));
  EXPECT_TRUE(scheduler->HasWork());
  EXPECT_EQ(scheduler->Stats().blocks_used, 2);
  scheduler->Commit(step.plan.step, {});
  EXPECT_EQ(scheduler->Stats().blocks_used, 0);
  EXPECT_FALSE(scheduler->HasWork());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 6)).ok());
  Step(*scheduler);
  EXPECT_EQ(scheduler->Stats().blocks_used, 2);
  scheduler->Cancel(1);
  EXPECT_EQ(scheduler->Stats().blocks_used, 0);
  scheduler->Cancel(1);
}

TEST(Scheduler, ShardWithThePrefixThenTheIdlest) {
  SchedulerOptions options = Small();
  options.dp = 2;
  options.max_batch_tokens = 64;
  options.max_imbalance = 2;
  auto scheduler = Make(options);
  const auto shard_of = [&](RequestSpec spec) {
    EXPECT_TRUE(scheduler->AddRequest(spec).ok());
    const ScheduledStep step = Step(*scheduler);
    for (const auto& told : step.sequences) if (told.request == spec.id) return told.shard;
    return -1;
  };
  EXPECT_EQ(shard_of(Spec(1, 8)), 0);
  EXPECT_EQ(shard_of(Spec(2, 8)), 1);
  EXPECT_EQ(shard_of(Spec(3, 8)), 0);
  RequestSpec like_one = Spec(1, 8);
  for (int64_t id : {4, 5}) {                               // 0 is busier, but knows the prompt
    like_one.id = id;
    EXPECT_EQ(shard_of(like_one), 0);
  }
  like_one.id = 6;                                          // 0 runs three more than 1
  EXPECT_EQ(shard_of(like_one), 1);
}

TEST(Scheduler, PromptLogprobsShowEveryRowOnce) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 12, 1)).ok());
  while (scheduler->HasWork()) Step(*scheduler);
  RequestSpec spec = Spec(1, 12, 2);
  spec.id = 2;
  spec.prompt_logprobs = true;
  ASSERT_TRUE(scheduler->AddRequest(spec).ok());
  ScheduledStep step = Step(*scheduler);
  EXPECT_EQ(step.sequences[0].cached, 0);                   // although the cache knows it
  EXPECT_EQ(step.plan.shards[0].sequences[0].logits_from, 0);
  EXPECT_EQ(step.sequences[0].prompt_rows, 8);
  EXPECT_EQ(step.sequences[0].first_scored, 1);
  EXPECT_EQ(step.sequences[0].rows, 8);
  step = Step(*scheduler);
  EXPECT_EQ(step.sequences[0].prompt_rows, 3);
  EXPECT_EQ(step.sequences[0].first_scored, 9);
  EXPECT_EQ(step.sequences[0].rows, 4);                     // the last one is sampled
  EXPECT_TRUE(step.sequences[0].samples);
  step = Step(*scheduler);
  EXPECT_EQ(step.sequences[0].prompt_rows, 0);
  EXPECT_EQ(step.sequences[0].rows, 1);
}

TEST(Scheduler, ScoringOnlyEndsWithThePrompt) {
  auto scheduler = Make(Small());
  RequestSpec spec = Spec(1, 10, 0, 2);
  spec.prompt_logprobs = true;
  ASSERT_TRUE(scheduler->AddRequest(spec).ok());
  EXPECT_FALSE(Step(*scheduler).sequences[0].ends_prompt);
  const ScheduledStep last = Step(*scheduler);
  EXPECT_TRUE(last.sequences[0].ends_prompt);
  EXPECT_FALSE(last.sequences[0].samples);
  EXPECT_EQ(last.sequences[0].prompt_rows, 1);
  EXPECT_FALSE(scheduler->HasWork());
}

TEST(Scheduler, AcceptedDraftsStayAndRejectedBlocksReturn) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 3, 20)).ok());
  Step(*scheduler);
  scheduler->ProposeDrafts(1, 0, {10, 11, 12, 13, 14, 15});
  ScheduledStep step = scheduler->Schedule();
  const SequenceStep entry = step.plan.shards[0].sequences[0];
  EXPECT_EQ(entry.tokens, (std::vector<int32_t>{5, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(entry.logits_from, 0);
  EXPECT_EQ(step.sequences[0].drafts, 6);
  EXPECT_EQ(step.sequences[0].rows, 7);
  EXPECT_EQ(entry.blocks.size(), 3u);
  const std::vector<ChoiceResult> accepted = {{1, 0, {10, 11, 99}, false}};
  scheduler->Commit(step.plan.step, accepted);
  scheduler->CheckInvariants();
  EXPECT_EQ(scheduler->Stats().blocks_used, 2);             // 7 tokens known
  step = Step(*scheduler);
  EXPECT_EQ(step.plan.shards[0].sequences[0].start, 6);
  EXPECT_EQ(step.plan.shards[0].sequences[0].tokens, std::vector<int32_t>{99});
}

// Two shards, requests 0 and 2 on the first, 1 and 3 on the second.
TEST(Scheduler, TheYoungestLeavesAShardWithoutBlocks) {
  SchedulerOptions options = Small();
  options.dp = 2;
  options.blocks_per_shard = 8;
  options.migrate = true;
  const auto scheduler = Make(options);
  for (int64_t id : {0, 1, 2, 3}) ASSERT_TRUE(scheduler->AddRequest(Spec(id, 4, id % 2 == 0 ? 16 : 3)).ok());
  int64_t moved = 0;
  while (scheduler->HasWork()) {
    const ScheduledStep step = Step(*scheduler);
    for (const BlockTransfer& transfer : step.plan.transfers) {
      EXPECT_EQ(transfer.from_shard, 0);
      EXPECT_EQ(transfer.to_shard, 1);
      EXPECT_EQ(transfer.sequence_id, 2);
      EXPECT_FALSE(transfer.streamed);
      moved += static_cast<int64_t>(transfer.blocks.size());
      bool computed = false;             // it goes on in the very step
      for (const SequenceStep& entry : step.plan.shards[1].sequences) {
        computed = computed || (entry.sequence_id == 2 && entry.blocks[0] == transfer.blocks[0].to);
      }
      EXPECT_TRUE(computed);
    }
  }
  EXPECT_EQ(scheduler->Stats().migrated, 1);
  EXPECT_EQ(scheduler->Stats().moved_blocks, moved);
  EXPECT_EQ(scheduler->Stats().preemptions, 0);
}

TEST(Scheduler, APrefixIsCopiedFromTheThresholdOn) {
  SchedulerOptions options = Small();
  options.dp = 2;
  options.max_imbalance = 1;
  options.fetch_prefixes = true;
  for (int64_t threshold : {0, 8, 9}) {
    const auto scheduler = Make(options);
    scheduler->SetFetchThreshold(threshold);
    for (int64_t id : {1, 2, 3, 4}) {    // the prefix is on the shard of the first; the third has to go elsewhere
      RequestSpec spec = Spec(7, 10);
      spec.id = id;
      ASSERT_TRUE(scheduler->AddRequest(spec).ok());
      for (int i = 0; i < 2; ++i) Step(*scheduler);
    }
    const int64_t want = threshold <= 8 ? 8 : 0;
    EXPECT_EQ(scheduler->Stats().prefix_fetched, want) << threshold;
    EXPECT_EQ(scheduler->Stats().moved_blocks, want / 4);
  }
}

TEST(Scheduler, APrefillShardStreamsTheFinishedPrompt) {
  SchedulerOptions options = Small();
  options.dp = 2;
  options.prefill_shards = 1;
  const auto scheduler = Make(options);
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 13)).ok());
  EXPECT_TRUE(Step(*scheduler).plan.transfers.empty());                // 8 tokens
  const ScheduledStep last = Step(*scheduler);                         // 5 tokens, and all four blocks leave
  ASSERT_EQ(last.plan.transfers.size(), 1u);
  EXPECT_TRUE(last.plan.transfers[0].streamed);
  EXPECT_EQ(last.plan.transfers[0].blocks.size(), 4u);
  EXPECT_EQ(last.sequences.at(0).shard, 0);
  const ScheduledStep next = Step(*scheduler);
  EXPECT_TRUE(next.plan.transfers.empty());
  EXPECT_EQ(next.sequences.at(0).shard, 1);
  EXPECT_EQ(next.plan.shards[1].sequences.at(0).blocks[0], last.plan.transfers[0].blocks[0].to);
  EXPECT_EQ(scheduler->Stats().handed_over, 1);
}

// Cancelled in its last prompt step, ended by its first token: what was reserved is free again.
TEST(Scheduler, ReservedBlocksReturn) {
  SchedulerOptions options = Small();
  options.dp = 2;
  options.prefill_shards = 1;
  const auto scheduler = Make(options);
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 5)).ok());
  const ScheduledStep step = scheduler->Schedule();
  scheduler->Cancel(1);
  scheduler->Commit(step.plan.step, {});
  scheduler->CheckInvariants();
  EXPECT_EQ(scheduler->Stats().blocks_used, 0);
  ASSERT_TRUE(scheduler->AddRequest(Spec(2, 5)).ok());
  EXPECT_EQ(Step(*scheduler, 5, true).plan.transfers.size(), 1u);
  EXPECT_EQ(scheduler->Stats().blocks_used, 0);
  EXPECT_EQ(scheduler->Stats().handed_over, 0);
}

TEST(Scheduler, DraftsNeverExceedMaxTokens) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 3, 4)).ok());
  Step(*scheduler);
  scheduler->ProposeDrafts(1, 0, {10, 11, 12, 13, 14, 15});
  const ScheduledStep step = scheduler->Schedule();
  EXPECT_EQ(step.sequences[0].drafts, 2);
  const std::vector<ChoiceResult> accepted = {{1, 0, {10, 11, 99}, false}};
  scheduler->Commit(step.plan.step, accepted);
  EXPECT_FALSE(scheduler->HasWork());
}

TEST(SchedulerDeathTest, ContractIsChecked) {
  auto scheduler = Make(Small());
  ASSERT_TRUE(scheduler->AddRequest(Spec(1, 3)).ok());
  const ScheduledStep step = scheduler->Schedule();
  EXPECT_DEATH(scheduler->Commit(step.plan.step + 1, {}), "order");
  EXPECT_DEATH(scheduler->Commit(step.plan.step, {}), "no result");
  const std::vector<ChoiceResult> two = {{1, 0, {1, 2}, false}};
  EXPECT_DEATH(scheduler->Commit(step.plan.step, two), "more tokens");
}

}  // namespace
}  // namespace latentmesh
