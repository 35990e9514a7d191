#!/bin/bash
# cluster_test.sh CASE PROGRAM: one test over several hosts (hosts.sh). Exit code 77: skipped, and why.
set -u
case=$1
export PROGRAM=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
. "$here/hosts.sh"
model=$root/launch/demo
prompt=(--prompt "And it came to pass" --temperature 0 --threads 1 --log-level warn)
endless=("${prompt[@]}" --ignore-eos --max-tokens 4000 --max-seqs 1 --step-timeout 3 --idle-timeout 4)
name=$(basename "$PROGRAM")
name=${name:0:15}

fail() {
  echo "FAILED: $1"
  for file in "$hosts_files"/*.err; do tail -n 15 "$file" | sed 's/^/  | /'; done
  exit 1
}

seconds_since() { echo $(($(date +%s%3N) - $1)); }

# Starts an endless job over 3 hosts and waits until it streams.
start_endless() {
  hosts_mpirun 3 1 generate --model "$model" "$@" "${endless[@]}" > "$hosts_files/out" 2> "$hosts_files/job.err" &
  job=$!
  for ((i = 0; i < 300; ++i)); do
    [ "$(stat -c %s "$hosts_files/out")" -gt 40 ] && return
    kill -0 $job 2> /dev/null || fail "the job ended before it streamed"
    sleep 0.1
  done
  fail "the job does not stream"
}

# expect_end CODE SECONDS TEXT: the job ends by itself with that code, nothing is left on any host, the last lines have
# TEXT (an extended regular expression).
expect_end() {
  local since node
  since=$(date +%s%3N)
  for ((i = 0; i < $2 * 10; ++i)); do
    kill -0 $job 2> /dev/null || break
    sleep 0.1
  done
  kill -0 $job 2> /dev/null && fail "mpirun still runs after $2 s"
  wait $job
  local code=$? left
  while :; do
    left=""
    for node in 0 1 2; do left+=$(hosts_pids node$node "$name"); done
    [ -n "$left" ] && [ $((++i)) -lt $(($2 * 10)) ] || break
    sleep 0.1
  done
  [ -z "$left" ] || fail "ranks are left after $2 s: $left"
  echo "all ranks had ended $(seconds_since "$since") ms after the fault, exit code $code"
  tail -n 6 "$hosts_files/job.err"
  [ "$code" = "$1" ] || fail "exit code $code instead of $1"
  tail -n 6 "$hosts_files/job.err" | grep -Eq "$3" || fail "the last lines lack: $3"
}

# server_drains PID SECONDS: on SIGTERM to PID the job ends within SECONDS, with exit code 10.
server_drains() {
  local i code
  kill -TERM "$1"
  for ((i = 0; i < $2 * 10; ++i)); do
    kill -0 $job 2> /dev/null || break
    sleep 0.1
  done
  kill -0 $job 2> /dev/null && fail "the server does not end on SIGTERM"
  wait $job
  code=$?
  [ $code = 10 ] || fail "exit code $code instead of 10 on SIGTERM"
}

# Process numbers start anew now and then: the front end's need not be below its ranks'.
front_end_pid() {
  local pid
  for pid in $(hosts_pids node0 "$name"); do
    tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q -- --resilient && echo "$pid"
  done
}

rank_of() { hosts_pids "$1" "$name" | head -1; }

# ---- layouts ----

layouts() {
  local layout
  "$PROGRAM" generate --model "$model" "${prompt[@]}" --max-tokens 24 > "$hosts_files/alone" 2> "$hosts_files/a.err" || fail "alone"
  [ -s "$hosts_files/alone" ] || fail "no text alone"
  for layout in "--dp 3" "--pp 3"; do same_over_hosts 3 1 $layout; done
  for layout in "--tp 2" "--tp 2 --cp 2"; do same_over_hosts 2 1 $layout; done
  same_over_hosts 3 2 --pp 3 --tp 2
}

same_over_hosts() {
  hosts_mpirun "$1" "$2" generate --model "$model" "${@:3}" "${prompt[@]}" --max-tokens 24 \
    > "$hosts_files/over" 2> "$hosts_files/b.err" || fail "${*:3} over $1 hosts: exit code $?"
  cmp "$hosts_files/alone" "$hosts_files/over" || fail "${*:3} over $1 hosts gives another text"
  echo "ok: ${*:3} over $1 hosts, $2 ranks each"
}

# ---- preflight ----

# Names the network in use, refuses where RDMA was asked for, and blames the host whose link is a hundred times slower.
# The slow factor is far above what taking turns on two cores does to three "hosts".
preflight() {
  run_preflight || fail "preflight of three equal hosts: exit code $?"
  grep -q "TCP over eth0" "$hosts_files/out" || fail "the network is not named"
  grep -q '"transport":"TCP over eth0' "$hosts_files/preflight.json" || fail "no transport in the JSON"
  grep -q '"host":"node2"' "$hosts_files/preflight.json" || fail "node2 is not in the JSON"
  code=0
  run_preflight --require-rdma || code=$?
  [ "$code" = 6 ] && grep -q "require-rdma: rank . on node. has no active InfiniBand" "$hosts_files/job.err" || fail "--require-rdma over TCP: exit code $code"
  hosts_limit node2 20mbit
  code=0
  run_preflight || code=$?
  [ "$code" = 5 ] || fail "a slow host: exit code $code"
  grep -q "rank 2 on node2 is slow: . of its . measured links are" "$hosts_files/out" || fail "node2 is not blamed"
  tail -n 4 "$hosts_files/out"
}

run_preflight() {
  hosts_mpirun 3 1 preflight --model "$model" --threads 1 --slow-factor 20 --json "$hosts_files/preflight.json" "$@" \
    > "$hosts_files/out" 2> "$hosts_files/job.err"
}

# ---- faults ----

kill_rank() {
  start_endless --dp 3
  kill -9 "$(rank_of node2)"
  expect_end 8 10 "rank 2 on node2: (step [0-9]+, .+|waiting for the next plan): killed by signal 9 \(SIGKILL\)"
}

stop_rank() {
  start_endless --dp 3
  kill -STOP "$(rank_of node1)"
  expect_end 9 13 "rank [02] \(.*\) on node[02], step [0-9]+, .*: no progress for 3 s, waiting for .*rank 1 on node1"
}

stop_scheduler() {
  start_endless --pp 3
  kill -STOP "$(rank_of node0)"
  expect_end 9 14 "rank [12] .* on node[12].*: no progress for [34] s, waiting for .*rank 0 on node0"
}

cut_link() {
  start_endless --dp 3
  hosts_cut node2
  expect_end 9 14 "rank [01] \(.*\) on node[01], step [0-9]+, .*: no progress for 3 s, waiting for .*rank 2 on node2"
}

worker_throws() {
  start_endless --dp 3 --inject-fault throw@1:60
  expect_end 1 20 "rank 1 on node1: step 60, computing: failed on purpose"
}

corrupt_message() {
  start_endless --dp 3 --check-collectives --inject-fault corrupt@2:60
  expect_end 8 20 "step 6[0-9], --check-collectives: group (ep|world|tp): .*rank [0-2] on node[0-2] "
}

# One host's processes may have less memory than the plan was promised.
no_memory() {
  cat > "$hosts_files/limited" <<SCRIPT
#!/bin/bash
[ "\$(hostname)" = node1 ] && ulimit -v 900000
exec "$PROGRAM" "\$@"
SCRIPT
  chmod +x "$hosts_files/limited"
  PROGRAM=$hosts_files/limited hosts_mpirun 3 1 generate --model "$model" --dp 3 "${prompt[@]}" --kv-memory 2GB \
    --max-tokens 8 --step-timeout 5 > /dev/null 2> "$hosts_files/job.err" &
  job=$!
  expect_end 4 20 "(rank 1 on node1|\(rank 1 on node1\))"
}

# A step longer than --step-timeout is a fault, a shorter one is not, on the scheduler rank and on another.
long_step() {
  local rank
  for rank in 0 1; do
    hosts_mpirun 3 1 generate --model "$model" --dp 3 "${prompt[@]}" --max-tokens 8 --step-timeout 6 --idle-timeout 2 \
      --inject-fault slow@$rank:3:4 > "$hosts_files/out" 2> "$hosts_files/job.err" || fail "4 s on rank $rank: exit code $?"
  done
  hosts_mpirun 3 1 generate --model "$model" --dp 3 "${prompt[@]}" --max-tokens 8 --step-timeout 2 --idle-timeout 2 \
    --inject-fault slow@1:3:60 > "$hosts_files/out" 2> "$hosts_files/job.err" &
  job=$!
  expect_end 9 20 "step 3, .*: no progress for 2 s, waiting for .*rank 1 on node1"
}

# Results on a full disk: exit code 7 names the file; with room again the same command finishes, nothing lost or twice.
full_disk() {
  local disk=$hosts_files/disk i
  mkdir "$disk"
  mount -t tmpfs -o size=16k tmpfs "$disk" || hosts_skip "mounting a tmpfs is not permitted here"
  hosts_cleanup+=("umount -l $disk")
  for ((i = 0; i < 40; ++i)); do
    echo "{\"custom_id\": \"r$i\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"Chapter $i\", \"max_tokens\": 16, \"temperature\": 0}}"
  done > "$hosts_files/in.jsonl"
  run_batch > /dev/null 2> "$hosts_files/job.err" &
  job=$!
  expect_end 7 60 "cannot (write to|flush) $disk/out.jsonl: No space left on device"
  mount -o remount,size=1m "$disk"
  run_batch > /dev/null 2> "$hosts_files/job.err" || fail "with room again: exit code $?"
  check_results "$disk/out.jsonl" 40
}

run_batch() {
  hosts_mpirun 3 1 batch --model "$model" --dp 3 --threads 1 --max-seqs 4 --log-level info \
    --input "$hosts_files/in.jsonl" --output "$hosts_files/disk/out.jsonl"
}

# Every line whole and answered once.
check_results() {
  local ids
  [ "$(wc -l < "$1")" = "$2" ] || fail "$(wc -l < "$1") lines of results instead of $2"
  grep -vq '^{.*"status_code":200.*}$' "$1" && fail "a line of results is damaged or has an error"
  ids=$(sed 's/.*"custom_id":"\([^"]*\)".*/\1/' "$1" | sort -u | wc -l)
  [ "$ids" = "$2" ] || fail "$ids different custom_ids instead of $2"
  echo "ok: $2 lines, each answered once"
}

