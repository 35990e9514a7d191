#!/usr/bin/env bash
# Latents that move: prefill ranks, context parallelism, migration, copied prefixes, host memory, disk and cache formats, on ranks
# that share one GPU, decode steps captured. Everywhere the greedy tokens must be those of one rank that keeps all to itself;
# that something moved is read off the counts. A table, as end_to_end.sh prints.
#   [DEVICE=cpu] [RANKS_TEST=build/tests/parallel/mpi_ranks] tests/gpu/latents_on_the_move.sh PROGRAM
# DEVICE=cpu rehearses it without a GPU. With RANKS_TEST the collectives and started calls of NCCL are tested, too.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=$(realpath "$1"); device=${DEVICE:-cuda}
ranks_test=${RANKS_TEST:+$(realpath "$RANKS_TEST")}
cd "$root" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
source "$root/tests/gpu/rows.sh"

# v3-tiny: 3 layers, latent 32, rope 8, 4096 positions; no tokenizer. ids WHICH TOKENS: the same prompt for the same numbers.
tiny=(--model tests/golden/v3-tiny --dtype f32 --max-batch-tokens 32 --block-size 4)
four=("${tiny[@]}" --max-seqs 4 --max-model-len 192)
ids() { awk -v w="$1" -v n="$2" 'BEGIN { for (i = 0; i < n; ++i) printf "%s%d", i ? "," : "", (w * 37 + i * 11 + i * i * w) % 200 + 1 }'; }
cache() { echo $((3 * 40 * 4 * $1)); }   # bytes a rank of $1 tokens in f32

