#!/usr/bin/env bash
# The official openai Python client against the demo model over 2 ranks: openai_client.sh PROGRAM. Skipped (77) where the
# client is not to be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/serve/with_server.sh
work=$(mktemp -d)
python3 -m venv "$work" 2>/dev/null || skip "no python3 venv"
timeout 200 "$work/bin/pip" -q install openai >/dev/null 2>&1 || skip "pip cannot install openai"
start_server "$1" 2 --tp 2
"$work/bin/python" tests/serve/openai_client.py "$SERVER_URL/v1"
rm -rf "$work"
