# Shared by the batch scripts of this folder; sourced inside an allocation. Nothing here is specific to a site.
#
#   run_ranks N SUBCOMMAND FLAGS...     over N ranks of the allocation, by LAUNCHER (srun or mpirun)
#
# The signal before time runs out must come to the batch script (--signal=B:TERM@60): without B: Slurm signals only its
# job steps. With mpirun those are MPI's daemons, which end the job undrained, or on one node there are none at all.
set -u
LAUNCHER=${LAUNCHER:-srun}
LATENTMESH=${LATENTMESH:-$SLURM_SUBMIT_DIR}
PROGRAM=${PROGRAM:-$LATENTMESH/build/latentmesh}
MODEL=${MODEL:-}
FLAGS=${FLAGS:-}

stop() { echo "latentmesh: error: $1" >&2; exit 2; }
[ -x "$LATENTMESH/launch/rank.sh" ] || stop "LATENTMESH=$LATENTMESH is not latentmesh's folder: submit from there, or set it"
[ -x "$PROGRAM" ] || stop "PROGRAM=$PROGRAM is not there: build first, or set it"
[ -e "$MODEL/config.json" ] || stop "MODEL=$MODEL has no config.json: set it to a checkpoint folder"

# LOCAL_COPY=/scratch: every node gets its copy of the checkpoint there first, and reads that.
if [ -n "${LOCAL_COPY:-}" ]; then
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 cp -rLu "$MODEL" "$LOCAL_COPY/" || stop "copying to $LOCAL_COPY failed"
  MODEL=$LOCAL_COPY/$(basename "$MODEL")
fi

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}       # srun no longer takes it from the allocation by itself
[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK

# Fewer ranks than the allocation has are spread over as few nodes as hold them.
run_ranks() {
  local ranks=$1 per_node nodes
  shift
  per_node=$(((SLURM_NTASKS + SLURM_JOB_NUM_NODES - 1) / SLURM_JOB_NUM_NODES))
  nodes=$(((ranks + per_node - 1) / per_node))
  if [ "$LAUNCHER" = mpirun ]; then
    RANKS=$ranks PROGRAM=$PROGRAM "$LATENTMESH/launch/mpirun.sh" "$@" &
  else
    srun --mpi="${MPI_PLUGIN:-pmix}" --kill-on-bad-exit=1 --unbuffered --nodes="$nodes" --ntasks="$ranks" \
      "$LATENTMESH/launch/rank.sh" "$PROGRAM" "$@" &
  fi
  wait_for "$!"
}

# Waits for the launcher and ends with its exit code; a signal ends `wait` early.
wait_for() {
  local code
  launcher=$1
  while :; do
    wait "$launcher"
    code=$?
    kill -0 "$launcher" 2>/dev/null || break
  done
  launcher=
  return "$code"
}

# srun itself would end its step on SIGTERM at once, so its ranks are told past it.
draining=
launcher=
drain() {
  draining=yes
  [ -n "$launcher" ] || return
  if [ "$LAUNCHER" = mpirun ]; then kill -TERM "$launcher"; else scancel --signal=TERM "$SLURM_JOB_ID"; fi
}
trap drain TERM
