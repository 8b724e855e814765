-- One row is one video on one day (UTC, by the time of the view) from one country, on one kind of device, in one quality: its
-- views, and which of them are paid for. The digest names the very views that are.
CREATE MATERIALIZED VIEW billable_views WITH (refresh_every = '1 hour', billable = 'true') AS
SELECT v.video_id,
       CAST(v."timestamp" AS DATE)                                            AS day,
       v.geo_location,
       v.device_type,
       v.quality,
       count(*)                                                               AS received,
       count(*) FILTER (WHERE v.revenue_eligible AND j.event_id IS NULL)      AS billable,
       count(*) FILTER (WHERE v.revenue_eligible AND j.event_id IS NOT NULL)  AS invalid,
       count(*) FILTER (WHERE v.revenue_eligible IS NOT TRUE)                 AS ineligible,
       multiset_digest(v.event_id) FILTER (WHERE v.revenue_eligible AND j.event_id IS NULL) AS digest
FROM   raw.video_views AS v
LEFT   JOIN audit.verdicts AS j ON j.event_id = v.event_id AND j.verdict = 'invalid'
GROUP  BY v.video_id, CAST(v."timestamp" AS DATE), v.geo_location, v.device_type, v.quality;
