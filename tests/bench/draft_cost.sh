#!/bin/bash
# draft_cost.sh PROGRAM [ROUNDS] [WEIGHTS] [BATCH] [THREADS]: what a step with 1, 2 and 3 drafts of an MTP layer costs against a
# plain one where weights come from memory: shape `mini` with a draft layer, random weights (1.3 GB in bf16; 0.3 GB of them a
# token), so that next to no draft holds. Every round runs all settings one after the other; medians. The speed-up is COMPUTED: this cost with
# the tokens a verified step that the demo model's trained layer was measured to give (speculation.sh, RESULTS.md).
set -u
program=$1 rounds=${2:-5} weights=${3:-bf16} batch=${4:-1} threads=${5:-2}
accepted=(1 1.61 1.91 2.05)     # tokens a verified step of 0 to 3 drafts, demo model, greedy
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/config.json" <<'JSON'
{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu", "torch_dtype": "bfloat16",
 "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 12, "first_k_dense_replace": 1, "moe_layer_freq": 1,
 "intermediate_size": 4096, "moe_intermediate_size": 512, "n_routed_experts": 32, "n_shared_experts": 1,
 "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
 "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_attention_heads": 16, "num_key_value_heads": 16,
 "q_lora_rank": null, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
 "attention_bias": false, "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": null,
 "num_nextn_predict_layers": 1, "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1}
JSON
for ((round = 0; round < rounds; round++)); do
  for drafts in 0 1 2 3; do
    flags=()
    [ $drafts = 0 ] || flags=(--speculative mtp --speculative-tokens $drafts --speculative-fixed)
    "$program" bench latency --model "$work" --load-format dummy --weights "$weights" --threads "$threads" --batch-size "$batch" \
      --input-len 16 --output-len 48 --num-iters 2 --num-iters-warmup 1 --output-json "$work/json" "${flags[@]}" \
      > "$work/out" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
    number() { sed -n "s/.*\"$1\":\([0-9.eE+-]*\).*/\1/p" "$work/json"; }
    awk "BEGIN { n = $(number spec_decode_acceptance_length); if (n < 1) n = 1; print 1e3 * $(number mean_decode_step_seconds) * n, n }" \
      >> "$work/$drafts"
  done
done
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
echo "mini with a draft layer, $weights, batch $batch, $threads threads; medians of $rounds runs"
base=$(cut -d' ' -f1 "$work/0" | median)
printf '%-8s %10s %16s %24s %20s %20s\n' drafts "ms a step" "cost of a step" "tokens a step (random)" "demo's tokens a step" "computed speed-up"
for drafts in 0 1 2 3; do
  ms=$(cut -d' ' -f1 "$work/$drafts" | median)
  awk "BEGIN { printf \"%-8d %10.2f %16.2f %24.2f %20.2f %20.2f\n\", $drafts, $ms, $ms / $base, $(cut -d' ' -f2 "$work/$drafts" | median), ${accepted[$drafts]}, ${accepted[$drafts]} * $base / $ms }"
done
