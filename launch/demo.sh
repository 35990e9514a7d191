#!/usr/bin/env bash
# Installs what is missing, builds, and lets the shipped demo model write over 4 MPI ranks.
#   launch/demo.sh [PROMPT]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/lib.sh"

prompt=${1:-"The hacker said unto the wizard, Behold,"}

install_packages no
say "building latentmesh in $root/build"
# CUDA sources take minutes to compile: only where there is a GPU to use them.
cuda=OFF
if nvidia-smi -L >/dev/null 2>&1; then cuda=AUTO; fi
build_targets "$root" "$root/build" "-DLATENTMESH_TESTS=OFF -DLATENTMESH_BENCH=OFF -DLATENTMESH_CUDA=$cuda" latentmesh

set_mpirun
say "a DeepSeek-V3 model of 14 million parameters, FP8 weights, over 4 MPI ranks"
exec "${MPIRUN[@]}" -n 4 "$root/build/latentmesh" generate --model "$root/launch/demo" --device cpu \
  --prompt "$prompt" --echo --max-tokens 120 --stats
