# Rows of the tables that the scripts beside this print. Source it; it prints a table's head.
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
failed=0
echo "| what | figure | bound | reached |"
echo "|---|---|---|---|"
# row NAME FIGURE BOUND yes|no: a bound that is not kept fails the script; a rate only says so.
row() { rate "$@"; [[ $4 == no ]] && failed=1; return 0; }
rate() { printf '| %-58s | %-38s | %-30s | %-3s |\n' "$@"; }
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { print (a != "" && a + 0 <= b + 0) ? "yes" : "no" }'; }
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { print (a != "" && a + 0 >= b + 0) ? "yes" : "no" }'; }
# near VALUE EXACT SHARE: yes if they differ by no more than SHARE of EXACT.
near() { awk -v a="${1:-0}" -v b="${2:-1}" -v m="$3" 'BEGIN { d = (a - b) / b; print ((d < 0 ? -d : d) <= m) ? "yes" : "no" }'; }
# beside COMMAND...: runs it in the background, beside at most four others.
beside() {
  while (($(jobs -rp | wc -l) >= 5)); do wait -n; done
  "$@" &
}
