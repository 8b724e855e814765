-- psql -v period=2026-10 -f preview.sql: statements as they would be if the period were closed now.
\set ON_ERROR_STOP on
BEGIN READ ONLY;
SELECT statement_id, views, exact_amount, amount, currency FROM billing.computed_statements
WHERE  period = :'period' ORDER BY statement_id;
SELECT currency, count(*) AS statements, sum(views) AS views, sum(amount) AS amount FROM billing.computed_statements
WHERE  period = :'period' GROUP BY currency ORDER BY currency;
\echo what stands against closing it:
SELECT reason, detail FROM billing.refusals WHERE coalesce(period, :'period') = :'period' ORDER BY reason, detail;
COMMIT;
