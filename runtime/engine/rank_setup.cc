#include "runtime/engine/rank_setup.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "kernels/ops_memory.h"
#include "runtime/engine/balancer.h"
#include "runtime/engine/balancer_rank.h"
#include "runtime/engine/result_collector.h"
#include "runtime/model/batch_halves.h"
#include "runtime/model/decoder.h"

namespace latentmesh {
namespace {

constexpr int64_t kMostGatheredTokens = 1024;   // of all ranks of a stage, in steps that exchange with fixed capacity
constexpr uint64_t kGraphBytes = uint64_t{256} << 20;   // for captured steps, see DecodeSteps
constexpr double kUsableShare = 0.92;   // of free memory; the rest is for the libraries, the host side and fragmentation

std::string Gib(uint64_t bytes) { return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1ull << 30)); }

Status CheckPositive(const char* flag, int64_t value) {
  if (value >= 0) return Status::Ok();
  return InvalidArgument(fmt::format("{} {}: must be positive, or 0 to let latentmesh choose", flag, value));
}

Result<std::string> ResolveDType(const char* flag, const std::string& wanted, const std::string& choice) {
  if (wanted == "auto" || wanted.empty()) return choice;
  if (wanted == "f32" || wanted == "bf16") return wanted;
  return InvalidArgument(fmt::format("{} {}: must be auto, f32 or bf16", flag, wanted));
}

Status CheckDispatchDType(const std::string& wanted, bool gpu) {
  if (wanted != "auto" && wanted != "f32" && wanted != "bf16" && wanted != "fp8")
    return InvalidArgument(fmt::format("--dispatch-dtype {}: must be auto, f32, bf16 or fp8", wanted));
  if (wanted == "fp8" && gpu) return InvalidArgument("--dispatch-dtype fp8: CPU ranks only so far; on GPUs use bf16");
  return Status::Ok();
}

constexpr CacheFormat kCacheFormats[] = {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit};

// The quantised formats are defined for latents; baselines (keys and values) have f32 and bf16.
Result<std::string> ResolveKvDType(const EngineOptions& options, const ModelConfig& config, const std::string& dtype) {
  if (options.kv_dtype == "auto" || options.kv_dtype.empty()) return dtype;
  for (CacheFormat format : kCacheFormats) {
    if (options.kv_dtype != CacheFormatName(format)) continue;
    bool quantised = format == CacheFormat::kF8 || format == CacheFormat::k6Bit;
    if (!quantised || config.is_mla()) return options.kv_dtype;
    return InvalidArgument(fmt::format("--kv-dtype {}: only latents (DeepSeek models) are kept in this format, and {} caches keys "
                                       "and values; use auto, f32 or bf16", options.kv_dtype, config.architecture_name));
  }
  return InvalidArgument(fmt::format("--kv-dtype {}: must be auto, f32, bf16, fp8 or 6bit", options.kv_dtype));
}

// The packed formats have kernels on CPUs only.
Result<std::string> ResolveWeights(const EngineOptions& options, bool gpu) {
  LM_ASSIGN_OR_RETURN(WeightFormat format, ParseWeightFormat(options.weights));
  if (gpu && IsPacked(format))
    return InvalidArgument(fmt::format("--weights {}: only CPU ranks compute with it; use auto, bf16 or fp8, or --device cpu",
                                       options.weights));
  return std::string(WeightFormatName(format));
}

// `name` has been resolved.
CacheFormat CacheFormatOf(const std::string& name) {
  for (CacheFormat format : kCacheFormats)
    if (name == CacheFormatName(format)) return format;
  LM_CHECK_MSG(false, name);
  return CacheFormat::kF32;
}

constexpr int kMostDrafts = 15;

