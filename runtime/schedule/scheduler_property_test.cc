// Random traffic against a model that reads its cache: every token is a hash of the tokens found in the blocks that the
// plan names, so a wrong block table, a shared block written to, a missed copy or a stale prefix hit changes an output.
#include <algorithm>
#include <map>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "runtime/schedule/scheduler.h"

namespace latentmesh {
namespace {

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The model: the next token from the whole history and the choice's "seed".
int32_t NextToken(const std::vector<int32_t>& history, uint64_t seed) {
  uint64_t hash = seed + history.size();
  for (int32_t token : history) hash = Mix(hash * 31 + static_cast<uint32_t>(token));
  return static_cast<int32_t>(hash % 50);
}
uint64_t SeedOf(int64_t request, int32_t choice) { return Mix(request * 1000 + choice + 1); }
bool IsStop(int32_t token) { return token == 7; }

// What the choice must produce, as if it ran alone.
std::vector<int32_t> Alone(const RequestSpec& spec, int32_t choice) {
  std::vector<int32_t> history = spec.prompt;
  std::vector<int32_t> out;
  while (static_cast<int32_t>(out.size()) < spec.max_tokens) {
    out.push_back(NextToken(history, SeedOf(spec.id, choice)));
    history.push_back(out.back());
    if (IsStop(out.back())) break;
  }
  return out;
}

// The caches of all shards, one token a slot; unwritten slots hold -1.
class CacheSimulator {
 public:
  explicit CacheSimulator(const SchedulerOptions& options)
      : block_size_(options.block_size),
        slots_(options.dp, std::vector<int32_t>(options.blocks_per_shard * options.block_size, -1)) {}

  void Copy(int shard, const BlockCopy& copy) {
    auto& slots = slots_[shard];
    std::copy_n(slots.begin() + int64_t{copy.from} * block_size_, block_size_,
                slots.begin() + int64_t{copy.to} * block_size_);
  }
  int32_t* Block(int shard, int32_t block) { return &slots_[shard].at(int64_t{block} * block_size_); }
  int32_t& At(int shard, const SequenceStep& sequence, int32_t position) {
    return slots_[shard].at(int64_t{sequence.blocks.at(position / block_size_)} * block_size_ + position % block_size_);
  }

 private:
  int32_t block_size_;
  std::vector<std::vector<int32_t>> slots_;
};

using Content = std::vector<int32_t>;

// Host slots, and a disk for each rank of one shard that answers late, forgets and fails now and then.
class TierSimulator {
 public:
  TierSimulator(const KvTierOptions& options, std::mt19937_64* random)
      : options_(options), random_(random), slots_(options.host_slots), ranks_(options.ranks) {}

  // `block` [block_size] of the cache; not used by kFetch and kDrop.
  void Move(const KvOp& op, int32_t* block, int32_t size) {
    switch (op.kind) {
      case KvOpKind::kOffload: slots_.at(op.slot).assign(block, block + size); break;
      case KvOpKind::kRestore:
        ASSERT_EQ(slots_.at(op.slot).size(), static_cast<size_t>(size));
        std::ranges::copy(slots_[op.slot], block);
        break;
      case KvOpKind::kAccept:
        for (Rank& rank : ranks_) {
          ASSERT_EQ(rank.ready.count(op.key), 1u) << "not all ranks have the block";
          std::ranges::copy(rank.ready.extract(op.key).mapped(), block);
        }
        break;
      case KvOpKind::kDrop:
        for (Rank& rank : ranks_) rank.ready.erase(op.key);
        break;
      default:
        for (Rank& rank : ranks_) rank.queue.push_back({op, op.block < 0 ? Content{} : Content(block, block + size)});
    }
  }
  // Every rank works on its queue for a while, in order.
  std::vector<KvEvent> Events() {
    std::vector<KvEvent> events;
    for (Rank& rank : ranks_) {
      while (!rank.queue.empty() && Chance(0.7)) {
        Serve(rank, rank.queue.front(), events);
        rank.queue.erase(rank.queue.begin());
      }
      if (!rank.disk.empty() && Chance(0.1)) {
        const BlockKey lost = rank.disk.begin()->first;
        rank.disk.erase(rank.disk.begin());
        if (Chance(0.5)) events.push_back({KvEventKind::kGone, lost});   // or another job did it and nobody noticed
      }
    }
    return events;
  }

