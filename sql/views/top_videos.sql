-- One row is one of the hundred most watched videos, with its share of all views in percent.
CREATE VIEW top_videos AS
SELECT video_id,
       total_views,
       round(100.0 * total_views / sum(total_views) OVER (), 2) AS share,
       viewers
FROM   video_views
ORDER  BY total_views DESC, video_id
LIMIT  100;
