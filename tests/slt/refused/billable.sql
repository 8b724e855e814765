--! 1:1: view daily is billable, but its column mean_ms is a float: use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, avg(ms) AS mean_ms FROM raw.events GROUP BY page;

--! 1:1: view daily is billable, but its column viewers is approximate (approx_distinct): use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, count(*) AS views, approx_distinct(who) AS viewers FROM raw.events GROUP BY page;

--! 1:1: view daily is billable, but its column viewers is approximate (approx_distinct): use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, 1 + 2 * n AS viewers FROM (SELECT page, approx_distinct(who) AS n FROM raw.events GROUP BY page) x;

--! 1:1: view daily is billable, but its column amount is computed from a float: use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, sum(cast(score AS DECIMAL(18, 2))) AS amount FROM raw.events GROUP BY page;

--! 1:1: view daily is billable, but its column amount is computed from a float: use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, sum(d) AS amount FROM (SELECT page, cast(score AS DECIMAL(18, 2)) AS d FROM raw.events) x GROUP BY page;

--! 1:1: view daily is billable, but its column level is a float: use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT score AS level, count(*) AS views FROM raw.events GROUP BY score;

--! 1:1: view daily is billable, but its condition is computed from a float: use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, count(*) AS views FROM raw.events WHERE score > 1 GROUP BY page;

--! 1:1: view daily is billable, but its condition is approximate (approx_distinct): use exact numbers (integers, DECIMAL, count(DISTINCT ...)), or leave billable out
CREATE MATERIALIZED VIEW daily WITH (billable = 'true') AS
SELECT page, count(*) AS views FROM raw.events GROUP BY page HAVING approx_distinct(who) > 2;
