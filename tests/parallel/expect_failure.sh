#!/bin/bash
# expect_failure.sh EXIT_CODE SECONDS TEXT COMMAND...: passes if the command ends by itself within SECONDS with that
# exit code ("any": any but 0) and has printed TEXT, a basic regular expression. Passes code 6 (no such hardware) on.
set -u
code=$1 seconds=$2 text=$3
shift 3
fail() { echo "FAILED: $1"; exit 1; }

started=$SECONDS
output=$(timeout --kill-after=2 "$seconds" "$@" 2>&1)
got=$?
printf '%s\n(exit code %s after %s s)\n' "$output" "$got" $((SECONDS - started))
[ $((SECONDS - started)) -lt "$seconds" ] || fail "did not end within $seconds s"
[ "$got" != 0 ] || fail "succeeded"
[ "$got" != 6 ] || [ "$code" = 6 ] || exit 6      # the hardware is missing: the test is skipped
[ "$code" = any ] || [ "$got" = "$code" ] || fail "expected exit code $code"
grep -q -- "$text" <<< "$output" || fail "the output lacks: $text"
