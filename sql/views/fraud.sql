-- One row holds all thresholds, a column each.
CREATE VIEW fraud.limits AS
SELECT max(value) FILTER (WHERE rule = 'replays_in_a_day')         AS replays_in_a_day,
       max(value) FILTER (WHERE rule = 'views_in_an_hour')         AS views_in_an_hour,
       max(value) FILTER (WHERE rule = 'views_in_a_day')           AS views_in_a_day,
       max(value) FILTER (WHERE rule = 'watch_percent_of_an_hour') AS watch_percent_of_an_hour,
       max(value) FILTER (WHERE rule = 'travel_minutes')           AS travel_minutes,
       max(value) FILTER (WHERE rule = 'metronome_views')          AS metronome_views,
       max(value) FILTER (WHERE rule = 'metronome_percent')        AS metronome_percent,
       max(value) FILTER (WHERE rule = 'hugging_views')            AS hugging_views,
       max(value) FILTER (WHERE rule = 'hugging_percent')          AS hugging_percent,
       max(value) FILTER (WHERE rule = 'paying_seconds')           AS paying_seconds,
       max(value) FILTER (WHERE rule = 'burst_views')              AS burst_views,
       max(value) FILTER (WHERE rule = 'burst_users_percent')      AS burst_users_percent
FROM   fraud.thresholds;

-- One row is a view and what its user did around it: what the rules for invalid traffic look at.
CREATE VIEW fraud.behaviour AS
SELECT event_id, "timestamp", video_id, user_id, view_duration, referrer, geo_location,
       count(*) OVER (PARTITION BY user_id, video_id ORDER BY "timestamp" RANGE BETWEEN INTERVAL '12 hours' PRECEDING AND INTERVAL '12 hours' FOLLOWING) AS replays,
       count(*) OVER (PARTITION BY user_id ORDER BY "timestamp" RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW)  AS in_an_hour,
       count(*) OVER (PARTITION BY user_id ORDER BY "timestamp" RANGE BETWEEN INTERVAL '24 hours' PRECEDING AND CURRENT ROW) AS in_a_day,
       sum(view_duration) OVER (PARTITION BY user_id ORDER BY "timestamp" RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS watched,
       lag(geo_location) OVER (PARTITION BY user_id ORDER BY "timestamp", event_id) AS geo_before,
       date_part('epoch', "timestamp") - date_part('epoch', lag("timestamp") OVER (PARTITION BY user_id ORDER BY "timestamp", event_id)) AS gap
FROM   raw.video_views;

-- One row is a user on a day: how regular the views come, and how many last just as long as is paid for.
CREATE VIEW fraud.user_days AS
SELECT b.user_id, CAST(b."timestamp" AS DATE) AS day, count(*) AS views,
       count(*) FILTER (WHERE b.view_duration BETWEEN l.paying_seconds AND l.paying_seconds + 2) AS just_paid,
       avg(b.gap) AS mean_gap, stddev(b.gap) AS deviation
FROM   fraud.limits AS l CROSS JOIN fraud.behaviour AS b
GROUP  BY b.user_id, CAST(b."timestamp" AS DATE);

-- One row is a video in an hour: how many views it had, of how many users.
CREATE VIEW fraud.video_hours AS
SELECT video_id, date_trunc('hour', "timestamp") AS hour, count(*) AS views, count(DISTINCT user_id) AS users
FROM   raw.video_views GROUP BY video_id, date_trunc('hour', "timestamp");

-- One row is a view, with 1 for each rule that it hits. The first three are general: one of them rejects. Of the others two reject,
-- and one flags.
CREATE VIEW fraud.hits AS
SELECT b.event_id, b."timestamp",
       CASE WHEN b.replays > l.replays_in_a_day THEN 1 ELSE 0 END                                        AS replays,
       CASE WHEN b.in_an_hour > l.views_in_an_hour OR b.in_a_day > l.views_in_a_day THEN 1 ELSE 0 END    AS rate,
       CASE WHEN r.referrer IS NOT NULL THEN 1 ELSE 0 END                                                AS bot,
       CASE WHEN b.watched * 100 > 3600 * l.watch_percent_of_an_hour THEN 1 ELSE 0 END                   AS watch,
       CASE WHEN b.geo_before <> b.geo_location AND b.gap < 60 * l.travel_minutes THEN 1 ELSE 0 END      AS travel,
       CASE WHEN u.views >= l.metronome_views AND u.deviation * 100 < u.mean_gap * l.metronome_percent THEN 1 ELSE 0 END AS metronome,
       CASE WHEN u.views >= l.hugging_views AND u.just_paid * 100 >= u.views * l.hugging_percent THEN 1 ELSE 0 END AS hugging,
       CASE WHEN v.views >= l.burst_views AND v.users * 100 < v.views * l.burst_users_percent THEN 1 ELSE 0 END AS burst
FROM   fraud.limits AS l CROSS JOIN fraud.behaviour AS b
LEFT   JOIN fraud.bot_referrers AS r ON r.referrer = b.referrer
LEFT   JOIN fraud.user_days AS u ON u.user_id = b.user_id AND u.day = CAST(b."timestamp" AS DATE)
LEFT   JOIN fraud.video_hours AS v ON v.video_id = b.video_id AND v.hour = date_trunc('hour', b."timestamp");

-- One row is a view that the rules would judge if they were asked now.
CREATE VIEW fraud.proposed_verdicts AS
SELECT event_id, substr(CAST(CAST("timestamp" AS DATE) AS TEXT), 1, 7) AS period,
       CASE WHEN replays + rate + bot > 0 OR watch + travel + metronome + hugging + burst >= 2 THEN 'invalid' ELSE 'flagged' END AS verdict,
       concat_ws(',', CASE WHEN replays = 1 THEN 'replays' END, CASE WHEN rate = 1 THEN 'rate' END, CASE WHEN bot = 1 THEN 'bot' END,
                 CASE WHEN watch = 1 THEN 'watch' END, CASE WHEN travel = 1 THEN 'travel' END,
                 CASE WHEN metronome = 1 THEN 'metronome' END, CASE WHEN hugging = 1 THEN 'hugging' END,
                 CASE WHEN burst = 1 THEN 'burst' END) AS rule_ids
FROM   fraud.hits
WHERE  replays + rate + bot + watch + travel + metronome + hugging + burst > 0;

-- One row is a payee in a month: what the rules as they are now would change, in views and in money. Nothing is written.
CREATE VIEW fraud.dry_run AS
SELECT e.period, e.owner_id, e.currency,
       count(*) FILTER (WHERE n.verdict = 'invalid' AND j.event_id IS NULL) AS newly_invalid,
       count(*) FILTER (WHERE coalesce(n.verdict, '') <> 'invalid' AND j.event_id IS NOT NULL) AS no_longer_invalid,
       sum(CASE WHEN n.verdict = 'invalid' AND j.event_id IS NULL THEN -e.rate
                WHEN coalesce(n.verdict, '') <> 'invalid' AND j.event_id IS NOT NULL THEN e.rate
                ELSE 0 END) AS exact_change
FROM   billing.priced_events AS e
LEFT   JOIN fraud.proposed_verdicts AS n ON n.event_id = e.event_id
LEFT   JOIN audit.verdicts AS j ON j.event_id = e.event_id AND j.verdict = 'invalid'
WHERE  e.revenue_eligible AND e.rate IS NOT NULL
GROUP  BY e.period, e.owner_id, e.currency;
