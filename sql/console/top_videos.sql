-- GET /console/top-videos
-- about: Most watched videos: views up to the last refresh, and since.
-- query limit BIGINT BETWEEN 1 AND 100 DEFAULT 12: at most so many videos
-- returns: rows
SELECT m.video_id,
       coalesce(b.total_views, 0) AS batch,
       coalesce(s.total_views, 0) AS speed
FROM   video_views AS m
LEFT   JOIN batch.video_views AS b ON b.video_id = m.video_id
LEFT   JOIN speed.video_views AS s ON s.video_id = m.video_id
ORDER  BY m.total_views DESC, m.video_id
LIMIT  $limit;
