-- One row is one video: how often and how long it was watched, over all time.
CREATE MATERIALIZED VIEW video_views WITH (refresh_every = '1 hour') AS
SELECT video_id,
       count(*)                                   AS total_views,
       count(*) FILTER (WHERE revenue_eligible)   AS revenue_views,
       sum(view_duration)                         AS watch_seconds,
       avg(view_duration)                         AS mean_duration,
       approx_distinct(user_id)                   AS viewers
FROM   raw.video_views
GROUP  BY video_id;
