-- psql -v period=2026-10 -f judge.sql: judges the views of a month by the newest set of rules. Verdicts count from the next refresh
-- on. A verdict that another set of rules gave is replaced; all of them stay in system.table_versions and in storage.
\set ON_ERROR_STOP on
BEGIN;
SET LOCAL statement_timeout = 0;
SELECT error('there is no set of rules: psql -f sql/fraud/thresholds.sql') WHERE NOT EXISTS (SELECT 1 FROM fraud.rulesets);
INSERT INTO audit.verdicts
SELECT v.event_id, v.verdict, v.rule_ids, r.version, now() FROM fraud.proposed_verdicts AS v
CROSS  JOIN (SELECT max(version) AS version FROM fraud.rulesets) AS r
LEFT   JOIN audit.verdicts AS j ON j.event_id = v.event_id
WHERE  v.period = :'period' AND (j.event_id IS NULL OR j.verdict <> v.verdict OR j.rule_ids <> v.rule_ids)
ORDER  BY v.event_id
ON CONFLICT (event_id) DO UPDATE SET verdict = EXCLUDED.verdict, rule_ids = EXCLUDED.rule_ids,
    ruleset_version = EXCLUDED.ruleset_version, judged_at = EXCLUDED.judged_at;
COMMIT;
SELECT rule_ids, verdict, count(*) AS views FROM audit.verdicts GROUP BY rule_ids, verdict ORDER BY views DESC, rule_ids;
