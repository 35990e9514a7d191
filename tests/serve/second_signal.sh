#!/usr/bin/env bash
# SIGTERM drains: the running stream goes on, new requests and /health get 503. A second one stops at once, with the same
# exit code. second_signal.sh PROGRAM
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/serve/with_server.sh
command -v curl >/dev/null || skip "no curl"
work=$(mktemp -d)
"$1" serve --model launch/demo --port 0 --threads 1 --drain-timeout 300 >"$work/log" 2>&1 &
server=$!
trap 'kill -9 $server 2>/dev/null || true; rm -rf "$work"' EXIT
fail() { echo "$1"; cat "$work/log"; exit 1; }
wait_for() { for _ in $(seq 300); do "$@" && return 0; sleep 0.1; done; return 1; }
url() { sed -n 's/.* on \(http:[^ ]*\)$/\1/p' "$work/log" | head -n 1; }
started() { [ -n "$(url)" ]; }
wait_for started || fail "the server did not start"
url=$(url)

# Three streams of the longest sequence: minutes of work.
for _ in 1 2 3; do
  curl -sN "$url/v1/completions" -d '{"prompt": [0], "max_tokens": 900, "n": 16, "ignore_eos": true, "stream": true}' >>"$work/stream" &
done
streaming() { [ "$(wc -c <"$work/stream")" -gt 2000 ]; }
wait_for streaming || fail "no stream started"
kill -TERM "$server"
draining() { [ "$(curl -s -o /dev/null -w '%{http_code}' "$url/health")" = 503 ]; }
wait_for draining || fail "/health is not 503 while draining"
[ "$(curl -s -o /dev/null -w '%{http_code}' "$url/v1/completions" -d '{"prompt": [0]}')" = 503 ] ||
  fail "a new request was taken while draining"
kill -0 "$server" || fail "the first signal ended the server although a stream was running"
grep -q '\[DONE\]' "$work/stream" && fail "the streams ended too soon for this test"
kill -TERM "$server"
ended() { ! kill -0 "$server" 2>/dev/null; }
wait_for ended || fail "the second signal did not stop the server"
code=0
wait "$server" || code=$?
[ "$code" = 10 ] || fail "exit code $code instead of 10"
echo "drained at the first signal, stopped at the second"
