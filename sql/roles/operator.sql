-- Keeps it running: refreshes and defines views, has changed files followed, and finds a connection when all others are taken.
CREATE ROLE operator LOGIN;
GRANT analyst, pg_use_reserved_connections TO operator;
GRANT MAINTAIN ON ALL TABLES IN SCHEMA public TO operator;
GRANT CREATE ON SCHEMA public TO operator;
GRANT EXECUTE ON FUNCTION pg_reload_conf() TO operator;
