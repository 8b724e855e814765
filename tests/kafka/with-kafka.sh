#!/usr/bin/env bash
# with-kafka.sh COMMAND...: runs COMMAND with VIEWLEDGER_TEST_KAFKA=127.0.0.1:PORT of a fresh Apache Kafka, ends
# the broker afterwards and exits as COMMAND did. Where there is no Maven to bring Kafka it says
# `skipped: no Maven` and exits 0; every other failure is a failure.
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: with-kafka.sh COMMAND..." >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/viewledger-kafka.XXXXXX")
trap '"$here/stop.sh" "$dir"; rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

outcome=0
bootstrap=$("$here/start.sh" "$dir") || outcome=$?
if [ "$outcome" -eq 77 ]; then
  echo "skipped: no Maven"
  exit 0
fi
[ "$outcome" -eq 0 ] || exit "$outcome"

VIEWLEDGER_TEST_KAFKA=$bootstrap "$@" || outcome=$?
if [ "$outcome" -ne 0 ]; then
  echo "kafka: the broker's last words:" >&2
  tail -n 20 "$dir/kafka.log" >&2
fi
exit "$outcome"
