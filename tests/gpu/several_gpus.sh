#!/usr/bin/env bash
# What only several GPUs of one host can show: ranks with a GPU each over NCCL, the same tokens as on one rank, rates over
# ranks, and the share of the experts' exchange that two micro-batches hide, over NVLink and over sockets. As a table.
#   [RANKS_TEST=build/tests/parallel/mpi_ranks] [OVERLAP=build/tests/bench/overlap_bench] tests/gpu/several_gpus.sh PROGRAM
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=$(realpath "$1")
ranks_test=${RANKS_TEST:+$(realpath "$RANKS_TEST")}
overlap=${OVERLAP:+$(realpath "$OVERLAP")}
cd "$root" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
source "$root/tests/gpu/rows.sh"
two=(mpirun -n 2 --oversubscribe --bind-to none)

printf '%s\n' "In the beginning" "And it came to pass" "hacker: n." "Of the children of Reuben" "1 And" "foo: /foo/" >"$out/prompts"
generate() { # FILE LAUNCH... -- FLAGS...
  local file=$1 launch=()
  shift
  while [[ $1 != -- ]]; do launch+=("$1"); shift; done
  shift
  timeout 60 "${launch[@]}" "$program" generate --device cuda --dtype f32 --model launch/demo --prompts-file "$out/prompts" --max-tokens 48 \
    --temperature 0 --format json --log-level error "$@" </dev/null 2>"$out/$file.err" | sed 's/"timings".*//;s/"cached_tokens".*//' >"$out/$file"
}
beside generate one env --
while read -r file flags; do
  # shellcheck disable=SC2086
  beside generate "$file" "${two[@]}" -- $flags
done <<<$'tp2 --tp 2\ndp2 --dp 2\npp2 --pp 2\ncp2 --tp 2 --cp 2\nsplit --dp 2 --prefill-ranks 1'
wait
for file in tp2 dp2 pp2 cp2 split; do
  row "greedy tokens, one GPU and $file" "$(wc -l <"$out/$file") sequences" "equal" \
    "$([[ -s $out/$file ]] && cmp -s "$out/one" "$out/$file" && echo yes || { head -n 3 "$out/$file.err" >&2; echo no; })"
done
for name in started_sends collectives; do
  [[ -n $ranks_test ]] || break
  timeout 60 "${two[@]}" "$ranks_test" $name cuda >"$out/case" 2>&1
  row "communicators: $name, 2 GPUs" "$(tail -n 1 "$out/case" | cut -c 1-38)" "passes" "$(grep -q "^$name passed" "$out/case" && echo yes || echo no)"
done

latency() { # NAME FLAGS...
  local value
  timeout 90 "${two[@]}" "$program" bench latency --device cuda --load-format dummy --shape v2-lite --dtype bf16 --max-model-len 4096 \
    --input-len 128 --output-len 128 --num-iters 1 "${@:2}" >"$out/bench" 2>"$out/err" || grep -a error "$out/err" | head -n 1
  value=$(grep -aoE 'decode: [0-9.]+ ms a step, [0-9.]+' "$out/bench" | grep -oE '[0-9.]+$')
  rate "$1" "${value:-none} tok/s" "none set" "$(at_least "$value" 1)"
}
latency "V2-Lite bf16, decode, batch 1, tp2" --batch-size 1 --tp 2
latency "V2-Lite bf16, decode, batch 64, tp2" --batch-size 64 --tp 2
latency "V2-Lite bf16, decode, batch 64, dp2" --batch-size 64 --dp 2

# hidden NAME HOST ARGS...: HOST: what NCCL takes for the host's name, the same for both (NVLink) or none (each its own: sockets).
hidden() {
  local host=()
  [[ -n $2 ]] && host=(env NCCL_HOSTID="$2")
  timeout 90 "${host[@]}" "${two[@]}" "$overlap" "${@:3}" >"$out/overlap" 2>&1
  sed 's/^/  /' "$out/overlap" >&2
  local share
  share=$(sed -nE 's/^exchange ([-0-9.]+) ms, .*: hidden ([-0-9.]+) %.*/\2 % of \1 ms hidden/p' "$out/overlap")
  row "two micro-batches, $1: equal logits" "${share:-none}" "check ok" "$(grep -qa 'check ok' "$out/overlap" && echo yes || echo no)"
}
if [[ -n $overlap ]]; then
  hidden "prefill 4096 a rank, NVLink" one prefill 4096 0 6 v2-lite 5 "" cuda
  hidden "prefill 2048 a rank, sockets" "" prefill 2048 0 6 v2-lite 5 "" cuda
  hidden "decode 128 a rank, sockets" "" decode 128 32 6 v2-lite 5 "" cuda
fi
exit $failed
