-- psql -f thresholds.sql: the thresholds to begin with. They are data: UPDATE fraud.thresholds, then add a row to fraud.rulesets.
\set ON_ERROR_STOP on
BEGIN;
INSERT INTO fraud.thresholds VALUES
    ('replays_in_a_day', 4), ('views_in_an_hour', 60), ('views_in_a_day', 400), ('watch_percent_of_an_hour', 120),
    ('travel_minutes', 5), ('metronome_views', 20), ('metronome_percent', 10), ('hugging_views', 50), ('hugging_percent', 80),
    ('paying_seconds', 30), ('burst_views', 100), ('burst_users_percent', 10)
ON CONFLICT (rule) DO NOTHING;
INSERT INTO fraud.rulesets VALUES (1, 'thresholds to begin with', current_user) ON CONFLICT (version) DO NOTHING;
COMMIT;
