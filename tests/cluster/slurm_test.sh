#!/bin/bash
# slurm_test.sh slurm|CASE PROGRAM: the scripts of launch/slurm on a real Slurm of 2 nodes with 2 ranks each, one a network
# namespace (hosts.sh). Exit code 77: skipped, and why.
set -u
export PROGRAM=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$here/hosts.sh"
for tool in slurmctld slurmd munged sbatch srun nsenter; do
  command -v $tool > /dev/null || PATH=$PATH:/usr/sbin command -v $tool > /dev/null || hosts_skip "$tool is not installed (slurm-wlm, munge)"
done
PATH=$PATH:/usr/sbin

hosts_create 2
dir=$hosts_files
chmod 755 "$dir"

fail() {
  echo "FAILED: $1"
  tail -n 12 "$dir"/*.log "$dir"/work/*.log 2> /dev/null | sed 's/^/  | /'
  exit 1
}

# ip netns exec would hide the cgroups that slurmd needs.
node_exec() {
  local node=$1
  shift
  nsenter --net="/run/netns/$hosts_prefix-$node" unshare -u -m bash -c \
    'hostname "$0"; mount --bind "$1" /etc/hosts; mount -t tmpfs tmpfs /dev/shm; shift; exec "$@"' \
    "$node" "/etc/netns/$hosts_prefix-$node/hosts" "$@"
}

start_munge() {
  mkdir -m 700 "$dir/munge"
  mkdir -m 755 "$dir/munge-socket"
  dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 2> /dev/null
  chmod 400 "$dir/munge/key"
  munged --force --socket="$dir/munge-socket/s" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" > "$dir/munged.log" 2>&1 || hosts_skip "munged does not start: $(head -1 "$dir/munged.log")"
  hosts_cleanup+=("kill $(cat "$dir/munge/pid")")
}

write_config() {
  cat > "$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=node0(10.77.0.1)
AuthType=auth/munge
AuthInfo=socket=$dir/munge-socket/s
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=5
MinJobAge=300
MailProg=/bin/true
SlurmUser=root
TmpFS=$dir/tmp-%n
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=node0 NodeAddr=10.77.0.1 CPUs=4 RealMemory=4000
NodeName=node1 NodeAddr=10.77.0.2 CPUs=4 RealMemory=4000
PartitionName=main Nodes=node0,node1 Default=YES MaxTime=10 State=UP
CONF
  mkdir -p "$dir/state" "$dir/spool-node0" "$dir/spool-node1" "$dir/tmp-node0" "$dir/tmp-node1" "$dir/work"
  export SLURM_CONF=$dir/slurm.conf
}

start_slurm() {
  local i node
  start_munge
  write_config
  node_exec node0 slurmctld -D -c > "$dir/ctld.log" 2>&1 &
  for node in node0 node1; do node_exec $node slurmd -D -N $node > "$dir/d-$node.log" 2>&1 & done
  for ((i = 0; i < 200; ++i)); do
    [ "$(on0 sinfo -h -N -t idle 2> /dev/null | wc -l)" = 2 ] && return
    sleep 0.1
  done
  hosts_skip "Slurm does not start here: $(tail -n 1 "$dir/slurmctld.log" 2> /dev/null)"
}

on0() { (cd "$dir/work" && node_exec node0 "$@"); }

submit() { on0 env LATENTMESH="$root" MODEL="$root/launch/demo" LATENTMESH_QUIET_BINDING=0 "$@"; }
sbatch_on_both() { echo sbatch --parsable --nodes=2 --ntasks-per-node=2 --time=5 "$@"; }
state() { on0 scontrol -o show job "$1" | sed 's/.*JobState=\([A-Z_]*\).*/\1/'; }
restarts() { on0 scontrol -o show job "$1" | sed 's/.*Restarts=\([0-9]*\).*/\1/'; }

# wait_state JOB STATE SECONDS
wait_state() {
  local i now=""
  for ((i = 0; i < $3 * 5; ++i)); do
    now=$(state "$1")
    [[ $now =~ ^($2)$ ]] && return
    sleep 0.2
  done
  fail "job $1 is $now instead of $2 after $3 s"
}

srun_gives_the_same_text() {
  local prompt=(--prompt "And it came to pass" --temperature 0 --threads 1 --max-tokens 16 --log-level warn)
  "$PROGRAM" generate --model "$root/launch/demo" "${prompt[@]}" > "$dir/alone" 2> "$dir/alone.log" || fail "alone"
  on0 srun --mpi=pmix --nodes=2 --ntasks-per-node=2 "$root/launch/rank.sh" "$PROGRAM" generate --model "$root/launch/demo" --tp 2 --dp 2 \
    "${prompt[@]}" > "$dir/four" 2> "$dir/srun.log" || fail "srun --mpi=pmix: $?"
  cmp "$dir/alone" "$dir/four" || fail "another text under srun"
  grep -q "rank 3 (local 1) on node1: cores .*, NUMA " "$dir/srun.log" || fail "no binding of rank 3"
  echo "ok: srun --mpi=pmix over 2 nodes x 2 ranks gives the text of one rank"
}

write_requests() {
  local i
  for ((i = 0; i < $1; ++i)); do
    echo "{\"custom_id\": \"r$i\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"Chapter $i\", \"max_tokens\": 100, \"temperature\": 0, \"ignore_eos\": true}}"
  done
}

answered() { if [ -e "$dir/work/out.jsonl" ]; then wc -l < "$dir/work/out.jsonl"; else echo 0; fi; }

# batch_survives LAUNCHER FAULT...: a drain (the signal that comes before the time limit, to the batch script alone) puts
# the job back in the queue by itself; so does a requeue by hand.
batch_survives() {
  local job i how requests=160 launcher=$1
  shift
  rm -f "$dir/work/out.jsonl"
  write_requests $requests > "$dir/work/in.jsonl"
  job=$(submit LAUNCHER=$launcher OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 INPUT=in.jsonl OUTPUT=out.jsonl FLAGS="--tp 2 --dp 2 --threads 1 --max-seqs 4" $(sbatch_on_both "$root/launch/slurm/batch.sbatch")) || fail "sbatch batch"
  for how in "$@"; do
    local before
    before=$(answered)
    for ((i = 0; i < 300; ++i)); do
      [ "$(answered)" -gt "$before" ] && break
      sleep 0.1
    done
    if [ $how = drain ]; then on0 scancel --batch --signal=TERM "$job"; else on0 scontrol requeue "$job"; fi
    for ((i = 0; i < 100; ++i)); do
      [ "$(restarts "$job")" -ge "$([ $how = drain ] && echo 1 || echo 2)" ] && break
      [[ $(state "$job") =~ FAILED|TIMEOUT|CANCELLED ]] && fail "$launcher: the job ended on a $how instead of going back in the queue"
      sleep 0.1
    done
    # How fast a machine answers must not decide: what then follows is still checked.
    [ "$(answered)" -lt $requests ] || { echo "note: this machine had answered everything before the $how"; break; }
    [ "$(restarts "$job")" -gt 0 ] || fail "$launcher: a $how does not put the job back in the queue"
    echo "ok: $launcher, $how after $(answered) answers, $(restarts "$job") restarts"
    # Slurm holds a requeued job back until a time of its own choosing.
    for ((i = 0; i < 200; ++i)); do [ "$(state "$job")" = PENDING ] && break; sleep 0.1; done
    sleep 3                              # a job that starts in the second of its requeue may be refused by slurmd
    on0 scontrol update jobid="$job" StartTime=now > /dev/null 2>&1
  done
  wait_state "$job" COMPLETED 120
  [ "$(answered)" = $requests ] || fail "$(answered) answers instead of $requests"
  [ "$(sed 's/.*"custom_id":"\([^"]*\)".*/\1/' "$dir/work/out.jsonl" | sort -u | wc -l)" = $requests ] || fail "something was answered twice"
  echo "ok: batch by $launcher with $(restarts "$job") restarts: $requests answers, each once"
}

benches_end() {
  local bench scaling
  bench=$(submit LOAD="--num-prompts 4 --input-len 16 --output-len 8" LAUNCHER=mpirun FLAGS="--threads 1" RESULT=bench.json \
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 $(sbatch_on_both "$root/launch/slurm/bench.sbatch"))
  wait_state "$bench" "COMPLETED|FAILED" 40
  grep -q '"num_requests":4' "$dir/work/bench.json" || fail "bench over mpirun inside the allocation"
  echo "ok: bench by mpirun inside an allocation"
  scaling=$(submit LOAD="--num-prompts 4 --input-len 16 --output-len 8" FLAGS="--threads 1" FOLDER=scaling \
    $(sbatch_on_both "$root/launch/slurm/scaling.sbatch"))
  wait_state "$scaling" "COMPLETED|FAILED" 60
  [ "$(grep -c ' %$' "$dir/work/scaling/scaling.txt")" = 3 ] || fail "no table of 1, 2 and 4 ranks"
  grep -q "</svg>" "$dir/work/scaling/scaling.svg" || fail "no plot"
  cat "$dir/work/scaling/scaling.txt"
}

# The signal before the time limit lets an open stream end whole.
serve_drains() {
  local job=$1 stream i
  on0 curl -sN http://127.0.0.1:8077/v1/completions -H 'Content-Type: application/json' \
    -d '{"prompt": "In the beginning", "max_tokens": 300, "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}}' \
    > "$dir/stream" &
  stream=$!
  for ((i = 0; i < 100; ++i)); do [ "$(grep -c ^data "$dir/stream")" -gt 5 ] && break; sleep 0.02; done
  grep -q DONE "$dir/stream" && echo "note: the stream had ended before the signal"
  on0 scancel --batch --signal=TERM "$job"
  wait $stream
  grep -q '"completion_tokens":300' "$dir/stream" && grep -q '^data: \[DONE\]' "$dir/stream" || fail "the drain cut a stream off"
  wait_state "$job" "FAILED|COMPLETED" 30
  on0 scontrol -o show job "$job" | grep -q "ExitCode=10:0" || fail "serve ended with $(on0 scontrol -o show job "$job" | grep -o 'ExitCode=[0-9:]*')"
  echo "ok: serve drains: an open stream ended whole, exit code 10"
}

start_serve() {
  local i
  job=$(submit HOST=127.0.0.1 PORT=8077 FLAGS="--tp 2 --dp 2 --threads 1" $(sbatch_on_both "$root/launch/slurm/serve.sbatch"))
  for ((i = 0; i < 300; ++i)); do
    on0 curl -sf http://127.0.0.1:8077/health > /dev/null 2>&1 && break
    sleep 0.1
  done
  on0 curl -sf http://127.0.0.1:8077/v1/completions -H 'Content-Type: application/json' \
    -d '{"prompt": "In the beginning", "max_tokens": 4, "temperature": 0}' | grep -q '"completion_tokens":4' || fail "serve does not answer"
}

serve_ends() {
  local job i
  command -v curl > /dev/null || { echo "no curl: serve is not tried"; return; }
  start_serve
  serve_drains "$job"
  start_serve
  on0 scancel "$job"
  wait_state "$job" "CANCELLED|FAILED|COMPLETED" 15
  for ((i = 0; i < 50; ++i)); do
    [ -z "$(hosts_pids node0 latentmesh)$(hosts_pids node1 latentmesh)" ] && break
    sleep 0.1
  done
  [ -z "$(hosts_pids node0 latentmesh)$(hosts_pids node1 latentmesh)" ] || fail "ranks are left after scancel"
  echo "ok: serve answers, and scancel ends it"
}

# The text of a greedy answer of 300 tokens, streamed; "INCOMPLETE" where its end is missing.
stream_text() {
  on0 curl -sN --max-time 120 http://127.0.0.1:8078/v1/completions -H 'Content-Type: application/json' \
    -d '{"prompt": "In the beginning", "max_tokens": 300, "temperature": 0, "ignore_eos": true, "stream": true}' > "$1"
  grep -q '^data: \[DONE\]' "$1" || echo INCOMPLETE >> "$1"
  sed -n 's/^data: .*"text":"\(.*\)","logprobs".*/\1/p; /^INCOMPLETE/p' "$1" | tr -d '\n' > "$1.text"
}

wait_serving() {
  local i
  for ((i = 0; i < 900; ++i)); do
    on0 curl -s http://127.0.0.1:8078/metrics | grep -q "^latentmesh:engine_restarts_total $1" &&
      on0 curl -sf http://127.0.0.1:8078/health > /dev/null && return
    sleep 0.1
  done
  fail "no start number $1 of the ranks within 90 s"
}

# stream_through N FAULT...: a stream during which FAULT happens, which is the Nth; it must read as the undisturbed one.
stream_through() {
  local number=$1 i
  shift
  stream_text "$dir/s$number" &
  local stream=$!
  for ((i = 0; i < 200; ++i)); do
    [ "$(grep -c '^data' "$dir/s$number" 2> /dev/null)" -gt 5 ] && break
    sleep 0.02
  done
  "$@"
  wait_serving "$number"
  wait $stream
  cmp "$dir/s0.text" "$dir/s$number.text" || fail "the stream reads differently after: $*"
  echo "ok: a stream went on after: $*"
}

kill_rank_on() { kill -9 "$(hosts_pids "$1" latentmesh | tail -1)"; }

# The front end is the batch script itself.
resilient_start() {
  command -v curl > /dev/null || { echo "no curl: serve is not tried"; return 1; }
  job=$(submit RESILIENT=1 HOST=127.0.0.1 PORT=8078 LATENTMESH_QUIET_BINDING=1 \
    FLAGS="--tp 2 --dp 2 --threads 1 --max-seqs 4 --step-timeout 3 --idle-timeout 4" \
    $(sbatch_on_both --no-kill --signal=B:TERM@60 "$root/launch/slurm/serve.sbatch"))
  wait_serving 0
  stream_text "$dir/s0"
  [ "$(stat -c %s "$dir/s0.text")" -gt 300 ] || fail "no undisturbed text"
  if grep -q INCOMPLETE "$dir/s0.text"; then fail "the undisturbed stream is incomplete"; fi
}

resilient_stop() {
  local i
  grep -ho 'starting [0-9].*\|the ranks are .*' "$dir"/work/latentmesh-serve-"$job".log
  on0 scancel --signal=TERM --batch "$job"             # as --signal=B:TERM@60 does
  wait_state "$job" "CANCELLED|FAILED|COMPLETED" 30
  for ((i = 0; i < 100; ++i)); do
    [ -z "$(hosts_pids node0 latentmesh)$(hosts_pids node1 latentmesh)" ] && break
    sleep 0.1
  done
  [ -z "$(hosts_pids node0 latentmesh)$(hosts_pids node1 latentmesh)" ] || fail "ranks are left"
  grep -q "the server has shut down" "$dir"/work/latentmesh-serve-"$job".log || fail "it did not drain"
}

resilient_serve_goes_on() {
  local job
  resilient_start || return
  stream_through 1 kill_rank_on node1
  resilient_stop
  echo "ok: serve --resilient in a job"
}

# By hand: waits for more than 30 s of deadlines.
resilient_serve_loses_a_node() {
  local job
  resilient_start || return
  stream_through 1 hosts_cut node1
  grep -q 'starting 2 ranks .* on node0$' "$dir"/work/latentmesh-serve-"$job".log || fail "it did not go on with one node"
  echo "the job is $(state "$job") after the loss; nodes: $(on0 sinfo -h -N -o '%n %t' | paste -sd,)"
  sleep "${AFTER_LOSS:-25}"                              # SlurmdTimeout passes
  echo "the job is $(state "$job") after SlurmdTimeout; nodes: $(on0 sinfo -h -N -o '%n %t' | paste -sd,)"
  stream_text "$dir/s2"
  cmp "$dir/s0.text" "$dir/s2.text" || fail "no answer after SlurmdTimeout"
  hosts_kill_all node1
  resilient_stop
  echo "ok: serve --resilient goes on without a node"
}

start_slurm
on0 srun --mpi=list 2>&1 | grep -q pmix || hosts_skip "this Slurm has no pmix plugin"
echo "Slurm runs: $(on0 sinfo -h)"
# By hand: slurm_test.sh resilient_serve_loses_a_node build/latentmesh
if [ "$1" != slurm ]; then
  "$1"
  echo "passed: $1"
  exit
fi
srun_gives_the_same_text
batch_survives srun drain requeue
batch_survives mpirun drain
benches_end
serve_ends
resilient_serve_goes_on
echo "passed: slurm"
