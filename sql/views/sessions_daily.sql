-- One row is one kind of session event on one kind of device and one day (UTC, by the time of the event).
CREATE MATERIALIZED VIEW sessions_daily WITH (refresh_every = '1 hour') AS
SELECT date_trunc('day', "timestamp")             AS day,
       device_type,
       event_type,
       count(*)                                   AS events,
       approx_distinct(session_id)                AS sessions,
       approx_distinct(user_id)                   AS users
FROM   raw.user_sessions
GROUP  BY date_trunc('day', "timestamp"), device_type, event_type;
