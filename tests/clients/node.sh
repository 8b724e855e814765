#!/usr/bin/env bash
# Prints the directory whose node_modules has what package.json asks for, under target/.
# Exit codes: 0 printed, 77 npm cannot install here, 1 failed.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(cksum <"$here/package.json" | cut -d' ' -f1)
dir=$here/../../target/clients/node-$version

if [ ! -f "$dir/installed" ]; then
  command -v node >/dev/null || { echo "clients: node is not installed" >&2; exit 77; }
  command -v npm >/dev/null || { echo "clients: npm is not installed" >&2; exit 77; }
  rm -rf "$dir"
  mkdir -p "$dir"
  cp "$here/package.json" "$dir/"
  if ! (cd "$dir" && npm install --no-audit --no-fund --ignore-scripts) >"$dir/npm.log" 2>&1; then
    cat "$dir/npm.log" >&2
    # npm that finds the registry but not the pinned version: then the pin is wrong, and that is our fault.
    if grep -q 'ETARGET' "$dir/npm.log"; then exit 1; fi
    exit 77
  fi
  touch "$dir/installed"
fi
cd "$dir" && pwd
