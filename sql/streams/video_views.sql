-- One row is one view: somebody watched a video for some seconds. The same event_id is the same view.
CREATE STREAM video_views (
    event_id         UUID PRIMARY KEY,
    video_id         TEXT NOT NULL,
    user_id          TEXT NOT NULL,
    session_id       TEXT,
    "timestamp"      TIMESTAMPTZ NOT NULL,
    view_duration    INTEGER,
    device_type      TEXT,
    geo_location     TEXT,
    referrer         TEXT,
    quality          TEXT,
    revenue_eligible BOOLEAN,
    ad_views         STRUCT<ad_id TEXT, ad_type TEXT, duration INTEGER, completed BOOLEAN, revenue DECIMAL(18, 6)>[],
    CONSTRAINT duration_within_a_day CHECK (view_duration BETWEEN 0 AND 86400),
    CONSTRAINT not_from_the_future CHECK ("timestamp" <= _produced_at + INTERVAL '1 day'),
    CONSTRAINT not_ancient CHECK ("timestamp" >= TIMESTAMPTZ '2005-01-01T00:00:00Z')
) WITH (
    topic = 'video-views',
    format = 'json',
    event_time = 'timestamp'
);
