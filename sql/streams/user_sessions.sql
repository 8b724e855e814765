-- One row is one event of a user's session: it started, went on, or ended.
CREATE STREAM user_sessions (
    event_id     UUID PRIMARY KEY,
    user_id      TEXT NOT NULL,
    session_id   TEXT NOT NULL,
    "timestamp"  TIMESTAMPTZ NOT NULL,
    event_type   TEXT NOT NULL,
    device_type  TEXT,
    geo_location TEXT,
    app_version  TEXT,
    CONSTRAINT known_event_type CHECK (event_type IN ('start', 'heartbeat', 'end')),
    CONSTRAINT not_from_the_future CHECK ("timestamp" <= _produced_at + INTERVAL '1 day'),
    CONSTRAINT not_ancient CHECK ("timestamp" >= TIMESTAMPTZ '2005-01-01T00:00:00Z')
) WITH (
    topic = 'user-sessions',
    format = 'json',
    event_time = 'timestamp'
);