 private:
  struct Queued {
    KvOp op;
    Content content;
  };
  struct Rank {
    std::map<BlockKey, Content> disk, ready;
    std::vector<Queued> queue;
  };
  bool Chance(double p) { return std::uniform_real_distribution<>()(*random_) < p; }
  void Serve(Rank& rank, const Queued& work, std::vector<KvEvent>& events) {
    const BlockKey key = work.op.key;
    if (work.op.kind == KvOpKind::kStore) {
      const bool fails = Chance(0.05);
      if (!fails) rank.disk[key] = work.content;
      events.push_back({fails ? KvEventKind::kNotStored : KvEventKind::kStored, key});
      return;
    }
    const auto found = rank.disk.find(key);
    if (found != rank.disk.end()) rank.ready[key] = found->second;
    events.push_back({found != rank.disk.end() ? KvEventKind::kReady : KvEventKind::kFailed, key});
  }

  KvTierOptions options_;
  std::mt19937_64* random_;
  std::vector<Content> slots_;
  std::vector<Rank> ranks_;
};

struct Scenario {
  SchedulerOptions options;
  uint64_t seed = 0;
  int requests = 60;
  int max_n = 3;
  double cancel_rate = 0.02;
  double draft_rate = 0;
  double arrival_rate = 0.4;
  int in_flight = 1;
};

class Traffic {
 public:
  explicit Traffic(const Scenario& scenario)
      : scenario_(scenario), random_(scenario.seed), cache_(scenario.options),
        scheduler_(Scheduler::Create(scenario.options).value()) {
    for (int i = 0; i < scenario.options.dp; ++i) tiers_.emplace_back(scenario.options.kv, &random_);
  }

  void Run() {
    for (int turn = 0; submitted_ < scenario_.requests || scheduler_->HasWork(); ++turn) {
      ASSERT_LT(turn, 200000) << "no progress";
      if (submitted_ < scenario_.requests && Chance(scenario_.arrival_rate)) Submit();
      if (Chance(scenario_.cancel_rate)) CancelSomething();
      if (Chance(scenario_.draft_rate)) Draft();
      Turn();
      scheduler_->CheckInvariants();
      if (::testing::Test::HasFailure()) return;
    }
    CheckOutcome();
  }

  const Scheduler& scheduler() const { return *scheduler_; }
  int64_t copies() const { return copies_; }
  int64_t streamed() const { return streamed_; }
  const std::map<int32_t, int64_t>& decodes_on() const { return decodes_on_; }   // steps of one token, by shard
  int64_t accepted_drafts() const { return accepted_drafts_; }

 private:
  struct Live {
    RequestSpec spec;
    std::map<int32_t, std::vector<int32_t>> outputs;
    std::vector<bool> done;
    std::vector<int> scored;      // how often each prompt token was scored
    bool cancelled = false;
    std::vector<bool> dropped;    // choices cancelled one by one
  };
  struct Ran {
    ScheduledStep step;
    std::vector<ChoiceResult> results;
  };

  bool Chance(double p) { return std::uniform_real_distribution<>()(random_) < p; }
  int Pick(int least, int most) { return std::uniform_int_distribution<>(least, most)(random_); }

  void Submit() {
    const SchedulerOptions& options = scenario_.options;
    RequestSpec spec;
    spec.id = submitted_++;
    const int64_t room = std::min<int64_t>(options.max_model_len, options.blocks_per_shard * options.block_size);
    spec.max_tokens = Chance(0.05) ? 0 : Pick(1, static_cast<int>(std::min<int64_t>(20, room - 1)));
    const int length = Pick(1, static_cast<int>(std::min<int64_t>(40, room - spec.max_tokens)));
    // A few families of prompts that share beginnings.
    const int family = Pick(0, 3);
    const int shared = Pick(0, length);
    for (int i = 0; i < length; ++i) spec.prompt.push_back(i < shared ? (family * 13 + i * 7) % 50 : Pick(0, 49));
    spec.n = spec.max_tokens == 0 ? 1 : Pick(1, scenario_.max_n);
    spec.prompt_logprobs = Chance(0.15);
    spec.cache_salt = Chance(0.1) ? 1 : 0;
    Live& live = live_[spec.id];
    live.spec = spec;
    live.done.resize(spec.n);
    live.dropped.resize(spec.n);
    live.scored.resize(length);
    ASSERT_TRUE(scheduler_->AddRequest(std::move(spec)).ok());
  }

