# Shell functions to run a command against a server with the demo model. Source it.

skip() { echo "skipped: $*"; exit 77; }

# start_server PROGRAM RANKS FLAGS...: sets SERVER_URL and SERVER_PID (of rank 0's launcher); stopped at exit.
start_server() {
  local program=$1 ranks=$2 log
  shift 2
  . launch/lib.sh
  set_mpirun
  log=$(mktemp)
  "${MPIRUN[@]}" -n "$ranks" "$program" serve --model launch/demo --port 0 --threads 1 "$@" >"$log" 2>&1 &
  SERVER_PID=$!
  trap 'kill -TERM "$SERVER_PID" 2>/dev/null; wait "$SERVER_PID" 2>/dev/null; rm -f "$log"' EXIT
  for _ in $(seq 300); do
    SERVER_URL=$(sed -n 's/.* on \(http:[^ ]*\)$/\1/p' "$log" | head -n 1)
    if [ -n "$SERVER_URL" ]; then return 0; fi
    kill -0 "$SERVER_PID" 2>/dev/null || break
    sleep 0.2
  done
  cat "$log"
  echo "the server did not start"
  exit 1
}
