#!/usr/bin/env bash
# Who may do what with the topics: viewledger reads, producer writes. Settings as of topics.sh.
set -euo pipefail

allow() { /opt/kafka/bin/kafka-acls.sh --bootstrap-server "$BOOTSTRAP" --command-config "$CLIENT_CONFIG" --add "$@"; }

for topic in video-views ad-views user-sessions; do
  # Its settings, to see that it is not compacted.
  allow --allow-principal User:viewledger --operation Read --operation Describe --operation DescribeConfigs --topic "$topic"
  allow --allow-principal User:producer --operation Write --operation Describe --topic "$topic"
done
# Positions are written for monitoring.
allow --allow-principal User:viewledger --operation Read --group viewledger
