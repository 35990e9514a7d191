#!/usr/bin/env bash
# The whole program on one GPU: goldens, perplexity, captured steps, layouts that share the GPU, rates, as a table.
#   tests/gpu/end_to_end.sh PROGRAM [quick]     quick: without rates
# The bounds in bf16 are those of models with random weights, whose routers flip where two experts are nearly as good; the
# perplexity of the trained demo is the test that bf16 loses nothing.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=$(realpath "$1"); quick=${2:-}
cd "$root" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
failed=0
echo "| what | figure | bound | reached |"
echo "|---|---|---|---|"
# row NAME FIGURE BOUND yes|no: a bound that is not kept fails the script; a rate only says so.
row() { rate "$@"; [[ $4 == no ]] && failed=1; return 0; }
rate() { printf '| %-52s | %-26s | %-30s | %-3s |\n' "$1" "$2" "$3" "$4"; }
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { print (a != "" && a + 0 <= b + 0) ? "yes" : "no" }'; }
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { print (a != "" && a + 0 >= b + 0) ? "yes" : "no" }'; }

# golden NAME DTYPE BOUND: relative error of the logits; in f32 the greedy tokens, too.
golden() {
  local folder=tests/golden/$1 error verdict
  timeout 60 "$program" verify --device cuda --dtype "$2" --model "$folder" --expected "$folder/expected.safetensors" \
    --log-level error >"$out/verify" 2>&1
  local status=$?
  error=$(grep -a '^logits: relative' "$out/verify" | grep -oE '[0-9.]+e[-+][0-9]+' | head -n 1)
  verdict=$(at_most "$error" "$3")
  [[ $2 == f32 && $status != 0 ]] && verdict=no
  row "golden $1, $2" "logits error ${error:-none}" "at most $3" "$verdict"
}
for name in v2-tiny v2-lite-tiny v3-tiny v3-tiny-yarn v3-tiny-fp8 odd-v2 odd-v3 odd-v3-fp8 odd-bias llama-mha llama-gqa; do
  golden "$name" f32 1e-5
done
while read -r name bound; do golden "$name" bf16 "$bound"; done <<'BOUNDS'
v2-tiny 0.15
v2-lite-tiny 0.15
v3-tiny 0.15
v3-tiny-yarn 0.15
v3-tiny-fp8 0.5
odd-v2 0.15
odd-v3 0.15
odd-v3-fp8 0.5
odd-bias 0.15
llama-mha 0.05
llama-gqa 0.05
BOUNDS

# perplexity FLAGS...: of the demo over 30,720 held-out tokens, against the same in f32 on the GPU.
perplexity() {
  timeout 90 "$program" eval --device cuda --model launch/demo --ids tests/golden/validation_ids.safetensors --windows 60 \
    --log-level error "$@" 2>/dev/null | grep -aoE '^perplexity [0-9.]+' | cut -d' ' -f2
}
exact=$(perplexity --dtype f32)
for flags in "--dtype bf16" "--dtype bf16 --weights fp8" "--dtype bf16 --kv-dtype fp8"; do
  # shellcheck disable=SC2086
  value=$(perplexity $flags)
  off=$(awk -v a="${value:-0}" -v b="${exact:-1}" 'BEGIN { d = (a - b) / b; printf "%.4f", d < 0 ? -d : d }')
  row "demo, $flags" "perplexity ${value:-none}" "within 1 % of f32's $exact" "$(at_most "$off" 0.01)"
done

# Sequences join and leave: 12 prompts, four at a time.
printf '%s\n' "In the beginning" "And it came to pass" "hacker: n." "Of the children of Reuben" "The LORD said unto Moses" \
  "1 And" "foo: /foo/" "kluge" "But the end" "Now these are the names" "And the king went out" "bit bucket: n." >"$out/prompts"
tokens() {
  timeout 60 "$program" generate --model launch/demo --prompts-file "$out/prompts" --max-tokens 96 --max-seqs 4 --format json \
    --log-level error "$@" 2>/dev/null | sed 's/"timings".*//'
}
same() { # NAME FILE FILE
  if [[ -s $2 ]] && cmp -s "$2" "$3"; then row "$1" "$(wc -l <"$2") sequences equal" "all" yes; else row "$1" "differ" "all" no; fi
}
for dtype in f32 bf16; do
  tokens --device cuda --dtype $dtype --temperature 0 >"$out/graphs"
  tokens --device cuda --dtype $dtype --temperature 0 --cuda-graphs off >"$out/eager"
  same "greedy tokens of captured and queued steps, $dtype" "$out/graphs" "$out/eager"
  tokens --device cuda --dtype $dtype --temperature 0 --run-ahead >"$out/ahead"
  same "greedy tokens of steps queued ahead and not, $dtype" "$out/graphs" "$out/ahead"
