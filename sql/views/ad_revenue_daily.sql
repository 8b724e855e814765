-- One row is one video on one day (UTC, by the time of the ad): the ads that were shown on it, and their revenue.
CREATE MATERIALIZED VIEW ad_revenue_daily WITH (refresh_every = '1 hour', billable = 'true') AS
SELECT video_id,
       CAST("timestamp" AS DATE) AS day,
       count(*)                  AS ads,
       sum(revenue)              AS revenue
FROM   raw.ad_views
WHERE  video_id IS NOT NULL AND revenue IS NOT NULL
GROUP  BY video_id, CAST("timestamp" AS DATE);
