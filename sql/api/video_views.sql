-- GET /videos/{video_id}/views
-- about: How often one video was watched: up to the last refresh, since then, and in all. All numbers are of one
--        snapshot, so that they add up.
-- path video_id TEXT: the video
-- returns: row
SELECT m.video_id,
       m.total_views,
       coalesce(b.total_views, 0)                     AS batch_views,
       coalesce(s.total_views, 0)                     AS realtime_views,
       (SELECT max(changed_at) FROM system.snapshot)  AS as_of
FROM   video_views AS m
LEFT   JOIN batch.video_views AS b ON b.video_id = m.video_id
LEFT   JOIN speed.video_views AS s ON s.video_id = m.video_id
WHERE  m.video_id = $video_id;
