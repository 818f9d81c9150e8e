#!/usr/bin/env bash
# Create .venv-llm-compressor: llm-compressor from its lock, with all else from .venv, which must
# be there. Its own packages come first on the path, so its transformers hides the mesh's.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
environment="$root/.venv-llm-compressor"
cd "$root"

start=$SECONDS
.venv/bin/python -m venv "$environment"
"$environment/bin/python" -m pip --disable-pip-version-check --no-input -q install --no-deps \
  -r deploy/requirements/llm-compressor.txt 2>&1 | { grep -vE 'is ignored: it is neither|DEPRECATION' || true; }
packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages .venv >"$(packages "$environment")/mesh.pth"
# It warns of a machine without a GPU; only a failure is of interest.
said="$("$environment/bin/python" -c 'import llmcompressor, torch, transformers' 2>&1)" ||
  { echo "$said" >&2; exit 1; }
touch "$environment/installed"
echo "setup: .venv-llm-compressor ($((SECONDS - start)) s)"
