-- GET /videos/{video_id}/revenue
-- about: What one video has earned: its eligible views, at 0.001 for each.
-- path video_id TEXT: the video
-- returns: row
SELECT video_id,
       revenue_views                                            AS eligible_views,
       CAST('0.001' AS DECIMAL(18, 9))                          AS rate,
       revenue_views * CAST('0.001' AS DECIMAL(18, 9))          AS revenue,
       (SELECT max(changed_at) FROM system.snapshot)            AS as_of
FROM   video_views
WHERE  video_id = $video_id;
