#include "runtime/engine/decode_steps.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr int64_t kMostSequences = 512;   // of a step that is padded
constexpr size_t kMostSizes = 64;         // captured at a time

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Whether a step is the one queued for the same sequence before its token was known. It may have blocks for later tokens, too.
bool Continues(const SequenceStep& step, const SequenceStep& queued, int32_t token) {
  size_t blocks = std::min(step.blocks.size(), queued.blocks.size());
  return step.start == queued.start && step.tokens.size() == 1 && step.tokens[0] == token && step.logits_from == 0 &&
         std::equal(step.blocks.begin(), step.blocks.begin() + static_cast<int64_t>(blocks), queued.blocks.begin());
}

}  // namespace

int64_t PaddedSequences(int64_t n) {
  if (n <= 2) return n;
  if (n <= 8) return RoundUp(n, n <= 4 ? 4 : 8);
  return RoundUp(n, n <= 64 ? 8 : n <= 256 ? 16 : 32);
}

int64_t PaddedContext(int64_t context) {
  int64_t power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(context, 1))));
  return RoundUp(context, std::max<int64_t>(256, power / 8));
}

const ShardStep& DecodeSteps::Mine(const StepCommand& command) const {
  return command.plan.shards[static_cast<size_t>(p_.setup->shard.dp_rank)];
}

// The shards whose steps decide: with experts exchanged between dp ranks all, otherwise this rank's own.
std::vector<const ShardStep*> DecodeSteps::Concerned(const StepCommand& command) const {
  if (p_.moe == nullptr || p_.setup->shard.layout.dp == 1) return {&Mine(command)};
  std::vector<const ShardStep*> shards;
  for (const ShardStep& shard : command.plan.shards) shards.push_back(&shard);
  return shards;
}

bool DecodeSteps::Fits(const ShardStep& step, int64_t queries, AttentionMode attention) const {
  if (!step.copies.empty() || !p_.builder->Absorbs(step, attention)) return false;
  return std::all_of(step.sequences.begin(), step.sequences.end(), [&](const SequenceStep& s) {
    return static_cast<int64_t>(s.tokens.size()) == queries && s.logits_from == 0;
  });
}

bool DecodeSteps::Takes(const StepCommand& command) const {
  bool plain = command.draft == DraftRound::kNone && !command.capture_hidden && command.plan.transfers.empty() &&
               !command.sampling.empty() && command.micro_batches == 1;
  std::vector<const ShardStep*> shards = Concerned(command);
  auto some = std::find_if(shards.begin(), shards.end(), [](const ShardStep* s) { return !s->sequences.empty(); });
  if (!plain || some == shards.end()) return false;
  int64_t queries = static_cast<int64_t>((*some)->sequences[0].tokens.size());
  for (const ShardStep* shard : shards)
    if (!Fits(*shard, queries, command.attention)) return false;
  const StepLimits& limits = p_.setup->limits;
  StepPadding padding = PaddingOf(command);
  int64_t tokens = padding.sequences * padding.queries;
  bool room = padding.sequences <= std::min(kMostSequences, limits.max_seqs) && tokens <= limits.max_tokens &&
              tokens <= limits.max_logits_rows;
  for (const ShardSampling& sampling : command.sampling) room = room && static_cast<int64_t>(sampling.specs.size()) <= tokens;
  bool exchange = shards.size() > 1;
  return room && (!exchange || tokens / p_.setup->shard.layout.tp <= p_.setup->moe_options().gathered_tokens);
}

