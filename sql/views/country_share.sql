-- One row is one country: its views, and its share of all views in percent, over all time.
CREATE VIEW country_share AS
SELECT geo_location,
       sum(total_views)                                                   AS total_views,
       round(100.0 * sum(total_views) / sum(sum(total_views)) OVER (), 2) AS share
FROM   country_device_daily
GROUP  BY geo_location;