# SIGTERM to launch/mpirun.sh: the batch ends with what it has, and goes on from there.
drain() {
  local i
  mkdir -p "$hosts_files/disk"
  for ((i = 0; i < 24; ++i)); do
    echo "{\"custom_id\": \"r$i\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"Chapter $i\", \"max_tokens\": 100, \"temperature\": 0, \"ignore_eos\": true}}"
  done > "$hosts_files/in.jsonl"
  run_batch > /dev/null 2> "$hosts_files/job.err" &
  job=$!
  for ((i = 0; i < 300; ++i)); do
    [ -s "$hosts_files/disk/out.jsonl" ] && break
    sleep 0.1
  done
  kill -TERM "$(hosts_pids node0 mpirun.sh | head -1)"
  expect_end 10 10 "stopped by SIG.*lines answered"
  [ "$(wc -l < "$hosts_files/disk/out.jsonl")" -lt 24 ] || fail "it was done before the signal: the test is too short"
  run_batch > /dev/null 2> "$hosts_files/job.err" || fail "the second run: exit code $?"
  check_results "$hosts_files/disk/out.jsonl" 24
}

# An idle server outlives its timeouts many times over, and still answers.
idle_server() {
  command -v curl > /dev/null || hosts_skip "curl is not installed"
  "$PROGRAM" --help | grep -q serve || hosts_skip "this program has no serve"
  hosts_mpirun 3 1 serve --model "$model" --dp 3 --threads 1 --host 127.0.0.1 --port 8077 --step-timeout 2 --idle-timeout 2 \
    > "$hosts_files/out" 2> "$hosts_files/job.err" &
  job=$!
  for ((i = 0; i < 300; ++i)); do
    hosts_on node0 curl -sf http://127.0.0.1:8077/health > /dev/null && break
    kill -0 $job 2> /dev/null || fail "the server ended at once"
    sleep 0.1
  done
  sleep 15
  hosts_on node0 curl -sf http://127.0.0.1:8077/v1/completions -H 'Content-Type: application/json' \
    -d '{"prompt": "In the beginning", "max_tokens": 4, "temperature": 0}' | grep -q '"completion_tokens":4' ||
    fail "no answer after 15 idle seconds"
  server_drains "$(hosts_pids node0 mpirun.sh | head -1)" 10
  echo "ok: answered after 15 idle seconds with timeouts of 2, ended on SIGTERM with 10"
}

