#include "runtime/model/model_shard.h"

#include <algorithm>

#include <fmt/format.h>

namespace latentmesh {
namespace {

std::string Divisors(int64_t n) {
  std::string list;
  for (int64_t d = 1; d <= n && d <= 1024; ++d)
    if (n % d == 0) list += (list.empty() ? "" : ", ") + std::to_string(d);
  return list;
}

// The largest tp that divides both the ranks and the heads and that cp divides; 0 when there is none.
int LargestTp(const ModelConfig& config, int ranks, int cp) {
  for (int tp = ranks; tp >= 1; --tp)
    if (ranks % tp == 0 && config.num_attention_heads % tp == 0 && tp % cp == 0) return tp;
  return 0;
}

}  // namespace

Status ValidateLayout(const ModelConfig& config, const ParallelConfig& layout) {
  if (config.num_attention_heads % layout.tp != 0)
    return InvalidArgument(fmt::format("--tp {} does not divide num_attention_heads {}: use one of {}", layout.tp,
                                       config.num_attention_heads, Divisors(config.num_attention_heads)));
  if (layout.pp > config.num_hidden_layers)
    return InvalidArgument(fmt::format("--pp {} is more than num_hidden_layers {}: a stage would hold no layer", layout.pp,
                                       config.num_hidden_layers));
  if (layout.cp > 1 && !config.is_mla())
    return InvalidArgument(fmt::format("--cp {}: context parallelism shards the latent cache of MLA, which {} does not have; "
                                       "use --cp 1", layout.cp, config.architecture_name));
  return Status::Ok();
}

Result<ParallelConfig> ChooseLayout(const ModelConfig& config, const ParallelConfig& wanted, int world) {
  ParallelConfig layout = wanted;
  for (int value : {wanted.tp, wanted.dp, wanted.pp, wanted.cp})
    if (value < 0) return InvalidArgument(fmt::format("a layout size of {}: must be at least 1", value));
  if (layout.cp == 0) layout.cp = 1;
  if (layout.pp == 0) layout.pp = 1;
  int64_t fixed = int64_t{layout.pp} * (layout.tp ? layout.tp : 1) * (layout.dp ? layout.dp : 1);
  if (world % fixed != 0)
    return InvalidArgument(fmt::format("the job has {} ranks, which the given --tp/--dp/--pp (product {}) do not divide: "
                                       "world size = pp x dp x tp", world, fixed));
  int rest = static_cast<int>(world / fixed);
  if (layout.tp == 0 && layout.dp == 0) {
    layout.tp = LargestTp(config, rest, layout.cp);
    if (layout.tp == 0)
      return InvalidArgument(fmt::format("no tp divides both {} ranks and num_attention_heads {} and is divisible by --cp {}",
                                         rest, config.num_attention_heads, layout.cp));
    layout.dp = rest / layout.tp;
  } else if (layout.tp == 0) {
    layout.tp = rest;
  } else if (layout.dp == 0) {
    layout.dp = rest;
  }
  return layout;
}

ModelShard MakeShard(const ModelConfig& config, const ProcessMesh& mesh, int64_t width_unit) {
  ModelShard shard;
  shard.layout = mesh.config();
  shard.tp_rank = mesh.tp_rank();
  shard.cp_rank = mesh.cp_rank();
  shard.dp_rank = mesh.dp_rank();
  shard.pp_rank = mesh.pp_rank();
  shard.ep_rank = mesh.ep_rank();
  int tp = shard.layout.tp;
  int64_t unit = config.quantization.fp8 ? std::max<int64_t>(width_unit, config.quantization.block_rows) : width_unit;
  shard.layers = SplitRange(config.num_hidden_layers, shard.layout.pp, shard.pp_rank);
  shard.heads = SplitRange(config.num_attention_heads, tp, shard.tp_rank);
  shard.vocab = SplitRange(config.vocab_size, tp, shard.tp_rank);
  shard.dense_width = SplitRange(config.intermediate_size, tp, shard.tp_rank, unit);
  shard.shared_width = SplitRange(config.moe_intermediate_size * config.n_shared_experts, tp, shard.tp_rank, unit);
  if (!config.is_mla()) {
    int64_t group = config.num_attention_heads / config.num_key_value_heads;
    int64_t first = shard.heads.begin / group, last = (shard.heads.end() + group - 1) / group;
    shard.kv_heads = {first, last - first};
  }
  return shard;
}

}  // namespace latentmesh
