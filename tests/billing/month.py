"""month.py [--bin viewledger] [--events N] [--late N] [--rules] [--dir DIR]: bills a month, and computes it from the truth file by itself.

Starts a demo, gives it a month of views with duplicates, late and broken records, rates that change in the middle of the month, a
country's own rate and payees in two currencies; judges them, by the rules with --rules and otherwise one of 256 by lot, closes the month twice by `psql -f sql/billing/close.sql`, lets more
views come late and adjusts. Every statement and line is held against a computation in Python's decimal, to the minor unit; both
exports against each other, byte by byte; and `viewledger verify --period` computes it a third time. Needs psql, and some 8 GB of
disk for 5 million views. Exits with 1 when anything is not equal. Prints what took how long.
"""

import argparse
import csv
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, getcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PERIOD, MID = "2026-10", "2026-10-15"
UNITS = {"USD": Decimal("0.01"), "JPY": Decimal(1)}
TERMS = f"""
INSERT INTO billing.currencies VALUES ('USD', 100, 0.01), ('JPY', 1, 1);
INSERT INTO videos SELECT 'vid-' || CAST(value AS TEXT), 'o' || CAST(value % 100000 AS TEXT), '2020-01-01', NULL, now(), 'x'
FROM generate_series(0, 200000);
INSERT INTO billing.payees SELECT DISTINCT owner_id, CASE WHEN owner_id LIKE '%7' THEN 'JPY' ELSE 'USD' END FROM videos;
INSERT INTO billing.scope_values VALUES ('country', 'DE');
INSERT INTO billing.rates VALUES
 ('usd1', 'default', '', 'USD', 0.0012345, '2020-01-01', '{MID}', now(), 'carl', 'dora'),
 ('usd2', 'default', '', 'USD', 0.002, '{MID}', NULL, now(), 'carl', 'dora'),
 ('de', 'country', 'DE', 'USD', 0.0033, '2020-01-01', NULL, now(), 'carl', 'dora'),
 ('jpy', 'default', '', 'JPY', 0.155, '2020-01-01', NULL, now(), 'carl', 'dora');
"""
DRAWN = """
INSERT INTO audit.verdicts SELECT event_id, 'invalid', 'drawn', 1, now() FROM raw.video_views
WHERE right(event_id, 2) = '00' AND "timestamp" < TIMESTAMPTZ '2026-11-01T00:00:00Z' ORDER BY event_id
"""


def terms_of(video, day, country):
    """Owner, currency, rate's name and rate."""
    owner = f"o{int(video.removeprefix('vid-')) % 100000}"
    if owner.endswith("7"):
        return owner, "JPY", "jpy", Decimal("0.155")
    if country == "DE":
        return owner, "USD", "de", Decimal("0.0033")
    return (owner, "USD", "usd1", Decimal("0.0012345")) if day < MID else (owner, "USD", "usd2", Decimal("0.002"))


def counted(truths):
    """Of each view that is to be counted once: its id, and (video, day, country) if it is eligible, else None."""
    seen = set()
    for truth in truths:
        with open(truth, newline="") as file:
            for row in csv.DictReader(file):
                if row["kind"] in ("malformed", "aborted") or row["id"] in seen:
                    continue
                seen.add(row["id"])
                eligible = row["revenue_eligible"] == "true"
                yield row["id"], (row["video_id"], row["timestamp"][:10], row["geo_location"]) if eligible else None


