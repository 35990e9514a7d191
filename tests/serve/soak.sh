#!/usr/bin/env bash
# Many streams for a long time against the demo model over 4 CPU ranks:
#   tests/serve/soak.sh PROGRAM SERVE_BENCH [SECONDS [STREAMS]]      defaults: 600 s, 1000 streams
# Fails when a stream was lost, when a rank's resident memory grew by more than 2 % and 4 MiB after the first minute, or, in
# runs of five minutes and more, when the front end's own delay (engine output to bytes written, as /metrics counts it) is
# above 5 ms at the 99th percentile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/serve/with_server.sh
program=$1 bench=$2 seconds=${3:-600} streams=${4:-1000}
command -v curl >/dev/null || skip "no curl"
# A cache small enough to be all touched within the first minute: its pages count as resident only once they were used.
start_server "$program" 4 --tp 2 --dp 2 --max-queue 4096 --kv-memory 64MB
work=$(mktemp -d)

resident() {                             # kB of each rank, the launcher's children
  local pid
  for pid in $(pgrep -P "$SERVER_PID"); do awk '/^VmRSS/ {print $2}' "/proc/$pid/status" 2>/dev/null || true; done | xargs
}
sample() { while sleep 10; do echo "$(resident)"; done >"$work/resident"; }
sample &
sampler=$!
status=0
"$bench" --port "${SERVER_URL##*:}" "$streams" "$seconds" 64 || status=$?
kill "$sampler" 2>/dev/null || true
curl -s "$SERVER_URL/metrics" >"$work/metrics"
curl -sf "$SERVER_URL/health" >/dev/null || { echo "the server is not healthy after the load"; status=1; }

awk -v judged=$((seconds >= 300)) '/front_end_delay_seconds_bucket/ { match($0, /le="[^"]*"/); bound = substr($0, RSTART + 4, RLENGTH - 5)
       counts[++n] = $2; bounds[n] = bound }
     END { total = counts[n]
       for (i = 1; i <= n; ++i) if (bounds[i] == "0.005") within = counts[i]
       for (i = 1; i <= n && counts[i] < 0.99 * total; ++i);
       printf "front end: %d events, %.3f %% within 5 ms, p99 at most %s s\n", total, 100 * within / total, bounds[i]
       if (total == 0 || (judged && within < 0.99 * total)) { print "the front end is too slow"; exit 1 } }' \
  "$work/metrics" || status=1
grep -E '^latentmesh:(num_requests_running|num_requests_waiting|generation_tokens_total|http_errors_total)' "$work/metrics"
awk 'NR == 7 { for (i = 1; i <= NF; ++i) start[i] = $i }        # after the first minute
     NR >= 7 { for (i = 1; i <= NF; ++i) if ($i > peak[i]) peak[i] = $i; ranks = NF }
     END { for (i = 1; i <= ranks; ++i) { printf "rank process %d: %d kB after a minute, %d kB at most after it\n", i, start[i], peak[i]
             if (peak[i] > 1.02 * start[i] + 4096) bad = 1 }
           if (!ranks) print "memory: too short a run to say"
           if (bad) { print "memory grew"; exit 1 } }' "$work/resident" || status=1
rm -rf "$work"
exit "$status"
