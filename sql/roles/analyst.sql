-- Reads what is counted, where it comes from, and how fresh it is.
CREATE ROLE analyst LOGIN;
GRANT SELECT ON ALL TABLES IN SCHEMA public, batch, speed, raw, quarantine, system TO analyst;
