#!/usr/bin/env bash
# Checks the layering of the source tree: tests/check_layers.sh [ROOT]. Prints one line a violation; exit code 1 if any.
#   - includes only go downwards: launch > runtime > moe > parallel > kernels
#   - third-party headers stay in their room
#   - no #if, #ifdef or #ifndef outside kernels/cpu and kernels/cuda
#   - environment variables are read in one file only
set -uo pipefail
root=$(cd "${1:-$(dirname "${BASH_SOURCE[0]}")/..}" && pwd)
cd "$root" || exit 2
violations=0

complain() { echo "$1"; violations=$((violations + 1)); }

source_files() { find kernels parallel moe runtime launch -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null | sort; }

# FILE:LINE:HEADER of every include.
all_includes() { source_files | xargs -r grep -nHE '^[[:space:]]*#[[:space:]]*include' | sed -E 's/^([^:]*:[0-9]*):[^<"]*[<"]([^>"]*)[>"].*/\1:\2/'; }

# forbid HEADER_REGEX ALLOWED_FILE_REGEX RULE: only files that match may include such headers.
forbid() {
  local hit file
  while IFS= read -r hit; do
    file=${hit%%:*}
    [[ $file =~ $2 ]] || complain "$hit: $3"
  done < <(grep -E ":[0-9]+:($1)" <<<"$includes")
}

includes=$(all_includes)

forbid '(parallel|moe|runtime|launch|tests)/' '^(parallel|moe|runtime|launch)/' 'kernels includes only kernels'
forbid '(moe|runtime|launch|tests)/' '^(moe|runtime|launch)/' 'parallel includes only parallel and what is below'
forbid '(runtime|launch|tests)/' '^(runtime|launch)/' 'moe includes only moe and what is below'
forbid '(launch|tests)/' '^launch/' 'runtime includes only runtime and what is below'
forbid 'tests/' '^$' 'the program does not include tests'

forbid '(cuda|cublas|cutlass|cooperative_groups|cub/|thrust/|curand|nv_|device_launch)' '^(kernels/cuda/|parallel/nccl_)' 'CUDA headers belong to kernels/cuda and parallel/nccl_*'
forbid 'nccl\.h' '^parallel/nccl_' '<nccl.h> belongs to parallel/nccl_*'
forbid 'mpi\.h' '^parallel/(mpi_|bootstrap|control_channel)' '<mpi.h> belongs to parallel/{mpi_*,bootstrap,control_channel}'
forbid 'boost/(asio|beast)' '^launch/' 'Boost.Asio and Beast belong to launch'
# Headers that only tests include cost the program nothing.
forbid 'boost/(json|asio|beast)' '(\.cc|_test_util\.h|/json_fields\.h|/api_fields\.h)$' 'Boost.JSON, Asio and Beast belong to .cc files'
forbid 'CLI/' '^launch/' 'CLI11 belongs to launch'
forbid '(spdlog|fmt/.*printf)' '^launch/' 'logging belongs to launch'

while IFS= read -r hit; do
  [ -z "$hit" ] || complain "$hit: conditional compilation belongs to kernels/cpu and kernels/cuda"
done < <(source_files | grep -vE '^kernels/(cpu|cuda)/' | xargs -r grep -nHE '^[[:space:]]*#[[:space:]]*(if|ifdef|ifndef)\b')

readers=$(source_files | grep -vE '_test\.(cc|cu)$' | xargs -r grep -lE '\b(secure_)?getenv[[:space:]]*\(')
[ "$(grep -c . <<<"$readers")" -le 1 ] || complain "environment variables are read in more than one file: $(tr '\n' ' ' <<<"$readers")"

[ "$violations" = 0 ] || { echo "$violations violations of the layering rules (DESIGN: Layers)"; exit 1; }
echo "layering: $(source_files | wc -l) files, no violation"
