#!/bin/bash
# run_ranks.sh RANKS PROGRAM [ARGUMENTS...]: runs a program over MPI ranks on this machine, more ranks than cores
# allowed.
set -u
ranks=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
options=()
if mpirun --version 2>/dev/null | grep -q "Open MPI"; then
  options=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
fi
exec mpirun "${options[@]}" -n "$ranks" "$@"
