#!/usr/bin/env bash
# overlap.sh RATE ARGUMENTS OF overlap_bench...: over two hosts on this machine, network namespaces whose links carry RATE
# (400mbit), a rank on each. RANKS a host by RANKS_A_HOST (1). Wants root, iproute2 and build/tests/bench/overlap_bench.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/tests/cluster/hosts.sh"
rate=$1
shift
hosts_create 2
hosts_limit node0 "$rate"
hosts_limit node1 "$rate"
export PROGRAM=${PROGRAM:-$root/build/tests/bench/overlap_bench}
hosts_mpirun 2 "${RANKS_A_HOST:-1}" "$@"
