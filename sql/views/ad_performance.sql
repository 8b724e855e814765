-- One row is one ad: how often it was shown, watched to its end, and what it earned.
CREATE MATERIALIZED VIEW ad_performance WITH (refresh_every = '1 hour') AS
SELECT ad_id,
       count(*)                                   AS impressions,
       count(*) FILTER (WHERE completed)          AS completions,
       sum(duration)                              AS watch_seconds,
       sum(revenue)                               AS revenue
FROM   raw.ad_views
GROUP  BY ad_id;
