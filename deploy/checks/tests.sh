#!/usr/bin/env bash
# Every test, in parts of which three (TEST_PARTS_AT_ONCE) run at the same time: those of the whole
# mesh mostly wait, those of packages compute. Long ones come first, so that all end together. A
# part's output is printed when it has ended; what failed is named once more at the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
LOGS="$(mktemp -d)"
export LOGS
trap 'rm -rf "$LOGS"' EXIT

run_part() {
  local start=$SECONDS status=0 log="$LOGS/${1//\//-}"
  # shellcheck disable=SC2086 # a part may be several folders
  .venv/bin/python -m pytest ${1//,/ } -o "cache_dir=.pytest_cache/${1//\//-}" >"$log" 2>&1 ||
    status=$?
  flock "$LOGS" cat "$log"
  echo "tests of ${1//,/, }: $((SECONDS - start)) s"
  return "$status"
}
export -f run_part

parts=(
  tests/chaos services/compressor services/registry services/tuner services/gateway tests/engine
  tests/e2e libs
)
rest="$(find services tests -mindepth 1 -maxdepth 1 -type d ! -name __pycache__ |
  grep -vxF "$(printf '%s\n' "${parts[@]}")" | paste -sd ,)"
status=0
printf '%s\n' "${parts[@]}" "$rest" |
  xargs -P "${TEST_PARTS_AT_ONCE:-3}" -I {} bash -c 'run_part {}' || status=$?
grep -hE '^(FAILED|ERROR) [a-z]' "$LOGS"/* && status=1
exit "$status"
