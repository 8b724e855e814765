-- One row is one page: FILTER, CASE, expressions over aggregates.
CREATE MATERIALIZED VIEW expressions AS
SELECT page,
       count(*) FILTER (WHERE ok)                          AS ok,
       count(*) FILTER (WHERE NOT ok)                      AS not_ok,
       count(*) FILTER (WHERE ok IS NULL)                  AS unknown,
       sum(ms) FILTER (WHERE ms > 50)                      AS slow_ms,
       avg(price) FILTER (WHERE ok)                        AS ok_price,
       sum(CASE WHEN ok THEN 1 ELSE 0 END)                 AS ok_again,
       max(CASE WHEN ms > 50 THEN who END)                 AS slow_who,
       sum(ms) / count(*)                                  AS whole_mean,
       sum(ms) * 1.0 / count(ms)                           AS exact_mean,
       coalesce(max(ms), 0) - coalesce(min(ms), 0)         AS span,
       CASE WHEN count(*) > 6 THEN 'busy' ELSE 'calm' END  AS mood,
       upper(page) || '!'                                  AS loud
FROM   raw.events
GROUP  BY page;

-- One row is one page with more than five events and a slow one.
CREATE MATERIALIZED VIEW busy AS
SELECT page, count(*) AS events
FROM   raw.events
GROUP  BY page
HAVING count(*) > 5 AND max(ms) > 50;

-- One row is one page and hour (UTC).
CREATE MATERIALIZED VIEW hours AS
SELECT page, date_trunc('hour', at) AS hour, count(*) AS events
FROM   raw.events
GROUP  BY page, date_trunc('hour', at);

-- One row is a quarter of an hour in which something happened.
CREATE MATERIALIZED VIEW quarters AS
SELECT date_bin(INTERVAL '15 minutes', at, TIMESTAMP '2000-01-01') AS begins, count(*) AS events, sum(price) AS price
FROM   raw.events
GROUP  BY 1;

-- One row is one remainder of the time taken, of quick events.
CREATE MATERIALIZED VIEW remainders AS
SELECT ms % 3 AS rest, ok, count(*) AS events
FROM   raw.events
WHERE  ms < 100 AND who IS NOT NULL
GROUP  BY ms % 3, ok;

-- One row is one article: it was in the lists of events.
CREATE MATERIALIZED VIEW articles AS
SELECT sku,
       count(*)                           AS lines,
       sum(n)                             AS pieces,
       sum(n * cost)                      AS cost,
       count(DISTINCT who)                AS people,
       first_value(n ORDER BY at)         AS first_n,
       array_agg_limit(n, 4 ORDER BY at)  AS some_n
FROM   (SELECT who, at, item['sku'] AS sku, item['n'] AS n, item['cost'] AS cost
        FROM (SELECT who, at, unnest(items) AS item FROM raw.events))
GROUP  BY sku;

-- One row is one tag of an article, lists in lists.
CREATE MATERIALIZED VIEW tags AS
SELECT tag, count(*) AS uses
FROM   (SELECT unnest(item['tags']) AS tag FROM (SELECT unnest(items) AS item FROM raw.events))
GROUP  BY tag;

-- One row is one partition.
CREATE MATERIALIZED VIEW partitions AS
SELECT _partition, count(*) AS events, min(_offset) AS first_offset, max(_offset) AS last_offset
FROM   raw.events
GROUP  BY _partition;

-- One row is one combination, without any aggregate.
CREATE MATERIALIZED VIEW pairs AS
SELECT page, ok FROM raw.events GROUP BY page, ok;

-- One row is one page: sums at the edge of their types.
CREATE MATERIALIZED VIEW edges AS
SELECT page, sum(big) AS big, avg(big) AS mean_big, sum(huge) AS huge
FROM   raw.events
GROUP  BY page;

-- One row is one page: what the sum of BIGINT had no room for.
CREATE MATERIALIZED VIEW wide AS
SELECT page, sum(big::DECIMAL(38, 0)) AS big
FROM   raw.events
GROUP  BY page;

-- One row is one day (UTC): which events were counted.
CREATE MATERIALIZED VIEW digests AS
SELECT date_trunc('day', at) AS day, count(*) AS events, multiset_digest(id) AS ids
FROM   raw.events
GROUP  BY date_trunc('day', at);
