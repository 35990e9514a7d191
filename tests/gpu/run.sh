#!/usr/bin/env bash
# Builds where a GPU is and runs the whole GPU suite in at most 8 minutes: tests, compute-sanitizer on small cases,
# benchmark and, where PROGRAM names a latentmesh that runs here, end_to_end.sh, latents_on_the_move.sh and rates.sh.
# Ends with a table.
#   [PROGRAM=build/latentmesh] [RANKS_TEST=build/tests/parallel/mpi_ranks] [OVERLAP=build/tests/bench/overlap_bench] \
#     tests/gpu/run.sh [BUILD_FOLDER]
# What asks only for right answers runs side by side on the GPU, the program's part while the tests are still being built;
# what is timed runs alone on its GPU. Where there are two, the program has the second one, and several_gpus.sh runs last.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=${1:-$root/build-gpu}
jobs=$(nproc)
order=()
declare -A running=()

# step NAME SECONDS COMMAND...: runs one part under its own limit; its output goes to BUILD_FOLDER/NAME.log, how it ended
# to NAME.result.
step() {
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  timeout "$seconds" "$@" >"$build/$name.log" 2>&1
  status=$?
  if ((status == 0)); then echo "ok, $((SECONDS - start)) s"; else echo "FAILED ($status), $((SECONDS - start)) s"; fi \
    >"$build/$name.result"
  return $status
}
begin() { order+=("$1"); step "$@" & running[$1]=$!; }
alone() { order+=("$1"); step "$@"; }
skipped() { order+=("$1"); echo "skipped: $2" >"$build/$1.result"; }
await() { local name; for name in "$@"; do wait "${running[$name]}"; unset "running[$name]"; done; }
await_all() { await "${!running[@]}"; }

# table: how every part ended; fails if one did.
table() {
  local name failed=0
  for name in "${order[@]}"; do
    grep -q FAILED "$build/$name.result" && { echo "== $name"; tail -n 40 "$build/$name.log"; failed=1; }
  done
  echo
  echo "| part                       | result                                             |"
  echo "|----------------------------|----------------------------------------------------|"
  for name in "${order[@]}"; do printf '| %-26s | %-50s |\n' "$name" "$(cat "$build/$name.result")"; done
  printf '| %-26s | %-50s |\n' "all" "$SECONDS s"
  return $failed
}

mkdir -p "$build"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || { echo "no GPU answers here"; exit 6; }
gpus=$(nvidia-smi -L | wc -l)
second=()
((gpus > 1)) && second=(env CUDA_VISIBLE_DEVICES=1)
alone configure 60 cmake -G Ninja -S "$root/tests/gpu/suite" -B "$build" || { table; exit 1; }
if [[ -n ${PROGRAM:-} ]]; then
  begin end_to_end 300 "${second[@]}" "$root/tests/gpu/end_to_end.sh" "$PROGRAM"
  begin latents_on_the_move 240 "${second[@]}" "$root/tests/gpu/latents_on_the_move.sh" "$PROGRAM"
else
  skipped program "set PROGRAM"
fi
alone build 240 ninja -C "$build" -j "$jobs" lm_gpu_test lm_gpu_bench || { await_all; table; exit 1; }
test_program=$build/gpu/lm_gpu_test
begin tests 150 "$test_program"

# Every op, in the cases that stay small under a checker. The race checker does not follow the copy engine and wgmma, so it
# sees the kernels without them.
if command -v compute-sanitizer >/dev/null; then
  begin memcheck 200 compute-sanitizer --tool memcheck --error-exitcode 9 "$test_program" \
    --gtest_filter='GpuOpsTest.*:AttentionGpuTest.*:MatmulGpuTest.Grouped*:ChosenExpertsGpuTest.OfOdd*:-*RmsNorm*:*GatherAndCombine*:*MlaOfModelShapes'
  begin racecheck 200 compute-sanitizer --tool racecheck --error-exitcode 9 "$test_program" \
    --gtest_filter='GpuOpsTest.Route*:GpuOpsTest.SortByExpert:AttentionGpuTest.*Write*:AttentionGpuTest.Merge:AttentionGpuTest.GroupedQueryOf*:*MlaOfOdd*:*GroupedOfOdd*'
else
  skipped compute-sanitizer "not installed"
fi
if [[ -n ${PROGRAM:-} ]] && ((gpus > 1)); then
  await end_to_end latents_on_the_move
  begin rates 300 "${second[@]}" "$root/tests/gpu/rates.sh" "$PROGRAM"
  await tests; [[ -n ${running[memcheck]:-} ]] && await memcheck racecheck
else
  await_all
fi
passed=$(grep -E '^\[  PASSED  \]' "$build/tests.log" | tr -s ' ' | cut -d' ' -f4-5)
echo "$(cat "$build/tests.result"); ${passed:-none} passed" >"$build/tests.result"

alone bench 120 "$build/gpu/lm_gpu_bench"
await_all
if [[ -n ${PROGRAM:-} ]]; then
  ((gpus > 1)) || alone rates 300 "$root/tests/gpu/rates.sh" "$PROGRAM"
  if ((gpus > 1)); then alone several_gpus 180 "$root/tests/gpu/several_gpus.sh" "$PROGRAM"
  else skipped several_gpus "one GPU"; fi
fi
head -n 1 "$build/bench.log"
sed -n '/^| kernel/,$p' "$build/bench.log"
for part in end_to_end latents_on_the_move rates several_gpus; do
  [[ -e $build/$part.log ]] && sed -n '/^| what/,$p' "$build/$part.log"
done
table
