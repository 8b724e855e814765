"""Holds docker/ against the real server: what is named in dashboards, alerts and settings has to be there.

check_docker.py BINARY HTTP_PORT PG_PORT SCRATCH: a server with the shipped sql/ and some records runs at these ports.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import unittest
import urllib.request

import promql_parser
import psycopg
import yaml

ROOT = pathlib.Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BINARY, HTTP_PORT, PG_PORT, SCRATCH = sys.argv[1:5]

# Labels that Prometheus adds to whatever it fetches.
ADDED_LABELS = {"job", "instance", "le"}
# What Prometheus itself makes of a target.
OWN_METRICS = {"up"}
# Metrics that come with the first event of their kind, and their labels: a short run may have none.
RARE = {
    "reconciled_groups_total": {"view", "outcome"},
    "refreshes_total": {"outcome"},
    "archive_commits_total": {"stream", "outcome"},
    "queries_total": {"outcome"},
}


def documents():
    return sorted(path for path in DOCKER.rglob("*") if path.suffix in {".yaml", ".yml", ".json"})


def dashboards():
    return sorted((DOCKER / "grafana/dashboards").glob("*.json"))


def panels():
    for path in dashboards():
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel


def targets(kind):
    for board, panel in panels():
        for target in panel.get("targets", []):
            if target["datasource"]["type"] == kind:
                yield f"{board}: {panel['title']}", target


def exposed():
    """Sample names with their labels, as the server prints them."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{HTTP_PORT}/metrics").read().decode()
    samples = {}
    for line in text.splitlines():
        match = re.match(r"([a-z_]+)(\{.*\})? ", line)
        if match and not line.startswith("#"):
            labels = re.findall(r'([a-z_]+)="', match[2] or "")
            samples.setdefault(match[1], set()).update(labels)
    return samples


def named(expression):
    """Metrics with the labels that the selector asks for, and all labels of groupings."""
    expression = expression.replace("$__rate_interval", "1m")
    selectors, groupings = [], set()

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            groupings.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return selectors, groupings


def interpolated(text):
    """As compose does it, where the environment has nothing."""
    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", lambda m: m[3] if m[2] == "-" else "given", str(text))


def services(name):
    return yaml.safe_load((DOCKER / name).read_text())["services"]


def viewledger(*arguments, **environment):
    environment = {"PATH": os.environ["PATH"], "NO_COLOR": "1", **environment}
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)


