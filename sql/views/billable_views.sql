-- One row is one video on one day (UTC, by the time of the view), and country, device and quality where these have rates of their own
-- (billing.scope_values): its views, and how many of them are paid for.
CREATE MATERIALIZED VIEW billable_views WITH (refresh_every = '1 hour', billable = 'true') AS
SELECT v.video_id,
       CAST(v."timestamp" AS DATE)                                            AS day,
       c.scope_value                                                          AS country,
       d.scope_value                                                          AS device,
       q.scope_value                                                          AS quality,
       count(*)                                                               AS received,
       count(*) FILTER (WHERE v.revenue_eligible AND j.event_id IS NULL)      AS billable,
       count(*) FILTER (WHERE v.revenue_eligible AND j.event_id IS NOT NULL)  AS invalid,
       count(*) FILTER (WHERE v.revenue_eligible IS NOT TRUE)                 AS ineligible
FROM   raw.video_views AS v
LEFT   JOIN billing.scope_values AS c ON c.scope = 'country' AND c.scope_value = v.geo_location
LEFT   JOIN billing.scope_values AS d ON d.scope = 'device'  AND d.scope_value = v.device_type
LEFT   JOIN billing.scope_values AS q ON q.scope = 'quality' AND q.scope_value = v.quality
LEFT   JOIN audit.verdicts AS j ON j.event_id = v.event_id AND j.verdict = 'invalid'
GROUP  BY v.video_id, CAST(v."timestamp" AS DATE), c.scope_value, d.scope_value, q.scope_value;
