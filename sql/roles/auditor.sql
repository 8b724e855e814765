-- Reads everything, and who did what. Changes nothing.
CREATE ROLE auditor LOGIN;
GRANT analyst TO auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA audit, billing, fraud, quality TO auditor;
