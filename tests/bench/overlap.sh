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
# Buffers that hold a layer's tokens: acknowledgements wait behind the data that goes the other way in the same queue.
for node in node0 node1; do
  hosts_on $node sysctl -q -w net.ipv4.tcp_rmem="4096 4194304 16777216" net.ipv4.tcp_wmem="4096 4194304 16777216"
done
export PROGRAM=${PROGRAM:-$root/build/tests/bench/overlap_bench}
hosts_mpirun 2 "${RANKS_A_HOST:-1}" "$@"
