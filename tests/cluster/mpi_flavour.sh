#!/usr/bin/env bash
# Builds the program against another MPI and tries it: verify, a bad flag's exit code, a killed and a stopped rank, draining.
#   tests/cluster/mpi_flavour.sh BIN_FOLDER [BUILD_FOLDER]
# BIN_FOLDER holds that MPI's mpicxx and mpirun (Open MPI 4 or 5, MPICH, Intel MPI). Needs minutes for the build, so CI,
# which tests with the machine's own MPI, leaves it out. Without a compiler there it is skipped (77).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$1
build=${2:-$(mktemp -d)}
[ -x "$bin/mpicxx" ] && [ -x "$bin/mpirun" ] || { echo "skipped: no mpicxx and mpirun in $bin"; exit 77; }
. launch/lib.sh
build_targets "$PWD" "$build" "-DLATENTMESH_CUDA=OFF -DLATENTMESH_TESTS=OFF -DLATENTMESH_BENCH=OFF -DMPI_CXX_COMPILER=$bin/mpicxx" latentmesh
export PROGRAM=$build/latentmesh MPIRUN=$bin/mpirun RANKS=4
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
log=$(mktemp)
fail() { echo "FAILED: $*"; tail -n 20 "$log"; exit 1; }
expect() {                                     # expect CODE WHAT ARGUMENTS...
  local wanted=$1 what=$2 code=0
  shift 2
  timeout --foreground 100 launch/mpirun.sh "$@" >"$log" 2>&1 || code=$?
  [ "$code" = "$wanted" ] || fail "$what: exit code $code instead of $wanted"
  echo "ok: $what"
}
golden=tests/golden/v3-tiny
for layout in "--tp 2 --dp 2" "--pp 2 --dp 2" "--tp 4 --cp 2"; do
  expect 0 "verify $layout" verify --model $golden --expected $golden/expected.safetensors --threads 1 $layout
done
expect 3 "a missing model" verify --model nowhere

start() {
  timeout --foreground 100 launch/mpirun.sh generate --model launch/demo --prompt "In the beginning" --max-tokens 3500 --n 8 \
    --ignore-eos --threads 1 --step-timeout 5 >"$log.out" 2>"$log" &
  job=$!
  for _ in $(seq 100); do grep -q "memory a rank" "$log" && break; sleep 0.2; done
  sleep 2
}
ends_with() {                                  # ends_with CODE WHAT: within 30 s, and leaves no rank behind
  local code=0
  wait "$job" || code=$?
  [ "$code" = "$1" ] || fail "$2: exit code $code instead of $1"
  for _ in $(seq 50); do ranks >/dev/null || { echo "ok: $2"; return 0; }; sleep 0.2; done
  fail "$2: ranks are left: $(ranks)"
}
ranks() { pgrep -f "^$PROGRAM generate"; }
start; kill -KILL "$(ranks | tail -n 1)"; ends_with 8 "a killed rank"
start; stopped=$(ranks | tail -n 1); kill -STOP "$stopped"; ends_with 9 "a stopped rank"
start; kill -TERM "$job"; ends_with 10 "SIGTERM"
"$MPIRUN" --version | head -n 1
