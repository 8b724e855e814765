-- One row is a threshold of a rule for invalid traffic.
CREATE TABLE fraud.thresholds (
    rule  TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);

-- One row is a referrer that only robots send.
CREATE TABLE fraud.bot_referrers (
    referrer TEXT PRIMARY KEY
);

-- One row is a set of rules and thresholds that verdicts were made by.
CREATE TABLE fraud.rulesets (
    version     INTEGER PRIMARY KEY,
    note        TEXT NOT NULL,
    recorded_by TEXT NOT NULL
) WITH (append_only = 'true');
