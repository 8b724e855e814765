-- One row is everything.
CREATE MATERIALIZED VIEW totals WITH (refresh_every = '1 hour', billable = 'true') AS
SELECT count(*)                            AS events,
       count(who)                          AS named,
       count(DISTINCT who)                 AS people,
       sum(ms)                             AS ms,
       sum(price)                          AS price,
       min(at)                             AS first_at,
       max(at)                             AS last_at,
       min(day)                            AS first_day,
       max(ref)                            AS last_ref
FROM   raw.events;

-- One row is one page: the plain aggregates of every type.
CREATE MATERIALIZED VIEW pages AS
SELECT page,
       count(*)                            AS events,
       sum(ms)                             AS ms,
       avg(ms)                             AS mean_ms,
       min(ms)                             AS least_ms,
       max(ms)                             AS most_ms,
       sum(price)                          AS price,
       avg(price)                          AS mean_price,
       min(price)                          AS least_price,
       sum(score)                          AS score,
       avg(score)                          AS mean_score,
       max(score)                          AS most_score,
       min(who)                            AS first_who,
       max(at)                             AS last_at,
       max(day)                            AS last_day,
       min(ref)                            AS first_ref,
       max(ok)                             AS any_ok
FROM   raw.events
GROUP  BY page;

-- One row is one page: aggregates of truth values and bits.
CREATE MATERIALIZED VIEW bits AS
SELECT page,
       bool_and(ok)                        AS all_ok,
       bool_or(ok)                         AS some_ok,
       bool_and(ms > 10)                   AS all_slow,
       bit_and(ms)                         AS bits_and,
       bit_or(ms)                          AS bits_or,
       bit_xor(ms)                         AS bits_xor
FROM   raw.events
GROUP  BY page;

-- One row is one page: deviations and relations, in floats.
CREATE MATERIALIZED VIEW spread AS
SELECT page,
       stddev(ms)                          AS sd,
       stddev_pop(ms)                      AS sd_pop,
       var_samp(score)                     AS var,
       var_pop(score)                      AS variance_pop,
       covar_samp(ms, score)               AS co,
       covar_pop(ms, score)                AS co_pop,
       corr(ms, score)                     AS corr,
       regr_slope(ms, score)               AS slope,
       regr_r2(ms, score)                  AS r2,
       regr_count(ms, score)               AS pairs
FROM   raw.events
GROUP  BY page;

-- One row is one page: each different value once.
CREATE MATERIALIZED VIEW different AS
SELECT page,
       count(DISTINCT who)                 AS people,
       count(DISTINCT price)               AS prices,
       count(DISTINCT ok)                  AS oks,
       sum(DISTINCT ms)                    AS ms,
       sum(DISTINCT price)                 AS price,
       avg(DISTINCT ms)                    AS mean_ms,
       avg(DISTINCT price)                 AS mean_price,
       count(DISTINCT ms) FILTER (WHERE ok) AS ok_ms
FROM   raw.events
GROUP  BY page;

-- One row is one page: numbers that are nearly right, and exact medians.
CREATE MATERIALIZED VIEW about AS
SELECT page,
       approx_distinct(who)                AS people,
       approx_distinct(ms)                 AS times,
       approx_median(ms)                   AS about_median,
       approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY ms)      AS about_p90,
       approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY ms DESC) AS about_p10,
       approx_percentile_cont(score, 0.25) AS about_q1,
       median(ms)                          AS median_ms,
       median(price)                       AS median_price,
       percentile_cont(0.75) WITHIN GROUP (ORDER BY score)         AS q3
FROM   raw.events
GROUP  BY page;

-- One row is one page: what stands first and last by the time of the event; ties go by offset.
CREATE MATERIALIZED VIEW ends AS
SELECT page,
       first_value(id ORDER BY at)         AS first_id,
       last_value(id ORDER BY at)          AS last_id,
       first_value(who ORDER BY at DESC)   AS latest_who,
       first_value(who ORDER BY at) IGNORE NULLS AS first_known,
       last_value(price ORDER BY at, ms)   AS last_price,
       (array_agg_limit(id, 2 ORDER BY at))[2] AS second_id,
       last_value(items ORDER BY at)       AS last_items,
       first_value(id ORDER BY at) FILTER (WHERE ok) AS first_ok
FROM   raw.events
GROUP  BY page;

-- One row is one page: some values, in order.
CREATE MATERIALIZED VIEW lists AS
SELECT page,
       array_agg_limit(ms, 3 ORDER BY at)                 AS first_ms,
       array_agg_limit(who, 2 ORDER BY ms DESC NULLS LAST) AS slowest,
       array_agg_limit(price, 2 ORDER BY price DESC NULLS LAST) AS dearest,
       array_agg_limit(at, 1 ORDER BY at)                 AS first_at,
       array_to_string(array_agg_limit(who, 100 ORDER BY who), '+') AS everybody
FROM   raw.events
GROUP  BY page;
