"""The record's figures: appending, verifying a long chain, and two places.

``python -m tests.benchmarks.record [--entries 100000]`` from the project's root prints the table of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, "collections")

from ansible_collections.balik.rollback.plugins.module_utils.record import Record

from tests.servers.postgresql import postgresql

#: About what a step writes when it is done.
BODY = {"phase": "revert", "step": "image-revert", "says": {"docker-1": "2.0.0 -> 1.9.4, healthy after 3.1 s"}}
APPENDS = 500


def appending(place: str) -> list[float]:
    """Milliseconds of each of 500 appends."""
    took = []
    with Record(place, "bench") as record:
        for number in range(APPENDS):
            began = time.perf_counter()
            record.append("step-done", {**BODY, "n": number}, "20260110T130000Z-3f9a")
            took.append((time.perf_counter() - began) * 1000)
    return took


def fill(place: str, entries: int) -> None:
    """A long record, quickly: one transaction instead of one for each entry."""
    with Record(place, "long") as record:
        connection = record._connection
        rows = []
        _seq, previous = record._head()
        for seq in range(1, entries + 1):
            text = f'{{"n":{seq},"says":"{"x" * 150}"}}'
            values = ("long", seq, "2026-01-10T13:00:00.000000Z", "r1", "step-done", text, previous)
            previous = record._hash(*values[1:6], previous)
            rows.append((*values, previous))
        mark = "%s" if record._postgresql else "?"
        connection.execute("BEGIN")
        cursor = connection.cursor()
        cursor.executemany(f"INSERT INTO balik_entries VALUES ({', '.join([mark] * 8)})", rows)
        connection.execute("COMMIT")


def verifying(place: str, entries: int) -> float:
    """Seconds."""
    with Record(place, "long") as record:
        began = time.perf_counter()
        found = record.verify()
        took = time.perf_counter() - began
        assert (found.whole, found.entries) == (True, entries), found
    return took


def row(name: str, place: str, entries: int) -> str:
    took = sorted(appending(place))
    fill(place, entries)
    best = min(verifying(place, entries) for _ in range(3))
    median, late = statistics.median(took), took[int(len(took) * 0.99)]
    return f"| {name} | {median:.2f} ms | {late:.2f} ms | {best:.2f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument(
        "--folder", default=None, help="where the SQLite file stands: a real disk, to measure its syncs"
    )
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"| place | append, median | append, 99th percentile | verify {options.entries:,} entries |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(row("SQLite, synced to the disk", str(Path(folder) / "record.sqlite"), options.entries), flush=True)
    with postgresql(fsync="on") as server:
        print(row("PostgreSQL 15 on loopback", server.dsn(), options.entries), flush=True)


if __name__ == "__main__":
    main()
