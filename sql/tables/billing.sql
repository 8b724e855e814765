-- One row says who is paid for a video's views on days from valid_from up to, not including, valid_to.
CREATE TABLE videos (
    video_id    TEXT,
    owner_id    TEXT NOT NULL,
    valid_from  DATE,
    valid_to    DATE,
    recorded_at TIMESTAMPTZ NOT NULL,
    recorded_by TEXT NOT NULL,
    PRIMARY KEY (video_id, valid_from),
    CONSTRAINT valid_for_some_time CHECK (valid_to IS NULL OR valid_to > valid_from)
);

-- One row is a currency: minor_units of it are one whole, and minor_unit is what one of them is worth.
CREATE TABLE billing.currencies (
    currency    TEXT PRIMARY KEY,
    minor_units INTEGER NOT NULL,
    minor_unit  DECIMAL(4, 3) NOT NULL,
    CONSTRAINT units_make_one CHECK (minor_units IN (1, 10, 100, 1000) AND minor_units * minor_unit = 1)
);

-- One row is somebody who is paid, and in which currency.
CREATE TABLE billing.payees (
    owner_id TEXT PRIMARY KEY,
    currency TEXT NOT NULL
);

-- One row is what one eligible view earns (scope ad: which share of an ad's revenue) in one currency, on days from valid_from up
-- to, not including, valid_to. Of several scopes that fit, the narrowest counts: video, owner, country, device, quality, default.
CREATE TABLE billing.rates (
    rate_id     TEXT PRIMARY KEY,
    scope       TEXT NOT NULL,
    scope_value TEXT NOT NULL,
    currency    TEXT NOT NULL,
    rate        DECIMAL(18, 9) NOT NULL,
    valid_from  DATE NOT NULL,
    valid_to    DATE,
    recorded_at TIMESTAMPTZ NOT NULL,
    recorded_by TEXT NOT NULL,
    approved_by TEXT NOT NULL,
    CONSTRAINT known_scope CHECK (scope IN ('default', 'quality', 'device', 'country', 'owner', 'video', 'ad')),
    CONSTRAINT value_of_scope CHECK ((scope IN ('default', 'ad')) = (scope_value = '')),
    CONSTRAINT rate_not_negative CHECK (rate >= 0),
    CONSTRAINT share_at_most_one CHECK (scope <> 'ad' OR rate <= 1),
    CONSTRAINT valid_for_some_time CHECK (valid_to IS NULL OR valid_to > valid_from),
    CONSTRAINT two_people CHECK (approved_by <> recorded_by)
);

-- One row is a country, device or quality that has rates of its own: billable_views tells its views apart from the next refresh on.
CREATE TABLE billing.scope_values (
    scope       TEXT,
    scope_value TEXT,
    PRIMARY KEY (scope, scope_value),
    CONSTRAINT known_scope CHECK (scope IN ('country', 'device', 'quality'))
);

-- One row is the consent of a second person to close a period.
CREATE TABLE billing.approvals (
    period      TEXT PRIMARY KEY,
    approved_by TEXT NOT NULL
);

-- One row is a period that is closed, and all that decided about its statements.
CREATE TABLE billing.runs (
    period           TEXT PRIMARY KEY,
    period_start     DATE NOT NULL,
    period_end       DATE NOT NULL,
    closed_by        TEXT NOT NULL,
    as_of            TIMESTAMPTZ NOT NULL,
    generation       BIGINT NOT NULL,
    frontier         TEXT NOT NULL,
    archive_version  BIGINT NOT NULL,
    view_fingerprint TEXT NOT NULL,
    view_tables      TEXT,
    rates_sha256     TEXT NOT NULL,
    engine_version   TEXT NOT NULL,
    received         BIGINT NOT NULL,
    billed           BIGINT NOT NULL,
    invalid          BIGINT NOT NULL,
    ineligible       BIGINT NOT NULL
) WITH (append_only = 'true');

-- One row is how far a partition was counted when a period was closed: offsets below next_offset.
CREATE TABLE billing.run_frontiers (
    period      TEXT,
    stream      TEXT,
    partition   INTEGER,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (period, stream, partition)
) WITH (append_only = 'true');

-- One row is what one payee gets for one period.
CREATE TABLE billing.statements (
    statement_id TEXT PRIMARY KEY,
    period       TEXT NOT NULL,
    owner_id     TEXT NOT NULL,
    currency     TEXT NOT NULL,
    views        BIGINT NOT NULL,
    exact_amount DECIMAL(38, 9) NOT NULL,
    amount       DECIMAL(38, 3) NOT NULL
) WITH (append_only = 'true');

-- One row is one video at one rate on a statement: exact_amount as computed, amount after the statement was rounded once.
CREATE TABLE billing.statement_lines (
    statement_id TEXT,
    line         BIGINT,
    kind         TEXT NOT NULL,
    video_id     TEXT NOT NULL,
    rate_id      TEXT NOT NULL,
    rate         DECIMAL(18, 9) NOT NULL,
    views        BIGINT NOT NULL,
    exact_amount DECIMAL(38, 9) NOT NULL,
    amount       DECIMAL(38, 3) NOT NULL,
    PRIMARY KEY (statement_id, line)
) WITH (append_only = 'true');

-- One row is what came to light about a closed statement later, in views and money; it is paid with the period paid_in.
CREATE TABLE billing.adjustments (
    adjustment_id      TEXT PRIMARY KEY,
    original_statement TEXT NOT NULL,
    paid_in            TEXT NOT NULL,
    owner_id           TEXT NOT NULL,
    currency           TEXT NOT NULL,
    reason             TEXT NOT NULL,
    views              BIGINT NOT NULL,
    exact_amount       DECIMAL(38, 9) NOT NULL,
    amount             DECIMAL(38, 3) NOT NULL
) WITH (append_only = 'true');

-- One row is a statement that was paid.
CREATE TABLE billing.payments (
    statement_id TEXT PRIMARY KEY,
    reference    TEXT NOT NULL,
    paid_by      TEXT NOT NULL
) WITH (append_only = 'true');

-- One row is a posting: of each entry, debits and credits are equal.
CREATE TABLE billing.ledger (
    entry        TEXT,
    account      TEXT,
    period       TEXT NOT NULL,
    statement_id TEXT NOT NULL,
    currency     TEXT NOT NULL,
    debit        DECIMAL(38, 3) NOT NULL,
    credit       DECIMAL(38, 3) NOT NULL,
    PRIMARY KEY (entry, account),
    CONSTRAINT one_side CHECK ((debit = 0) <> (credit = 0) AND debit >= 0 AND credit >= 0)
) WITH (append_only = 'true');

-- One row is a view that was judged: it is not paid for when its verdict is invalid.
CREATE TABLE audit.verdicts (
    event_id        UUID PRIMARY KEY,
    verdict         TEXT NOT NULL,
    rule_ids        TEXT NOT NULL,
    ruleset_version INTEGER NOT NULL,
    judged_at       TIMESTAMPTZ NOT NULL,
    CONSTRAINT known_verdict CHECK (verdict IN ('invalid', 'flagged'))
);
