#!/usr/bin/env bash
# Compares latentmesh with llama.cpp on one machine's CPU: the same shapes, bits and threads, alternating runs, medians.
#
#   tests/bench/compare_llama.sh LATENTMESH LLAMA_BIN GGUF_FOLDER [ROW...]
#
# LLAMA_BIN holds llama-bench and llama-batched-bench (build llama.cpp with -DGGML_NATIVE=ON). GGUF_FOLDER holds
# random-weight models of the two shapes: S-BF16.gguf, S-Q8_0.gguf, S-Q4_0.gguf (`mini`) and L-Q4_0.gguf (V2-Lite's
# shape). ROW picks lines by name (default: all). Settings by environment: RUNS (5), THREADS ("1 2"), WRAP (a command put
# before each measurement, for example one that waits for a quiet machine).
#
# Prints, for each row and thread count: median of both in tokens/s, and the ratio. latentmesh keeps its cache in bf16,
# llama.cpp in f16.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,14p' "$0"; exit 2; }
ours=$1 llama=$2 models=$3; shift 3
rows=("$@")
runs=${RUNS:-5}

median() { sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }

llama_bench() {  # GGUF THREADS FLAGS...: tokens/s of one repetition
  ${WRAP:-} "$llama/llama-bench" -m "$models/$1" -t "$2" -r 1 -o csv "${@:3}" 2>/dev/null | tail -n 1 | awk -F'","' '{print $(NF - 1)}'
}
llama_batch() {  # GGUF THREADS BATCH: generated tokens/s
  ${WRAP:-} "$llama/llama-batched-bench" -m "$models/$1" -t "$2" -c 4096 -b 2048 -ub 512 -npp 4 -ntg 32 -npl "$3" 2>/dev/null |
    awk -F'|' -v b="$3" '$4 + 0 == b {print $9 + 0}'
}
our_bench() {  # SHAPE FORMAT THREADS BATCH INPUT OUTPUT: "prefill decode" in tokens/s
  ${WRAP:-} "$ours" bench latency --load-format dummy --shape "$1" --weights "$2" --kv-dtype bf16 --threads "$3" \
    --batch-size "$4" --input-len "$5" --output-len "$6" --max-model-len $(($5 + $6)) --max-seqs "$4" \
    --max-batch-tokens 512 --num-iters "${ITERS:-1}" --no-prefix-caching --log-level error |
    sed -n 's|.*s, \([0-9.]*\) tokens/s; decode: .*, \([0-9.]*\) tokens/s.*|\1 \2|p'
}

row() {  # NAME THREADS OURS-COMMAND LLAMA-COMMAND (each prints a number)
  local a=() b=() i
  for ((i = 0; i < runs; ++i)); do a+=("$(eval "$3")"); b+=("$(eval "$4")"); done
  local x y
  x=$(printf '%s\n' "${a[@]}" | median); y=$(printf '%s\n' "${b[@]}" | median)
  awk -v n="$1" -v t="$2" -v x="$x" -v y="$y" 'BEGIN {printf "| %s | %s | %.1f | %.1f | %.2f |\n", n, t, x, y, x / y}'
}

wanted() { [ ${#rows[@]} -eq 0 ] && return 0; local r; for r in "${rows[@]}"; do [[ $1 == *"$r"* ]] && return 0; done; return 1; }
maybe() { if wanted "$1"; then row "$@"; fi; }
first() { cut -d' ' -f1; }
second() { cut -d' ' -f2; }

echo "| row | threads | latentmesh tok/s | llama.cpp tok/s | ratio |"
echo "|---|---|---|---|---|"
for t in ${THREADS:-1 2}; do
  for pair in "bf16 BF16" "int8 Q8_0" "int4 Q4_0"; do
    read -r w q <<<"$pair"; g=S-$q.gguf
    maybe "mini decode $w" "$t" "our_bench mini $w $t 1 1 65 | second" "llama_bench $g $t -p 0 -n 64"
    maybe "mini prefill-512 $w" "$t" "our_bench mini $w $t 1 512 2 | first" "llama_bench $g $t -p 512 -n 0"
    [ "$w" = int4 ] && continue
    maybe "mini decode-at-4096 $w" "$t" "our_bench mini $w $t 1 4096 33 | second" "llama_bench $g $t -p 0 -n 32 -d 4096"
    maybe "mini prefill-4096 $w" "$t" "our_bench mini $w $t 1 4096 2 | first" "llama_bench $g $t -p 4096 -n 0"
    for batch in 8 32; do
      maybe "mini decode-batch-$batch $w" "$t" "our_bench mini $w $t $batch 4 33 | second" "llama_batch $g $t $batch"
    done
  done
  maybe "v2-lite decode int4" "$t" "our_bench v2-lite int4 $t 1 1 33 | second" "llama_bench L-Q4_0.gguf $t -p 0 -n 32"
  maybe "v2-lite prefill-512 int4" "$t" "our_bench v2-lite int4 $t 1 512 2 | first" "llama_bench L-Q4_0.gguf $t -p 512 -n 0"
done
