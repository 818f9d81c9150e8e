#!/usr/bin/env bash
# Create .venv (the mesh) and .venv-triton (Triton and its Python backend) at the
# repository root from the locks in deploy/requirements, then install the repository's
# own packages editable. Does nothing, quickly, when nothing has changed.
#
#   MILLRACE_PYTHON=/path/to/python3.11 deploy/local/setup.sh
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
locks="$root/deploy/requirements"
mesh="$root/.venv"
triton="$root/.venv-triton"
cd "$root"

# Two makes at once must not race; the second finds the work done.
mkdir -p .millrace
exec 9>.millrace/setup.lock
flock 9

die() { echo "setup: $*" >&2; exit 1; }

# step TEXT COMMAND…: run the command, then print one line with its seconds.
step() {
  local text="$1" start=$SECONDS
  shift
  "$@"
  echo "setup: $text ($((SECONDS - start)) s)"
}

digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
stamped() { [[ "$(cat "$1" 2>/dev/null)" == "$2" ]]; }

# The system interpreter comes first: Triton's stub links the system's libpython.
choose_python() {
  local candidate
  for candidate in ${MILLRACE_PYTHON:-} /usr/bin/python3.11 python3.11 python3; do
    if command -v "$candidate" >/dev/null; then
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
        die "$candidate is $("$candidate" -V); Python 3.11 or 3.12 is needed" \
          "(3.11 is what the locks and Triton's Python stub are verified with)"
      command -v "$candidate"
      return
    fi
  done
  die "no python3 found; install python3.11"
}

# need PACKAGE CHECK…: install a Debian package when the check fails and we may.
need() {
  local package="$1"
  shift
  if "$@" >/dev/null 2>&1; then return; fi
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    die "missing system package '$package' (Debian name): apt-get install $package"
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null; } ||
    die "apt-get could not install $package"
}

system_packages() {
  local version="$1" python="$2"
  need "python$version-venv" "$python" -c 'import ensurepip'
  need "libpython$version" bash -c "ldconfig -p | grep -q libpython$version.so.1.0"  # Triton's stub
  need "python$version-dev" "$python" -c \
    'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'     # torch.compile
  need g++ command -v g++                                                            # torch.compile
}

pip_in() {
  local environment="$1"
  shift
  "$environment/bin/python" -m pip --disable-pip-version-check --no-input -q "$@" 2>&1 |
    { grep -vE 'is ignored: it is neither|DEPRECATION' || true; }
}

install_mesh() {
  "$python" -m venv "$mesh"
  pip_in "$mesh" install -r "$locks/mesh.txt" -r "$locks/dev.txt"
}

install_triton() {
  "$python" -m venv "$triton"
  pip_in "$triton" install --no-deps -r "$locks/triton.txt"
}

# The layout tritonserver looks for: backends/python with the stub beside the library.
arrange_triton() {
  local wheel="$triton/lib/python$version/site-packages/pytriton/tritonserver"
  local stub="$wheel/python_backend_stubs/$version/triton_python_backend_stub"
  local target="$triton/tritonserver"
  [[ -f "$stub" ]] || die "nvidia-pytriton has no Python backend stub for $version; use 3.11"
  rm -rf "$target"
  mkdir -p "$target/backends"
  cp -R "$wheel/backends/python" "$target/backends/python"
  cp "$stub" "$target/backends/python/"
  ln -s "$wheel/bin" "$target/bin"
  ln -s "$triton/lib/python$version/site-packages/nvidia_pytriton.libs" "$target/lib"
  chmod +x "$wheel/bin/tritonserver" "$target/backends/python/triton_python_backend_stub"
  if LD_LIBRARY_PATH="$target/lib" ldd "$target/bin/tritonserver" \
      "$target/backends/python/triton_python_backend_stub" | grep 'not found'; then
    die "tritonserver lacks the shared libraries above"
  fi
}

install_own() {
  local arguments=() file
  for file in "$@"; do arguments+=(-e "$(dirname "$file")"); done
  pip_in "$mesh" install --no-deps --no-build-isolation "${arguments[@]}"
}

only="${1:-}" # "triton" makes that environment alone, as its image does
python="$(choose_python)"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

wanted="$(digest "$locks/mesh.txt" "$locks/dev.txt") $version"
if [[ $only != triton ]] && ! stamped "$mesh/.millrace-lock" "$wanted"; then
  step "system packages" system_packages "$version" "$python"
  step ".venv from $(grep -c == "$locks/mesh.txt") + $(grep -c == "$locks/dev.txt") pins" install_mesh
  echo "$wanted" >"$mesh/.millrace-lock"
fi

wanted="$(digest "$locks/triton.txt" "${BASH_SOURCE[0]}") $version"
if ! stamped "$triton/.millrace-lock" "$wanted"; then
  step ".venv-triton from $(grep -c == "$locks/triton.txt") pins" install_triton
  step "tritonserver layout" arrange_triton
  echo "$wanted" >"$triton/.millrace-lock"
fi

shopt -s nullglob
own=(libs/*/pyproject.toml services/*/pyproject.toml)
if [[ $only != triton ]] && ((${#own[@]})); then
  wanted="$(printf '%s\n' "${own[@]}" | cat - "${own[@]}" | sha256sum) $(cat "$mesh/.millrace-lock")"
  if ! stamped "$mesh/.millrace-own" "$wanted"; then
    step "${#own[@]} own packages, editable" install_own "${own[@]}"
    echo "$wanted" >"$mesh/.millrace-own"
  fi
fi
echo "setup: ready"