StepPadding DecodeSteps::PaddingOf(const StepCommand& command) const {
  const StepLimits& limits = p_.setup->limits;
  const ParallelConfig& layout = p_.setup->shard.layout;
  StepPadding padding;
  int64_t context = 0, span = int64_t{limits.block_size} * layout.cp;
  std::vector<const ShardStep*> shards = Concerned(command);
  for (const ShardStep* shard : shards) {
    padding.sequences = std::max(padding.sequences, static_cast<int64_t>(shard->sequences.size()));
    if (!shard->sequences.empty()) padding.queries = static_cast<int64_t>(shard->sequences[0].tokens.size());
  }
  for (const SequenceStep& s : Mine(command).sequences)
    context = std::max({context, int64_t{s.context()}, static_cast<int64_t>(s.blocks.size()) * span});
  padding.sequences = std::max(padding.sequences, std::min(PaddedSequences(padding.sequences), limits.max_seqs));
  if (shards.size() > 1) padding.sequences = RoundUp(padding.sequences, layout.tp);   // tp ranks route equal shares
  // Never more blocks than the longest sequence has.
  padding.kv_len = std::max(context, std::min(PaddedContext(context), RoundUp(limits.max_model_len, span)));
  return padding;
}

DecodeSteps::Size& DecodeSteps::Find(const StepPadding& padding, bool* is_new) {
  auto found = std::find_if(sizes_.begin(), sizes_.end(), [&](const Size& s) { return s.padding == padding; });
  *is_new = found == sizes_.end();
  if (*is_new) {
    sizes_.push_front({padding, p_.setup->captures(), nullptr});
    if (sizes_.size() > kMostSizes) sizes_.pop_back();
  } else {
    sizes_.splice(sizes_.begin(), sizes_, found);
  }
  return sizes_.front();
}

std::vector<int64_t> DecodeSteps::Run(const StepCommand& command) {
  const ShardStep& step = Mine(command);
  std::vector<int64_t> rows;
  if (Adopt(command, rows)) return rows;
  bool is_new = false;
  Size& size = Find(PaddingOf(command), &is_new);
  StepBatch batch = p_.builder->BuildPadded(step, size.padding, *p_.device, *p_.stream);
  if (p_.setup->shard.last_stage()) p_.collector->Upload(command, batch.tokens);
  int64_t waits = p_.moe == nullptr ? 0 : p_.moe->host_waits();
  if (!is_new && size.captures && size.work == nullptr) Capture(size, batch);
  if (size.work != nullptr) Replay(size, batch.tokens);
  else Queue(batch);
  if (p_.moe != nullptr && p_.moe->host_waits() != waits) size.captures = false;
  return batch.first_row;
}

// Whether the step queued ahead computes all that this one asks for.
bool DecodeSteps::Adopt(const StepCommand& command, std::vector<int64_t>& first_row) {
  std::optional<Ahead> ahead = std::exchange(ahead_, std::nullopt);
  const ShardStep& step = Mine(command);
  const ShardSampling& sampling = command.sampling[static_cast<size_t>(p_.setup->shard.dp_rank)];
  if (!ahead || sampling.specs.size() != step.sequences.size() || !sampling.host_rows.empty()) return false;
  const std::vector<SequenceStep>& queued = ahead->step.sequences;
  const std::vector<int32_t>& tokens = p_.collector->fetched();
  std::vector<int32_t> places;
  size_t at = 0;
  for (size_t i = 0; i < step.sequences.size(); ++i, ++at) {
    while (at < queued.size() && queued[at].sequence_id != step.sequences[i].sequence_id) ++at;
    if (at == queued.size() || at >= tokens.size() || !Continues(step.sequences[i], queued[at], tokens[at])) return false;
    SampleSpec spec = sampling.specs[i];
    if (spec.row != static_cast<int32_t>(i)) return false;
    spec.row = ahead->specs[at].row;
    if (!(spec == ahead->specs[at])) return false;
    places.push_back(static_cast<int32_t>(at));
    first_row.push_back(ahead->first_row[at]);
  }
  if (places.size() < queued.size()) p_.collector->FetchOnly(std::move(places));
  ++steps_ahead_;
  return true;
}

