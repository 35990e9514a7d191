#!/bin/bash
# speculation.sh PROGRAM [ROUNDS] [TOKENS] [BATCH]: decode rate of the demo model with drafts against without, on this
# machine. Every round runs all settings one after the other, so that drifts of the machine meet all of them; the table shows
# medians over the rounds. The texts of all settings are compared: drafts must not change a token. In batches, sampled texts may
# differ where a random number meets a boundary within rounding, as plain decoding's do between --max-seqs 5 and 16.
set -u
program=$1 rounds=${2:-5} tokens=${3:-1000} batch=${4:-1}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
texts=("In the beginning God created" "And it came to pass, when" "hacker: n. [originally, someone who makes" "Now these are the names of")
for ((i = 0; i < batch; i++)); do echo "${texts[i % 4]}"; done > "$work/prompts"
settings=("off" "mtp 1 fixed" "mtp 2 fixed" "mtp 3 fixed" "mtp 3 adaptive" "ngram 1 fixed" "ngram 2 fixed" "ngram 3 fixed" "ngram 3 adaptive")

run() {  # temperature, setting: prints "decode-rate tokens-a-verified-step acceptance-percent"; the text goes to $work/text
  local method count mode flags=()
  read -r method count mode <<< "$2"
  [ "$method" = off ] || flags=(--speculative "$method" --speculative-tokens "$count")
  [ "$mode" != fixed ] || flags+=(--speculative-fixed)
  "$program" generate --model "$root/launch/demo" --prompts-file "$work/prompts" --max-tokens "$tokens" --ignore-eos --seed 1 \
    --temperature "$1" --top-p 1 --stats "${flags[@]}" > "$work/out" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
  grep -v -e '^prefill:' -e '^drafts:' -e '^cache' "$work/out" > "$work/text"
  local drafts
  drafts=$(sed -n 's/^drafts:.*(\([0-9.]*\) %), \([0-9.]*\) tokens.*/\2 \1/p' "$work/out")
  echo "$(sed -n 's/^prefill:.*decode: .*, \([0-9.]*\) tokens.*/\1/p' "$work/out") ${drafts:-1.00 -}"
}
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

for temperature in 0 0.7; do
  others=""
  for ((round = 0; round < rounds; round++)); do
    for setting in "${settings[@]}"; do
      run $temperature "$setting" >> "$work/$temperature ${setting}" || exit 1
      [ -e "$work/text-$temperature" ] || cp "$work/text" "$work/text-$temperature"
      cmp -s "$work/text" "$work/text-$temperature" && continue
      [ "$batch" -gt 1 ] || { echo "WRONG: other text with $setting at temperature $temperature"; exit 1; }
      [[ "$others," == *", $setting,"* ]] || others="$others, $setting"
    done
  done
  echo "batch $batch, $tokens tokens a prompt, temperature $temperature; medians of $rounds runs"
  if [ -z "$others" ]; then echo "texts of all settings are equal"; else echo "texts differ from plain decoding's with${others#,}"; fi
  base=$(cut -d' ' -f1 "$work/$temperature off" | median)
  printf '%-18s %12s %10s %24s %12s\n' drafts tokens/s speed-up "tokens a verified step" "accepted %"
  for setting in "${settings[@]}"; do
    file="$work/$temperature $setting"
    rate=$(cut -d' ' -f1 "$file" | median)
    printf '%-18s %12.1f %10.3f %24s %12s\n' "$setting" "$rate" "$(awk "BEGIN { print $rate / $base }")" \
      "$(cut -d' ' -f2 "$file" | median)" "$(cut -d' ' -f3 "$file" | median)"
  done
done