  void CancelSomething() {
    if (live_.empty()) return;
    const int64_t id = Pick(0, submitted_ - 1);
    Live& live = live_.at(id);
    if (Chance(0.5)) {
      live.cancelled = live.cancelled || scheduler_->HasRequest(id);
      scheduler_->Cancel(id);
      EXPECT_FALSE(scheduler_->HasRequest(id));
    } else {
      const int choice = Pick(0, live.spec.n - 1);
      live.dropped[choice] = live.dropped[choice] || !live.done[choice];
      scheduler_->CancelChoice(id, choice);
    }
  }

  // Drafts that are right with some chance, so that every accepted length occurs.
  void Draft() {
    for (auto& [id, live] : live_) {
      for (auto& [choice, output] : live.outputs) {
        if (live.done[choice]) continue;
        std::vector<int32_t> history = live.spec.prompt;
        history.insert(history.end(), output.begin(), output.end());
        std::vector<int32_t> drafts;
        for (int i = Pick(0, 5); i > 0; --i) {
          drafts.push_back(Chance(0.8) ? NextToken(history, SeedOf(id, choice)) : Pick(0, 49));
          history.push_back(drafts.back());
        }
        scheduler_->ProposeDrafts(id, choice, drafts);
      }
    }
  }

  void Turn() {
    if (static_cast<int>(flight_.size()) < scenario_.in_flight) {
      Ran ran{scheduler_->Schedule(), {}};
      if (!ran.step.empty()) {
        CheckLimits(ran.step);
        Execute(ran);
        if (ran.step.plan.kv_report) Report();
        if (!ran.step.runs_model()) return;
        flight_.push_back(std::move(ran));
        if (Chance(0.5)) return;      // sometimes cancel or arrive while steps are in flight
      } else {
        ASSERT_TRUE(!flight_.empty() || !scheduler_->HasWork()) << "work, but nothing scheduled";
      }
    }
    if (flight_.empty()) return;
    Ran ran = std::move(flight_.front());
    flight_.erase(flight_.begin());
    Deliver(ran);
    scheduler_->Commit(ran.step.plan.step, ran.results);
  }

  void Report() {
    for (size_t shard = 0; shard < tiers_.size(); ++shard) {
      scheduler_->OnKvEvents(static_cast<int32_t>(shard), tiers_[shard].Events());
    }
  }

  void CheckLimits(const ScheduledStep& step) {
    const SchedulerOptions& options = scenario_.options;
    ASSERT_EQ(step.plan.shards.size(), static_cast<size_t>(options.dp));
    for (const ShardStep& shard : step.plan.shards) {
      EXPECT_LE(shard.tokens(), options.max_batch_tokens);
      EXPECT_LE(shard.sequences.size(), static_cast<size_t>(options.max_seqs));
    }
    std::vector<int64_t> rows(options.dp);
    for (const ScheduledSequence& told : step.sequences) {
      EXPECT_EQ(told.first_row, rows[told.shard]);
      rows[told.shard] += told.rows;
    }
    for (int i = 0; i < options.dp; ++i) EXPECT_EQ(rows[i], step.plan.shards[i].logits_rows());
    const auto parsed = ParsePlan(SerializePlan(step.plan));
    ASSERT_TRUE(parsed.ok());
  }

  void Move(const BlockTransfer& transfer) {
    EXPECT_NE(transfer.from_shard, transfer.to_shard);
    for (const BlockCopy& copy : transfer.blocks) {
      std::copy_n(cache_.Block(transfer.from_shard, copy.from), scenario_.options.block_size,
                  cache_.Block(transfer.to_shard, copy.to));
    }
    moved_blocks_ += static_cast<int64_t>(transfer.blocks.size());
    streamed_ += transfer.streamed;
  }