Status ResolveSpeculation(const ModelConfig& config, EngineOptions& r) {
  if (r.speculative_tokens < 0 || r.speculative_tokens > kMostDrafts)
    return InvalidArgument(fmt::format("--speculative-tokens {}: must be from 0 (off) to {}", r.speculative_tokens, kMostDrafts));
  bool has_layer = config.num_nextn_predict_layers > 0;
  if (r.speculative == "auto") r.speculative = has_layer ? "mtp" : "ngram";
  if (r.speculative != "mtp" && r.speculative != "ngram")
    return InvalidArgument("--speculative " + r.speculative + ": must be auto, mtp or ngram");
  if (r.speculative_tokens > 0 && r.speculative == "mtp" && !has_layer)
    return InvalidArgument("--speculative mtp: the checkpoint has no multi-token-prediction layer (num_nextn_predict_layers is 0); "
                           "use --speculative ngram");
  return Status::Ok();
}

StepLimits MakeLimits(const EngineOptions& options, DeviceKind device) {
  StepLimits limits;
  limits.max_tokens = options.max_batch_tokens;
  limits.max_seqs = options.max_seqs;
  limits.max_model_len = options.max_model_len;
  limits.block_size = options.block_size;
  limits.max_logits_rows = std::min<int64_t>(options.max_batch_tokens, std::max(options.max_seqs, 64));
  limits.expand_keys = std::min<int64_t>(device == DeviceKind::kCuda ? 4096 : 512, options.max_model_len);
  return limits;
}

uint64_t ActivationBytes(const RankSetup& setup, const ModelWeights& weights) {
  ModelContext ctx;
  ctx.config = &setup.config;
  ctx.shard = setup.shard;
  ctx.limits = setup.limits;
  ctx.activation = setup.activation;
  Arena arena;
  arena.Reserve(DType::kF32, {setup.limits.max_model_len, setup.config.rope_dim()});
  StepBatchBuilder builder(setup.config, setup.shard, setup.limits, arena);
  Decoder decoder(ctx, weights, nullptr, setup.placement, arena);
  ReserveResultBuffers(setup, arena);
  return arena.used();
}

}  // namespace

int64_t RankSetup::blocks_per_sequence() const {
  int64_t span = int64_t{limits.block_size} * shard.layout.cp;
  return (limits.max_model_len + span - 1) / span;
}

// Faults and checks of collectives act on the host, which a replayed step does not ask.
bool RankSetup::captures() const {
  return options.device == "cuda" && options.cuda_graphs != "off" && !options.check_collectives && options.inject_fault.empty();
}

// One rank, which knows by itself what comes next; and nothing but decode steps between two decode steps.
bool RankSetup::runs_ahead() const {
  const ParallelConfig& layout = shard.layout;
  return options.run_ahead && options.sample_on_ranks && layout.tp * layout.dp * layout.pp == 1 && options.speculative_tokens == 0 &&
         options.balance_interval == 0 && !has_tiers() && options.inject_fault.empty() && !options.check_collectives;
}

// Nodes as the ep group of a stage sees them. 0: by messages, which every transport can do and --check-collectives can see.
int RankSetup::dispatch_node() const {
  int ranks = shard.ep_size(), node = std::max(1, options.ranks_per_node);
  if (options.device == "cuda" || shard.layout.dp == 1) return 0;
  if (options.check_collectives) return options.dispatch_dtype == "fp8" ? 1 : 0;
  node = ranks % node == 0 ? node : node % ranks == 0 ? ranks : 1;
  // Without other ranks on its node a token takes fewer messages to them than by nodes, and these hide; fp8 goes by nodes only.
  bool alone = node == 1 || node == ranks;
  return micro_batches() == 2 && alone && options.dispatch_dtype != "fp8" ? 0 : node;
}

// Left to us: two where tokens travel over a network.
int RankSetup::micro_batches() const {
  if (config.n_routed_experts == 0 || shard.layout.dp == 1) return 1;
  if (options.micro_batches > 0) return options.micro_batches;
  return options.device == "cpu" && options.ranks_per_node > 0 && shard.ep_size() > options.ranks_per_node ? 2 : 1;
}

