#!/usr/bin/env bash
# Runs the commands of README.md's ```sh blocks: tests/integration/readme_commands.sh PROGRAM
# `build/latentmesh` stands for PROGRAM. Blocks marked ```sh cluster need nodes, a scheduler or half an hour: of those
# the latentmesh commands run through an equivalent mpirun on this machine with the demo model. In blocks marked
# ```sh serve a server stays up for the commands that follow it, on a port of the test's own.
set -uo pipefail
program=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 2
source launch/lib.sh
set_mpirun
work=$(mktemp -d)
server=
trap 'stop_server; rm -rf "$work"' EXIT
failures=0 count=0

block() { awk -v fence="\`\`\`$1" '$0 == fence { on = 1; next } /^```/ { on = 0 } on' README.md; }

# What the README takes for granted: the program's place and the files of its examples.
localize() {
  local command=${1//build\/latentmesh/$program}
  command=${command//requests.jsonl/$work/requests.jsonl}
  echo "${command//results.jsonl/$work/results.jsonl}"
}
# With the flags that let mpirun work as root on few cores.
localize_mpirun() { localize "${1/#mpirun --oversubscribe/${MPIRUN[*]}}"; }
# Four ranks here for the ranks of a cluster, and the demo model for the large one.
localize_cluster() {
  local arguments=${1#*build/latentmesh }
  arguments=${arguments//\/models\/DeepSeek-V3/launch/demo}
  arguments=${arguments//--tp 4 --dp 4/--tp 2 --dp 2 --max-tokens 8}
  localize "${MPIRUN[*]} -n 4 build/latentmesh $arguments"
}

run() {
  count=$((count + 1))
  echo "\$ $1"
  if ! bash -c "$1" < /dev/null > "$work/output" 2>&1; then      # mpirun would read the list of commands
    echo "FAILED: $1"
    cat "$work/output"
    failures=$((failures + 1))
  fi
}

# Starts a server and waits until it answers; it ends by itself after two minutes.
serve() {
  stop_server
  count=$((count + 1))
  echo "\$ $1"
  PROGRAM=$program RANKS=2 timeout 120 bash -c "exec $1" < /dev/null > "$work/server" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null && return
    kill -0 "$server" 2> /dev/null || break
    sleep 0.2
  done
  echo "FAILED: $1 does not listen"
  cat "$work/server"
  failures=$((failures + 1))
}
# mpirun may end before its ranks: until the port is free the next server's callers would be answered by this one.
stop_server() {
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2> /dev/null && wait "$server" 2> /dev/null
  for _ in $(seq 100); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
    sleep 0.2
  done
  server=
}
port=$((20000 + $$ % 20000))
echo secret > "$work/key.txt"
localize_serve() {
  local command=${1//8000/$port}
  command=${command//key.txt/$work/key.txt}
  command=${command//--host 0.0.0.0/--host 127.0.0.1 --port $port}
  case $command in
    build/latentmesh*) command=$(localize "$command") ;;
    mpirun*) command=$(localize_cluster "${command//--tp 4 --dp 4/--tp 2 --dp 2}") ;;
  esac
  echo "$command"
}

echo '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "And", "max_tokens": 4}}' \
  > "$work/requests.jsonl"
while IFS= read -r command; do
  case $command in
    launch/demo.sh) bash -n launch/demo.sh || failures=$((failures + 1)) ;;      # builds: run by people
    ?*) run "$(localize_mpirun "$command")" ;;
  esac
done < <(block sh)
while IFS= read -r command; do
  case $command in
    tests/run.sh) [ -x tests/run.sh ] || failures=$((failures + 1)) ;;      # this very test run
    *build/latentmesh*) run "$(localize_cluster "$command")" ;;
    ?*) echo "FAILED: no rule to try '$command'"; failures=$((failures + 1)) ;;
  esac
done < <(block 'sh cluster')

while IFS= read -r command; do
  case $command in
    *" serve "*) serve "$(localize_serve "$command")" ;;
    curl*) if command -v curl > /dev/null; then run "$(localize_serve "$command") -f --max-time 60"; else echo "skipped: no curl"; fi ;;
    ?*) echo "FAILED: no rule to try '$command'"; failures=$((failures + 1)) ;;
  esac
done < <(block 'sh serve')
stop_server

[ "$count" -ge 9 ] || { echo "FAILED: only $count commands were found in README.md"; failures=$((failures + 1)); }
[ -s "$work/results.jsonl" ] || { echo "FAILED: batch wrote no results"; failures=$((failures + 1)); }
echo "$count commands of README.md, $failures failures"
exit "$failures"
