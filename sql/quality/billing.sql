-- One row is two rates of one scope and currency that are valid on the same day.
CREATE VIEW quality.overlapping_rates WITH (enforced = 'true') AS
SELECT a.rate_id, b.rate_id AS other, a.scope, a.scope_value, a.currency
FROM   billing.rates AS a
JOIN   billing.rates AS b
  ON   a.scope = b.scope AND a.scope_value = b.scope_value AND a.currency = b.currency
WHERE  a.rate_id < b.rate_id
  AND  (b.valid_to IS NULL OR a.valid_from < b.valid_to) AND (a.valid_to IS NULL OR b.valid_from < a.valid_to);

-- One row is a video that has two owners on the same day.
CREATE VIEW quality.videos_of_two_owners WITH (enforced = 'true') AS
SELECT a.video_id, a.owner_id, b.owner_id AS other
FROM   videos AS a
JOIN   videos AS b ON a.video_id = b.video_id
WHERE  a.valid_from < b.valid_from AND (a.valid_to IS NULL OR b.valid_from < a.valid_to);

-- One row is a statement whose lines do not add up to it.
CREATE VIEW quality.statements_that_do_not_add_up WITH (enforced = 'true') AS
SELECT s.statement_id, s.amount, l.amount AS lines, s.exact_amount, l.exact_amount AS exact_lines
FROM   billing.statements AS s
JOIN  (SELECT statement_id, sum(amount) AS amount, sum(exact_amount) AS exact_amount
       FROM billing.statement_lines GROUP BY statement_id) AS l ON l.statement_id = s.statement_id
WHERE  s.amount <> l.amount OR s.exact_amount <> l.exact_amount;

-- One row is a statement without lines, or lines without their statement.
CREATE VIEW quality.statements_without_lines WITH (enforced = 'true') AS
SELECT coalesce(s.statement_id, l.statement_id) AS statement_id
FROM   billing.statements AS s
FULL   JOIN (SELECT DISTINCT statement_id FROM billing.statement_lines) AS l ON l.statement_id = s.statement_id
WHERE  s.statement_id IS NULL OR l.statement_id IS NULL;

-- One row is a statement of a period that is not closed.
CREATE VIEW quality.statements_of_open_periods WITH (enforced = 'true') AS
SELECT s.statement_id FROM billing.statements AS s
LEFT   JOIN billing.runs AS r ON r.period = s.period
WHERE  r.period IS NULL;

-- One row is an entry of the ledger, or a currency, whose debits are not its credits.
CREATE VIEW quality.debits_unequal_to_credits WITH (enforced = 'true') AS
SELECT entry, currency, sum(debit) AS debit, sum(credit) AS credit FROM billing.ledger
GROUP  BY entry, currency HAVING sum(debit) <> sum(credit);

-- One row is a closed period whose rates are not those that it was closed with.
CREATE VIEW quality.rates_changed_after_close WITH (enforced = 'true') AS
SELECT r.period, r.rates_sha256, f.rates_sha256 AS now FROM billing.runs AS r
LEFT   JOIN billing.rates_in_force AS f ON f.period = r.period
WHERE  f.rates_sha256 IS DISTINCT FROM r.rates_sha256;

-- One row is a closed period of which not every view is billed, invalid or ineligible.
CREATE VIEW quality.periods_that_do_not_balance WITH (enforced = 'true') AS
SELECT r.period, r.received, r.billed, r.invalid, r.ineligible, s.views FROM billing.runs AS r
LEFT   JOIN (SELECT period, sum(views) AS views FROM billing.statements GROUP BY period) AS s ON s.period = r.period
WHERE  r.received <> r.billed + r.invalid + r.ineligible OR r.billed <> coalesce(s.views, 0);

-- One row is an event that is counted twice.
CREATE VIEW quality.events_counted_twice AS
SELECT event_id, count(*) AS times FROM raw.video_views GROUP BY event_id HAVING count(*) > 1;

-- One row is a partition whose passed offsets are not all counted, duplicate, quarantined or gaps.
CREATE VIEW quality.offsets_not_conserved AS
SELECT stream, partition, passed, counted, duplicate, quarantined, gaps FROM system.conservation WHERE NOT balances;

-- One row is a rate whose country, device or quality is not told apart in billable_views.
CREATE VIEW quality.rates_without_their_scope WITH (enforced = 'true') AS
SELECT r.rate_id, r.scope, r.scope_value FROM billing.rates AS r
LEFT   JOIN billing.scope_values AS s ON s.scope = r.scope AND s.scope_value = r.scope_value
WHERE  r.scope IN ('country', 'device', 'quality') AND s.scope IS NULL;