MoeWorkspaceOptions RankSetup::second_moe_options() const {
  MoeWorkspaceOptions moe = moe_options();
  moe.max_tokens = SplitRange(MostTokensOfHalf(limits.max_tokens), shard.layout.tp, 0).count;
  return moe;
}

uint64_t RankSetup::moe_bytes() const {
  if (config.n_routed_experts == 0) return 0;
  MoeConfig moe = MoeConfigOf(config);
  uint64_t bytes = MoeWorkspace::Bytes(moe, moe_options(), shard.ep_size());
  return micro_batches() == 1 ? bytes : bytes + MoeWorkspace::Bytes(moe, second_moe_options(), shard.ep_size());
}

MoeWorkspaceOptions RankSetup::moe_options() const {
  MoeWorkspaceOptions moe;
  if (shard.layout.dp == 1) {   // all ranks hold the same tokens: nothing to send, the all-reduce over tp sums the experts
    moe.max_tokens = 1;
    moe.max_replicated_tokens = limits.max_tokens;
  } else {
    moe.max_tokens = SplitRange(limits.max_tokens, shard.layout.tp, 0).count;
  }
  moe.max_local_experts = weight_options.expert_slots;
  moe.activation = activation;
  moe.payload = options.dispatch_dtype == "f32"    ? DType::kF32
                : options.dispatch_dtype == "bf16" ? DType::kBF16
                : options.dispatch_dtype == "fp8" && shard.layout.dp > 1 ? DType::kF8E4M3
                                                                        : activation;
  moe.ranks_per_node = dispatch_node();
  moe.fixed_capacity = options.sample_on_ranks;
  if (options.sample_on_ranks && shard.layout.dp > 1)
    moe.gathered_tokens = std::min(moe.max_tokens, std::max<int64_t>(1, kMostGatheredTokens / shard.ep_size()));
  if (moe.fixed_capacity) moe.counted_layers = static_cast<int32_t>(shard.layers.count) + 1;   // and the draft layer
  return moe;
}

void RankSetup::SetBlocks(int64_t blocks) {
  cache.num_blocks = blocks;
  plan.cache_blocks = blocks;
  plan.cache = cache.Bytes();
}

void RankSetup::SetOffloadBlocks(int64_t blocks) {
  plan.offload_blocks = blocks;
  plan.offload = cache.BytesPerBlock() * static_cast<uint64_t>(blocks);
}

Status CheckPrefillRanks(const EngineOptions& resolved) {
  const int n = resolved.prefill_ranks, dp = resolved.layout.dp;
  if (n == 0) return Status::Ok();
  if (n < 0) return InvalidArgument(fmt::format("--prefill-ranks {}: must be 0 (all dp ranks do both) or more", n));
  if (dp == 1) return InvalidArgument(fmt::format("--prefill-ranks {}: the layout {} has one dp rank, nothing can be split; "
                                                  "give --dp 2 or more", n, ToString(resolved.layout)));
  if (n >= dp) return InvalidArgument(fmt::format("--prefill-ranks {}: of {} dp ranks at least one must be left to decode; "
                                                  "give 1 to {}", n, dp, dp - 1));
  return Status::Ok();
}

