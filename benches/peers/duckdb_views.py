"""The SQL of a view in DuckDB; prints its seconds, the sum of total_views, the number of groups and the peak of memory.

usage: duckdb_views.py VIEW THREADS FILE...
"""
import re
import sys
import time

import duckdb

VIDEO_VIEWS = """
    SELECT video_id,
           count(*)                                   AS total_views,
           count(*) FILTER (WHERE revenue_eligible)   AS revenue_views,
           sum(view_duration)                         AS watch_seconds,
           avg(view_duration)                         AS mean_duration,
           approx_count_distinct(user_id)             AS viewers
    FROM   {records}
    GROUP  BY video_id
"""
HOURLY = """
    SELECT video_id,
           date_trunc('hour', "timestamp")            AS hour,
           count(*)                                   AS total_views,
           count(*) FILTER (WHERE revenue_eligible)   AS revenue_views,
           sum(view_duration)                         AS watch_seconds
    FROM   {records}
    GROUP  BY video_id, date_trunc('hour', "timestamp")
"""
ALL = "read_parquet(?)"
# Each key counts once. Any of its records will do here, which is less than the first of them.
ONCE = """(
    SELECT any_value(video_id) AS video_id, any_value("timestamp") AS "timestamp",
           any_value(revenue_eligible) AS revenue_eligible, any_value(view_duration) AS view_duration
    FROM   read_parquet(?)
    GROUP  BY event_id
)"""
QUERIES = {
    "video_views": VIDEO_VIEWS.format(records=ALL),
    "video_views_hourly": HOURLY.format(records=ALL),
    "video_views_hourly_once": HOURLY.format(records=ONCE),
}

query, threads, files = QUERIES[sys.argv[1]], int(sys.argv[2]), sys.argv[3:]
connection = duckdb.connect()
connection.execute(f"SET threads = {threads}")
connection.execute("SET TimeZone = 'UTC'")
began = time.monotonic()
connection.execute(f"CREATE TEMP TABLE view AS {query}", [files])
seconds = time.monotonic() - began
total, groups = connection.execute("SELECT sum(total_views), count(*) FROM view").fetchone()
# Not ru_maxrss, which begins with what the parent had.
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
print(seconds, int(total), groups, peak)
