#!/usr/bin/env bash
# The layering check must find each kind of violation: plants one at a time in a small tree.
set -uo pipefail
check=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/check_layers.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failures=0

fresh_tree() {
  rm -rf "$tree"
  mkdir -p "$tree"/{kernels/cpu,kernels/cuda,parallel,moe,runtime/engine,launch}
  echo '#include "kernels/status.h"' > "$tree/parallel/mesh.h"
  echo '#include <mpi.h>' > "$tree/parallel/mpi_communicator.cc"
  echo '#include <cuda_runtime.h>' > "$tree/kernels/cuda/gemm.cu"
  printf '#ifdef __AVX2__\n#endif\n' > "$tree/kernels/cpu/gemm.cc"
  printf '#include <boost/json.hpp>\n#include "runtime/engine/engine.h"\nint x = getenv("A");\n' > "$tree/launch/main.cc"
}

# expect accepted|refused FILE CONTENT
expect() {
  fresh_tree
  [ -z "$2" ] || printf '%b\n' "$3" > "$tree/$2"
  local verdict=accepted
  bash "$check" "$tree" > "$tree/output" 2>&1 || verdict=refused
  if [ "$verdict" != "$1" ] || { [ "$1" = refused ] && ! grep -q "$2\|more than one file" "$tree/output"; }; then
    echo "FAILED: $2 with '$3' was $verdict: $(cat "$tree/output")"
    failures=$((failures + 1))
  fi
}

expect accepted '' ''
expect accepted launch/serve.cc '#include <boost/beast.hpp>'
expect accepted parallel/nccl_communicator.cc '#include <nccl.h>'
expect refused kernels/ops.cc '#include "parallel/mesh.h"'
expect refused parallel/group.cc '#include "moe/router.h"'
expect refused moe/router.cc '#include "runtime/engine/engine.h"'
expect refused runtime/engine/engine.cc '#  include "launch/flags.h"'
expect refused launch/x.cc '#include "tests/helper.h"'
expect refused runtime/engine/engine.cc '#include <mpi.h>'
expect refused parallel/mesh.cc '#include <mpi.h>'
expect refused kernels/device.cc '#include <cuda_runtime.h>'
expect refused kernels/cuda/comm.cu '#include <nccl.h>'
expect refused runtime/engine/engine.cc '#include <boost/asio.hpp>'
expect refused launch/body.h '#include <boost/json.hpp>'
expect refused runtime/engine/engine.cc '#include <CLI/CLI.hpp>'
expect refused parallel/mesh.cc '#ifdef USE_CUDA\n#endif'
expect refused runtime/engine/engine.cc 'int y = std::getenv("B");'

[ "$failures" = 0 ] && echo "the layering check finds all planted violations"
exit "$failures"
