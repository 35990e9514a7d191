#!/usr/bin/env bash
# Rates of the whole program on one GPU with random weights beside the rates to reach, as a table.
#   tests/gpu/rates.sh PROGRAM
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=$(realpath "$1")
source "$root/tests/gpu/rows.sh"

latency() { # NAME KIND LEAST UNIT-TEXT ARGS...
  local name=$1 kind=$2 least=$3 text=$4 value
  shift 4
  timeout 120 "$program" bench latency --device cuda --load-format dummy "$@" >"$out/bench" 2>"$out/err" ||
    grep -a error "$out/err" | head -n 1
  if [[ $kind == decode ]]; then value=$(grep -aoE 'decode: [0-9.]+ ms a step, [0-9.]+' "$out/bench" | grep -oE '[0-9.]+$')
  else value=$(grep -aoE 'Prefill: [0-9.]+ s, [0-9.]+' "$out/bench" | grep -oE '[0-9.]+$'); fi
  rate "$name" "${value:-none} tok/s" "$text" "$(at_least "$value" "$least")"
}
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
