#!/usr/bin/env bash
# start.sh DIR: starts one Apache Kafka broker on a free loopback port and prints its address.
#
# Everything of the broker lives in DIR (made if absent): its log segments, `kafka.log`, `pid`, and
# `bootstrap` with the printed address. `stop.sh DIR` ends it. The jars are copied once by Maven
# (pom.xml beside this file) to $VIEWLEDGER_TEST_KAFKA_CACHE, or target/kafka/ of this repository.
#
# Exit codes: 0 started, 77 not possible here (no Java, no Maven, or Maven reaches no repository), 1 failed.
set -euo pipefail
shopt -s inherit_errexit

[ $# -eq 1 ] || { echo "usage: start.sh DIR" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cache=${VIEWLEDGER_TEST_KAFKA_CACHE:-$here/../../target/kafka}
start_seconds=${VIEWLEDGER_TEST_KAFKA_START_SECONDS:-90}

# What Maven says when it cannot reach a repository, as against a wrong name or version, which is our fault.
unreachable='Could not transfer|failed to transfer|Unknown host|UnknownHostException|Connection refused'
unreachable+='|Connection reset|timed out|Network is unreachable|No route to host|in offline mode'

# By its full name, as the short one is looked up in a way whose failure does not say why.
copy_goal=org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies

note() { echo "kafka: $*" >&2; }

# Prints the directory that holds the jars for this pom.xml, copying them first where it is not there.
jars() {
  local version lib part
  version=$(cksum <"$here/pom.xml" | cut -d' ' -f1)
  lib=$cache/lib-$version
  if [ ! -d "$lib" ]; then
    command -v mvn >/dev/null || { note "mvn is not installed"; return 77; }
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/part.XXXXXX")
    if ! mvn -q -B -U -f "$here/pom.xml" "$copy_goal" \
        -DincludeScope=runtime -DoutputDirectory="$part" >"$part.log" 2>&1; then
      rm -rf "$part"
      cat "$part.log" >&2
      local outcome=1
      if grep -qE "$unreachable" "$part.log"; then outcome=77; fi
      rm -f "$part.log"
      return $outcome
    fi
    # Two runs may copy at once: the first rename wins, and the other uses what it finds.
    mv -T "$part" "$lib" 2>/dev/null || rm -rf "$part"
    rm -f "$part.log"
  fi
  echo "$lib"
}

# Prints a port that nothing listens on, below the range from which the kernel gives out its own.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 10000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
  done
  note "no free port between 20000 and 29999"
  return 1
}

# Whether the broker answers a Kafka request: ApiVersions version 0, whose answer begins with its length.
answers() {
  local head
  head=$(
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf '\0\0\0\x0a\0\x12\0\0\0\0\0\x01\xff\xff' >&3
    timeout 5 head -c 8 <&3 | od -An -tx1 | tr -d ' \n'
  ) 2>/dev/null || return 1
  [[ ${head:8:8} == 00000001 ]]
}

# Prints a cluster id of Kafka's form: 16 bytes in URL-safe base64. The X keeps it from looking like an option.
cluster_id() {
  local random
  random=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')
  echo "X${random:1}"
}

# Formats an empty log directory and runs the broker in the background; sets broker_port and pid.
launch() {
  local controller_port
  broker_port=$(free_port)
  controller_port=$(free_port)
  rm -rf "$dir/log"
  sed -e "s|@BROKER_PORT@|$broker_port|g" -e "s|@CONTROLLER_PORT@|$controller_port|g" \
      -e "s|@LOG_DIR@|$dir/log|" "$here/server.properties" >"$dir/server.properties"
  local java=(java -Xms64m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true
      "-Dlog4j2.configurationFile=$here/log4j2.properties" -cp "$lib/*")
  "${java[@]}" kafka.tools.StorageTool format --ignore-formatted -c "$dir/server.properties" \
      -t "$(cluster_id)" >"$dir/format.log" 2>&1 ||
      { cat "$dir/format.log" >&2; return 1; }
  : >"$dir/kafka.log"
  # Its own session and no open descriptors of ours, so that it outlives this script and blocks no pipe.
  setsid "${java[@]}" kafka.Kafka "$dir/server.properties" >"$dir/kafka.log" 2>&1 </dev/null 3>&- 9>&- &
  pid=$!
  echo "$pid" >"$dir/pid"
}

# Waits until the broker is up. Returns 2 where another process took one of its ports meanwhile.
wait_until_up() {
  local deadline=$((SECONDS + start_seconds))
  while [ $SECONDS -lt $deadline ]; do
    if grep -q 'Kafka Server started' "$dir/kafka.log" && answers "$broker_port"; then return 0; fi
    if ! kill -0 "$pid" 2>/dev/null; then
      if grep -q 'Address already in use' "$dir/kafka.log"; then return 2; fi
      note "the broker ended while starting:"
      cat "$dir/kafka.log" >&2
      return 1
    fi
    sleep 0.1
  done
  note "the broker did not answer within $start_seconds s:"
  cat "$dir/kafka.log" >&2
  return 1
}

command -v java >/dev/null || { note "java is not installed"; exit 77; }
lib=$(jars)
for _ in 1 2 3 4 5; do
  launch
  outcome=0
  wait_until_up || outcome=$?
  case $outcome in
    0) echo "127.0.0.1:$broker_port" | tee "$dir/bootstrap"; exit 0 ;;
    2) note "port $broker_port was taken, trying another" ;;
    *) kill -KILL "$pid" 2>/dev/null || true; exit 1 ;;
  esac
done
note "no port stayed free for five tries"
exit 1