def computed(truths, invalid):
    """Statements -> (views, exact, amount), lines -> (views, exact, amount), and how many views there are of each kind."""
    views, kinds = Counter(), Counter()
    for event, group in counted(truths):
        kind = "ineligible" if group is None else "invalid" if event in invalid else "billed"
        kinds[kind] += 1
        if kind == "billed":
            views[group] += 1
    lines = defaultdict(lambda: [0, Decimal(0)])
    for (video, day, country), count in views.items():
        owner, currency, name, rate = terms_of(video, day, country)
        line = lines[f"{PERIOD}/{owner}/{currency}", video, name]
        line[0] += count
        line[1] += count * rate
    by_statement = defaultdict(list)
    for (statement, video, name), (count, exact) in sorted(lines.items()):
        by_statement[statement].append((video, name, count, exact))
    statements, spread = {}, {}
    for statement, rows in by_statement.items():
        unit = UNITS[statement.rsplit("/", 1)[1]]
        exact = sum(row[3] for row in rows)
        total = (exact / unit).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
        statements[statement] = (sum(row[2] for row in rows), exact, total * unit)
        # Largest remainder, ties by line.
        parts = [divmod(total * row[3], exact) if exact else (Decimal(0), Decimal(0)) for row in rows]
        left = int(total - sum(part[0] for part in parts))
        more = set(sorted(range(len(rows)), key=lambda at: (-parts[at][1], at))[:left])
        for at, (video, name, count, line) in enumerate(rows):
            spread[statement, video, name] = (count, line, (parts[at][0] + (at in more)) * unit)
    return statements, spread, kinds


