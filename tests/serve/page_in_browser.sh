#!/usr/bin/env bash
# The page in a real browser: page_in_browser.sh PROGRAM [SCREENSHOT.png]. Skipped (77) without chromium.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/serve/with_server.sh
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || skip "no chromium"
start_server "$1" 2 --tp 2
work=$(mktemp -d)
flags=(--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars "--user-data-dir=$work/profile")
curl -s "$SERVER_URL/v1/completions" -d '{"prompt": "In the beginning", "max_tokens": 300, "n": 4, "ignore_eos": true}' >/dev/null
for _ in 1 2 3 4 5 6; do
  curl -s "$SERVER_URL/v1/completions" -d '{"prompt": "And it came to pass", "max_tokens": 1500, "n": 4, "ignore_eos": true, "seed": 2}' >/dev/null &
done
timeout 90 "$browser" "${flags[@]}" --timeout=6000 --virtual-time-budget=6000 --dump-dom "$SERVER_URL/" >"$work/dom.html" 2>"$work/log" || true
if [ $# -gt 1 ]; then
  timeout 90 "$browser" "${flags[@]}" --timeout=6000 --virtual-time-budget=6000 --window-size=1100,900 "--screenshot=$2" "$SERVER_URL/" >/dev/null 2>&1 || true
fi
fail() { echo "$1"; head -c 3000 "$work/dom.html"; tail -n 5 "$work/log"; exit 1; }
grep -q 'id="state"[^>]*>live<' "$work/dom.html" || fail "the page did not come alive"
grep -q 'rank 1' "$work/dom.html" || fail "no expert load by rank"
grep -q 'times the layer.s mean: <span id="heatmost">0 to [0-9]' "$work/dom.html" || fail "no loads by layer and expert"
grep -qE 'id="running">[0-9]' "$work/dom.html" || fail "no running requests"
grep -q 'First token' "$work/dom.html" || fail "no latencies"
echo "the page is live in $("$browser" --version 2>/dev/null | head -n 1)"
rm -rf "$work"
