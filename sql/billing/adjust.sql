-- psql -v period=2026-10 -v paid_in=2026-11 -f adjust.sql: books what came to light about a closed period, at the rates of its own
-- days. Run again, it books only what is new since.
\set ON_ERROR_STOP on
BEGIN;
SET LOCAL statement_timeout = 0;
SELECT error('period ' || :'period' || ' is not closed: there is nothing to adjust')
WHERE  NOT EXISTS (SELECT 1 FROM billing.runs WHERE period = :'period');
INSERT INTO billing.adjustments
SELECT 'adjust/' || statement_id || '/' || CAST(times + 1 AS TEXT), statement_id, :'paid_in', owner_id, currency,
       CASE WHEN views > 0 THEN 'late views' WHEN views < 0 THEN 'later verdicts' ELSE 'late and judged views' END,
       views, exact_amount, amount
FROM  (SELECT coalesce(n.statement_id, b.statement_id) AS statement_id, coalesce(n.owner_id, b.owner_id) AS owner_id,
              coalesce(n.currency, b.currency) AS currency, coalesce(b.times, 0) AS times,
              coalesce(n.views, 0) - coalesce(b.views, 0) AS views,
              CAST(coalesce(n.exact_amount, 0) - coalesce(b.exact_amount, 0) AS DECIMAL(38, 9)) AS exact_amount,
              CAST(coalesce(n.amount, 0) - coalesce(b.amount, 0) AS DECIMAL(38, 3)) AS amount
       FROM  (SELECT * FROM billing.computed_statements WHERE period = :'period') AS n
       FULL   JOIN (SELECT statement_id, owner_id, currency, sum(views) AS views, sum(exact_amount) AS exact_amount,
                           sum(amount) AS amount, sum(adjustment) AS times
                    FROM  (SELECT statement_id, owner_id, currency, views, exact_amount, amount, 0 AS adjustment
                           FROM billing.statements WHERE period = :'period'
                           UNION ALL
                           SELECT original_statement, owner_id, currency, views, exact_amount, amount, 1
                           FROM billing.adjustments WHERE substr(original_statement, 1, 7) = :'period') AS booked
                    GROUP BY statement_id, owner_id, currency) AS b ON b.statement_id = n.statement_id) AS difference
WHERE  views <> 0 OR exact_amount <> 0
ORDER  BY statement_id;
INSERT INTO billing.ledger
SELECT a.adjustment_id, account, a.paid_in, a.original_statement, a.currency,
       CASE WHEN (account = 'expense') = (a.amount > 0) THEN abs(a.amount) ELSE 0 END,
       CASE WHEN (account = 'expense') = (a.amount > 0) THEN 0 ELSE abs(a.amount) END
FROM   billing.adjustments AS a
CROSS  JOIN (SELECT 'expense' AS account UNION ALL SELECT 'payable') AS accounts
WHERE  a.amount <> 0
  AND  NOT EXISTS (SELECT 1 FROM billing.ledger AS l WHERE l.entry = a.adjustment_id)
ORDER  BY a.adjustment_id, account;
COMMIT;
SELECT original_statement, reason, views, amount, currency FROM billing.adjustments
WHERE  substr(original_statement, 1, 7) = :'period' ORDER BY adjustment_id;