class Server:
    def __init__(self, arguments, directory):
        ports = []
        for _ in range(4):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(str(free.getsockname()[1]))
        self.pg, http, flight, self.broker = ports
        self.bin, self.data = arguments.bin, directory / "data"
        self.log = open(directory / "demo.log", "w")
        self.process = subprocess.Popen(
            [self.bin, "demo", "--data-dir", self.data, "--sql-dir", ROOT / "sql", "--rate", "1", "--pg-port", self.pg,
             "--http-port", http, "--flight-port", flight, "--broker-port", self.broker],
            stdout=self.log, stderr=self.log,
            env={**os.environ, "VIEWLEDGER_TABLES_BYTES_MAX": "1GiB", "VIEWLEDGER_QUERY_MEMORY_BYTES_MAX": "2GiB"})
        self.until(lambda: self.ask("SELECT 1", check=False) == "1", "the demo answers")

    def psql(self, role, *more, check=True, cwd=None):
        command = ["psql", "-X", "-q", "-h", "127.0.0.1", "-p", self.pg, "-U", role, "-d", "viewledger", *more]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
        if check and ran.returncode:
            sys.exit(f"{' '.join(map(str, more))}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def ask(self, sql, check=True):
        return self.psql("billing", "-At", "-c", sql, check=check).strip()

    def script(self, name, *variables, cwd=None):
        settings = [part for name_and_value in (f"period={PERIOD}", *variables) for part in ("-v", name_and_value)]
        return self.psql("billing", *settings, "-f", ROOT / "sql" / name, cwd=cwd)

    def until(self, done, what, patience=600):
        end = time.monotonic() + patience
        while not done():
            if time.monotonic() > end or self.process.poll() is not None:
                sys.exit(f"{what}: not so after {patience} s; see {self.log.name}")
            time.sleep(0.2)

    def generate(self, truth, events, seed):
        # One in 100 microseconds; half of them before the rates change.
        start = datetime.fromisoformat(MID) - timedelta(microseconds=events * 50)
        command = [self.bin, "generate", "--brokers", f"127.0.0.1:{self.broker}", "--profile", ROOT / "sql/load/video_views.toml",
                   "--events", str(events), "--seed", str(seed), "--truth", truth,
                   "--start-time", f"{start.isoformat()}Z"]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            sys.exit(made.stderr)
        return (made.stdout + made.stderr).strip().splitlines()[-1]

    def count(self, truths):
        expected = sum(1 for _ in counted(truths))
        received = "SELECT coalesce(sum(received), 0) FROM billable_views WHERE day < DATE '2026-11-01'"
        self.until(lambda: int(self.ask(received)) >= expected, f"{expected} views are counted")

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
        return f"{peak / 2**20:.2f} GiB"


def timed(what, work):
    began = time.monotonic()
    result = work()
    print(f"{what:48} {time.monotonic() - began:8.1f} s", flush=True)
    return result


def equal(what, is_so, should):
    if is_so == should:
        print(f"{what}: {len(is_so)} equal", flush=True)
        return 0
    wrong = [key for key in is_so.keys() | should.keys() if is_so.get(key) != should.get(key)]
    print(f"{what}: {len(wrong)} of {len(should)} are not equal, such as")
    for key in sorted(wrong, key=str)[:5]:
        print(f"  {key}: {is_so.get(key)} instead of {should.get(key)}")
    return len(wrong)


def read(server, sql, keys):
    rows = [line.split("|") for line in server.ask(sql).splitlines()]
    key = (lambda row: row[0]) if keys == 1 else (lambda row: tuple(row[:keys]))
    return {key(row): (int(row[keys]), Decimal(row[keys + 1]), Decimal(row[keys + 2])) for row in rows}


def main(arguments):
    getcontext().prec = 60
    directory = Path(arguments.dir)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    server = Server(arguments, directory)
    try:
        return bill(arguments, directory, server)
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()


def bill(arguments, directory, server):
    wrong = 0
    truths = [directory / "truth-1.csv"]
    print(timed("views produced", lambda: server.generate(truths[0], arguments.events, 1)))
    timed("and counted", lambda: server.count(truths))
    server.psql("billing", "-c", TERMS)
    if arguments.rules:
        server.script("fraud/thresholds.sql")
        timed("judged (sql/fraud/judge.sql)", lambda: server.script("fraud/judge.sql"))
    else:
        timed("one of 256 judged invalid", lambda: server.psql("billing", "-c", DRAWN))
    timed("REFRESH MATERIALIZED VIEW billable_views", lambda: server.psql("billing", "-c", "REFRESH MATERIALIZED VIEW billable_views"))
    print(timed("closed (sql/billing/close.sql)", lambda: server.script("billing/close.sql")))
    exported = []
    for _ in range(2):
        server.script("billing/export.sql", cwd=directory)
        exported.append([(directory / f"{file}-{PERIOD}.csv").read_bytes() for file in ("statements", "lines")])
        timed("closed again", lambda: server.script("billing/close.sql"))
    wrong += exported[0] != exported[1]
    print(f"exported twice: {sum(map(len, exported[0]))} bytes, {'equal' if exported[0] == exported[1] else 'NOT EQUAL'}")
    invalid = set(server.ask("SELECT event_id FROM audit.verdicts WHERE verdict = 'invalid'").split())
    statements, lines, kinds = timed("computed in Python", lambda: computed(truths, invalid))
    print(dict(kinds))
    wrong += equal("statements", read(server, "SELECT statement_id, views, exact_amount, amount FROM billing.statements", 1), statements)
    wrong += equal("lines", read(server, "SELECT statement_id, video_id, rate_id, views, exact_amount, amount FROM billing.statement_lines", 3), lines)

    truths.append(directory / "truth-2.csv")
    print(timed("late views produced", lambda: server.generate(truths[1], arguments.late, 2)))
    timed("and counted", lambda: server.count(truths))
    timed("adjusted (sql/billing/adjust.sql)", lambda: server.script("billing/adjust.sql", "paid_in=2026-11"))
    statements, _, _ = computed(truths, invalid)
    booked = """SELECT statement_id, sum(views), sum(exact_amount), sum(amount) FROM (
        SELECT statement_id, views, exact_amount, amount FROM billing.statements UNION ALL
        SELECT original_statement, views, exact_amount, amount FROM billing.adjustments) AS booked GROUP BY statement_id"""
    wrong += equal("statements with adjustments", read(server, booked, 1), statements)
    views = server.ask("SELECT table_name FROM information_schema.tables WHERE table_schema = 'quality'").split()
    broken = [view for view in views if server.ask(f"SELECT count(*) FROM quality.{view}") != "0"]
    wrong += len(broken)
    print(f"{len(views)} quality views, with rows: {broken or 'none'}")
    print(f"peak memory of the server {server.memory()}")
    verified = timed("viewledger verify --period", lambda: subprocess.run(
        [server.bin, "verify", "--data-dir", server.data, "--sql-dir", ROOT / "sql", "--period", PERIOD], capture_output=True, text=True))
    print(verified.stdout)
    wrong += verified.returncode != 0
    print(f"peak memory of its children {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")
    print("all equal" if not wrong else f"{wrong} things are not equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=ROOT / "target/release/viewledger")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--late", type=int, default=20_000)
    parser.add_argument("--rules", action="store_true")
    parser.add_argument("--dir", default="/tmp/viewledger-month")
    sys.exit(main(parser.parse_args()))
