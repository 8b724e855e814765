#!/usr/bin/env bash
# stop.sh DIR: ends the broker that start.sh started in DIR. Its data is a test's, so it is not asked to save it.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: stop.sh DIR" >&2; exit 2; }
[ -f "$1/pid" ] || exit 0
pid=$(cat "$1/pid")
# The process id may have been given to another program since: only a broker with our file is ours.
if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'kafka\.Kafka'; then
  kill -KILL "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
fi
rm -f "$1/pid"
