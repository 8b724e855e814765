-- GET /console/views-by-hour
-- about: Views by hour: by the time of the view, and those of them that earn.
-- returns: rows
SELECT hour,
       sum(total_views)   AS total_views,
       sum(revenue_views) AS revenue_views
FROM   video_views_hourly
WHERE  hour >= now() - INTERVAL '1 day'
GROUP  BY hour
ORDER  BY hour;
