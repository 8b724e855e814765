-- GET /console/countries
-- about: Countries by their views.
-- query limit BIGINT BETWEEN 1 AND 100 DEFAULT 12: at most so many countries
-- returns: rows
SELECT geo_location,
       total_views
FROM   country_share
ORDER  BY total_views DESC, geo_location
LIMIT  $limit;
