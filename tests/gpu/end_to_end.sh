#!/usr/bin/env bash
# The answers of the whole program on one GPU: goldens, perplexity, captured steps, layouts that share the GPU, as a table. Runs
# side by side, since nothing is timed; rates.sh times.
#   [DEVICE=cpu] tests/gpu/end_to_end.sh PROGRAM       DEVICE=cpu rehearses it without a GPU
# The bounds in bf16 are those of models with random weights, whose routers flip where two experts are nearly as good; the
# perplexity of the trained demo is the test that bf16 loses nothing.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=$(realpath "$1"); device=${DEVICE:-cuda}
cd "$root" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
source "$root/tests/gpu/rows.sh"

# Bounds on the relative error of the logits; in f32 the greedy tokens must be equal, too.
goldens=$(cat <<'BOUNDS'
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
)
verify() { # NAME DTYPE
  timeout 90 "$program" verify --device "$device" --dtype "$2" --model "tests/golden/$1" \
    --expected "tests/golden/$1/expected.safetensors" --log-level error >"$out/verify.$1.$2" 2>&1
  echo $? >"$out/status.$1.$2"
}
golden() { # NAME DTYPE BOUND
  local error verdict
  error=$(grep -a '^logits: relative' "$out/verify.$1.$2" | grep -oE '[0-9.]+e[-+][0-9]+' | head -n 1)
  verdict=$(at_most "$error" "$3")
  [[ $2 == f32 && $(cat "$out/status.$1.$2") != 0 ]] && verdict=no
  row "golden $1, $2" "logits error ${error:-none}" "at most $3" "$verdict"
}
# perplexity FILE FLAGS...: of the demo over 30,720 held-out tokens.
perplexity() {
  timeout 120 "$program" eval --device "$device" --model launch/demo --ids tests/golden/validation_ids.safetensors \
    --windows "$([[ $device == cuda ]] && echo 60 || echo 2)" --log-level error "${@:2}" 2>/dev/null |
    grep -aoE '^perplexity [0-9.]+' | cut -d' ' -f2 >"$out/$1"
}
# Sequences join and leave: 12 prompts, four at a time.
printf '%s\n' "In the beginning" "And it came to pass" "hacker: n." "Of the children of Reuben" "The LORD said unto Moses" \
  "1 And" "foo: /foo/" "kluge" "But the end" "Now these are the names" "And the king went out" "bit bucket: n." >"$out/prompts"
# tokens FILE FLAGS...: on one rank.
tokens() {
  timeout 90 "$program" generate --device "$device" --model launch/demo --prompts-file "$out/prompts" --max-tokens 96 --max-seqs 4 \
    --format json --log-level error "${@:2}" 2>/dev/null | sed 's/"timings".*//' >"$out/$1"
}
# Ranks that share the GPU: a test of the numbers, never of speed.
layout() { # FILE RANKS FLAGS...
  timeout 120 mpirun -n "$2" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 "$program" generate --share-gpu \
    --device "$device" --dtype f32 --model launch/demo --prompts-file "$out/prompts" --max-tokens 24 --temperature 0 --format json \
    --log-level error "${@:3}" </dev/null 2>"$out/$1.err" | sed 's/"timings".*//' >"$out/$1"
}
same() { # NAME FILE FILE
  if [[ -s $out/$2 ]] && cmp -s "$out/$2" "$out/$3"; then row "$1" "$(wc -l <"$out/$2") sequences equal" "all" yes
  else row "$1" "differ" "all" no; fi
}

sampling=(--dtype f32 --temperature 0.8 --top-p 0.9 --top-k 40 --min-p 0.01 --seed 3)
while read -r name bound; do
  beside verify "$name" f32
  beside verify "$name" bf16
done <<<"$goldens"
beside perplexity f32 --dtype f32
beside perplexity bf16 --dtype bf16
beside perplexity fp8 --dtype bf16 --weights fp8
beside perplexity cache --dtype bf16 --kv-dtype fp8
for dtype in f32 bf16; do
  beside tokens graphs.$dtype --dtype $dtype --temperature 0
  beside tokens queued.$dtype --dtype $dtype --temperature 0 --cuda-graphs off
  beside tokens ahead.$dtype --dtype $dtype --temperature 0 --run-ahead
done
beside tokens drawn "${sampling[@]}"
device=cpu beside tokens drawn.cpu "${sampling[@]}"
beside tokens drawn.ahead "${sampling[@]}" --run-ahead
beside tokens drafts --dtype f32 --temperature 0 --speculative-tokens 2 --speculative-fixed
beside layout one 1
beside layout tp2 2 --tp 2
beside layout dp2 2 --dp 2
beside layout pp2 2 --pp 2
beside layout tp4cp2 4 --tp 4 --cp 2
wait

while read -r name _; do golden "$name" f32 1e-5; done <<<"$goldens"
while read -r name bound; do golden "$name" bf16 "$bound"; done <<<"$goldens"
exact=$(cat "$out/f32")
while read -r file flags; do
  value=$(cat "$out/$file")
  row "demo, $flags" "perplexity ${value:-none}" "within 1 % of f32's $exact" "$(near "$value" "$exact" 0.01)"
done <<<$'bf16 --dtype bf16\nfp8 --dtype bf16 --weights fp8\ncache --dtype bf16 --kv-dtype fp8'
for dtype in f32 bf16; do
  same "greedy tokens of captured and queued steps, $dtype" graphs.$dtype queued.$dtype
  same "greedy tokens of steps queued ahead and not, $dtype" graphs.$dtype ahead.$dtype
done
same "tokens drawn on the GPU and on the CPU, f32" drawn drawn.cpu
same "tokens drawn in steps queued ahead and not, f32" drawn drawn.ahead
same "greedy tokens with 2 drafts and without, f32" graphs.f32 drafts
while read -r file flags; do same "greedy tokens on one rank and with $flags" one "$file"; done \
  <<<$'tp2 --tp 2\ndp2 --dp 2\npp2 --pp 2\ntp4cp2 --tp 4 --cp 2'
exit $failed
