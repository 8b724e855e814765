-- One row is one view that is not to be counted as valid, and why. The archive keeps it all the same.
CREATE TABLE exclusions (
    event_id    UUID PRIMARY KEY,
    reason      TEXT NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT reason_given CHECK (reason <> '')
);