done
sampling=(--temperature 0.8 --top-p 0.9 --top-k 40 --min-p 0.01 --seed 3)
tokens --device cuda --dtype f32 "${sampling[@]}" >"$out/gpu"
tokens --device cpu --dtype f32 "${sampling[@]}" >"$out/cpu"
same "tokens drawn on the GPU and on the CPU, f32" "$out/gpu" "$out/cpu"
tokens --device cuda --dtype f32 "${sampling[@]}" --run-ahead >"$out/ahead"
same "tokens drawn in steps queued ahead and not, f32" "$out/gpu" "$out/ahead"
tokens --device cuda --dtype f32 --temperature 0 --speculative-tokens 2 --speculative-fixed >"$out/drafts"
tokens --device cuda --dtype f32 --temperature 0 >"$out/graphs"
same "greedy tokens with 2 drafts and without, f32" "$out/graphs" "$out/drafts"

# Ranks that share the GPU: a test of the numbers, never of speed.
layout() {
  timeout 90 mpirun -n "$1" --oversubscribe --bind-to none "$program" generate --share-gpu --device cuda --dtype f32 \
    --model launch/demo --prompts-file "$out/prompts" --max-tokens 24 --temperature 0 --format json --log-level error "${@:2}" \
    2>"$out/err" | sed 's/"timings".*//' >"$out/layout"
  timeout 60 "$program" generate --device cuda --dtype f32 --model launch/demo --prompts-file "$out/prompts" --max-tokens 24 \
    --temperature 0 --format json --log-level error 2>/dev/null | sed 's/"timings".*//' >"$out/one"
  same "greedy tokens on one rank and with ${*:2}" "$out/one" "$out/layout"
}
layout 2 --tp 2
layout 2 --dp 2
layout 2 --pp 2
layout 4 --tp 4 --cp 2

latency() { # NAME KIND LEAST UNIT-TEXT ARGS...
  local name=$1 kind=$2 least=$3 text=$4 value
  shift 4
  timeout 120 "$program" bench latency --device cuda --load-format dummy "$@" >"$out/bench" 2>"$out/err" ||
    grep -a error "$out/err" | head -n 1
  if [[ $kind == decode ]]; then value=$(grep -aoE 'decode: [0-9.]+ ms a step, [0-9.]+' "$out/bench" | grep -oE '[0-9.]+$')
  else value=$(grep -aoE 'Prefill: [0-9.]+ s, [0-9.]+' "$out/bench" | grep -oE '[0-9.]+$'); fi
  rate "$name" "${value:-none} tok/s" "$text" "$(at_least "$value" "$least")"
}
if [[ -z $quick ]]; then
  lite=(--shape v2-lite --dtype bf16 --max-model-len 4096)
  rank=(--shape v3 --num-experts 32 --max-model-len 4608 --max-batch-tokens 4096)
  latency "V2-Lite bf16, decode, batch 1" decode 440 "440 of 880 (read limit)" "${lite[@]}" --batch-size 1 --input-len 128 \
    --output-len 256 --num-iters 2
  latency "V2-Lite bf16, decode, batch 32" decode 2950 "2950" "${lite[@]}" --batch-size 32 --input-len 128 --output-len 128 \
    --num-iters 1
  latency "V2-Lite bf16, decode, batch 128, --run-ahead" decode 9000 "9000" "${lite[@]}" --batch-size 128 --input-len 128 \
    --output-len 96 --num-iters 1 --run-ahead
  timeout 120 "$program" bench throughput --device cuda --load-format dummy "${lite[@]}" --num-prompts 256 --input-len 1024 \
    --output-len 1024 >"$out/bench" 2>"$out/err"
  value=$(grep -aoE '[0-9.]+ output tokens/s' "$out/bench" | cut -d' ' -f1)
  rate "V2-Lite bf16, 256 x 1k in, 1k out" "${value:-none} output tok/s" "none set" "$(at_least "$value" 1)"
  # Floors: 17.2 GB + 2.554 GB x 32 (1 - (3/4)^B) over 4.3 TB/s; FP8 peak 1979 TFLOP/s and 81.7 GFLOP a prompt token.
  latency "V3, one rank of EP8, decode, batch 1" decode 57 "57: half of 114 (floor)" "${rank[@]}" --batch-size 1 \
    --input-len 128 --output-len 32 --num-iters 1
  latency "V3, one rank of EP8, decode, batch 128" decode 3340 "3340: 60 % of 5565 (floor)" "${rank[@]}" --batch-size 128 \
    --input-len 128 --output-len 32 --num-iters 1
  latency "V3, one rank of EP8, prompts of 4k" prefill 8480 "8480: 35 % of the FP8 peak" "${rank[@]}" --batch-size 4 \
    --input-len 4096 --output-len 2 --num-iters 1
fi
exit $failed
