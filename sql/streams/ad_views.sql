-- One row is one ad that was shown. The same event_id is the same showing.
CREATE STREAM ad_views (
    event_id    UUID PRIMARY KEY,
    ad_id       TEXT NOT NULL,
    video_id    TEXT,
    user_id     TEXT NOT NULL,
    "timestamp" TIMESTAMPTZ NOT NULL,
    ad_type     TEXT,
    duration    INTEGER,
    completed   BOOLEAN,
    revenue     DECIMAL(18, 6),
    CONSTRAINT duration_within_an_hour CHECK (duration BETWEEN 0 AND 3600),
    CONSTRAINT revenue_not_negative CHECK (revenue >= 0),
    CONSTRAINT not_from_the_future CHECK ("timestamp" <= _produced_at + INTERVAL '1 day'),
    CONSTRAINT not_ancient CHECK ("timestamp" >= TIMESTAMPTZ '2005-01-01T00:00:00Z')
) WITH (
    topic = 'ad-views',
    format = 'json',
    event_time = 'timestamp'
);