# generate FILE RANKS FLAGS...: tokens to FILE, one line a prompt; statistics and warnings to FILE.err.
generate() {
  local file=$out/$1 ranks=$2 memory=(--kv-memory 16MiB)
  shift 2
  [[ " $* " == *" --kv-memory "* ]] && memory=()
  timeout 90 mpirun -n "$ranks" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 "$program" generate --device "$device" \
    --share-gpu --threads 1 --temperature 0 --ignore-eos --format json --stats --log-level warn "${memory[@]}" "$@" </dev/null 2>"$file.err" |
    sed 's/"cached_tokens".*//' >"$file"
}
count() { grep -aoE "$2" "$out/$1.err" | grep -oE '[0-9]+' | head -n 1; }   # FILE PATTERN: the first number in the match
# same NAME FILE REFERENCE [COUNT TEXT]: equal tokens, and where a count is given, more than 0.
same() {
  local lines verdict=yes
  lines=$(wc -l <"$out/$2")
  [[ -s $out/$2 ]] && cmp -s "$out/$2" "$out/$3" || verdict=no
  [[ $# -gt 3 && ! ${4:-0} -gt 0 ]] && verdict=no
  [[ $verdict == no ]] && { grep -aE 'error| W |moves|tiers' "$out/$2.err" | head -n 5; diff "$out/$2" "$out/$3" | cut -c 1-600; } >&2
  row "$1" "$lines sequences${5:+, ${4:-0} $5}" "equal${5:+, more than 0}" $verdict
}
captured() { # NAME TRACE
  local steps
  steps=$(grep -ao '"captured step"' "$out/$2" | wc -l)
  [[ $device == cuda ]] || return 0
  row "captured steps in it: $1" "$steps over all ranks" "more than 0" "$([[ $steps -gt 0 ]] && echo yes || echo no)"
}

# Uneven prompts join and leave, four at a time; one is longer than the cache of a rank under context parallelism.
uneven=("${four[@]}" --max-tokens 16)
for i in 1 2 3 4 5 6; do uneven+=(--prompt-ids "$(ids "$i" $((i % 2 ? 5 + i : 50 + i)))"); done
uneven+=(--prompt-ids "$(ids 11 160)")
# Long ones gather on one dp rank.
gather=("${tiny[@]}" --max-seqs 4 --max-model-len 128 --max-tokens 32)
for i in 1 2 3 4 5 6 7 8; do gather+=(--prompt-ids "$(ids "$i" $((i % 2 ? 5 + i : 50 + i)))"); done
# The trained model: rounding that flips in the cache moves no token.
text=(--model launch/demo --dtype f32 --block-size 4 --max-seqs 4 --max-model-len 192 --max-tokens 24)
text+=(--prompt "In the beginning" --prompt "And it came to pass in those days, that the king of the north went out" --prompt "hacker: n.")
text+=(--prompt "Of the children of Reuben" --prompt "The LORD said unto Moses" --prompt "foo: /foo/")
# Three beginnings, each known to one dp rank at first.
prefixes=(--max-tokens 6)
for i in 1 2 3 3 3 3 1 1 1 2; do prefixes+=(--prompt-ids "$(ids "$i" 48),$((${#prefixes[@]} % 190 + 1))"); done

perplexity() {
  timeout 90 "$program" eval --device "$device" --model launch/demo --ids tests/golden/validation_ids.safetensors --dtype f32 \
    --windows "$([[ $device == cuda ]] && echo 20 || echo 2)" --log-level error --kv-dtype "$1" 2>/dev/null |
    grep -aoE '^perplexity [0-9.]+' | cut -d' ' -f2 >"$out/perplexity.$1"
}

# 112 tokens a rank: the long sequence needs 176. Larger batches first, smaller ones between captured steps later.
long=(--kv-memory "$(cache 112)")
# One after the other in a cache for two of them: blocks leave and come back.
alone=("${tiny[@]}" --max-seqs 1 --max-model-len 96 --kv-memory "$(cache 128)")
disk=(--kv-store "$out/store")
formats=$'bf16 2 --tp 2 --cp 2\nfp8 2 --dp 2 --prefill-ranks 1\n6bit 4 --tp 2 --dp 2 --cp 2 --prefill-ranks 1'

# What one rank says, and what several say.
beside generate stored 2 "${four[@]}" "${prefixes[@]}" "${disk[@]}" --tp 2
stored=$!
beside generate one 1 "${uneven[@]}"
for form in absorbed expanded; do
  beside generate $form.one 1 "${uneven[@]}" --attention $form
  beside generate cp2.$form 2 "${uneven[@]}" "${long[@]}" --tp 2 --cp 2 --attention $form --trace "$out/cp2.$form.trace"
done
beside generate gather.one 1 "${gather[@]}"
beside generate prefixes.one 1 "${four[@]}" "${prefixes[@]}"
beside generate split 2 "${uneven[@]}" --dp 2 --prefill-ranks 1 --trace "$out/split.trace"
beside generate split4 4 "${uneven[@]}" --tp 2 --dp 2 --prefill-ranks 1
beside generate refused 1 "${uneven[@]}" "${long[@]}"
beside generate cp4 4 "${uneven[@]}" "${long[@]}" --tp 4 --cp 2
beside generate moved 2 "${gather[@]}" --dp 2 --kv-memory "$(cache 140)"
beside generate fetched 2 "${four[@]}" "${prefixes[@]}" --dp 2
wait "$stored"
beside generate found 2 "${four[@]}" "${prefixes[@]}" "${disk[@]}" --tp 2
found=$!
beside generate offloaded 1 "${alone[@]}" "${prefixes[@]}" --kv-offload 4MiB
beside generate offloaded2 2 "${alone[@]}" "${prefixes[@]}" --kv-offload 4MiB --tp 2
while read -r format ranks layout; do
  beside generate "$format.one" 1 "${text[@]}" --kv-dtype "$format"
  # shellcheck disable=SC2086
  beside generate "$format" "$ranks" "${text[@]}" --kv-dtype "$format" $layout
done <<<"$formats"
wait "$found"
mapfile -t files < <(find "$out/store" -type f -size +300c)
for file in "${files[@]}"; do printf 'damage' | dd of="$file" bs=1 seek=250 conv=notrunc status=none; done
beside generate damaged 2 "${four[@]}" "${prefixes[@]}" "${disk[@]}" --tp 2
for format in f32 bf16 fp8 6bit; do beside perplexity "$format"; done
wait

handed='[0-9]+ handed over'
same "dp2, one prefill rank" split one "$(count split "$handed")" "handed over"
captured "dp2, one prefill rank" split.trace
same "tp2 dp2, one prefill rank" split4 one "$(count split4 "$handed")" "handed over"
row "one rank with a cache of 112 tokens" "$(grep -aoc 'not enough memory for one sequence' "$out/refused.err") refusal" "refused" \
  "$(grep -aq 'not enough memory for one sequence' "$out/refused.err" && echo yes || echo no)"
for form in absorbed expanded; do same "tp2 cp2, 112 tokens a rank, $form" cp2.$form $form.one; done
captured "tp2 cp2, absorbed" cp2.absorbed.trace
same "tp4 cp2, 112 tokens a rank" cp4 one
same "dp2, 140 tokens a rank: migration" moved gather.one "$(count moved '[0-9]+ sequences migrated')" "migrated"
same "dp2: prefixes from the other rank" fetched prefixes.one "$(count fetched '[0-9]+ prompt tokens copied')" "tokens copied"
same "host memory" offloaded prefixes.one "$(count offloaded 'host memory [0-9]+ blocks written, [0-9]+ read' | head -n 1)" "blocks written"
read_back=$(grep -aoE 'blocks written, [0-9]+ read' "$out/offloaded.err" | grep -oE '[0-9]+')
row "host memory, read back" "${read_back:-0} blocks" "more than 0" "$([[ ${read_back:-0} -gt 0 ]] && echo yes || echo no)"
same "host memory, tp2" offloaded2 prefixes.one "$(count offloaded2 'host memory [0-9]+ blocks written')" "blocks written"
same "disk, tp2, first run" stored prefixes.one "$(count stored 'disk [0-9]+ written')" "blocks written"
from_disk=$(grep -aoE 'disk [0-9]+ written, [0-9]+ read' "$out/found.err" | grep -oE '[0-9]+' | tail -n 1)
same "disk, tp2, second run" found prefixes.one "$from_disk" "blocks read"
same "disk, tp2, ${#files[@]} files damaged" damaged prefixes.one "$(grep -ac 'cache block ignored' "$out/damaged.err")" "warnings"
while read -r format _ layout; do
  what="--kv-dtype $format, ${layout//--/}"
  if [[ $layout == *prefill* ]]; then same "$what" "$format" "$format.one" "$(count "$format" "$handed")" "handed over"
  else same "$what" "$format" "$format.one"; fi
done <<<"$formats"
exact=$(cat "$out/perplexity.f32")
while read -r format bound; do
  value=$(cat "$out/perplexity.$format")
  row "demo, --kv-dtype $format" "perplexity ${value:-none}" "within $bound of ${exact:-none}" \
    "$(near "$value" "$exact" "$bound")"
done <<<$'bf16 0.002\nfp8 0.005\n6bit 0.01'

ranks_case() { # RANKS CASE
  timeout 60 "$root/tests/parallel/run_ranks.sh" "$1" "$ranks_test" "$2" "$device" >"$out/case" 2>&1
  row "communicators: $2, $1 ranks" "$(tail -n 1 "$out/case" | cut -c 1-38)" "passes" \
    "$(grep -q "^$2 passed" "$out/case" && echo yes || echo no)"
}
if [[ -n $ranks_test ]]; then
  ranks_case 2 started_sends
  ranks_case 2 collectives
fi
exit $failed
