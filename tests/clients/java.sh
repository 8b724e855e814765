#!/usr/bin/env bash
# Prints the directory with the jars that pom.xml lists and the compiled ReadViews, under target/.
# Exit codes: 0 printed, 77 not possible here (no JDK, no Maven, or Maven reaches no repository), 1 failed.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(cat "$here/pom.xml" "$here/ReadViews.java" | cksum | cut -d' ' -f1)
dir=$here/../../target/clients/java-$version
unreachable='Could not transfer|failed to transfer|Unknown host|UnknownHostException|Connection refused'
unreachable+='|Connection reset|timed out|Network is unreachable|No route to host|in offline mode'

if [ ! -f "$dir/installed" ]; then
  command -v javac >/dev/null || { echo "clients: javac is not installed" >&2; exit 77; }
  command -v mvn >/dev/null || { echo "clients: mvn is not installed" >&2; exit 77; }
  rm -rf "$dir"
  mkdir -p "$dir"
  if ! mvn -q -B -f "$here/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$dir" >"$dir/mvn.log" 2>&1; then
    cat "$dir/mvn.log" >&2
    if grep -qE "$unreachable" "$dir/mvn.log"; then exit 77; fi
    exit 1
  fi
  javac -cp "$dir/*" -d "$dir" "$here/ReadViews.java" >&2
  touch "$dir/installed"
fi
cd "$dir" && pwd
