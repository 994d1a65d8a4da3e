"""A worker: each record of a log is handled, and its place is kept in the worker's own database.

What was made of the records and the place are changed in one transaction, so each record counts
exactly once, whenever the worker is killed. Two workers of one name do not count twice either: one
of them finds that the place has moved, and stops.

    python examples/worker.py proglog://127.0.0.1:8400 words.db
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections import Counter

import proglog

BATCH = 500


def open_database(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    with database:
        database.execute("CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY, count INTEGER)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS places (name TEXT PRIMARY KEY, position INTEGER)"
        )
        database.execute("INSERT OR IGNORE INTO places VALUES ('words', 0)")
    return database


def place_of(database: sqlite3.Connection) -> int:
    (position,) = database.execute("SELECT position FROM places WHERE name = 'words'").fetchone()
    return int(position)


def handle(database: sqlite3.Connection, records: list[proglog.Record]) -> None:
    """Counts the words of some records. Raises RuntimeError where somebody else works here."""
    words = Counter(word for record in records for word in record.value.decode().split())
    with database:
        moved = database.execute(
            "UPDATE places SET position = ? WHERE name = 'words' AND position = ?",
            (records[-1].offset + 1, records[0].offset),
        )
        if moved.rowcount != 1:
            raise RuntimeError("another worker has handled these records")
        database.executemany(
            "INSERT INTO words VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET count = count + excluded.count",
            words.items(),
        )


async def work(log: proglog.Log, database: sqlite3.Connection, *, follow: bool = True) -> None:
    consumer = log.consume(place_of(database), follow=follow)
    while records := await consumer.getmany(BATCH):
        handle(database, records)


async def main(url: str, path: str) -> None:
    async with proglog.connect(url) as log:
        await work(log, open_database(path))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
