#!/usr/bin/env bash
# Makes the topics that sql/streams reads, where they are not there yet. Settings: BOOTSTRAP, PARTITIONS, REPLICATION, and
# CLIENT_CONFIG for brokers that ask who one is.
set -euo pipefail

options=(--bootstrap-server "$BOOTSTRAP")
if [ -n "${CLIENT_CONFIG:-}" ]; then options+=(--command-config "$CLIENT_CONFIG"); fi
min_isr=$((REPLICATION > 1 ? REPLICATION - 1 : 1))

for topic in video-views ad-views user-sessions; do
  # Records are kept until the archive has them for sure: a week is what an outage of Viewledger may last.
  /opt/kafka/bin/kafka-topics.sh "${options[@]}" --create --if-not-exists --topic "$topic" \
    --partitions "$PARTITIONS" --replication-factor "$REPLICATION" \
    --config cleanup.policy=delete --config retention.ms=604800000 --config "min.insync.replicas=$min_isr"
done
