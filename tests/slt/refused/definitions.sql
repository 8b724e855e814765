--! 1:1: view daily has no aggregate, add GROUP BY, or make it an ordinary view with CREATE VIEW
CREATE MATERIALIZED VIEW daily AS
SELECT page, ms FROM raw.events;

--! 1:1: view daily aggregates an aggregate, which cannot be merged from parts: make the inner one the materialized view and the outer one an ordinary view over it
CREATE MATERIALIZED VIEW daily AS
SELECT max(c) FROM (SELECT page, count(*) AS c FROM raw.events GROUP BY page);

--! 1:1: view daily has ORDER BY or LIMIT: leave it out, and write it in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT page, count(*) FROM raw.events GROUP BY page ORDER BY page;

--! 1:1: view daily has ORDER BY or LIMIT: leave it out, and write it in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT page, count(*) FROM raw.events GROUP BY page LIMIT 3;

--! 1:1: view daily has ORDER BY or LIMIT: leave it out, and write it in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT page, count(*) FROM (SELECT page FROM raw.events LIMIT 9) GROUP BY page;

--! 1:1: view daily has a window function: leave it out, and write it in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT page, rank() OVER (ORDER BY count(*)) FROM raw.events GROUP BY page;

--! 1:1: view daily has SELECT DISTINCT: write GROUP BY with the same columns
CREATE MATERIALIZED VIEW daily AS
SELECT DISTINCT page FROM raw.events;

--! 1:1: view daily has UNION, INTERSECT or EXCEPT: make one materialized view of each part, and an ordinary view that puts them together
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM raw.events UNION ALL SELECT count(*) FROM raw.others;

--! 1:1: view daily has GROUPING SETS, ROLLUP or CUBE: make one materialized view of each grouping
CREATE MATERIALIZED VIEW daily AS
SELECT page, ok, count(*) FROM raw.events GROUP BY ROLLUP (page, ok);

--! 1:1: view daily joins after its aggregate: write the join in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT * FROM (SELECT page, count(*) AS c FROM raw.events GROUP BY page) x JOIN (VALUES ('a', 1)) AS names(page, n) USING (page);

--! 1:1: view daily reads no stream: name one table of the schema raw in FROM
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM (VALUES (1)) AS t(n);

--! 1:1: view daily reads the streams events, others: make one materialized view of each, and an ordinary view that joins them
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM raw.events e JOIN raw.others o ON e.id = o.id;

--! 1:1: view daily reads the stream events more than once, so that pieces of it cannot be counted apart: write the comparison as an ordinary view over materialized views
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM raw.events e JOIN raw.events o ON e.id = o.who;

--! 1:1: view daily reads its stream in a subquery: name the stream in FROM
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM (VALUES ('a')) AS names(page) WHERE page IN (SELECT page FROM raw.events);

--! 1:1: view daily keeps rows of a reference table that match no record (left join): put the stream on the side that is kept, or write the join in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM (VALUES ('a')) AS names(page) LEFT JOIN raw.events e ON e.page = names.page;

--! 1:1: view daily uses now(), which has another value each time the view is computed: use a column of the stream, or write the condition in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM raw.events WHERE at < now();

--! 1:1: view daily uses random(), which has another value each time the view is computed: use a column of the stream, or write the condition in an ordinary view over this one
CREATE MATERIALIZED VIEW daily AS
SELECT sum(ms * random()) FROM raw.events;

--! 1:1: view daily uses first_value of rows without an order, which has no one right answer: write first_value(... ORDER BY ...), or for any_value use min or first_value(... ORDER BY ...)
CREATE MATERIALIZED VIEW daily AS
SELECT page, first_value(ms) FROM raw.events GROUP BY page;

--! 1:1: view daily uses array_agg_limit of rows without an order, which has no one right answer: write array_agg_limit(... ORDER BY ...), or for any_value use min or first_value(... ORDER BY ...)
CREATE MATERIALIZED VIEW daily AS
SELECT page, array_agg_limit(ms, 3) FROM raw.events GROUP BY page;

--! 1:1: view daily uses array_agg, whose state grows with every record: write array_agg_limit(x, 100 ORDER BY ...), and for a text array_to_string of it
CREATE MATERIALIZED VIEW daily AS
SELECT page, array_agg(ms ORDER BY at) FROM raw.events GROUP BY page;

--! 1:1: view daily uses string_agg, whose state grows with every record: write array_agg_limit(x, 100 ORDER BY ...), and for a text array_to_string of it
CREATE MATERIALIZED VIEW daily AS
SELECT page, string_agg(who, ',' ORDER BY at) FROM raw.events GROUP BY page;

--! 1:1: view daily uses array_agg, whose state grows with every record: write array_agg_limit(x, 100 ORDER BY ...), and for a text array_to_string of it
CREATE MATERIALIZED VIEW daily AS
SELECT page, array_agg(ms) FROM raw.events GROUP BY page;

--! 1:1: view daily uses approx_percentile_cont_with_weight, whose answer follows the way its records are cut: write approx_percentile_cont or percentile_cont
CREATE MATERIALIZED VIEW daily AS
SELECT approx_percentile_cont_with_weight(ms, 0.5) WITHIN GROUP (ORDER BY score) FROM raw.events;

--! 1:1: view daily uses array_agg_limit, whose partial states cannot be merged: use another aggregate
CREATE MATERIALIZED VIEW daily AS
SELECT page, array_agg_limit(ms, 0 ORDER BY at) FROM raw.events GROUP BY page;

--! 1:1: view daily uses nth_value, whose answer follows the way its records are cut: write (array_agg_limit(x, n ORDER BY ...))[n]
CREATE MATERIALIZED VIEW daily AS
SELECT page, nth_value(ms, 2 ORDER BY at) FROM raw.events GROUP BY page;
