"""Restoring a pgbench database of about 1 GB: balik against the bare programs, and the swap as eight clients see it.

``python -m tests.benchmarks.db_restore [--scale 75] [--rounds 3]`` from the project's root prints the tables of
docs/benchmarks.md. Bare program and balik take turns, since other work on the machine touches both alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "collections")

from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import (
    Task,
    check,
    restore,
)
from ansible_collections.balik.rollback.plugins.module_utils.database.swap import swap

from tests.integration.database_writers import writing
from tests.servers.postgresql import Server, postgresql

SETTINGS = {"synchronous_commit": "off", "maintenance_work_mem": "256MB"}
SWAPS = 5


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def bare(server: Server, command: list[str]) -> float:
    """Seconds of one of PostgreSQL's programs on a new database, as it is called by hand."""
    server.psql("CREATE DATABASE bare")
    try:
        return timed(
            lambda: subprocess.run([*command, "-d", server.dsn("bare")], input=b"", check=True, capture_output=True)
        )
    finally:
        server.psql("DROP DATABASE bare")


def compare(
    server: Server, folder: Path, source: Path, command: list[str], rounds: int
) -> tuple[list[float], list[dict]]:
    """Seconds of the bare program and what :func:`restore` measured, in turns."""
    alone, ours = [], []
    for number in range(rounds):
        alone.append(bare(server, command))
        run = f"{source.suffix[1:]}-{number}"
        access = Access(server.host, server.port, "postgres", application=f"balik {run}")
        task = Task(access, "live", run, str(source), folder=str(folder / "now"), settings=SETTINGS)
        looked = timed(lambda task=task: check(task))  # type: ignore[misc]
        done = restore(task)["evidence"]
        ours.append({"check": looked, **done["seconds"]})
        server.psql(f'DROP DATABASE "{done["kept"]}"')
    return alone, ours


def median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--scale", type=int, default=75)
    asked.add_argument("--rounds", type=int, default=3)
    given = asked.parse_args()
    with postgresql(shared_buffers="512MB", max_wal_size="4GB") as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server.psql("CREATE DATABASE live")
        pgbench: list[str] = [
            str(server.bin / "pgbench"),
            "-i",
            "-q",
            "-s",
            str(given.scale),
            "-h",
            server.host,
            "-p",
            str(server.port),
        ]
        subprocess.run([*pgbench, "-U", "postgres", "live"], check=True, capture_output=True)
        server.psql("CREATE TABLE written (n int)", "live")
        size = int(server.psql("SELECT pg_database_size('live')"))
        sources = {"live.sql": "-Fp", "live.dump": "-Fc"}
        for file, form in sources.items():
            subprocess.run(
                [str(server.bin / "pg_dump"), "-d", server.dsn("live"), form, "-f", str(folder / file)], check=True
            )
        plain, custom = folder / "live.sql", folder / "live.dump"
        megabytes = plain.stat().st_size / 1e6
        print(f"Database {size / 1e9:.2f} GB; plain SQL {megabytes:.0f} MB; medians of {given.rounds} rounds.\n")
        print("| backup | bare program | balik's restore | ratio | check | backup of now | analyze | verify, flush |")
        print("|---|---|---|---|---|---|---|---|")
        for source, command, title in (
            (plain, ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(plain)], "plain, `psql -f`"),
            (custom, ["pg_restore", "-j", "2", str(custom)], "custom, `pg_restore -j 2`"),
        ):
            alone, ours = compare(server, folder, source, [str(server.bin / command[0]), *command[1:]], given.rounds)
            middle = {key: median([one[key] for one in ours]) for key in ours[0]}
            speed = [
                f"{seconds:.1f} s ({megabytes / seconds:.0f} MB/s)" for seconds in (median(alone), middle["restore"])
            ]
            ratio = median([one["restore"] / other for one, other in zip(ours, alone, strict=True)])
            middle["proof"] = middle["verify"] + middle["flush"]
            rest = [f"{middle[key]:.1f} s" for key in ("check", "backup", "analyze", "proof")]
            print(f"| {title} | {' | '.join(speed)} | {ratio:.2f} | {' | '.join(rest)} |")
        swaps(server)


def swaps(server: Server) -> None:
    """The live database and a copy of it change places, with eight clients that write without a pause."""
    access = Access(server.host, server.port, "postgres", application="balik swaps")
    server.psql("CREATE DATABASE copy0 TEMPLATE live STRATEGY file_copy")
    print("\n| swap | its transaction | the longest gap of each of eight writing clients |")
    print("|---|---|---|")
    for number in range(SWAPS):
        with writing(server.dsn("live")) as seen:
            took = swap(access, "postgres", "live", f"copy{number + 1}", "", f"copy{number}", None)
        print(f"| {number + 1} | {took * 1000:.0f} ms | {', '.join(map(str, sorted(seen['gaps'])))} ms |")


if __name__ == "__main__":
    main()
