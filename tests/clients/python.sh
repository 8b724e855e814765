#!/usr/bin/env bash
# python.sh [REQUIREMENTS]: prints the path of a Python that has them installed (those beside this file unless another file is
# named), from a virtual environment under target/.
# Exit codes: 0 printed, 77 pip cannot install here, 1 failed.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=${1:-$here/requirements.txt}
version=$(cksum <"$requirements" | cut -d' ' -f1)
venv=$here/../../target/clients/venv-$version

if [ ! -f "$venv/installed" ]; then
  command -v python3 >/dev/null || { echo "clients: python3 is not installed" >&2; exit 77; }
  rm -rf "$venv"
  python3 -m venv "$venv" >&2 || { echo "clients: python3 makes no virtual environment" >&2; exit 77; }
  if ! "$venv/bin/pip" install --quiet --requirement "$requirements" >"$venv/pip.log" 2>&1; then
    cat "$venv/pip.log" >&2
    # pip that sees other versions than the pinned one works: then the pin is wrong, and that is our fault.
    if grep -qE 'from versions: [^n]' "$venv/pip.log"; then exit 1; fi
    exit 77
  fi
  touch "$venv/installed"
fi
echo "$venv/bin/python"
