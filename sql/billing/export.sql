-- psql -v period=2026-10 -f export.sql: writes statements-<period>.csv and lines-<period>.csv into the current folder.
\set ON_ERROR_STOP on
SELECT 'statements-' || :'period' || '.csv' AS statements, 'lines-' || :'period' || '.csv' AS lines \gset
\o :statements
COPY (SELECT * FROM billing.statements WHERE period = :'period' ORDER BY statement_id) TO STDOUT (FORMAT csv, HEADER);
\o :lines
COPY (SELECT l.* FROM billing.statement_lines AS l JOIN billing.statements AS s ON s.statement_id = l.statement_id
      WHERE s.period = :'period' ORDER BY l.statement_id, l.line) TO STDOUT (FORMAT csv, HEADER);
\o
\echo wrote :statements and :lines
