#!/usr/bin/env bash
# Create .venv-lm-eval: lm_eval from its lock, with all else from .venv, which must be there.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
environment="$root/.venv-lm-eval"
cd "$root"

start=$SECONDS
.venv/bin/python -m venv "$environment"
"$environment/bin/python" -m pip --disable-pip-version-check --no-input -q install --no-deps \
  -r deploy/requirements/lm-eval.txt 2>&1 | { grep -vE 'is ignored: it is neither|DEPRECATION' || true; }
packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages .venv >"$(packages "$environment")/mesh.pth"
"$environment/bin/python" -c 'import lm_eval, torch, transformers'
touch "$environment/installed"
echo "setup: .venv-lm-eval ($((SECONDS - start)) s)"
