"""Reads views with the clients of data scientists and of scripts, over both protocols, and checks that they agree.

usage: read_views.py POSTGRES_PORT FLIGHT_PORT

Nothing may be written while it runs. Exit codes: 0 all agree, 1 one does not, 2 wrong usage.
"""

import asyncio
import sys

import adbc_driver_flightsql.dbapi as flightsql
import asyncpg
import polars
import psycopg
import pyarrow.flight

COUNTS = "SELECT video_id, total_views, mean_duration FROM video_views ORDER BY video_id"
ONE = "SELECT total_views FROM video_views WHERE video_id = $1"
RECORDS = 'SELECT event_id, "timestamp", view_duration, revenue_eligible FROM raw.video_views ORDER BY event_id LIMIT 500'
MONEY = "SELECT CAST(1.10 AS DECIMAL(18, 6)), CAST(-0.000001 AS DECIMAL(18, 6)), DATE '2026-01-31'"


class Comparisons:
    def __init__(self):
        self.made = 0
        self.faults = []

    def same(self, what, found, expected):
        self.made += 1
        if found != expected:
            self.faults.append(f"{what}: {str(found)[:300]} where {str(expected)[:300]} was expected")


def tuples(rows):
    return [tuple(row) for row in rows]


def by_psycopg(port, binary):
    with psycopg.connect(f"host=127.0.0.1 port={port} user=analyst dbname=viewledger") as connection:
        with connection.cursor(binary=binary) as cursor:
            answers = {sql: tuples(cursor.execute(sql).fetchall()) for sql in (COUNTS, RECORDS, MONEY)}
            video, total, _ = answers[COUNTS][0]
            found = cursor.execute("SELECT total_views FROM video_views WHERE video_id = %s", [video]).fetchall()
            with cursor.copy(f"COPY ({COUNTS}) TO STDOUT" + (" (FORMAT binary)" if binary else "")) as copy:
                copy.set_types(["text", "int8", "float8"])
                copied = list(copy.rows())
        # A cursor of the server, in portions.
        with connection.cursor(name="several", binary=binary) as cursor:
            cursor.itersize = 7
            portions = tuples(cursor.execute(COUNTS))
        with connection.pipeline():
            several = [connection.execute("SELECT sum(total_views) FROM video_views") for _ in range(3)]
            sums = [cursor.fetchone()[0] for cursor in several]
    return answers, (video, total, found), sums, copied, portions


async def by_asyncpg(port):
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user="analyst", database="viewledger")
    try:
        answers = {sql: tuples(await connection.fetch(sql)) for sql in (COUNTS, RECORDS, MONEY)}
        async with connection.transaction(readonly=True):
            cursor = [row async for row in connection.cursor(COUNTS, prefetch=7)]
        return answers, tuples(cursor)
    finally:
        await connection.close()


def by_adbc(port, comparisons):
    address, who = f"grpc://127.0.0.1:{port}", {"username": "analyst", "password": "-"}
    with flightsql.connect(address, db_kwargs=who, autocommit=True) as connection:
        cursor = connection.cursor()
        answers = {}
        for sql in (COUNTS, RECORDS, MONEY):
            cursor.execute(sql)
            answers[sql] = tuples(cursor.fetchall())
        video, total, _ = answers[COUNTS][0]
        cursor.execute(ONE, parameters=(video,))
        comparisons.same("adbc with a parameter", cursor.fetchall(), [(total,)])
        tables = connection.adbc_get_objects(depth="tables", db_schema_filter="public").read_all().to_pylist()
        names = [table["table_name"] for schema in tables[0]["catalog_db_schemas"] for table in schema["db_schema_tables"]]
        comparisons.same("adbc lists the view", "video_views" in names, True)
        schema = connection.adbc_get_table_schema("video_views", db_schema_filter="public")
        comparisons.same("adbc tells its columns", schema.names[:2], ["video_id", "total_views"])
        comparisons.same("adbc knows the server", connection.adbc_get_info()["vendor_name"], "Viewledger")
        try:
            cursor.execute("SELECT nothing FROM video_views")
            comparisons.same("adbc is told of a wrong column", "no error", "an error")
        except flightsql.Error as error:
            comparisons.same("adbc is told of a wrong column", "SQLSTATE 42703" in str(error), True)
        frame = polars.read_database(COUNTS, connection)
        comparisons.same("polars", frame.rows(), answers[COUNTS])
    # Without autocommit: a transaction.
    with flightsql.connect(address, db_kwargs=who) as connection:
        cursor = connection.cursor()
        sums = []
        for _ in range(3):
            cursor.execute("SELECT sum(total_views) FROM video_views")
            sums.append(cursor.fetchone()[0])
        connection.commit()
    comparisons.same("adbc in a transaction", len(set(sums)), 1)
    return answers


def by_pyarrow(port):
    client = pyarrow.flight.FlightClient(f"grpc://127.0.0.1:{port}")
    options = pyarrow.flight.FlightCallOptions(headers=[client.authenticate_basic_token("analyst", "-")])
    # CommandStatementQuery in an Any, as protobuf writes it.
    query = b"\x0a" + length(COUNTS.encode()) + COUNTS.encode()
    url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    command = b"\x0a" + length(url) + url + b"\x12" + length(query) + query
    info = client.get_flight_info(pyarrow.flight.FlightDescriptor.for_command(command), options)
    table = client.do_get(info.endpoints[0].ticket, options).read_all()
    return [tuple(row.values()) for row in table.to_pylist()]


def length(data):
    """A length as a varint."""
    number, digits = len(data), []
    while True:
        digits.append((number & 0x7F) | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(digits)


def main(postgres, flight):
    comparisons = Comparisons()
    expected = by_adbc(flight, comparisons)
    comparisons.same("there is something", len(expected[COUNTS]) > 100 and len(expected[RECORDS]) == 500, True)
    comparisons.same("pyarrow.flight", by_pyarrow(flight), expected[COUNTS])
    # Text over Flight is a UUID over Postgres wire for neither: both say text.
    for binary in (False, True):
        answers, (video, total, found), sums, copied, portions = by_psycopg(postgres, binary)
        comparisons.same(f"psycopg with a cursor of the server, binary {binary}", portions, expected[COUNTS])
        comparisons.same(f"psycopg COPY, binary {binary}", copied, expected[COUNTS])
        for sql, rows in answers.items():
            comparisons.same(f"psycopg, binary {binary}: {sql}", rows, expected[sql])
        comparisons.same(f"psycopg with a parameter for {video}", found, [(total,)])
        comparisons.same("psycopg in a pipeline", sums, [sum(row[1] for row in expected[COUNTS])] * 3)
    answers, cursor = asyncio.run(by_asyncpg(postgres))
    for sql, rows in answers.items():
        comparisons.same(f"asyncpg: {sql}", rows, expected[sql])
    comparisons.same("asyncpg with a cursor", cursor, expected[COUNTS])
    for fault in comparisons.faults:
        print(fault)
    print(f"{comparisons.made} comparisons, {len(comparisons.faults)} faults")
    return 1 if comparisons.faults else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
