"""read_tools.py PG_PORT: SQLAlchemy, pandas and pgcli find the tables and read them; psycopg's COPY loads one.

Exits with 1 and says which comparisons failed.
"""

import datetime
import sys

import pandas
import psycopg
import sqlalchemy
from pgcli.pgexecute import PGExecute

COUNTS = "SELECT video_id, total_views FROM video_views ORDER BY video_id"
INSTANT = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
ID = "00000000-0000-4000-8000-0000000000"


class Comparisons:
    def __init__(self):
        self.made, self.faults = 0, []

    def same(self, what, found, wanted):
        self.made += 1
        if found != wanted:
            self.faults.append(f"{what}: {str(found)[:300]}, not {str(wanted)[:300]}")


def by_sqlalchemy(engine, comparisons):
    same = comparisons.same
    inspector = sqlalchemy.inspect(engine)
    same("schemas", {"public", "batch", "speed", "raw", "system"} <= set(inspector.get_schema_names()), True)
    same("tables", {"video_views", "exclusions"} <= set(inspector.get_table_names()), True)
    same("views", "top_videos" in inspector.get_view_names(), True)
    same("a table that is there", inspector.has_table("exclusions"), True)
    same("a table that is not", inspector.has_table("nothing"), False)
    columns = inspector.get_columns("exclusions")
    same("columns", [column["name"] for column in columns], ["event_id", "reason", "recorded_at"])
    same("their types", [str(column["type"]) for column in columns], ["TEXT", "TEXT", "TIMESTAMP"])
    # Keys are not in pg_catalog: no fault, and nothing that is wrong.
    same("foreign keys", inspector.get_foreign_keys("exclusions"), [])
    inspector.get_pk_constraint("exclusions")
    inspector.get_indexes("exclusions")
    views = sqlalchemy.Table("video_views", sqlalchemy.MetaData(), autoload_with=engine)
    with engine.connect() as connection:
        counts = connection.execute(sqlalchemy.text(COUNTS)).all()
        video, total = counts[0]
        one = sqlalchemy.select(views.c.total_views).where(views.c.video_id == video)
        same("a select", connection.execute(one).scalar_one(), total)
        some = sqlalchemy.select(sqlalchemy.func.count()).where(views.c.video_id.in_([video, counts[1][0]]))
        same("a list", connection.execute(some).scalar_one(), 2)
    same("there is something", len(counts) > 100, True)
    return counts


def by_pandas(engine, counts, comparisons):
    frame = pandas.read_sql(COUNTS, engine)
    comparisons.same("read_sql", list(frame.itertuples(index=False, name=None)), [tuple(row) for row in counts])
    comparisons.same("its types", str(frame["total_views"].dtype), "int64")
    pieces = pandas.read_sql(COUNTS, engine, chunksize=50)
    comparisons.same("in pieces", sum(len(piece) for piece in pieces), len(counts))
    comparisons.same("read_sql_table", len(pandas.read_sql_table("exclusions", engine)), 0)


def by_pgcli(port, comparisons):
    """What it completes names from; that of functions it does not get."""
    same = comparisons.same
    asked = PGExecute(database="viewledger", user="analyst", password="", host="127.0.0.1", port=port, dsn=None)
    same("pgcli's schemas", {"public", "raw", "system"} <= set(asked.schemata()), True)
    same("pgcli's tables", {("public", "video_views"), ("raw", "video_views")} <= set(asked.tables()), True)
    same("pgcli's views", ("public", "top_videos") in asked.views(), True)
    columns = [column[2] for column in asked.table_columns() if column[:2] == ("public", "exclusions")]
    same("pgcli's columns", columns, ["event_id", "reason", "recorded_at"])
    same("pgcli's databases", "viewledger" in asked.databases(), True)
    same("pgcli's keys", list(asked.foreignkeys()), [])


def by_psycopg(port, comparisons):
    same = comparisons.same
    where = f"host=127.0.0.1 port={port} user=billing dbname=viewledger"
    with psycopg.connect(where, autocommit=True) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY exclusions FROM STDIN") as copy:
            for end in (20, 21):
                copy.write_row((f"{ID}{end}", "by\tpsycopg", "2026-01-01"))
        same("COPY FROM", cursor.rowcount, 2)
        with cursor.copy("COPY exclusions FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["text", "text", "timestamptz"])
            copy.write_row((f"{ID}22", "by\tpsycopg", INSTANT))
        same("COPY FROM of a binary file", cursor.rowcount, 1)
        rows = cursor.execute("SELECT event_id FROM exclusions WHERE reason = 'by\tpsycopg' ORDER BY 1").fetchall()
        same("all rows", rows, [(f"{ID}{end}",) for end in (20, 21, 22)])
        try:
            with cursor.copy("COPY exclusions FROM STDIN") as copy:
                copy.write(f"{ID}23\tby psycopg\n")
            same("a wrong line", "no error", "an error")
        except psycopg.errors.BadCopyFileFormat as error:
            same("a wrong line", error.diag.context, f'COPY exclusions, line 1: "{ID}23\tby psycopg"')
        same("the session goes on", cursor.execute("SELECT count(*) FROM exclusions").fetchone(), (3,))
        cursor.execute("DELETE FROM exclusions")
        same("DELETE", cursor.rowcount, 3)


def main(port):
    comparisons = Comparisons()
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://analyst@127.0.0.1:{port}/viewledger")
    counts = by_sqlalchemy(engine, comparisons)
    by_pandas(engine, counts, comparisons)
    engine.dispose()
    by_pgcli(port, comparisons)
    by_psycopg(port, comparisons)
    for fault in comparisons.faults:
        print(fault)
    print(f"SQLAlchemy, pandas, pgcli, psycopg: {comparisons.made} comparisons, {len(comparisons.faults)} faults")
    return 1 if comparisons.faults else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    sys.exit(main(int(sys.argv[1])))