class Docker(unittest.TestCase):
    def test_every_document_can_be_read(self):
        self.assertGreater(len(documents()), 8)
        for path in documents():
            text = path.read_text()
            self.assertNotIn("\t", text, path)
            (json.loads if path.suffix == ".json" else yaml.safe_load)(text)

    def test_the_dockerfile_passes_its_linter(self):
        linter = pathlib.Path(sys.executable).parent / "hadolint"
        done = subprocess.run([linter, DOCKER / "Dockerfile"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_image_is_not_root_and_has_what_the_build_reads(self):
        text = (DOCKER / "Dockerfile").read_text()
        self.assertRegex(text, r"\nUSER [1-9]\d*:[1-9]\d*\n")
        self.assertIn("HEALTHCHECK", text)
        kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for name in kept:
            self.assertTrue((ROOT / name).exists(), name)
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
        wanted = {"Cargo.toml", "Cargo.lock", "src", "sql", *manifest["workspace"]["members"]}
        # Cargo wants the file of each bench that the manifest names.
        wanted |= {"benches"} if manifest.get("bench") else set()
        for source in (ROOT / "src").rglob("*.rs"):
            for outside in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
                file = (source.parent / outside).resolve().relative_to(ROOT.resolve())
                wanted.add(file.parts[0])
        self.assertEqual(wanted - set(kept), set())
        feature = re.search(r"ARG FEATURES=(\S+)", text)[1]
        self.assertIn(feature, manifest["features"])
        self.assertIn(f"rust:{manifest['workspace']['package']['rust-version']}-", text)

    def test_services_are_pinned_and_files_exist(self):
        for name in ["compose.yaml", "compose.production.yaml"]:
            document = yaml.safe_load((DOCKER / name).read_text())
            volumes, networks = set(document["volumes"]), set(document.get("networks", []))
            for service, said in document["services"].items():
                where = f"{name}: {service}"
                image = said["image"]
                self.assertTrue(image == "viewledger" or re.search(r":[\w.-]*\d", image), f"{where}: {image}")
                for volume in said.get("volumes", []):
                    source = volume.split(":")[0] if not volume.startswith("${") else None
                    if source and source.startswith("."):
                        self.assertTrue((DOCKER / source).exists(), f"{where}: {source}")
                    elif source:
                        self.assertIn(source, volumes, where)
                self.assertLessEqual(set(said.get("networks", [])), networks, where)
                self.assertLessEqual(set(said.get("depends_on", [])), set(document["services"]), where)
                self.assertTrue(said.get("restart"), f"{where}: is not started again")

    def test_settings_in_the_environment_are_known(self):
        seen = 0
        for name in ["compose.yaml", "compose.production.yaml"]:
            for service, said in services(name).items():
                if said["image"] != "viewledger":
                    continue
                settings = {key: interpolated(value) for key, value in said.get("environment", {}).items()}
                seen += len(settings)
                done = viewledger("check", "--data-dir", f"{SCRATCH}/none", **settings)
                self.assertEqual(done.returncode, 0, f"{name}: {service}: {done.stderr}")
        self.assertGreater(seen, 5)
        wrong = viewledger("check", VIEWLEDGER_AUTH_METHODS="scram")
        self.assertEqual(wrong.returncode, 3, "a wrong setting is found")

    def test_settings_in_files_are_known(self):
        files = sorted(DOCKER.glob("*.toml"))
        self.assertTrue(files)
        for path in files:
            done = viewledger("check", "--config", path, "--sql-dir", "sql", "--data-dir", f"{SCRATCH}/none",
                              VIEWLEDGER_STORAGE_LOCATION="")
            self.assertEqual(done.returncode, 0, f"{path}: {done.stderr}")

    def test_arguments_are_known(self):
        seen = 0
        for name in ["compose.yaml", "compose.production.yaml"]:
            for service, said in services(name).items():
                health = said.get("healthcheck", {}).get("test", [])
                if said["image"] != "viewledger":
                    continue
                for words in [said.get("command", ["serve"]), health[2:]]:
                    if not words:
                        continue
                    known = viewledger(words[0], "--help")
                    self.assertEqual(known.returncode, 0, f"{name}: {service}: {words}")
                    for flag in re.findall(r"--[a-z-]+", interpolated(" ".join(words))):
                        seen += 1
                        self.assertRegex(known.stdout, rf"{flag}\b", f"{name}: {service}")
        self.assertGreater(seen, 3)

    def test_topics_are_those_of_the_streams(self):
        topics = set()
        for path in (ROOT / "sql/streams").glob("*.sql"):
            topics |= set(re.findall(r"topic\s*=\s*'([^']+)'", path.read_text()))
        for script in ["topics.sh", "rights.sh"]:
            text = (DOCKER / "kafka" / script).read_text()
            self.assertEqual(set(re.search(r"for topic in (.+); do", text)[1].split()), topics, script)
            subprocess.run(["bash", "-n", DOCKER / "kafka" / script], check=True)
        for name, replicas in [("compose.yaml", "1"), ("compose.production.yaml", "3")]:
            said = services(name)["topics"]["environment"]
            self.assertEqual((said["PARTITIONS"], said["REPLICATION"]), ("12", replicas))

    def test_ports_that_are_scraped_and_served_agree(self):
        for name in ["prometheus.yml", "prometheus.production.yml"]:
            document = yaml.safe_load((DOCKER / "prometheus" / name).read_text())
            [job] = [job for job in document["scrape_configs"] if job["job_name"] == "viewledger"]
            self.assertEqual(job["static_configs"][0]["targets"], ["viewledger:8080"])
            self.assertEqual(document["rule_files"], ["alerts.yml"])

    def check_expression(self, where, expression, samples):
        selectors, groupings = named(expression)
        self.assertTrue(selectors, where)
        known = set(ADDED_LABELS)
        for metric, labels in selectors:
            if metric in OWN_METRICS:
                continue
            self.assertTrue(metric in samples or metric in RARE, f"{where}: /metrics has no {metric}")
            has = samples.get(metric, set()) | RARE.get(metric, set())
            self.assertLessEqual(labels, has | ADDED_LABELS, f"{where}: {metric}")
            known |= has
        self.assertLessEqual(groupings, known, where)

    def test_alerts_name_metrics_that_exist_and_pages_of_the_runbook(self):
        samples = exposed()
        runbook = (ROOT / "docs/operate.md").read_text()
        headings = {re.sub(r"[^a-z0-9 -]", "", line[4:].lower()).replace(" ", "-")
                    for line in runbook.splitlines() if line.startswith("### ")}
        alerts = [rule for group in yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
                  for rule in group["rules"]]
        self.assertGreater(len(alerts), 15)
        for rule in alerts:
            self.check_expression(rule["alert"], rule["expr"], samples)
            self.assertIn(rule["labels"]["severity"], {"page", "ticket"}, rule["alert"])
            file, anchor = rule["annotations"]["runbook"].split("#")
            self.assertEqual(file, "docs/operate.md")
            self.assertIn(anchor, headings, rule["alert"])

    def test_dashboards_name_metrics_that_exist(self):
        samples = exposed()
        found = list(targets("prometheus"))
        self.assertGreater(len(found), 25)
        for where, target in found:
            self.check_expression(where, target["expr"], samples)

    def test_a_metric_that_does_not_exist_is_found(self):
        with self.assertRaises(AssertionError):
            self.check_expression("control", "rate(view_event_total[1m])", exposed())
        with self.assertRaises(AssertionError):
            self.check_expression("control", 'sum by (streams) (view_events_total{outcome="counted"})', exposed())

    def test_every_query_of_a_dashboard_is_answered(self):
        found = list(targets("grafana-postgresql-datasource"))
        self.assertGreater(len(found), 10)
        login = f"host=127.0.0.1 port={PG_PORT} user=analyst password=x dbname=viewledger"
        rows = 0
        with psycopg.connect(login, autocommit=True) as connection:
            for where, target in found:
                # As Grafana writes it.
                sql = re.sub(r"\$__timeFilter\(([^)]+)\)",
                             r"\1 BETWEEN '2020-01-01T00:00:00Z' AND '2100-01-01T00:00:00.123Z'", target["rawSql"])
                self.assertNotIn("$__", sql, where)
                try:
                    cursor = connection.execute(sql)
                except psycopg.Error as error:
                    self.fail(f"{where}: {error}")
                if target["format"] == "time_series":
                    self.assertEqual(cursor.description[0].name, "time", where)
                rows += len(cursor.fetchall())
        self.assertGreater(rows, 50, "there is something to show")

    def test_sources_of_dashboards_are_provisioned(self):
        sources = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/viewledger.yaml").read_text())
        known = {source["uid"]: source["type"] for source in sources["datasources"]}
        ids = set()
        for board, panel in panels():
            if panel["type"] != "row":
                self.assertEqual(known.get(panel["datasource"]["uid"]), panel["datasource"]["type"], panel["title"])
                self.assertTrue(panel["description"], panel["title"])
            self.assertNotIn((board, panel["id"]), ids)
            ids.add((board, panel["id"]))
        variables = set(re.findall(r"\$([A-Z_]+)", json.dumps(sources)))
        for name in ["compose.yaml", "compose.production.yaml"]:
            self.assertLessEqual(variables, set(services(name)["grafana"]["environment"]), name)

    def test_the_unit_starts_what_there_is(self):
        text = (DOCKER / "systemd/viewledger.service").read_text()
        for words in re.findall(r"^Exec\w+=/usr/local/bin/viewledger (.+)$", text, re.MULTILINE):
            known = viewledger(words.split()[0], "--help")
            self.assertEqual(known.returncode, 0, words)
            self.assertIn("--config", known.stdout)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=1)
