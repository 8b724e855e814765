"""Opens an archive with other people's readers and checks that they see what the server says.

usage: check_archive.py DATA_DIR EXPECTED.json

EXPECTED.json:
  stream      name of the stream; its table is DATA_DIR/archive/STREAM
  kinds       rows expected of each `_kind`: {"event": n, "duplicate": n, "quarantined": n}
  partitions  what each partition holds: {"0": {"records": n, "end": n}}; `end` is one past the last record.
              Without gaps records == end; aborted and control records of transactions leave gaps.
  answers     path of a CSV file `key,count` (no header) with the server's merged answer
  key         column that the answer is grouped by

Exit codes: 0 all readers agree, 1 one does not, 2 wrong usage.
"""

import csv
import json
import pathlib
import sys

import deltalake
import duckdb
import pyarrow.compute as pc
import pyarrow.dataset as ds


def check(data_dir, expected):
    """Returns one line for each disagreement, and the number of comparisons made."""
    table = deltalake.DeltaTable(str(pathlib.Path(data_dir) / "archive" / expected["stream"]))
    comparisons = Comparisons()
    delta_reader(comparisons, table, expected)
    parquet_reader(comparisons, table, expected)
    duckdb_reader(comparisons, table, expected)
    return comparisons.faults, comparisons.made


class Comparisons:
    def __init__(self):
        self.made = 0
        self.faults = []

    def same(self, what, expected, seen):
        self.made += 1
        if expected != seen:
            self.faults.append(f"{what}: expected {expected}, found {seen}")


def delta_reader(comparisons, table, expected):
    """The log alone: its statistics must add up to the rows."""
    actions = table.get_add_actions(flatten=True)
    records = actions.column(actions.schema.names.index("num_records"))
    rows = sum(records[i].as_py() for i in range(len(records)))
    comparisons.same("delta: num_records in the log", sum(expected["kinds"].values()), rows)


def parquet_reader(comparisons, table, expected):
    """pyarrow over the files that the log names, each opened as plain Parquet."""
    files = [uri.removeprefix("file://") for uri in table.file_uris()]
    columns = ds.dataset(files, format="parquet").to_table(columns=["_kind", "_partition", "_offset"])
    kinds = {row["values"]: row["counts"] for row in pc.value_counts(columns["_kind"]).to_pylist()}
    for kind in sorted(kinds.keys() | expected["kinds"].keys()):
        comparisons.same(f"pyarrow: rows of kind {kind}", expected["kinds"].get(kind, 0), kinds.get(kind, 0))
    found = {}
    for partition, offset in zip(columns["_partition"].to_pylist(), columns["_offset"].to_pylist()):
        found.setdefault(partition, []).append(offset)
    wanted = {int(partition): extent for partition, extent in expected["partitions"].items()}
    for partition in sorted(found.keys() | wanted.keys()):
        extent = wanted.get(partition, {"records": 0, "end": 0})
        offsets = found.get(partition, [])
        name = f"pyarrow: partition {partition}"
        comparisons.same(f"{name}, rows", extent["records"], len(offsets))
        comparisons.same(f"{name}, offsets stored twice", 0, len(offsets) - len(set(offsets)))
        comparisons.same(f"{name}, offsets that are no records", extent["end"] - extent["records"],
                         extent["end"] - len(set(offsets)))
        comparisons.same(f"{name}, one past the last offset", extent["end"], max(offsets, default=-1) + 1)


def duckdb_reader(comparisons, table, expected):
    """DuckDB over the table as deltalake hands it on; its counts by key must be the server's merged view."""
    archive = table.to_pyarrow_dataset()
    connection = duckdb.connect()
    connection.register("archive", archive)
    total = connection.sql("SELECT count(*) FROM archive").fetchall()[0][0]
    comparisons.same("duckdb: rows", sum(expected["kinds"].values()), total)
    key = expected["key"]
    groups = connection.sql(f"SELECT {key}, count(*) FROM archive WHERE _kind = 'event' GROUP BY {key}").fetchall()
    found = {str(value): count for value, count in groups}
    with open(expected["answers"], newline="") as file:
        answers = {value: int(count) for value, count in csv.reader(file)}
    comparisons.same("duckdb: number of groups", len(answers), len(found))
    different = [value for value in answers.keys() | found.keys() if answers.get(value) != found.get(value)]
    for value in sorted(different)[:10]:
        comparisons.same(f"duckdb: count of {key} {value}", answers.get(value, 0), found.get(value, 0))
    comparisons.same("duckdb: groups that differ", 0, len(different))


def main(arguments):
    if len(arguments) != 2:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    data_dir, expected = arguments
    faults, made = check(data_dir, json.loads(pathlib.Path(expected).read_text()))
    for fault in faults:
        print(fault)
    print(f"{made - len(faults)} comparisons agree, {len(faults)} do not")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