# ---- serve --resilient: a host's link is cut, then ranks are killed on another; the streams go on over what is left ----

# The text of a greedy answer of 300 tokens, streamed; "INCOMPLETE" where its end is missing.
stream_text() {
  hosts_on node0 curl -sN --max-time 100 http://127.0.0.1:8078/v1/completions -H 'Content-Type: application/json' \
    -d '{"prompt": "In the beginning", "max_tokens": 300, "temperature": 0, "ignore_eos": true, "stream": true}' > "$1"
  grep -q '^data: \[DONE\]' "$1" || echo INCOMPLETE >> "$1"
  sed -n 's/^data: .*"text":"\(.*\)","logprobs".*/\1/p; /^INCOMPLETE/p' "$1" | tr -d '\n' > "$1.text"
}

wait_restarts() {
  local i
  for ((i = 0; i < 600; ++i)); do
    hosts_on node0 curl -s http://127.0.0.1:8078/metrics | grep -q "^latentmesh:engine_restarts_total $1" &&
      hosts_on node0 curl -sf http://127.0.0.1:8078/health > /dev/null && return
    kill -0 $job 2> /dev/null || fail "the server has ended"
    sleep 0.1
  done
  fail "no restart number $1 within 60 s"
}

# stream_through N FAULT...: a stream during which FAULT happens, which is the Nth; it must read as the undisturbed one.
stream_through() {
  local number=$1 i
  shift
  stream_text "$hosts_files/s$number" &
  local stream=$!
  for ((i = 0; i < 100; ++i)); do
    [ "$(grep -c '^data' "$hosts_files/s$number" 2> /dev/null)" -gt 5 ] && break
    sleep 0.02
  done
  "$@"
  wait_restarts "$number"
  wait $stream
  cmp "$hosts_files/s0.text" "$hosts_files/s$number.text" || fail "the stream reads differently after: $*"
  echo "ok: a stream went on after: $*"
}

