-- psql -v period=2026-10 -f close.sql: closes the month, in one transaction. See README.md.
\set ON_ERROR_STOP on
\if :{?grace} \else \set grace 72 \endif
BEGIN;
SET LOCAL statement_timeout = 0;
SELECT count(*) > 0 AS closed FROM billing.runs WHERE period = :'period' \gset
\if :closed
\echo period :period is closed already: nothing was changed
ROLLBACK;
\else
SELECT CAST(:'period' || '-01' AS DATE) AS first, CAST(CAST(:'period' || '-01' AS DATE) + INTERVAL '1 month' AS DATE) AS behind \gset

-- All reasons at once.
SELECT reason, detail FROM (
    SELECT reason, detail FROM billing.refusals WHERE coalesce(period, :'period') = :'period'
    UNION ALL
    SELECT 'too early', 'the period may be closed from ' || CAST(CAST(:'behind' AS TIMESTAMP) + CAST(:'grace' || ' hours' AS INTERVAL) AS TEXT) || ' UTC on'
    WHERE  now() < CAST(:'behind' AS TIMESTAMP) + CAST(:'grace' || ' hours' AS INTERVAL)
    UNION ALL
    -- What is behind a partition's newest event may belong to the period still.
    SELECT 'records are missing', CAST(lag AS TEXT) || ' of stream ' || stream || ', partition ' || CAST(partition AS TEXT) || ', are not counted yet'
    FROM   billing.watermarks
    WHERE  lag > 0 AND (newest IS NULL OR newest < CAST(:'behind' AS TIMESTAMP) + CAST(:'grace' || ' hours' AS INTERVAL))
    UNION ALL
    SELECT 'one person alone', current_user || ' approved rates that count: somebody else has to INSERT INTO billing.approvals'
    WHERE  EXISTS (SELECT 1 FROM billing.rates WHERE approved_by = current_user AND valid_from < CAST(:'behind' AS DATE)
                   AND (valid_to IS NULL OR valid_to > CAST(:'first' AS DATE)))
      AND  NOT EXISTS (SELECT 1 FROM billing.approvals WHERE period = :'period' AND approved_by <> current_user)
) AS reasons ORDER BY reason, detail;
SELECT :ROW_COUNT > 0 AS refused \gset
\if :refused
ROLLBACK;
SELECT error('period ' || :'period' || ' cannot be closed, for the reasons above');
\endif

INSERT INTO billing.runs
SELECT :'period', CAST(:'first' AS DATE), CAST(:'behind' AS DATE), current_user, s.changed_at,
       s.generation, s.delta_end, s.archive_version, v.fingerprint, v.tables,
       (SELECT rates_sha256 FROM billing.rates_in_force WHERE period = :'period'),
       version(), t.received, t.billed, t.invalid, t.ineligible
FROM   system.snapshot AS s
JOIN   system.views AS v ON v.view = 'billable_views'
CROSS  JOIN (SELECT coalesce(sum(received), 0) AS received, coalesce(sum(billable), 0) AS billed,
                    coalesce(sum(invalid), 0) AS invalid, coalesce(sum(ineligible), 0) AS ineligible
             FROM billable_views WHERE day >= CAST(:'first' AS DATE) AND day < CAST(:'behind' AS DATE)) AS t
WHERE  s.stream = 'video_views';

INSERT INTO billing.run_frontiers
SELECT :'period', stream, partition, position FROM system.partitions WHERE position IS NOT NULL ORDER BY stream, partition;

INSERT INTO billing.statements
SELECT statement_id, period, owner_id, currency, views, exact_amount, amount
FROM   billing.computed_statements WHERE period = :'period' ORDER BY statement_id;

-- The rounded total is spread over the lines by largest remainder.
INSERT INTO billing.statement_lines
SELECT statement_id, line, kind, video_id, rate_id, rate, views, exact_amount,
       money_mul(minor[CAST(line AS BIGINT)], minor_unit) AS amount
FROM  (SELECT s.statement_id, s.minor_unit, l.kind, l.video_id, l.rate_id, l.rate, l.views, l.exact_amount, a.minor,
              row_number() OVER (PARTITION BY s.statement_id ORDER BY l.kind DESC, l.video_id, l.rate_id) AS line
       FROM   billing.computed_lines AS l
       JOIN   billing.computed_statements AS s
              ON s.period = l.period AND s.owner_id = l.owner_id AND s.currency = l.currency
       JOIN  (SELECT t.statement_id, money_allocate(t.minor, w.weights) AS minor
              FROM   billing.computed_statements AS t
              JOIN  (SELECT owner_id, currency, array_agg(exact_amount ORDER BY kind DESC, video_id, rate_id) AS weights
                     FROM billing.computed_lines WHERE period = :'period' GROUP BY owner_id, currency) AS w
                     ON w.owner_id = t.owner_id AND w.currency = t.currency
              WHERE  t.period = :'period') AS a ON a.statement_id = s.statement_id
       WHERE  l.period = :'period') AS numbered
ORDER  BY statement_id, line;

INSERT INTO billing.ledger
SELECT 'close/' || statement_id, account, period, statement_id, currency,
       CASE WHEN account = 'expense' THEN amount ELSE 0 END, CASE WHEN account = 'expense' THEN 0 ELSE amount END
FROM   billing.statements
CROSS  JOIN (SELECT 'expense' AS account UNION ALL SELECT 'payable') AS accounts
WHERE  period = :'period' AND amount > 0
ORDER  BY statement_id, account;
COMMIT;
SELECT period, received, billed, invalid, ineligible FROM billing.runs WHERE period = :'period';
SELECT currency, count(*) AS statements, sum(views) AS views, sum(amount) AS amount
FROM   billing.statements WHERE period = :'period' GROUP BY currency ORDER BY currency;
\endif
