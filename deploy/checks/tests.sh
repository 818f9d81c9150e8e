#!/usr/bin/env bash
# Every test, in two lanes at once: those of packages, which compute, and those of the whole mesh,
# which mostly wait, with the compressor's, so that both take as long. The second lane's output is
# printed when the first has ended.
set -uo pipefail
cd "$(dirname "$0")/../.."
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

.venv/bin/python -m pytest tests services/compressor -o cache_dir=.pytest_cache/mesh >"$log" 2>&1 &
mesh=$!
status=0
.venv/bin/python -m pytest libs services --ignore services/compressor -o cache_dir=.pytest_cache/packages || status=$?
echo "the tests of the whole mesh:"
wait "$mesh" || status=$?
cat "$log"
exit "$status"
