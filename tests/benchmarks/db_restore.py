"""Restoring a generated database: balik against the bare programs and the disk, and the swap as eight clients see it.

``python -m tests.benchmarks.db_restore [--size 0.1 1 4] [--rounds 3] [--disk]`` from the project's root prints the
tables of docs/benchmarks.md. Sizes are gigabytes of the database. Bare program and balik take turns, since other work
on the machine touches both alike. With ``--disk`` the server's data is on the disk, and synced.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "collections")

from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import Task, check
from ansible_collections.balik.rollback.plugins.module_utils.database.swap import swap

from tests.integration.database_writers import writing
from tests.servers.postgresql import Server, postgresql

SETTINGS = {"synchronous_commit": "off", "maintenance_work_mem": "256MB"}
SWAPS = 3
PGBENCH_GB = 64  # its scale for one gigabyte
RESTORE = """
import json, sys
sys.path.insert(0, "collections")
from ansible_collections.balik.rollback.plugins.module_utils.database import access, restore
given = json.loads(sys.argv[1])
given["access"] = access.Access(**given["access"])
print(json.dumps(restore.restore(restore.Task(**given))["evidence"]))
"""


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


def ours(task: Task) -> tuple[dict, float]:
    """The evidence of a restore in a process of its own, and the megabytes of its largest process."""
    given = json.dumps({**vars(task), "access": vars(task.access)})
    process = subprocess.Popen([sys.executable, "-c", RESTORE, given], stdout=subprocess.PIPE)
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("the restore failed")
    return json.loads(said), usage.ru_maxrss / 1024


def compare(
    server: Server, folder: Path, source: Path, command: list[str], rounds: int
) -> tuple[list[float], list[dict]]:
    """Seconds of the bare program and what a restore measured, in turns."""
    alone, measured = [], []
    for number in range(rounds):
        alone.append(bare(server, command))
        run = f"{source.suffix[1:]}-{number}"
        access = Access(server.host, server.port, "postgres", application=f"balik {run}")
        task = Task(access, "live", run, str(source), folder=str(folder / "now"), settings=SETTINGS)
        looked = timed(lambda task=task: check(task))  # type: ignore[misc]
        done, memory = ours(task)
        measured.append({"check": looked, **done["seconds"], "memory": memory})
        server.psql(f'DROP DATABASE "{done["kept"]}"')
    return alone, measured


def raw_disk(folder: Path, size: int) -> float:
    """Seconds to write ``size`` bytes where the server has its data, and to sync them."""
    piece = os.urandom(1024 * 1024)
    path = folder / "raw"

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(size // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    try:
        return timed(write)
    finally:
        path.unlink(missing_ok=True)


def median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--size", type=float, nargs="+", default=[0.1])
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--disk", action="store_true")
    given = asked.parse_args()
    print(
        f"Medians of {given.rounds} rounds; data {'on the disk, synced' if given.disk else 'in memory, fsync=off'}.\n"
    )
    print("| database | backup | bare program | balik's restore | ratio | check | backup of now | proof | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    swapped = []
    for size in given.size:
        settings = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
        settings |= {"fsync": "on", "full_page_writes": "on"} if given.disk else {}
        with postgresql(not given.disk, **settings) as server, tempfile.TemporaryDirectory() as name:
            measure(server, Path(name), size, given.rounds)
            swapped += [(size, *each) for each in swaps(server)]
    print("\n| database | swap's transaction | the longest gap of each of eight writing clients |")
    print("|---|---|---|")
    for size, took, gaps in swapped:
        print(f"| {size:g} GB | {took} ms | {', '.join(map(str, gaps))} ms |")


def measure(server: Server, folder: Path, size: float, rounds: int) -> None:
    """Prints the lines of one size."""
    server.psql("CREATE DATABASE live")
    scale = str(max(1, round(size * PGBENCH_GB)))
    pgbench = [str(server.bin / "pgbench"), "-i", "-q", "-s", scale, "-h", server.host, "-p", str(server.port)]
    subprocess.run([*pgbench, "-U", "postgres", "live"], check=True, capture_output=True)
    server.psql("CREATE TABLE written (n int)", "live")
    for file, form in {"live.sql": "-Fp", "live.dump": "-Fc"}.items():
        dump = [str(server.bin / "pg_dump"), "-d", server.dsn("live"), form, "-f", str(folder / file)]
        subprocess.run(dump, check=True)
    plain, custom = folder / "live.sql", folder / "live.dump"
    megabytes = plain.stat().st_size / 1e6
    written = raw_disk(server.folder, plain.stat().st_size)
    size_now = int(server.psql("SELECT pg_database_size('live')"))
    database = f"{size_now / 1e9:.2f} GB"
    for source, command, title in (
        (plain, ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(plain)], "plain, `psql -f`"),
        (custom, ["pg_restore", "-j", "2", str(custom)], "custom, `pg_restore -j 2`"),
    ):
        alone, measured = compare(server, folder, source, [str(server.bin / command[0]), *command[1:]], rounds)
        middle = {key: median([one[key] for one in measured]) for key in measured[0]}
        speed = [f"{took:.1f} s ({megabytes / took:.0f} MB/s)" for took in (median(alone), middle["restore"])]
        ratio = median([one["restore"] / other for one, other in zip(measured, alone, strict=True)])
        middle["proof"] = middle["analyze"] + middle["verify"] + middle["flush"]
        rest = [f"{middle[key]:.1f} s" for key in ("check", "backup", "proof")]
        memory = f"{middle['memory']:.0f} MB"
        print(
            f"| {database} | {title} | {' | '.join(speed)} | {ratio:.2f} | {' | '.join(rest)} | {memory} |", flush=True
        )
    print(
        f"| {database} | the same bytes written to the disk | {written:.1f} s ({megabytes / written:.0f} MB/s) |||||||"
    )


def swaps(server: Server) -> list[tuple[int, list[int]]]:
    """The live database and a copy of it change places, with eight clients that write without a pause."""
    access = Access(server.host, server.port, "postgres", application="balik swaps")
    server.psql("CREATE DATABASE copy0 TEMPLATE live STRATEGY file_copy")
    found = []
    for number in range(SWAPS):
        with writing(server.dsn("live")) as seen:
            took = swap(access, "postgres", "live", f"copy{number + 1}", "", f"copy{number}", None)
        found.append((round(took * 1000), sorted(seen["gaps"])))
    return found


if __name__ == "__main__":
    main()
