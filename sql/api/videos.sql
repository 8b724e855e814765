-- GET /videos
-- about: The videos that were watched most.
-- query limit BIGINT BETWEEN 1 AND 1000 DEFAULT 20: at most so many videos
-- returns: rows
SELECT video_id,
       total_views,
       revenue_views,
       watch_seconds
FROM   video_views
ORDER  BY total_views DESC, video_id
LIMIT  $limit;
