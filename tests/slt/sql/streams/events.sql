-- One row is one event. A column of every type that a stream can have.
CREATE STREAM events (
    id    UUID PRIMARY KEY,
    page  TEXT NOT NULL,
    who   TEXT,
    at    TIMESTAMPTZ NOT NULL,
    ms    INTEGER,
    big   BIGINT,
    score DOUBLE PRECISION,
    price DECIMAL(18, 4),
    huge  DECIMAL(38, 2),
    ok    BOOLEAN,
    day   DATE,
    ref   UUID,
    items STRUCT<sku TEXT, n INTEGER, cost DECIMAL(10, 2), tags TEXT[]>[],
    CONSTRAINT sane CHECK (ms BETWEEN 0 AND 100000),
    CONSTRAINT not_ancient CHECK (at >= TIMESTAMPTZ '2005-01-01T00:00:00Z')
) WITH (topic = 'events', format = 'json', event_time = 'at');
