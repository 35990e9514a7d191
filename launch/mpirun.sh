#!/bin/bash
# Starts latentmesh over MPI ranks, alone on a machine, on hosts with ssh, or inside an allocation of Slurm or PBS.
#
#   launch/mpirun.sh SUBCOMMAND FLAGS...
#   RANKS=16 RANKS_PER_NODE=8 HOSTS=node0,node1 launch/mpirun.sh batch --model /models/V3 --input in.jsonl --output out.jsonl
#
# Ends with the exit code of the first rank that failed (README, "Exit codes"). SIGTERM and SIGINT drain.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# What there is to choose; all may also come from the environment.
RANKS=${RANKS:-}                                   # empty: one a GPU, or one a socket without GPUs; in an allocation its tasks
RANKS_PER_NODE=${RANKS_PER_NODE:-}                 # empty: as the launcher deals them out
HOSTS=${HOSTS:-}                                   # node0,node1,... ; empty: this machine, or the allocation
PROGRAM=${PROGRAM:-$here/../build/latentmesh}
MPIRUN=${MPIRUN:-mpirun}
NETWORK=${NETWORK:-}                               # 10.1.0.0/16: the network MPI uses over TCP; empty: MPI chooses
MPI_OPTIONS=${MPI_OPTIONS:-}                       # added as they are

die() { echo "latentmesh: error: $1" >&2; exit 2; }
[ $# -gt 0 ] || die "launch/mpirun.sh SUBCOMMAND FLAGS... (generate, batch, serve, bench ...)"
[ -x "$PROGRAM" ] || die "PROGRAM=$PROGRAM is not there: build first, or set PROGRAM"
command -v "$MPIRUN" > /dev/null || die "MPIRUN=$MPIRUN is not there: load an MPI module, or set MPIRUN"

default_ranks() {
  local gpus sockets
  if [ -n "${SLURM_NTASKS:-}" ]; then echo "$SLURM_NTASKS"; return; fi
  gpus=$(nvidia-smi -L 2> /dev/null | grep -c ^GPU)
  if [ "$gpus" -gt 0 ]; then echo "$gpus"; return; fi
  sockets=$(sort -u /sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id 2> /dev/null | grep -c .)
  echo $((sockets > 0 ? sockets : 1))
}

host_list() {
  local host list=""
  for host in ${HOSTS//,/ }; do list+=",$host${1:+:$1}"; done
  echo "${list:1}"
}

# A rank without cores of its own must yield them while it waits.
crowded() { [ -z "$HOSTS" ] && [ -z "${SLURM_JOB_ID:-}" ] && [ "$RANKS" -gt "$(nproc)" ]; }

options_of_open_mpi() {
  options=(-n "$RANKS" -x LATENTMESH_JOB_FOLDER)
  if [ "$1" -lt 5 ]; then options+=(--quiet); fi
  if [ "$(id -u)" = 0 ]; then options+=(--allow-run-as-root); fi
  if [ -n "$HOSTS" ]; then options+=(--host "$(host_list "${RANKS_PER_NODE:-$(((RANKS + hosts - 1) / hosts))}")"); fi
  if [ -n "$RANKS_PER_NODE" ]; then options+=(--map-by "ppr:$RANKS_PER_NODE:node"); fi
  if crowded; then
    options+=(--bind-to none --mca mpi_yield_when_idle 1)
    if [ "$1" -ge 5 ]; then options+=(--map-by :OVERSUBSCRIBE); else options+=(--oversubscribe); fi
  elif [ "$RANKS" -le 1 ] || [ "$(nproc)" -lt 4 ]; then
    options+=(--bind-to none)
  else
    options+=(--bind-to "${BIND_TO:-numa}")
  fi
  # A host that has gone is noticed after 2 + 3 x 1 s, not after TCP's two hours.
  local daemon=--mca prefix=oob_tcp_keepalive
  if [ "$1" -ge 5 ]; then daemon=--prtemca; fi
  options+=("$daemon" ${prefix}_time 2 "$daemon" ${prefix}_intvl 1 "$daemon" ${prefix}_probes 3)
  if [ -n "$NETWORK" ]; then options+=("$daemon" oob_tcp_if_include "$NETWORK" --mca btl_tcp_if_include "$NETWORK"); fi
}

options_of_hydra() {
  options=(-n "$RANKS")
  if [ -n "$HOSTS" ]; then options+=(-hosts "$HOSTS"); fi
  if [ -n "$RANKS_PER_NODE" ]; then options+=(-ppn "$RANKS_PER_NODE"); fi
  if ! crowded && [ "$(nproc)" -ge 4 ]; then options+=(-bind-to "${BIND_TO:-numa}"); fi
}

# mpirun may wait for ever for a host that cannot be reached any more. A while after a rank of this host has failed it is
# ended, with what it started here; ranks elsewhere end by their own deadlines.
end_after_failure() {
  local child
  while kill -0 "$1" 2> /dev/null; do
    sleep 1
    [ -s "$LATENTMESH_JOB_FOLDER/failed" ] || continue
    sleep "${GRACE:-5}"
    for child in $(cat "/proc/$1/task/$1/children" 2> /dev/null); do kill -KILL -- "-$child" "$child"; done 2> /dev/null
    kill -KILL "$1" 2> /dev/null
    return
  done
}

hosts=$(wc -w <<< "${HOSTS//,/ }")
if [ -z "$RANKS" ] && [ -n "$RANKS_PER_NODE" ] && [ "$hosts" -gt 0 ]; then RANKS=$((hosts * RANKS_PER_NODE)); fi
RANKS=${RANKS:-$(default_ranks)}
hydra=
version=$("$MPIRUN" --version 2>&1 | head -5)
case $version in
  *"Open MPI"*) options_of_open_mpi "$(sed -n 's/.*Open MPI[^0-9]*\([0-9]*\).*/\1/p' <<< "$version" | head -1)" ;;
  *HYDRA*|*Hydra*|*hydra*|*Intel*) options_of_hydra; hydra=yes ;;
  *) die "MPIRUN=$MPIRUN is neither Open MPI nor Hydra (MPICH, MVAPICH, Intel MPI): $version" ;;
esac

# mpirun ends the job within a second of SIGTERM; SIGUSR1 it passes on, and the ranks drain on it.
LATENTMESH_JOB_FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/latentmesh-job.XXXXXX") || exit 7
export LATENTMESH_JOB_FOLDER
trap 'rm -rf "$LATENTMESH_JOB_FOLDER"' EXIT
"$MPIRUN" "${options[@]}" $MPI_OPTIONS "$here/rank.sh" "$PROGRAM" "$@" <&0 &
job=$!
end_after_failure "$job" &
watch=$!
trap 'kill -USR1 "$job" 2> /dev/null' TERM INT
# A signal ends `wait` early.
while :; do
  { wait "$job"; } 2> /dev/null
  code=$?
  kill -0 "$job" 2> /dev/null || break
done
kill "$watch" 2> /dev/null
# Hydra joins the ranks' codes bit by bit; what the first failed rank of this host ended with is the cause.
if { [ "$code" = 137 ] || { [ "$code" != 0 ] && [ -n "$hydra" ]; }; } && [ -s "$LATENTMESH_JOB_FOLDER/failed" ]; then
  code=$(cat "$LATENTMESH_JOB_FOLDER/failed")
fi
exit "$code"