  // As a worker does: moves between tiers, between shards, copies, then all writes, what is streamed, then all reads.
  void Execute(Ran& ran) {
    const StepPlan& plan = ran.step.plan;
    for (size_t shard = 0; shard < plan.shards.size(); ++shard) {
      for (const KvOp& op : plan.shards[shard].kv) {
        tiers_[shard].Move(op, op.block < 0 ? nullptr : cache_.Block(shard, op.block), scenario_.options.block_size);
      }
    }
    for (const BlockTransfer& transfer : plan.transfers) {
      if (!transfer.streamed) Move(transfer);
    }
    for (size_t shard = 0; shard < plan.shards.size(); ++shard) {
      for (const BlockCopy& copy : plan.shards[shard].copies) cache_.Copy(shard, copy);
      copies_ += static_cast<int64_t>(plan.shards[shard].copies.size());
      for (const SequenceStep& sequence : plan.shards[shard].sequences) {
        for (size_t i = 0; i < sequence.tokens.size(); ++i) {
          cache_.At(shard, sequence, sequence.start + i) = sequence.tokens[i];
        }
      }
    }
    for (const BlockTransfer& transfer : plan.transfers) {
      if (transfer.streamed) Move(transfer);
    }
    for (const ScheduledSequence& told : ran.step.sequences) {
      const bool decodes = told.samples && !told.ends_prompt &&
                           plan.shards[told.shard].sequences[told.index].tokens.size() == 1;
      decodes_on_[told.shard] += decodes;
      Read(ran, told);
    }
  }

  void Read(Ran& ran, const ScheduledSequence& told) {
    const SequenceStep& sequence = ran.step.plan.shards[told.shard].sequences[told.index];
    std::vector<int32_t> seen;
    for (int32_t p = 0; p < sequence.context(); ++p) seen.push_back(cache_.At(told.shard, sequence, p));
    CheckContent(told, sequence, seen);
    if (told.samples) {
      for (int32_t c = 0; c < told.choices; ++c) ran.results.push_back(SampleChoice(told, seen, told.first_choice + c));
    }
  }

  // The blocks hold exactly the request's prompt and this choice's outputs (and the drafts).
  void CheckContent(const ScheduledSequence& told, const SequenceStep& sequence, const std::vector<int32_t>& seen) {
    const Live& live = live_.at(told.request);
    std::vector<int32_t> truth = live.spec.prompt;
    if (const auto out = live.outputs.find(told.first_choice); out != live.outputs.end()) {
      truth.insert(truth.end(), out->second.begin(), out->second.end());
    }
    ASSERT_LE(seen.size() - told.drafts, truth.size());
    EXPECT_TRUE(std::equal(seen.begin(), seen.end() - told.drafts, truth.begin()))
        << "request " << told.request << " choice " << told.first_choice << " start " << sequence.start;
    EXPECT_TRUE(std::equal(seen.end() - told.drafts, seen.end(), sequence.tokens.end() - told.drafts));
  }

  ChoiceResult SampleChoice(const ScheduledSequence& told, const std::vector<int32_t>& seen, int32_t choice) {
    ChoiceResult result{told.request, choice, {}, false};
    for (int32_t i = 0; i <= told.drafts; ++i) {
      const std::vector<int32_t> history(seen.begin(), seen.end() - told.drafts + i);
      const int32_t token = NextToken(history, SeedOf(told.request, choice));
      result.tokens.push_back(token);
      result.finished = IsStop(token);
      if (result.finished || i == told.drafts || seen[history.size()] != token) break;
      ++accepted_drafts_;
    }
    return result;
  }

  void Deliver(Ran& ran) {
    for (const ScheduledSequence& told : ran.step.sequences) {
      Live& live = live_.at(told.request);
      for (int32_t r = 0; r < told.prompt_rows; ++r) ++live.scored.at(told.first_scored + r);
      if (told.ends_prompt && live.spec.max_tokens == 0) live.done.assign(live.spec.n, true);
    }
    for (const ChoiceResult& result : ran.results) {
      Live& live = live_.at(result.request);
      auto& out = live.outputs[result.choice];
      out.insert(out.end(), result.tokens.begin(), result.tokens.end());
      if (result.finished || static_cast<int>(out.size()) >= live.spec.max_tokens) live.done[result.choice] = true;
    }
  }

