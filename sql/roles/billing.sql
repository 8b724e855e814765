-- Keeps the tables that money depends on, and closes periods.
CREATE ROLE billing LOGIN;
GRANT analyst TO billing;
GRANT INSERT, UPDATE, DELETE ON country_rates, exclusions, videos TO billing;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA billing TO billing;
GRANT SELECT ON ALL TABLES IN SCHEMA quality TO billing;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA fraud TO billing;
GRANT SELECT, INSERT, UPDATE, DELETE ON audit.verdicts TO billing;
-- A close is refused until what they changed is counted.
GRANT MAINTAIN ON billable_views, ad_revenue_daily TO billing;
