-- One row is some views of one video on one day that are all paid alike: to whom, and at which rate. No owner, payee or rate is NULL.
CREATE VIEW billing.priced_views AS
SELECT substr(CAST(b.day AS TEXT), 1, 7)                                      AS period,
       b.day,
       b.video_id,
       b.country,
       b.device,
       b.quality,
       o.owner_id,
       p.currency,
       coalesce(rv.rate_id, ro.rate_id, rc.rate_id, rd.rate_id, rq.rate_id, r.rate_id) AS rate_id,
       CASE WHEN rv.rate_id IS NOT NULL THEN rv.rate
            WHEN ro.rate_id IS NOT NULL THEN ro.rate
            WHEN rc.rate_id IS NOT NULL THEN rc.rate
            WHEN rd.rate_id IS NOT NULL THEN rd.rate
            WHEN rq.rate_id IS NOT NULL THEN rq.rate
            ELSE r.rate END                                                   AS rate,
       b.received, b.billable, b.invalid, b.ineligible
FROM   billable_views AS b
LEFT   JOIN videos AS o
       ON o.video_id = b.video_id AND b.day >= o.valid_from AND (o.valid_to IS NULL OR b.day < o.valid_to)
LEFT   JOIN billing.payees AS p ON p.owner_id = o.owner_id
LEFT   JOIN billing.rates AS rv
       ON rv.scope = 'video' AND rv.scope_value = b.video_id AND rv.currency = p.currency
      AND b.day >= rv.valid_from AND (rv.valid_to IS NULL OR b.day < rv.valid_to)
LEFT   JOIN billing.rates AS ro
       ON ro.scope = 'owner' AND ro.scope_value = o.owner_id AND ro.currency = p.currency
      AND b.day >= ro.valid_from AND (ro.valid_to IS NULL OR b.day < ro.valid_to)
LEFT   JOIN billing.rates AS rc
       ON rc.scope = 'country' AND rc.scope_value = b.country AND rc.currency = p.currency
      AND b.day >= rc.valid_from AND (rc.valid_to IS NULL OR b.day < rc.valid_to)
LEFT   JOIN billing.rates AS rd
       ON rd.scope = 'device' AND rd.scope_value = b.device AND rd.currency = p.currency
      AND b.day >= rd.valid_from AND (rd.valid_to IS NULL OR b.day < rd.valid_to)
LEFT   JOIN billing.rates AS rq
       ON rq.scope = 'quality' AND rq.scope_value = b.quality AND rq.currency = p.currency
      AND b.day >= rq.valid_from AND (rq.valid_to IS NULL OR b.day < rq.valid_to)
LEFT   JOIN billing.rates AS r
       ON r.scope = 'default' AND r.currency = p.currency
      AND b.day >= r.valid_from AND (r.valid_to IS NULL OR b.day < r.valid_to);

-- One row is a view, priced: as audit.trace and a dry run look at each.
CREATE VIEW billing.priced_events AS
SELECT e.event_id, e.video_id, e."timestamp", e.revenue_eligible, e._topic, e._partition, e._offset, e._file, e._row,
       p.period, p.owner_id, p.currency, p.rate_id, p.rate
FROM   raw.video_views AS e
LEFT   JOIN billing.scope_values AS c ON c.scope = 'country' AND c.scope_value = e.geo_location
LEFT   JOIN billing.scope_values AS d ON d.scope = 'device'  AND d.scope_value = e.device_type
LEFT   JOIN billing.scope_values AS q ON q.scope = 'quality' AND q.scope_value = e.quality
JOIN   billing.priced_views AS p
  ON   p.video_id = e.video_id AND p.day = CAST(e."timestamp" AS DATE) AND coalesce(p.country, '') = coalesce(c.scope_value, '')
 AND   coalesce(p.device, '') = coalesce(d.scope_value, '') AND coalesce(p.quality, '') = coalesce(q.scope_value, '');

-- One row is a line that a statement would have if its period were closed now.
CREATE VIEW billing.computed_lines AS
SELECT period, owner_id, currency, 'views' AS kind, video_id, rate_id, rate,
       sum(billable)                                                          AS views,
       CAST(money_mul(CAST(sum(billable) AS DECIMAL(20, 0)), rate) AS DECIMAL(38, 9)) AS exact_amount
FROM   billing.priced_views
WHERE  rate_id IS NOT NULL
GROUP  BY period, owner_id, currency, video_id, rate_id, rate
HAVING sum(billable) > 0
UNION  ALL
SELECT substr(CAST(a.day AS TEXT), 1, 7) AS period, o.owner_id, p.currency, 'ads' AS kind, a.video_id, r.rate_id, r.rate,
       sum(a.ads)                                                             AS views,
       CAST(round_half_even(money_mul(sum(a.revenue), r.rate), 9) AS DECIMAL(38, 9)) AS exact_amount
FROM   ad_revenue_daily AS a
JOIN   videos AS o ON o.video_id = a.video_id AND a.day >= o.valid_from AND (o.valid_to IS NULL OR a.day < o.valid_to)
JOIN   billing.payees AS p ON p.owner_id = o.owner_id
JOIN   billing.rates AS r
       ON r.scope = 'ad' AND r.currency = p.currency
      AND a.day >= r.valid_from AND (r.valid_to IS NULL OR a.day < r.valid_to)