  void CheckOutcome() {
    const SchedulerStats stats = scheduler_->Stats();
    EXPECT_EQ(stats.blocks_used, 0);
    EXPECT_EQ(stats.moved_blocks, moved_blocks_);
    EXPECT_EQ(stats.running + stats.waiting + stats.requests, 0);
    for (const auto& [id, live] : live_) {
      if (live.cancelled) continue;
      for (int32_t choice = 0; choice < live.spec.n; ++choice) {
        if (live.dropped[choice]) continue;
        EXPECT_TRUE(live.done[choice]) << "request " << id << " choice " << choice << " never finished";
        if (live.spec.max_tokens == 0) continue;
        EXPECT_EQ(live.outputs.at(choice), Alone(live.spec, choice));
      }
      const bool dropped = std::ranges::all_of(live.dropped, [](bool d) { return d; });
      for (size_t i = 1; i < live.scored.size() && live.spec.prompt_logprobs && !dropped; ++i) {
        EXPECT_EQ(live.scored[i], 1) << "prompt token " << i << " of request " << id;
      }
    }
  }

  Scenario scenario_;
  std::mt19937_64 random_;
  CacheSimulator cache_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<TierSimulator> tiers_;
  std::map<int64_t, Live> live_;
  std::vector<Ran> flight_;
  int submitted_ = 0;
  int64_t copies_ = 0;
  int64_t moved_blocks_ = 0;
  int64_t streamed_ = 0;
  std::map<int32_t, int64_t> decodes_on_;
  int64_t accepted_drafts_ = 0;
};

SchedulerOptions Options(int dp, int block_size, int64_t blocks, int batch_tokens, int max_seqs) {
  SchedulerOptions options;
  options.dp = dp;
  options.block_size = block_size;
  options.blocks_per_shard = blocks;
  options.max_batch_tokens = batch_tokens;
  options.max_seqs = max_seqs;
  options.max_model_len = 60;
  return options;
}

TEST(SchedulerProperty, AmpleBlocks) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (int block_size : {1, 4, 16}) {
      Traffic traffic({Options(1 + seed % 3, block_size, 2000, 64, 16), seed});
      traffic.Run();
      ASSERT_FALSE(HasFailure()) << "seed " << seed << " block size " << block_size;
      EXPECT_EQ(traffic.scheduler().Stats().preemptions, 0);
      EXPECT_GT(traffic.scheduler().Stats().prefix_hits, 0);
      EXPECT_EQ(traffic.copies() > 0, block_size > 1);
    }
  }
}

TEST(SchedulerProperty, TinyPoolsPreempt) {
  int64_t preemptions = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    for (int block_size : {1, 3, 8}) {
      Scenario scenario{Options(1 + seed % 4, block_size, 72 / block_size, 24, 12), seed};
      scenario.options.watermark = seed % 2 == 0 ? 0 : 0.05;
      scenario.options.prefix_caching = seed % 5 != 0;
      Traffic traffic(scenario);
      traffic.Run();
      ASSERT_FALSE(HasFailure()) << "seed " << seed << " block size " << block_size;
      preemptions += traffic.scheduler().Stats().preemptions;
    }
  }
  EXPECT_GT(preemptions, 500);
}

TEST(SchedulerProperty, OneTokenSteps) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Scenario scenario{Options(2, 4, 20, 1, 3), seed};
    scenario.requests = 20;
    Traffic traffic(scenario);
    traffic.Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(SchedulerProperty, DraftsAreVerifiedAndReclaimed) {
  int64_t accepted = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Scenario scenario{Options(1 + seed % 2, 1 + seed % 5, 90 / (1 + seed % 5), 32, 8), seed};
    scenario.draft_rate = 0.7;
    Traffic traffic(scenario);
    traffic.Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    accepted += traffic.accepted_drafts();
  }
  EXPECT_GT(accepted, 5000);
}

TEST(SchedulerProperty, SeveralStepsInFlight) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Scenario scenario{Options(1 + seed % 2, 4, 24, 12, 10), seed};
    scenario.in_flight = 2 + seed % 3;
    scenario.cancel_rate = 0.05;
    scenario.draft_rate = seed % 2 == 0 ? 0 : 0.3;
    Traffic traffic(scenario);
    traffic.Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(SchedulerProperty, LowerTiersGiveBackWhatTheyTook) {
  KvTierStats sum;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    const int block_size = 1 + seed % 4;
    Scenario scenario{Options(1 + seed % 2, block_size, 90 / block_size, 24, 10), seed};
    scenario.options.kv.host_slots = seed % 3 == 0 ? 0 : 8 + 10 * (seed % 4);
    scenario.options.kv.disk = seed % 3 != 1;
    scenario.options.kv.ranks = 1 + seed % 3;
    scenario.options.kv.loads_per_step = 1 + seed % 5;
    scenario.options.kv.fetches = 1 + seed % 7;
    scenario.in_flight = 1 + seed % 3;
    scenario.draft_rate = seed % 2 == 0 ? 0 : 0.3;
    Traffic traffic(scenario);
    traffic.Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    sum += traffic.scheduler().Stats().kv;
  }
  EXPECT_GT(sum.offloaded, 1000);
  EXPECT_GT(sum.restored, 300);
  EXPECT_GT(sum.stored, 1000);
  EXPECT_GT(sum.fetched, 300);
  EXPECT_GT(sum.failed, 30);
}

