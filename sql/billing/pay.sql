-- psql -v period=2026-10 -v reference='transfer 17' -f pay.sql: books that the statements of a period were paid, and the
-- adjustments that are paid with it.
\set ON_ERROR_STOP on
BEGIN;
INSERT INTO billing.ledger
SELECT 'pay/' || s.statement_id, account, s.period, s.statement_id, s.currency,
       CASE WHEN account = 'payable' THEN s.amount ELSE 0 END, CASE WHEN account = 'payable' THEN 0 ELSE s.amount END
FROM   billing.statements AS s
CROSS  JOIN (SELECT 'payable' AS account UNION ALL SELECT 'cash') AS accounts
WHERE  s.period = :'period' AND s.amount > 0
  AND  NOT EXISTS (SELECT 1 FROM billing.payments AS p WHERE p.statement_id = s.statement_id)
ORDER  BY s.statement_id, account;
INSERT INTO billing.payments
SELECT s.statement_id, :'reference', current_user FROM billing.statements AS s
WHERE  s.period = :'period'
  AND  NOT EXISTS (SELECT 1 FROM billing.payments AS p WHERE p.statement_id = s.statement_id)
ORDER  BY s.statement_id;
COMMIT;
