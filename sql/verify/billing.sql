-- viewledger verify --period: a closed month, computed from its records and not from any view, beside what was written. It has no
-- rows when the two are the same. Read are the records below the frontier of the close, and each table as it was then; tables that
-- are append_only, as they are now.
-- closed by: billing.runs
-- frontier: billing.run_frontiers
-- counted with: view_tables
WITH month AS (
    SELECT CAST($period || '-01' AS DATE) AS first, CAST(CAST($period || '-01' AS DATE) + INTERVAL '1 month' AS DATE) AS behind
),
views AS (
    SELECT v.video_id, CAST(v."timestamp" AS DATE) AS day, v.geo_location AS country, v.device_type AS device, v.quality, count(*) AS received,
           count(*) FILTER (WHERE v.revenue_eligible AND j.event_id IS NULL) AS paid, count(*) FILTER (WHERE v.revenue_eligible) AS eligible
    FROM   raw.video_views AS v
    LEFT   JOIN audit.verdicts AS j ON j.event_id = v.event_id AND j.verdict = 'invalid'
    WHERE  v."timestamp" >= (SELECT CAST(first AS TIMESTAMPTZ) FROM month) AND v."timestamp" < (SELECT CAST(behind AS TIMESTAMPTZ) FROM month)
    GROUP  BY v.video_id, CAST(v."timestamp" AS DATE), v.geo_location, v.device_type, v.quality
),
-- Every rate that fits, the narrowest first.
priced AS (
    SELECT v.video_id, v.paid, o.owner_id, p.currency, r.rate_id, r.rate,
           row_number() OVER (
               PARTITION BY v.video_id, v.day, v.country, v.device, v.quality
               ORDER BY CASE r.scope WHEN 'video' THEN 1 WHEN 'owner' THEN 2 WHEN 'country' THEN 3 WHEN 'device' THEN 4 WHEN 'quality' THEN 5 ELSE 6 END
           ) AS choice
    FROM   views AS v
    JOIN   videos AS o ON o.video_id = v.video_id AND o.valid_from <= v.day AND coalesce(o.valid_to, DATE '9999-12-31') > v.day
    JOIN   billing.payees AS p ON p.owner_id = o.owner_id
    JOIN   billing.rates AS r ON r.currency = p.currency AND r.valid_from <= v.day AND coalesce(r.valid_to, DATE '9999-12-31') > v.day
    LEFT   JOIN billing.scope_values AS k ON k.scope = r.scope AND k.scope_value = r.scope_value
    WHERE  v.paid > 0
      AND  r.scope_value = CASE r.scope WHEN 'video' THEN v.video_id WHEN 'owner' THEN o.owner_id WHEN 'country' THEN v.country
                                        WHEN 'device' THEN v.device WHEN 'quality' THEN v.quality WHEN 'default' THEN '' END
      AND (r.scope IN ('video', 'owner', 'default') OR k.scope IS NOT NULL)
),
lines AS (
    SELECT owner_id, currency, 'views' AS kind, video_id, rate_id, rate, sum(paid) AS views,
           CAST(CAST(sum(paid) AS DECIMAL(20, 0)) * rate AS DECIMAL(38, 9)) AS exact
    FROM   priced WHERE choice = 1
    GROUP  BY owner_id, currency, video_id, rate_id, rate
    UNION  ALL
    SELECT o.owner_id, p.currency, 'ads', a.video_id, r.rate_id, r.rate, count(*),
           CAST(round_half_even(CAST(sum(a.revenue) AS DECIMAL(20, 6)) * r.rate, 9) AS DECIMAL(38, 9))
    FROM   raw.ad_views AS a
    JOIN   videos AS o ON o.video_id = a.video_id AND o.valid_from <= CAST(a."timestamp" AS DATE)
           AND coalesce(o.valid_to, DATE '9999-12-31') > CAST(a."timestamp" AS DATE)
    JOIN   billing.payees AS p ON p.owner_id = o.owner_id
    JOIN   billing.rates AS r ON r.scope = 'ad' AND r.currency = p.currency AND r.valid_from <= CAST(a."timestamp" AS DATE)
           AND coalesce(r.valid_to, DATE '9999-12-31') > CAST(a."timestamp" AS DATE)
    WHERE  a.revenue IS NOT NULL
      AND  a."timestamp" >= (SELECT CAST(first AS TIMESTAMPTZ) FROM month) AND a."timestamp" < (SELECT CAST(behind AS TIMESTAMPTZ) FROM month)
    GROUP  BY o.owner_id, p.currency, a.video_id, r.rate_id, r.rate
),
-- In whole minor units, and in billionths of the currency.
statements AS (
    SELECT $period || '/' || l.owner_id || '/' || l.currency AS statement_id, l.owner_id, l.currency, c.minor_units,
           CAST(sum(CASE WHEN l.kind = 'views' THEN l.views ELSE 0 END) AS BIGINT) AS views,
           CAST(sum(l.exact) AS DECIMAL(38, 9)) AS exact,
           CAST(round_half_even(CAST(sum(l.exact) AS DECIMAL(28, 9)) * c.minor_units, 0) AS DECIMAL(19, 0)) AS minor
    FROM   lines AS l JOIN billing.currencies AS c ON c.currency = l.currency
    GROUP  BY l.owner_id, l.currency, c.minor_units
),
-- Each line's part of the whole, rounded down, and what is left of it.
parts AS (
    SELECT s.statement_id, s.minor, s.minor_units, l.kind, l.video_id, l.rate_id, l.rate, l.views, l.exact,
           row_number() OVER (PARTITION BY s.statement_id ORDER BY l.kind DESC, l.video_id, l.rate_id) AS line,
           CAST(l.exact * 1000000000 AS DECIMAL(38, 0)) * s.minor AS share,
           nullif(CAST(s.exact * 1000000000 AS DECIMAL(38, 0)), 0) AS whole
    FROM   statements AS s JOIN lines AS l ON l.owner_id = s.owner_id AND l.currency = s.currency
),
divided AS (
    SELECT statement_id, minor, minor_units, line, kind, video_id, rate_id, rate, views, exact,
           coalesce(share % whole, 0) AS rest, coalesce(CAST((share - share % whole) / whole AS DECIMAL(19, 0)), 0) AS down
    FROM   parts
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY statement_id ORDER BY rest DESC, line) AS place, sum(down) OVER (PARTITION BY statement_id) AS given
    FROM   divided
),
computed AS (
    SELECT statement_id, line,
           kind || ' ' || video_id || ' ' || rate_id || ' ' || CAST(rate AS TEXT) || ' ' || CAST(views AS TEXT) || ' ' || CAST(exact AS TEXT)
           || ' ' || CAST(CAST((down + CASE WHEN place <= minor - given THEN 1 ELSE 0 END) * CAST(1000 / minor_units AS INTEGER) AS DECIMAL(38, 0)) AS TEXT) AS said
    FROM   ranked
),
written AS (
    SELECT statement_id, line,
           kind || ' ' || video_id || ' ' || rate_id || ' ' || CAST(rate AS TEXT) || ' ' || CAST(views AS TEXT) || ' ' || CAST(exact_amount AS TEXT)
           || ' ' || CAST(CAST(amount * 1000 AS DECIMAL(38, 0)) AS TEXT) AS said
    FROM   billing.statement_lines WHERE statement_id LIKE $period || '/%'
)
SELECT 'line ' || CAST(coalesce(w.line, c.line) AS TEXT) AS what, coalesce(w.statement_id, c.statement_id) AS statement_id, w.said AS written, c.said AS computed
FROM   written AS w FULL JOIN computed AS c ON c.statement_id = w.statement_id AND c.line = w.line
WHERE  w.said IS DISTINCT FROM c.said
UNION  ALL
SELECT 'total', coalesce(w.statement_id, c.statement_id), w.said, c.said
FROM  (SELECT statement_id, CAST(views AS TEXT) || ' ' || CAST(exact_amount AS TEXT) || ' ' || CAST(CAST(amount * 1000 AS DECIMAL(38, 0)) AS TEXT) AS said
       FROM billing.statements WHERE period = $period) AS w