SchedulerStats RunMoving(Scenario scenario, bool moves) {
  scenario.options.migrate = scenario.options.fetch_prefixes = moves;
  Traffic traffic(scenario);
  traffic.Run();
  return traffic.scheduler().Stats();
}

TEST(SchedulerProperty, MigrationInsteadOfPreemption) {
  int64_t with = 0, without = 0, migrated = 0, fetched = 0;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    const int block_size = 1 + seed % 5;
    Scenario scenario{Options(2 + seed % 3, block_size, 90 / block_size, 24, 12), seed};
    scenario.arrival_rate = 0.15 + 0.1 * (seed % 3);
    scenario.in_flight = 1 + seed % 3;
    scenario.draft_rate = seed % 2 == 0 ? 0 : 0.3;
    scenario.options.max_imbalance = 1 + seed % 4;
    scenario.options.prefix_caching = seed % 7 != 0;
    if (seed % 4 == 3 && scenario.options.prefix_caching) {
      scenario.options.kv.host_slots = 20;
      scenario.options.kv.disk = seed % 8 == 7;
    }
    const SchedulerStats moving = RunMoving(scenario, true);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
    const SchedulerStats staying = RunMoving(scenario, false);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
    EXPECT_EQ(staying.migrated + staying.prefix_fetched + staying.moved_blocks, 0);
    with += moving.preemptions;
    without += staying.preemptions;
    migrated += moving.migrated;
    fetched += moving.prefix_fetched;
  }
  EXPECT_LT(with, without * 3 / 4) << without;
  EXPECT_GT(migrated, 500);
  EXPECT_GT(fetched, 500);
}

TEST(SchedulerProperty, PrefillShardsHandOver) {
  int64_t handed_over = 0, streamed = 0, prefill_decodes = 0, decodes = 0;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    const int block_size = 1 + seed % 5;
    const bool ample = seed % 2 == 0;
    Scenario scenario{Options(2 + seed % 3, block_size, (ample ? 8000 : 90) / block_size, 24, ample ? 200 : 12), seed};
    // What a prompt splits into takes a step where it is: its last block is copied in it.
    scenario.max_n = ample ? 1 : 3;
    scenario.options.prefill_shards = 1 + static_cast<int32_t>(seed) % (scenario.options.dp - 1);
    scenario.options.migrate = scenario.options.fetch_prefixes = seed % 3 != 0;
    scenario.options.stream_prefills = seed % 4 != 0;
    scenario.options.prefix_caching = seed % 7 != 0;
    scenario.in_flight = 1 + seed % 3;
    scenario.draft_rate = seed % 5 == 0 ? 0.3 : 0;
    Traffic traffic(scenario);
    traffic.Run();
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
    const SchedulerStats stats = traffic.scheduler().Stats();
    EXPECT_GT(stats.handed_over, 0);
    handed_over += stats.handed_over;
    streamed += traffic.streamed();
    for (const auto& [shard, count] : traffic.decodes_on()) {
      const bool prefills = shard < scenario.options.prefill_shards;
      EXPECT_FALSE(ample && prefills && count > 0)
          << count << " decoding steps on a prefill shard though others had room";
      (prefills ? prefill_decodes : decodes) += count;
    }
  }
  EXPECT_GT(handed_over, 3000);
  EXPECT_GT(streamed, 500);
  EXPECT_GT(decodes, 10000);
  EXPECT_GT(prefill_decodes, 1000);      // where the others had no room
}

TEST(SchedulerProperty, ManyChoicesFewSlots) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Scenario scenario{Options(2, 4, 24, 16, 3), seed};
    scenario.max_n = 7;
    scenario.requests = 25;
    Traffic traffic(scenario);
    traffic.Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace latentmesh
