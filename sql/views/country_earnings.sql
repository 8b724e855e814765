-- One row is one country on one day (UTC): the views that earn, and what they earn at the rate that was valid when the day began.
CREATE VIEW country_earnings AS
SELECT v.geo_location,
       v.day,
       sum(v.revenue_views)          AS revenue_views,
       sum(v.revenue_views) * r.rate AS earnings
FROM   country_device_daily AS v
JOIN   country_rates AS r
  ON   r.geo_location = v.geo_location AND v.day >= r.valid_from AND (r.valid_to IS NULL OR v.day < r.valid_to)
GROUP  BY v.geo_location, v.day, r.rate;
