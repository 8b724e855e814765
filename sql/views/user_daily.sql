-- One row is one user on one day (UTC, by the time of the view).
CREATE MATERIALIZED VIEW user_daily WITH (refresh_every = '1 hour') AS
SELECT user_id,
       date_trunc('day', "timestamp")             AS day,
       count(*)                                   AS total_views,
       sum(view_duration)                         AS watch_seconds,
       max(view_duration)                         AS longest_view,
       min("timestamp")                           AS first_view_at,
       max("timestamp")                           AS last_view_at
FROM   raw.video_views
GROUP  BY user_id, date_trunc('day', "timestamp");
