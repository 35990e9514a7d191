#!/usr/bin/env bash
# Builds where a GPU is and runs the whole GPU suite in at most 12 minutes: tests, compute-sanitizer on small cases,
# benchmark and, where PROGRAM names a latentmesh that runs here, end_to_end.sh and latents_on_the_move.sh. Ends with a table.
#   [PROGRAM=build/latentmesh] [RANKS_TEST=build/tests/parallel/mpi_ranks] tests/gpu/run.sh [BUILD_FOLDER]
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=${1:-$root/build-gpu}
jobs=$(nproc)
failed=0
summary=()

note() { summary+=("$(printf '| %-42s | %-28s |' "$1" "$2")"); }

# step NAME SECONDS COMMAND...: runs one part under its own limit; its output goes to BUILD_FOLDER/NAME.log.
step() {
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  timeout "$seconds" "$@" >"$build/$name.log" 2>&1
  status=$?
  if ((status == 0)); then
    note "$name" "ok, $((SECONDS - start)) s"
  else
    note "$name" "FAILED ($status), $((SECONDS - start)) s"
    tail -n 40 "$build/$name.log"
    failed=1
  fi
  return $status
}

mkdir -p "$build"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || { echo "no GPU answers here"; exit 6; }
step configure 60 cmake -G Ninja -S "$root/tests/gpu/suite" -B "$build" || exit 1
step build 220 ninja -C "$build" -j "$jobs" lm_gpu_test lm_gpu_bench || exit 1
test_program=$build/gpu/lm_gpu_test

step tests 90 "$test_program"
note "tests passed" "$(grep -E '^\[  PASSED  \]' "$build/tests.log" | tr -s ' ' | cut -d' ' -f4-5)"

# Every op, in the cases that stay small under a checker. The race checker does not follow the copy engine and wgmma, so it
# sees the kernels without them.
if command -v compute-sanitizer >/dev/null; then
  step memcheck 75 compute-sanitizer --tool memcheck --error-exitcode 9 "$test_program" \
    --gtest_filter='GpuOpsTest.*:AttentionGpuTest.*:MatmulGpuTest.Grouped*:ChosenExpertsGpuTest.OfOdd*:-*RmsNorm*:*GatherAndCombine*:*MlaOfModelShapes'
  step racecheck 75 compute-sanitizer --tool racecheck --error-exitcode 9 "$test_program" \
    --gtest_filter='GpuOpsTest.Route*:GpuOpsTest.SortByExpert:AttentionGpuTest.*Write*:AttentionGpuTest.Merge:AttentionGpuTest.GroupedQueryOf*:*MlaOfOdd*:*GroupedOfOdd*'
else
  note "compute-sanitizer" "not installed: skipped"
fi

step bench 120 "$build/gpu/lm_gpu_bench"
sed -n '/^| kernel/,$p' "$build/bench.log"
head -n 1 "$build/bench.log"
if [[ -n ${PROGRAM:-} ]]; then
  step end_to_end 300 "$root/tests/gpu/end_to_end.sh" "$PROGRAM"
  sed -n '/^| what/,$p' "$build/end_to_end.log"
  step latents_on_the_move 240 "$root/tests/gpu/latents_on_the_move.sh" "$PROGRAM"
  sed -n '/^| what/,$p' "$build/latents_on_the_move.log"
else
  note "end to end" "skipped: set PROGRAM"
fi
echo
echo "| part                                       | result                       |"
echo "|--------------------------------------------|------------------------------|"
printf '%s\n' "${summary[@]}"
exit $failed
