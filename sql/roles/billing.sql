-- Keeps the tables that money depends on.
CREATE ROLE billing LOGIN;
GRANT analyst TO billing;
GRANT INSERT, UPDATE, DELETE ON country_rates, exclusions TO billing;
