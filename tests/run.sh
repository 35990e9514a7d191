#!/usr/bin/env bash
# Installs what is missing, builds everything and runs all tests. Prints ctest's summary last; its exit code is ctest's.
#   tests/run.sh [CTEST ARGUMENTS]       e.g. tests/run.sh -R verify
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/lib.sh"

install_packages yes
set_mpirun       # exports what tests under mpirun need

say "building the fuzzers with ASan and UBSan in $root/build-fuzz"
build_targets "$root" "$root/build-fuzz" "-DLATENTMESH_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
  -DLATENTMESH_CUDA=OFF -DLATENTMESH_BENCH=OFF" fuzzers

say "building the program and its tests in $root/build-test"
build_targets "$root" "$root/build-test" "-DLATENTMESH_FUZZ_BIN_DIR=$root/build-fuzz/tests/fuzz" all

say "running the tests"
exec ctest --test-dir "$root/build-test" --output-on-failure -j2 "$@"
