--! 2:8: No field named wrong.; Valid fields are raw.events.id, ...
CREATE MATERIALIZED VIEW daily AS
SELECT wrong, count(*) FROM raw.events GROUP BY wrong;

--! 2:22: table 'viewledger.raw.nothing' not found
CREATE MATERIALIZED VIEW daily AS
SELECT count(*) FROM raw.nothing;

--! 2:8: No field named nothing.; Valid fields are raw.events.id, ...
CREATE VIEW tops AS
SELECT nothing FROM raw.events;

--! 2:15: table 'viewledger.public.nothing' not found
CREATE VIEW tops AS
SELECT * FROM nothing;

--! 1:1: Cannot coerce arithmetic expression Utf8 + Int64 to valid types
CREATE VIEW tops AS
SELECT page FROM raw.events WHERE page + 1;

--! 1:1: view tops has two columns page: name them apart with AS
CREATE VIEW tops AS
SELECT e.page, o.page FROM raw.events e, raw.others o;

--! 1:1: view tops has the parameter $1: write a constant
CREATE VIEW tops AS
SELECT page FROM raw.events WHERE page = $1;

--! 1:1: view tops is defined by itself: it reads tops; let one of them read materialized views only
CREATE VIEW tops AS
SELECT * FROM tops;

--! 1:1: view one is defined by itself: it reads two; let one of them read materialized views only
--! 3:1: view two is defined by itself: it reads one; let one of them read materialized views only
CREATE VIEW one AS
SELECT * FROM two;
CREATE VIEW two AS
SELECT * FROM one;
CREATE VIEW three AS
SELECT * FROM two;

--! 3:1: view tops is declared already, at views/case.sql:1
CREATE VIEW tops AS
SELECT page FROM raw.events;
CREATE VIEW tops AS
SELECT who FROM raw.events;

--! 3:1: view tops is declared already, at views/case.sql:1
CREATE MATERIALIZED VIEW tops AS
SELECT count(*) AS n FROM raw.events;
CREATE VIEW tops AS
SELECT page FROM raw.events;

--! 1:1: stream events is declared already, at streams/events.sql:2
CREATE STREAM events (id TEXT) WITH (topic = 'other-topic');

--! 1:1: stream third reads topic "events", which stream events at streams/events.sql:2 reads already
CREATE STREAM third (id TEXT) WITH (topic = 'events');

--! 2:8: No field named nothing.; Valid fields are raw.events.id, ...
CREATE VIEW broken AS
SELECT nothing FROM raw.events;
CREATE VIEW above AS
SELECT * FROM broken;
