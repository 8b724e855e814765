"""load.py --http PORT --pg PORT [--connections N] [--seconds S] [--pause S] [--videos N]: many users at once, as plan.jmx has them.

Half of the connections speak HTTP, half Postgres wire. Each asks one question after the other: of ten, nine are for one video
by its key and one is what a dashboard shows. Between two, a user looks at the answer for --pause seconds, give or take all of it; with
0 the clients ask as fast as they are answered. Prints a line for each kind: answers, errors, requests a second, p50, p99, worst.
Needs asyncpg. Exits with 1 when there was an error.
"""

import argparse
import asyncio
import random
import sys
import time

import asyncpg

BY_KEY = "SELECT total_views FROM video_views WHERE video_id = $1"
DASHBOARD = "SELECT video_id, total_views FROM video_views ORDER BY total_views DESC LIMIT 10"
KINDS = ["http by key", "http dashboard", "pg by key", "pg dashboard"]


class Told:
    """What was measured of one kind."""

    def __init__(self):
        self.seconds, self.errors = [], []

    async def time(self, question):
        began = time.perf_counter()
        try:
            await question
        except (OSError, asyncio.IncompleteReadError, ValueError, asyncpg.PostgresError) as error:
            self.errors.append(str(error) or type(error).__name__)
            return False
        self.seconds.append(time.perf_counter() - began)
        return True

    def line(self, kind, elapsed):
        ordered = sorted(self.seconds)
        if not ordered:
            return f"{kind:16} no answers, {len(self.errors)} errors"
        at = lambda share: ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000
        rate = len(ordered) / elapsed
        return (f"{kind:16} {len(ordered):8} answers {len(self.errors):6} errors {rate:8.0f}/s"
                f"  p50 {at(0.5):8.1f} ms  p99 {at(0.99):8.1f} ms  worst {ordered[-1] * 1000:8.1f} ms")


async def get(reader, writer, path):
    """One GET over a connection that stays open."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = head.split(" ", 2)[1]
    if "transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        length = next((line for line in head.split("\r\n") if line.startswith("content-length:")), "content-length: 0")
        await reader.readexactly(int(length.split(":")[1]))
    # A video that nobody has seen yet is an answer, too.
    if status not in ("200", "404"):
        raise ValueError(f"HTTP status {status}")


async def paused(arguments, until, pick):
    """Whether there is time for another question, after the pause."""
    if arguments.pause:
        await asyncio.sleep(pick.random() * 2 * arguments.pause)
    return time.perf_counter() < until


async def by_http(arguments, told, until, pick):
    reader, writer = await asyncio.open_connection("127.0.0.1", arguments.http, limit=1 << 20)
    while await paused(arguments, until, pick):
        if pick.random() < 0.1:
            good = await told["http dashboard"].time(get(reader, writer, "/videos?limit=10"))
        else:
            path = f"/videos/vid-{pick.randrange(arguments.videos)}/views"
            good = await told["http by key"].time(get(reader, writer, path))
        if not good:
            break
    writer.close()


async def by_postgres(arguments, told, until, pick):
    connection = await asyncpg.connect(host="127.0.0.1", port=arguments.pg, user="analyst", database="viewledger", timeout=60)
    by_key, dashboard = await connection.prepare(BY_KEY), await connection.prepare(DASHBOARD)
    while await paused(arguments, until, pick):
        if pick.random() < 0.1:
            await told["pg dashboard"].time(dashboard.fetch())
        else:
            await told["pg by key"].time(by_key.fetch(f"vid-{pick.randrange(arguments.videos)}"))
    await connection.close()


async def main(arguments):
    told = {kind: Told() for kind in KINDS}
    began = time.perf_counter()
    until = began + arguments.seconds
    seeds = random.Random(arguments.seed)
    clients = [by_http, by_postgres]
    work = [clients[n % 2](arguments, told, until, random.Random(seeds.random())) for n in range(arguments.connections)]
    ended = await asyncio.gather(*work, return_exceptions=True)
    refused = [error for error in ended if error is not None]
    elapsed = time.perf_counter() - began
    for kind in KINDS:
        print(told[kind].line(kind, elapsed))
    failures = [str(error) or type(error).__name__ for error in refused]
    failures += [error for kind in KINDS for error in told[kind].errors]
    for error in sorted(set(failures))[:10]:
        print(f"{failures.count(error)} times: {error}")
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--pg", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pause", type=float, default=1)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(main(parser.parse_args())))