// Only what has run before: a captured size, or where nothing is captured any that is known.
const DecodeSteps::Size* DecodeSteps::SizeFor(const StepCommand& command) const {
  StepPadding padding = PaddingOf(command);
  auto found = std::find_if(sizes_.begin(), sizes_.end(), [&](const Size& s) { return s.padding == padding; });
  bool ready = found != sizes_.end() && (found->work != nullptr || !p_.setup->captures());
  return ready ? &*found : nullptr;
}

void DecodeSteps::RunAhead(const StepCommand& command, std::span<const SampleSpec> specs) {
  LM_CHECK(p_.setup->runs_ahead());
  const std::vector<SequenceStep>& now = Mine(command).sequences;
  const ShardSampling& sampling = command.sampling[0];
  if (specs.size() != now.size() || sampling.specs.size() != now.size() || !sampling.host_rows.empty()) return;
  if (!p_.collector->fetches_all()) return;   // tokens do not lie in the order of the sequences
  StepCommand next;
  next.attention = command.attention;
  next.plan.step = command.plan.step + 1;
  next.plan.shards.resize(1);
  next.sampling.push_back({{specs.begin(), specs.end()}, {}});
  for (size_t i = 0; i < now.size(); ++i) {
    if (now[i].tokens.size() != 1 || sampling.specs[i].row != static_cast<int32_t>(i)) return;
    next.plan.shards[0].sequences.push_back(now[i]);
    SequenceStep& s = next.plan.shards[0].sequences.back();
    ++s.start;
    s.tokens = {0};
    if (s.context() > static_cast<int64_t>(s.blocks.size()) * p_.setup->limits.block_size) return;
  }
  const Size* size = Takes(next) ? SizeFor(next) : nullptr;
  if (size == nullptr) return;
  int64_t count = static_cast<int64_t>(now.size());
  p_.collector->Keep(count);
  StepBatch batch = p_.builder->BuildPadded(next.plan.shards[0], size->padding, *p_.device, *p_.stream);
  p_.collector->GiveKept(const_cast<int32_t*>(batch.ids), count);
  p_.collector->Upload(next, batch.tokens);
  if (size->work != nullptr) Replay(*size, batch.tokens);
  else Queue(batch);
  ahead_ = Ahead{std::move(next.plan.shards[0]), std::move(next.sampling[0].specs), batch.first_row};
}

TensorView DecodeSteps::Queue(const StepBatch& batch) {
  bool exchange = p_.setup->shard.layout.dp > 1;
  if (p_.moe != nullptr) {
    p_.moe->SetLiveTokens(exchange ? batch.live_routed : batch.live_tokens);
    p_.moe->UseFixedExchange(exchange);
  }
  p_.decoder->Forward(batch, *p_.cache);
  if (p_.moe != nullptr) {
    p_.moe->SetLiveTokens(nullptr);
    p_.moe->UseFixedExchange(false);
  }
  return p_.collector->Choose(batch, batch.tokens);
}

// What cannot be captured is no reason to stop: the step is then queued as others are.
void DecodeSteps::Capture(Size& size, const StepBatch& batch) {
  TraceSpan span("capture");
  try {
    size.work = CaptureWork(*p_.stream, [&] { size.logits = Queue(batch); });
  } catch (const Error& error) {
    size.captures = false;
    if (p_.setup->options.warn) p_.setup->options.warn(std::string("a decode step could not be captured: ") + error.what());
  }
}

void DecodeSteps::Replay(const Size& size, int64_t tokens) {
  TraceSpan span("captured step");
  size.work->Launch(*p_.stream);
  p_.decoder->NoteReplay(tokens);
  p_.collector->NoteReplay(size.logits);
  for (const auto* comm : {&p_.comms->world, &p_.comms->tp, &p_.comms->cp, &p_.comms->ep, &p_.comms->pp})
    if (*comm != nullptr && (*comm)->size() > 1) (*comm)->WatchQueued(*p_.stream);
  ++replays_;
}

}  // namespace latentmesh