GROUP  BY substr(CAST(a.day AS TEXT), 1, 7), o.owner_id, p.currency, a.video_id, r.rate_id, r.rate;

-- One row is a statement as it would be if its period were closed now: rounded once, half to even, to the currency's minor unit.
CREATE VIEW billing.computed_statements AS
SELECT period || '/' || owner_id || '/' || currency AS statement_id, period, owner_id, currency, views, exact_amount,
       CAST(money_mul(minor, minor_unit) AS DECIMAL(38, 3)) AS amount, minor, minor_unit
FROM  (SELECT l.period, l.owner_id, l.currency, c.minor_unit,
              sum(CASE WHEN l.kind = 'views' THEN l.views ELSE 0 END)         AS views,
              CAST(sum(l.exact_amount) AS DECIMAL(38, 9))                     AS exact_amount,
              round_half_even(money_mul(CAST(sum(l.exact_amount) AS DECIMAL(38, 9)), c.minor_units), 0) AS minor
       FROM   billing.computed_lines AS l
       JOIN   billing.currencies AS c ON c.currency = l.currency
       GROUP  BY l.period, l.owner_id, l.currency, c.minor_unit, c.minor_units) AS totals;

-- One row is a reason why a period cannot be closed; those of no period are reasons for every one.
CREATE VIEW billing.refusals AS
SELECT period, 'no owner' AS reason, count(DISTINCT video_id) || ' videos, such as ' || min(video_id) || ': INSERT INTO videos' AS detail
FROM   billing.priced_views WHERE owner_id IS NULL AND billable > 0 GROUP BY period
UNION  ALL
SELECT period, 'no payee', count(DISTINCT owner_id) || ' owners, such as ' || min(owner_id) || ': INSERT INTO billing.payees'
FROM   billing.priced_views WHERE owner_id IS NOT NULL AND currency IS NULL AND billable > 0 GROUP BY period
UNION  ALL
SELECT period, 'no rate', count(DISTINCT video_id) || ' videos, such as ' || min(video_id) || ', in ' || min(currency) || ': INSERT INTO billing.rates'
FROM   billing.priced_views WHERE currency IS NOT NULL AND rate_id IS NULL AND billable > 0 GROUP BY period
UNION  ALL
SELECT l.period, 'no currency', 'currency ' || min(l.currency) || ' is not in billing.currencies'
FROM   billing.computed_lines AS l LEFT JOIN billing.currencies AS c ON c.currency = l.currency
WHERE  c.currency IS NULL GROUP BY l.period
UNION  ALL
SELECT NULL, 'a partition is not read', 'stream ' || stream || ', partition ' || CAST(partition AS TEXT) || ': ' || coalesce(reason, '')
FROM   system.partitions WHERE NOT reading
UNION  ALL
SELECT NULL, t."table" || ' changed and is not counted yet', 'REFRESH MATERIALIZED VIEW billable_views'
FROM   system.tables AS t CROSS JOIN system.views AS v
WHERE  t."table" IN ('audit.verdicts', 'billing.scope_values') AND v.view = 'billable_views'
  AND  strpos(coalesce(v.tables, '') || ',', t."table" || ' ' || CAST(t.version AS TEXT) || ',') = 0
UNION  ALL
SELECT NULL, 'offsets are not conserved', 'stream ' || stream || ', partition ' || CAST(partition AS TEXT)
FROM   system.conservation WHERE NOT balances;

-- One row is a closed period or a month with views, and a SHA-256 over the rates that are valid on one of its days.
CREATE VIEW billing.rates_in_force AS
SELECT m.period,
       encode(sha256(string_agg(r.rate_id || '|' || r.scope || '|' || r.scope_value || '|' || r.currency || '|' || CAST(r.rate AS TEXT)
           || '|' || CAST(r.valid_from AS TEXT) || '|' || coalesce(CAST(CASE WHEN r.valid_to < m.behind THEN r.valid_to END AS TEXT), ''), ';'
           ORDER BY r.rate_id)), 'hex') AS rates_sha256
FROM  (SELECT DISTINCT substr(CAST(day AS TEXT), 1, 7) AS period, CAST(date_trunc('month', day) AS DATE) AS first,
              CAST(date_trunc('month', day) + INTERVAL '1 month' AS DATE) AS behind
       FROM   billable_views) AS m
JOIN   billing.rates AS r ON r.valid_from < m.behind AND (r.valid_to IS NULL OR r.valid_to > m.first)
GROUP  BY m.period;

-- One row is a partition of what is billed: the time of the newest event that is counted, and how many offsets are not counted yet.
CREATE VIEW billing.watermarks AS
SELECT p.stream, p.partition, w.newest, p.lag
FROM   system.partitions AS p
LEFT   JOIN (SELECT 'video_views' AS stream, _partition, max("timestamp") AS newest FROM raw.video_views GROUP BY _partition
             UNION ALL
             SELECT 'ad_views', _partition, max("timestamp") FROM raw.ad_views GROUP BY _partition) AS w
       ON w.stream = p.stream AND w._partition = p.partition
WHERE  p.stream IN ('video_views', 'ad_views');