FULL   JOIN (SELECT statement_id, CAST(views AS TEXT) || ' ' || CAST(exact AS TEXT) || ' '
                    || CAST(CAST(minor * CAST(1000 / minor_units AS INTEGER) AS DECIMAL(38, 0)) AS TEXT) AS said FROM statements) AS c
       ON c.statement_id = w.statement_id
WHERE  w.said IS DISTINCT FROM c.said
UNION  ALL
SELECT 'ledger', coalesce(w.statement_id, c.statement_id), w.said, c.said
FROM  (SELECT statement_id, account || ' ' || CAST(CAST((debit - credit) * 1000 AS DECIMAL(38, 0)) AS TEXT) AS said, account
       FROM billing.ledger WHERE period = $period AND entry = 'close/' || statement_id) AS w
FULL   JOIN (SELECT statement_id, account || ' ' || CAST(CAST(minor * CAST(1000 / minor_units AS INTEGER) * sign AS DECIMAL(38, 0)) AS TEXT) AS said, account
             FROM statements CROSS JOIN (SELECT 'expense' AS account, 1 AS sign UNION ALL SELECT 'payable', -1) AS a WHERE minor > 0) AS c
       ON c.statement_id = w.statement_id AND c.account = w.account
WHERE  w.said IS DISTINCT FROM c.said
UNION  ALL
SELECT 'run', $period, CAST(u.received AS TEXT) || ' ' || CAST(u.billed AS TEXT) || ' ' || CAST(u.invalid AS TEXT) || ' ' || CAST(u.ineligible AS TEXT), v.said
FROM   billing.runs AS u
CROSS  JOIN (SELECT CAST(coalesce(sum(received), 0) AS TEXT) || ' ' || CAST(coalesce(sum(paid), 0) AS TEXT) || ' '
                    || CAST(coalesce(sum(eligible - paid), 0) AS TEXT) || ' ' || CAST(coalesce(sum(received - eligible), 0) AS TEXT) AS said FROM views) AS v
WHERE  u.period = $period
  AND  CAST(u.received AS TEXT) || ' ' || CAST(u.billed AS TEXT) || ' ' || CAST(u.invalid AS TEXT) || ' ' || CAST(u.ineligible AS TEXT) <> v.said
ORDER  BY statement_id, what
