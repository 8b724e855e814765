-- GET /console/ads
-- about: Ads by what they earned.
-- query limit BIGINT BETWEEN 1 AND 100 DEFAULT 12: at most so many ads
-- returns: rows
SELECT ad_id,
       revenue
FROM   ad_performance
ORDER  BY revenue DESC NULLS LAST, ad_id
LIMIT  $limit;
