# Several hosts on one machine: network namespaces joined by a bridge in a namespace of its own. To be sourced.
#
#   hosts_create 3           node0 (10.77.0.1), node1, node2; removed again when the script ends
#   hosts_on node1 COMMAND   runs a command there, under that host name
#   hosts_mpirun 3 2 generate ...     launch/mpirun.sh from node0: 2 ranks on each of the first 3 hosts; PROGRAM is exported
#   hosts_cut node2, hosts_join node2                       the link of a host
#   hosts_limit node0 200mbit                               the rate of what a host sends
#   hosts_pids node1 NAME    processes of that name on a host
#
# Hosts share the file system and the memory of the machine; only names and networks differ. Where namespaces are not
# permitted hosts_create prints "SKIPPED: ..." and ends the script with 77.
hosts_prefix=lm$$
hosts_count=0
hosts_files=$(mktemp -d)
hosts_cleanup=()

hosts_skip() { echo "SKIPPED: $1"; exit 77; }

hosts_destroy() {
  local command node
  trap '' INT TERM
  for command in "${hosts_cleanup[@]}"; do eval "$command" > /dev/null 2>&1; done
  for ((node = 0; node < hosts_count; ++node)); do
    hosts_kill_all node$node
    ip netns del "$hosts_prefix-node$node" 2> /dev/null
    rm -rf "/etc/netns/$hosts_prefix-node$node"
  done
  ip netns del "$hosts_prefix-switch" 2> /dev/null
  rmdir /etc/netns 2> /dev/null
  rm -rf "$hosts_files"
}

# Nothing outlives its host.
hosts_kill_all() {
  local pids
  pids=$(ip netns pids "$hosts_prefix-$1" 2> /dev/null)
  [ -z "$pids" ] || kill -9 $pids 2> /dev/null
}

hosts_create() {
  local node
  command -v ip > /dev/null || hosts_skip "ip (iproute2) is not installed"
  command -v mpirun > /dev/null || hosts_skip "mpirun is not installed"
  [ "$(id -u)" = 0 ] || hosts_skip "network namespaces want root"
  trap hosts_destroy EXIT
  trap 'exit 130' INT TERM
  ip netns add "$hosts_prefix-switch" 2> /dev/null && unshare -u true 2> /dev/null &&
    ip -n "$hosts_prefix-switch" link add bridge0 type bridge 2> /dev/null || hosts_skip "network namespaces are not permitted here"
  ip -n "$hosts_prefix-switch" link set bridge0 up
  for ((node = 0; node < $1; ++node)); do hosts_add $node "$1"; done
  hosts_write_agent
}

hosts_add() {
  local name=$hosts_prefix-node$1 node
  ip netns add "$name"
  hosts_count=$(($1 + 1))
  ip link add eth0 netns "$name" type veth peer name "port$1" netns "$hosts_prefix-switch"
  ip -n "$hosts_prefix-switch" link set "port$1" master bridge0 up
  ip -n "$name" addr add "10.77.0.$(($1 + 1))/24" dev eth0
  ip -n "$name" link set lo up
  ip -n "$name" link set eth0 up
  mkdir -p "/etc/netns/$name"
  { echo "127.0.0.1 localhost"
    for ((node = 0; node < $2; ++node)); do echo "10.77.0.$((node + 1)) node$node"; done; } > "/etc/netns/$name/hosts"
}

hosts_on() {
  local node=$1
  shift
  ip netns exec "$hosts_prefix-$node" unshare -u bash -c 'hostname "$0"; exec "$@"' "$node" "$@"
}

# What mpirun calls in place of ssh: options, host, command.
hosts_write_agent() {
  cat > "$hosts_files/agent" <<AGENT
#!/bin/bash
while [[ \$1 == -* ]]; do shift; done
node=\$1
shift
exec ip netns exec "$hosts_prefix-\$node" unshare -u bash -c 'hostname "\$0"; exec bash -c "\$1"' "\$node" "\$*"
AGENT
  chmod +x "$hosts_files/agent"
}

# mpirun from node0 over the first N hosts, through launch/mpirun.sh.
hosts_mpirun() {
  local list="" node root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  for ((node = 0; node < $1; ++node)); do list+=",node$node"; done
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm_rsh_agent=$hosts_files/agent
  export OMPI_MCA_plm=rsh OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp OMPI_MCA_mpi_yield_when_idle=1
  export OMPI_MCA_btl_vader_single_copy_mechanism=none LATENTMESH_QUIET_BINDING=1
  HOSTS=${list:1} RANKS=$(($1 * $2)) RANKS_PER_NODE=$2 NETWORK=10.77.0.0/24 \
    hosts_on node0 "$root/launch/mpirun.sh" "${@:3}"
}

hosts_cut() { ip -n "$hosts_prefix-switch" link set "port${1#node}" down; }
hosts_join() { ip -n "$hosts_prefix-switch" link set "port${1#node}" up; }
hosts_limit() {
  ip netns exec "$hosts_prefix-$1" tc qdisc replace dev eth0 root tbf rate "$2" burst 256kb latency 50ms
}

hosts_pids() {
  local pid
  for pid in $(ip netns pids "$hosts_prefix-$1" 2> /dev/null); do
    [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$2" ] && echo "$pid"
  done
  return 0
}