kill_rank_on() { kill -9 "$(rank_of "$1")"; }

resilient() {
  command -v curl > /dev/null || hosts_skip "curl is not installed"
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm_rsh_agent=$hosts_files/agent
  export OMPI_MCA_plm=rsh OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp OMPI_MCA_mpi_yield_when_idle=1
  export OMPI_MCA_btl_vader_single_copy_mechanism=none LATENTMESH_QUIET_BINDING=1 NETWORK=10.77.0.0/24
  # A host that answers refuses the connection.
  hosts_on node0 "$PROGRAM" serve --resilient --hosts node0,node1,node2 --ranks 3 --model "$model" --dp 3 --threads 1 \
    --max-seqs 4 --port 8078 --step-timeout 3 --idle-timeout 4 \
    --probe "timeout 3 bash -c '< /dev/tcp/{host}/9' 2>&1 | grep -q refused" \
    > "$hosts_files/out" 2> "$hosts_files/job.err" &
  job=$!
  wait_restarts 0
  stream_text "$hosts_files/s0"
  [ "$(stat -c %s "$hosts_files/s0.text")" -gt 300 ] || fail "no undisturbed text"
  grep -q INCOMPLETE "$hosts_files/s0.text" && fail "the undisturbed stream is incomplete"
  stream_through 1 hosts_cut node2
  stream_through 2 kill_rank_on node1
  stream_through 3 kill_rank_on node1
  grep -o 'starting .*' "$hosts_files/job.err"
  grep -q 'starting 2 ranks .* on node0,node1' "$hosts_files/job.err" || fail "it did not go on with two hosts"
  grep -q 'starting 1 ranks .* on node0$' "$hosts_files/job.err" || fail "node1 was not left out after two deaths"
  server_drains "$(front_end_pid)" 20
  for node in 0 1; do [ -z "$(hosts_pids node$node "$name")" ] || fail "ranks are left on node$node"; done
}

hosts_create 3
$case || fail "$case"
echo "passed: $case"
