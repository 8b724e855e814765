#!/usr/bin/env bash
# psql.sh PORT: psql itself: its commands that describe, \copy both ways, \gset.
# Exit codes: 0 all is well, 77 psql is not installed, 1 a command failed.
set -euo pipefail
shopt -s inherit_errexit

command -v psql >/dev/null || { echo "clients: psql is not installed" >&2; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

ask() {
  local user=$1
  shift
  psql -X -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U "$user" -d viewledger "$@"
}

# expect WHAT FOUND WANTED
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s: %s, not %s\n' "$1" "$2" "$3"
    exit 1
  fi
}

port=$1
described=('\l' '\l+' '\dn' '\dn+' '\d' '\dt' '\dt+' '\dt *.*' '\dv' '\dm' '\di' '\ds' '\dT' '\du' '\df' '\dp' '\dx' '\db' '\dy'
  '\dC' '\do' '\da' '\dD' '\dO' '\d exclusions' '\d+ exclusions' '\d video_views' '\d+ top_videos' '\conninfo')
for command in "${described[@]}"; do
  ask analyst -c "$command" >"$dir/out" 2>&1 || { cat "$dir/out"; echo "psql cannot answer $command"; exit 1; }
done
expect '\dt' "$(ask analyst -At -c '\dt exclusions' | cut -d'|' -f1-3)" 'public|exclusions|table'
ask analyst -At >"$dir/out" <<'SQL'
SELECT count(*) AS videos FROM video_views \gset
SELECT :videos > 100;
\x on
\timing on
SELECT 1 AS one;
SQL
expect '\gset' "$(head -1 "$dir/out")" t
expect '\x' "$(sed -n 4p "$dir/out")" 'one|1'

rows="$dir/rows.csv"
cat >"$rows" <<'CSV'
event_id,reason,recorded_at
00000000-0000-4000-8000-000000000030,"by psql, with a comma",2026-01-01
00000000-0000-4000-8000-000000000031,by psql,2026-01-01 12:00:00+02
CSV
expect '\copy from' "$(ask billing -c "\\copy exclusions FROM '$rows' CSV HEADER")" 'COPY 2'
expect '\copy to' "$(ask analyst -c "\\copy (SELECT recorded_at FROM exclusions ORDER BY event_id) TO STDOUT" | tail -1)" \
  '2026-01-01 10:00:00.000000+00'
echo 'one,two,three,four' >>"$rows"
if ask billing -c "\\copy exclusions FROM '$rows' CSV HEADER" 2>"$dir/error"; then echo 'psql: a wrong line was taken'; exit 1; fi
expect 'a wrong line' "$(tail -1 "$dir/error")" 'CONTEXT:  COPY exclusions, line 4: "one,two,three,four"'
expect 'DELETE' "$(ask billing -c "DELETE FROM exclusions WHERE reason LIKE 'by psql%'")" 'DELETE 2'
echo "psql: ${#described[@]} commands, \\copy and \\gset"
