"""The SQL of the view video_views in DuckDB; prints its seconds and the sum of total_views.

usage: duckdb_views.py THREADS FILE...
"""
import sys
import time

import duckdb

threads, files = int(sys.argv[1]), sys.argv[2:]
connection = duckdb.connect()
connection.execute(f"SET threads = {threads}")
began = time.monotonic()
connection.execute(
    """
    CREATE TEMP TABLE video_views AS
    SELECT video_id,
           count(*)                                   AS total_views,
           count(*) FILTER (WHERE revenue_eligible)   AS revenue_views,
           sum(view_duration)                         AS watch_seconds,
           avg(view_duration)                         AS mean_duration,
           approx_count_distinct(user_id)             AS viewers
    FROM   read_parquet(?)
    GROUP  BY video_id
    """,
    [files],
)
seconds = time.monotonic() - began
total, groups = connection.execute("SELECT sum(total_views), count(*) FROM video_views").fetchone()
print(seconds, int(total), groups)
