#!/bin/bash
# rank.sh PROGRAM ARGUMENTS...: runs one rank, started by mpirun or srun (launch/mpirun.sh and launch/slurm/ do so).
#
# Says once which cores, memory and GPUs the rank was given. When the program is killed by a signal, says so last: rank,
# host, step and operation, and ends with 8 (a rank died), or 4 where the kernel killed it for want of memory. Every
# other end keeps its exit code.
set -u
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}}
local_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${SLURM_LOCALID:-${MPI_LOCALRANKID:-0}}}
host=$(hostname -s 2>/dev/null || uname -n)

# The NUMA nodes of a list of cores such as 0-3,8.
numa_nodes() {
  local node range nodes=()
  for node in /sys/devices/system/node/node[0-9]*; do
    [ -r "$node/cpulist" ] || continue
    range=$(cat "$node/cpulist")
    overlaps "$1" "$range" && nodes+=("${node##*node}")
  done
  local IFS=,
  echo "${nodes[*]:-unknown}"
}

overlaps() {
  local a b
  for a in ${1//,/ }; do
    for b in ${2//,/ }; do
      [ "${a%-*}" -le "${b#*-}" ] && [ "${b%-*}" -le "${a#*-}" ] && return 0
    done
  done
  return 1
}

report_binding() {
  local cores gpus
  cores=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
  gpus=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd,)}
  echo "latentmesh: rank $rank (local $local_rank) on $host: cores $cores, NUMA $(numa_nodes "$cores"), GPUs ${gpus:-none}" >&2
}

# Whether the kernel has killed something in this rank's cgroup for want of memory.
oom_kills() {
  local group
  group=$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null | head -1)
  sed -n 's/^oom_kill //p' "/sys/fs/cgroup$group/memory.events" 2>/dev/null || true
}

[ "${LATENTMESH_QUIET_BINDING:-0}" = 1 ] || report_binding
# The record has no name any more, so that nothing is left behind however this script ends.
name=$(mktemp "${TMPDIR:-/tmp}/latentmesh-rank$rank.XXXXXX") || exit 7
exec {descriptor}<> "$name"
rm -f "$name"
record=/proc/$$/fd/$descriptor
# Launchers signal the whole process group or step, so the program has its signal already: this script only lives on.
trap : TERM INT USR1
ooms=$(oom_kills)
LATENTMESH_FLIGHT_RECORD=$record "$@" <&0 &
child=$!
# A signal ends `wait` early, and bash's own word on killed children would be the last line.
while :; do
  { wait "$child"; } 2>/dev/null
  code=$?
  kill -0 "$child" 2>/dev/null || break
done

# Tells launch/mpirun.sh, where it runs on this host, that the job has failed; the first rank's code counts.
report_failure() {
  [ -d "${LATENTMESH_JOB_FOLDER:-}" ] && (set -C; echo "$1" > "$LATENTMESH_JOB_FOLDER/failed") 2>/dev/null
}

if [ "$code" -le 128 ] || [ "$code" -gt 192 ]; then
  [ "$code" = 0 ] || report_failure "$code"
  exit "$code"
fi
signal=$((code - 128))
place=$(sed 's/ *$//' "$record" 2>/dev/null)
what="killed by signal $signal (SIG$(kill -l "$signal" 2>/dev/null))"
code=8
if [ "$signal" = 15 ] || [ "$signal" = 2 ] || [ "$signal" = 10 ]; then
  what="stopped by signal $signal (SIG$(kill -l "$signal")) before it could drain" code=10
elif [ "$signal" = 9 ] && [ "$(oom_kills)" != "$ooms" ]; then
  what="killed by the kernel: out of memory" code=4
fi
report_failure "$code"
echo "latentmesh: error: rank $rank on $host: ${place:-starting}: $what" >&2
exit "$code"
