-- One row is one country and kind of device on one day (UTC, by the time of the view).
CREATE MATERIALIZED VIEW country_device_daily WITH (refresh_every = '1 hour') AS
SELECT geo_location,
       device_type,
       date_trunc('day', "timestamp")             AS day,
       count(*)                                   AS total_views,
       count(*) FILTER (WHERE revenue_eligible)   AS revenue_views,
       sum(view_duration)                         AS watch_seconds,
       approx_distinct(user_id)                   AS viewers
FROM   raw.video_views
GROUP  BY geo_location, device_type, date_trunc('day', "timestamp");