Result<EngineOptions> ResolveOptions(const EngineOptions& options, const ModelConfig& config, int world_size,
                                     DeviceKind device) {
  EngineOptions r = options;
  bool gpu = device == DeviceKind::kCuda;
  r.device = gpu ? "cuda" : "cpu";
  r.sample_on_ranks = gpu || options.sample_on_ranks;
  LM_ASSIGN_OR_RETURN(r.layout, ChooseLayout(config, options.layout, world_size));
  LM_RETURN_IF_ERROR(ValidateLayout(config, r.layout));
  LM_ASSIGN_OR_RETURN(r.dtype, ResolveDType("--dtype", options.dtype, gpu ? "bf16" : "f32"));
  LM_ASSIGN_OR_RETURN(r.weights, ResolveWeights(options, gpu));
  LM_ASSIGN_OR_RETURN(r.kv_dtype, ResolveKvDType(options, config, r.dtype));
  LM_RETURN_IF_ERROR(CheckDispatchDType(options.dispatch_dtype, gpu));
  if (options.cuda_graphs != "auto" && options.cuda_graphs != "off")
    return InvalidArgument(fmt::format("--cuda-graphs {}: must be auto or off", options.cuda_graphs));
  LM_RETURN_IF_ERROR(CheckPositive("--max-batch-tokens", options.max_batch_tokens));
  LM_RETURN_IF_ERROR(CheckPositive("--max-seqs", options.max_seqs));
  LM_RETURN_IF_ERROR(CheckPositive("--max-model-len", options.max_model_len));
  LM_RETURN_IF_ERROR(CheckPositive("--threads", options.threads));
  if (options.micro_batches < 0 || options.micro_batches > 2)
    return InvalidArgument(fmt::format("--micro-batches {}: must be auto, 1 or 2", options.micro_batches));
  if (options.block_size < 1 || options.block_size > 1024)
    return InvalidArgument(fmt::format("--block-size {}: must be from 1 to 1024 tokens", options.block_size));
  if (options.max_model_len > config.max_position_embeddings)
    return InvalidArgument(fmt::format("--max-model-len {} is more than max_position_embeddings {} of the model",
                                       options.max_model_len, config.max_position_embeddings));
  if (r.max_model_len == 0) r.max_model_len = static_cast<int>(config.max_position_embeddings);
  if (r.max_batch_tokens == 0) r.max_batch_tokens = gpu ? 2048 : 512;
  if (r.max_seqs == 0) r.max_seqs = gpu ? 256 : 64;
  r.max_seqs = std::min(r.max_seqs, r.max_batch_tokens);
  LM_RETURN_IF_ERROR(ResolveSpeculation(config, r));
  LM_RETURN_IF_ERROR(ResolveBalance(config, r));
  LM_RETURN_IF_ERROR(CheckPrefillRanks(r));
  if ((r.kv_offload > 0 || !r.kv_store.empty()) && !r.prefix_caching)
    return InvalidArgument("--kv-offload and --kv-store keep cached prefixes; leave out --no-prefix-caching");
  return r;
}

Result<RankSetup> PlanRank(const ModelConfig& config, const EngineOptions& resolved, const ProcessMesh& mesh,
                           const StoredDType& stored, uint64_t available) {
  RankSetup s;
  DeviceKind device = resolved.device == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
  s.config = config;
  s.options = resolved;
  s.weight_options.format = ParseWeightFormat(resolved.weights).value();
  s.shard = MakeShard(config, mesh, WidthUnit(s.weight_options.format));
  s.limits = MakeLimits(resolved, device);
  s.weight_options.round_to_bf16 = resolved.dtype == "bf16";
  s.weight_options.mtp = s.drafts_with_layer() && s.shard.last_stage();
  // The CPU keeps activations in f32 whatever the weights are: its multiply-adds are f32 anyway.
  s.activation = device == DeviceKind::kCuda && resolved.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  if (config.n_routed_experts > 0)
    s.placement = ExpertPlacement::Contiguous(static_cast<int>(config.n_routed_experts), mesh.ep_size());
  if (resolved.expert_balance) s.weight_options.expert_slots = ExpertSlots(resolved, config.n_routed_experts, mesh.ep_size());

  Arena counter;
  LM_ASSIGN_OR_RETURN(ModelWeights weights,
                      LayOutWeights(config, s.shard, s.placement, s.weight_options, stored, counter, nullptr));
  s.plan.weights = counter.used();
  s.plan.activations = ActivationBytes(s, weights);
  s.plan.communication = s.moe_bytes();
  if (resolved.expert_balance) s.plan.communication += RankBalancer::StagingBytes(weights, s.weight_options.expert_slots);
  s.plan.workspace = 2 * OpsBytes(device) + (s.captures() ? kGraphBytes : 0);   // of the step's stream and the side stream
  if (device == DeviceKind::kCpu) available -= std::min(available, resolved.kv_offload);
  s.plan.available = available;

  s.cache.layers = s.shard.layers.count + (s.weight_options.mtp ? 1 : 0);
  s.cache.block_size = resolved.block_size;
  s.cache.latent = static_cast<int32_t>(config.is_mla() ? config.kv_lora_rank : 2 * s.shard.kv_heads.count * config.head_dim);
  s.cache.rope = static_cast<int32_t>(config.cache_rope());
  s.cache.format = CacheFormatOf(resolved.kv_dtype);
  s.plan.cache_bytes_per_token = static_cast<int64_t>(s.cache.BytesPerToken());

  uint64_t fixed = s.plan.fixed();
  uint64_t usable = static_cast<uint64_t>(static_cast<double>(available) * kUsableShare);
  uint64_t room = usable > fixed ? usable - fixed : 0;
  // No more than max_seqs full sequences can ever use; on a CPU no more than half of what is left unless asked for.
  int64_t most = s.blocks_per_sequence() * resolved.max_seqs;
  uint64_t budget = resolved.kv_memory > 0 ? std::min(resolved.kv_memory, room) : device == DeviceKind::kCuda ? room : room / 2;
  s.cache_budget = budget;
  uint64_t block = std::max<uint64_t>(1, s.cache.BytesPerBlock());
  s.SetOffloadBlocks(static_cast<int64_t>(resolved.kv_offload / block));
  s.SetBlocks(std::min(most, static_cast<int64_t>(budget / block)));
  return s;
}

