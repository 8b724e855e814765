-- One row is a raw event that a line of a statement pays for, such as '2026-10/owner-7/USD/3': where it is, and the rate that was
-- applied. A later verdict on it is shown, and is paid back by an adjustment.
CREATE FUNCTION audit.trace(TEXT) RETURNS SETOF RECORD LANGUAGE SQL AS $$
SELECT l.statement_id, l.line, e.event_id, e."timestamp", e._topic, e._partition, e._offset, e._file, e._row,
       l.rate_id, l.rate, r.approved_by, j.verdict AS later_verdict
FROM   billing.statement_lines AS l
JOIN   billing.statements AS s ON s.statement_id = l.statement_id
JOIN   billing.runs AS u ON u.period = s.period
JOIN   billing.rates AS r ON r.rate_id = l.rate_id
JOIN   billing.priced_events AS e ON e.video_id = l.video_id AND e.period = s.period AND e.owner_id = s.owner_id AND e.rate_id = l.rate_id
JOIN   billing.run_frontiers AS f
  ON   f.period = s.period AND f.stream = 'video_views' AND f.partition = e._partition AND e._offset < f.next_offset
LEFT   JOIN audit.verdicts AS j ON j.event_id = e.event_id AND j.verdict = 'invalid'
WHERE  l.kind = 'views' AND e.revenue_eligible AND (j.event_id IS NULL OR j.judged_at > u.as_of)
  AND  l.statement_id || '/' || CAST(l.line AS TEXT) = $1
$$;

-- One row is something that happened to the event of this id.
CREATE FUNCTION audit.why(TEXT) RETURNS SETOF RECORD LANGUAGE SQL AS $$
SELECT 'received' AS what, e._topic || '/' || CAST(e._partition AS TEXT) || ' offset ' || CAST(e._offset AS TEXT) AS detail
FROM   raw.video_views AS e WHERE e.event_id = lower($1)
UNION  ALL
SELECT 'duplicate, not counted', d._topic || '/' || CAST(d._partition AS TEXT) || ' offset ' || CAST(d._offset AS TEXT)
FROM   raw.video_views_duplicates AS d WHERE d.event_id = lower($1)
UNION  ALL
SELECT 'not eligible', 'revenue_eligible is ' || coalesce(CAST(e.revenue_eligible AS TEXT), 'null')
FROM   raw.video_views AS e WHERE e.event_id = lower($1) AND e.revenue_eligible IS NOT TRUE
UNION  ALL
SELECT 'judged ' || j.verdict, 'by rules ' || j.rule_ids || ' of rule set ' || CAST(j.ruleset_version AS TEXT)
FROM   audit.verdicts AS j WHERE j.event_id = lower($1)
UNION  ALL
SELECT CASE WHEN e._offset < f.next_offset THEN 'received before the close of its period' ELSE 'received after the close of its period' END,
       u.period || ', closed by ' || u.closed_by
FROM   raw.video_views AS e
JOIN   billing.runs AS u ON CAST(e."timestamp" AS DATE) >= u.period_start AND CAST(e."timestamp" AS DATE) < u.period_end
JOIN   billing.run_frontiers AS f ON f.period = u.period AND f.stream = 'video_views' AND f.partition = e._partition
WHERE  e.event_id = lower($1)
UNION  ALL
SELECT 'on statement', l.statement_id || '/' || CAST(l.line AS TEXT) || ' at ' || CAST(l.rate AS TEXT) || ', rate ' || l.rate_id
FROM   billing.priced_events AS e
JOIN   billing.runs AS u ON u.period = e.period
JOIN   billing.run_frontiers AS f
  ON   f.period = u.period AND f.stream = 'video_views' AND f.partition = e._partition AND e._offset < f.next_offset
JOIN   billing.statements AS s ON s.period = e.period AND s.owner_id = e.owner_id AND s.currency = e.currency
JOIN   billing.statement_lines AS l
  ON   l.statement_id = s.statement_id AND l.kind = 'views' AND l.video_id = e.video_id AND l.rate_id = e.rate_id
LEFT   JOIN audit.verdicts AS j ON j.event_id = e.event_id AND j.verdict = 'invalid'
WHERE  e.event_id = lower($1) AND e.revenue_eligible AND (j.event_id IS NULL OR j.judged_at > u.as_of)
$$;

-- One row is a video in a period: received = billable + invalid + ineligible; what was received twice is told beside it, and of the
-- billable views, how many came after the close.
CREATE FUNCTION audit.explain_view(TEXT, TEXT) RETURNS SETOF RECORD LANGUAGE SQL AS $$
SELECT $1 AS video_id, $2 AS period, count(*) AS received,
       count(*) FILTER (WHERE e.revenue_eligible AND j.event_id IS NULL AND (f.next_offset IS NULL OR e._offset < f.next_offset)) AS billable,
       count(*) FILTER (WHERE e.revenue_eligible AND j.event_id IS NULL AND e._offset >= f.next_offset) AS late,
       count(*) FILTER (WHERE e.revenue_eligible AND j.event_id IS NOT NULL) AS invalid,
       count(*) FILTER (WHERE e.revenue_eligible IS NOT TRUE) AS ineligible,
       (SELECT count(*) FROM raw.video_views_duplicates AS d
        WHERE  d.video_id = $1 AND substr(CAST(CAST(d."timestamp" AS DATE) AS TEXT), 1, 7) = $2) AS duplicate
FROM   raw.video_views AS e
LEFT   JOIN audit.verdicts AS j ON j.event_id = e.event_id AND j.verdict = 'invalid'
LEFT   JOIN billing.run_frontiers AS f ON f.period = $2 AND f.stream = 'video_views' AND f.partition = e._partition
WHERE  e.video_id = $1 AND substr(CAST(CAST(e."timestamp" AS DATE) AS TEXT), 1, 7) = $2
$$;
