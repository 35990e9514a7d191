#!/usr/bin/env bash
# guidellm, a public load generator, against the demo model over 2 ranks: guidellm.sh PROGRAM [GUIDELLM]. Installs it in a
# temporary environment (6 GB with its torch, 82 s on a fast line); skipped (77) where it is not to be had. A test only with
# -DLATENTMESH_LONG_TESTS=ON; GUIDELLM names one that is installed already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/serve/with_server.sh
work=$(mktemp -d)
guidellm=${2:-}
if [ -z "$guidellm" ]; then
  [ "$(df --output=avail -k "$work" | tail -n 1)" -gt 12000000 ] || skip "less than 12 GB free"
  python3 -m venv "$work/venv" 2>/dev/null || skip "no python3 venv"
  timeout 240 "$work/venv/bin/pip" -q install --no-cache-dir guidellm >/dev/null 2>&1 || { rm -rf "$work"; skip "pip cannot install guidellm"; }
  guidellm=$work/venv/bin/guidellm
fi
start_server "$1" 2 --tp 2
status=0
HF_HUB_OFFLINE=1 timeout 120 "$guidellm" run --backend "kind=openai_http,target=$SERVER_URL" --tokenizer kind=hf_auto \
  --data "kind=synthetic_text,prompt_tokens=32,output_tokens=16" --profile "kind=concurrent,streams=4" \
  --constraint "kind=max_requests,count=24" --output "kind=json,path=$work/report.json" --disable-progress || status=$?
if [ "$status" = 0 ]; then
  python3 - "$work/report.json" <<'PYTHON' || status=1
import json, sys
metrics = json.load(open(sys.argv[1]))["benchmarks"][0]["metrics"]
done, failed = metrics["request_totals"]["successful"], metrics["request_totals"]["errored"]
tokens = metrics["output_token_count"]["successful"]["mean"]
print(f"guidellm: {done} requests, {failed} failed, {tokens} tokens each")
assert done == 24 and failed == 0 and tokens == 16, "not what was asked for"
PYTHON
fi
rm -rf "$work"
exit "$status"
