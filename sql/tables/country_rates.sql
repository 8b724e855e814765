-- One row is the rate paid for a view from one country (ISO 3166) at instants from valid_from up to, not including, valid_to.
CREATE TABLE country_rates (
    geo_location TEXT NOT NULL,
    rate         DECIMAL(18, 9) NOT NULL,
    valid_from   TIMESTAMPTZ NOT NULL,
    valid_to     TIMESTAMPTZ,
    PRIMARY KEY (geo_location, valid_from),
    CONSTRAINT rate_not_negative CHECK (rate >= 0),
    CONSTRAINT valid_for_some_time CHECK (valid_to IS NULL OR valid_to > valid_from)
);