// Both tiers must have room for a block; all ranks check their own.
Status CheckTiers(const RankSetup& s) {
  uint64_t block = s.cache.BytesPerBlock();
  if (s.options.kv_offload > 0 && s.options.kv_offload < block)
    return InvalidArgument(fmt::format("--kv-offload {} bytes: one cache block takes {}", s.options.kv_offload, block));
  if (!s.options.kv_store.empty() && s.options.kv_store_size < 2 * block)
    return InvalidArgument(fmt::format("--kv-store-size {} bytes: one cache block takes {}, give room for two at least",
                                       s.options.kv_store_size, block));
  return Status::Ok();
}

Status CheckMemory(const RankSetup& s) {
  LM_RETURN_IF_ERROR(CheckTiers(s));
  int64_t needed = s.blocks_per_sequence();
  if (s.cache.num_blocks >= needed) return Status::Ok();
  uint64_t fixed = s.plan.fixed();
  uint64_t one = s.cache.BytesPerBlock() * static_cast<uint64_t>(needed);
  int64_t fits = s.cache.num_blocks * s.limits.block_size * s.shard.layout.cp;
  std::string text = fmt::format(
      "not enough memory for one sequence: a rank needs weights {} + activations {} + communication {} + workspace {} + cache {} for "
      "{} tokens, "
      "and has {} free", Gib(s.plan.weights), Gib(s.plan.activations), Gib(s.plan.communication),
      Gib(s.plan.workspace), Gib(one),
      s.limits.max_model_len, Gib(s.plan.available));
  if (s.options.kv_memory > 0) text += fmt::format(" with --kv-memory {}", Gib(s.options.kv_memory));
  if (fits > 0) {
    text += fmt::format("; --max-model-len {} would fit", fits);
  } else if (s.options.kv_memory > 0 && s.plan.available > fixed + one) {
    text += fmt::format("; raise --kv-memory to at least {}", Gib(one));
  } else {
    double usable = static_cast<double>(s.plan.available) * kUsableShare;
    double ranks = static_cast<double>(s.plan.weights) / std::max(1.0, usable - static_cast<double>(fixed - s.plan.weights + one));
    if (ranks > 0 && ranks < 1e6)
      text += fmt::format("; use about {:.0f} times as many ranks, or lower --max-batch-tokens and --max-model-len",
                          std::ceil(std::max(ranks, 2.0)));
  }
  return ResourceExhausted(text);
}

}  // namespace latentmesh
