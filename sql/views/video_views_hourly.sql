-- One row is one video in one hour (UTC, by the time of the view).
CREATE MATERIALIZED VIEW video_views_hourly WITH (refresh_every = '1 hour') AS
SELECT video_id,
       date_trunc('hour', "timestamp")            AS hour,
       count(*)                                   AS total_views,
       count(*) FILTER (WHERE revenue_eligible)   AS revenue_views,
       sum(view_duration)                         AS watch_seconds
FROM   raw.video_views
GROUP  BY video_id, date_trunc('hour', "timestamp");
