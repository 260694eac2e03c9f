"""Clients that write without a pause, and how long each of them was kept waiting.

``python database_writers.py DSN CLIENTS`` prints ``ready`` when all write; ends when its input is closed, and prints
one JSON object: the longest time between two successful writes of each client in milliseconds, and the number of
writes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

TABLE = "written"


class Client:
    def __init__(self) -> None:
        self.writes, self.last, self.gap = 0, 0.0, 0.0

    async def work(self, dsn: str, stop: asyncio.Event) -> None:
        connection = None
        while not stop.is_set():
            try:
                if connection is None:
                    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
                await connection.execute(f"INSERT INTO {TABLE} VALUES (1)")
            except psycopg.Error:
                connection = None
                continue
            now = time.monotonic()
            if self.last:
                self.gap = max(self.gap, now - self.last)
            self.last = now
            self.writes += 1


async def main(dsn: str, count: int) -> None:
    stop, clients = asyncio.Event(), [Client() for _ in range(count)]
    tasks = [asyncio.create_task(client.work(dsn, stop)) for client in clients]
    while any(client.writes < 5 for client in clients):
        await asyncio.sleep(0.01)
    for client in clients:
        client.gap = 0.0  # so far they were only starting
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    before = [client.writes for client in clients]
    while any(client.writes < was + 2 for client, was in zip(clients, before, strict=True)):
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*tasks)
    gaps = [round(client.gap * 1000) for client in clients]
    print(json.dumps({"gaps": gaps, "writes": sum(client.writes for client in clients)}))


@contextmanager
def writing(dsn: str, count: int = 8) -> Iterator[dict]:
    """``count`` clients write into the table ``written`` meanwhile; afterwards the yielded dictionary is filled."""
    process = subprocess.Popen(
        [sys.executable, __file__, dsn, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    seen: dict = {}
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the writing clients did not start")
        yield seen
        seen.update(json.loads(process.communicate(timeout=30)[0]))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
