# Shell functions to run a command against a server with the demo model. Source it.

skip() { echo "skipped: $*"; exit 77; }

# The exit code of the test stays what it was: a drained server ends with 10.
stop_server() {
  kill -TERM "$SERVER_PID" 2>/dev/null || true
  wait "$SERVER_PID" 2>/dev/null || true
  rm -f "$SERVER_LOG"
}

# start_server PROGRAM RANKS FLAGS...: sets SERVER_URL and SERVER_PID (of rank 0's launcher); stopped at exit.
start_server() {
  local program=$1 ranks=$2
  shift 2
  . launch/lib.sh
  set_mpirun
  SERVER_LOG=$(mktemp)
  "${MPIRUN[@]}" -n "$ranks" "$program" serve --model launch/demo --port 0 --threads 1 "$@" >"$SERVER_LOG" 2>&1 &
  SERVER_PID=$!
  trap stop_server EXIT
  for _ in $(seq 300); do
    SERVER_URL=$(sed -n 's/.* on \(http:[^ ]*\)$/\1/p' "$SERVER_LOG" | head -n 1)
    if [ -n "$SERVER_URL" ]; then return 0; fi
    kill -0 "$SERVER_PID" 2>/dev/null || break
    sleep 0.2
  done
  cat "$SERVER_LOG"
  echo "the server did not start"
  exit 1
}
