"""prisma-down against the bare SQL: the same down.sql and the DELETE of Prisma's row, in one transaction of psql.

``python -m tests.benchmarks.prisma_down [--size 100000] [--rounds 5]`` from the project's root prints the table of
docs/benchmarks.md. ``--size`` is the number of rows in the table that goes. Both take turns, each on a copy of the same
database, since other work on the machine touches both alike.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "collections")

from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, down

from tests.servers.postgresql import Server, postgresql

INIT, BOARD = "20260101000000_init", "20260102000000_leaderboard"
UP = {
    INIT: 'CREATE TABLE "User" ("id" SERIAL PRIMARY KEY, "name" TEXT);',
    BOARD: 'ALTER TABLE "User" ADD "score" INTEGER; CREATE TABLE "Score" ("id" SERIAL PRIMARY KEY, "note" TEXT);',
}
DOWN = 'DROP TABLE "Score";\nALTER TABLE "User" DROP COLUMN "score";\n'
BOOKKEEPING = """CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL,
finished_at timestamptz, migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
started_at timestamptz NOT NULL DEFAULT now(), applied_steps_count int NOT NULL DEFAULT 0);"""


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def prepare(server: Server, folder: Path, rows: int) -> None:
    """The database ``filled`` and its folder of migrations."""
    server.psql("CREATE DATABASE filled")
    server.psql(BOOKKEEPING, "filled")
    for name, up in UP.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "migration.sql").write_text(up)
        checksum = hashlib.sha256(up.encode()).hexdigest()
        server.psql(
            f"{up} INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at)"
            f" VALUES (gen_random_uuid(), '{checksum}', now(), '{name}', clock_timestamp())",
            "filled",
        )
    (folder / BOARD / "down.sql").write_text(DOWN)
    if rows:
        fill = f"FROM generate_series(1, {rows}) n"
        server.psql(f'INSERT INTO "Score" ("note") SELECT repeat(md5(n::text), 3) {fill}', "filled")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--size", type=int, default=100_000)
    asked.add_argument("--rounds", type=int, default=5)
    given = asked.parse_args()
    print("| rows lost | bare SQL by psql | check | main | of it, beyond the bare SQL |")
    print("|---|---|---|---|---|")
    for rows in (0, given.size):
        with postgresql() as server, tempfile.TemporaryDirectory() as name:
            measure(server, Path(name), rows, given.rounds)


def measure(server: Server, base: Path, rows: int, rounds: int) -> None:
    """One line of the table."""
    folder = base / "migrations"
    prepare(server, folder, rows)
    bare, checks, mains = [], [], []
    script = base / "bare.sql"
    script.write_text(f"{DOWN}DELETE FROM _prisma_migrations WHERE migration_name = '{BOARD}';\n")
    psql = [str(server.bin / "psql"), "-Xq", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(script), "-d", server.dsn("copy")]
    for number in range(rounds):
        server.psql("CREATE DATABASE copy TEMPLATE filled")
        bare.append(timed(lambda: subprocess.run(psql, check=True, capture_output=True, timeout=60)))
        server.psql("DROP DATABASE copy")
        server.psql("CREATE DATABASE copy TEMPLATE filled")
        url = f"postgresql://postgres@{server.host}:{server.port}/copy"
        task = down.Task(address.read(url), str(folder), INIT, f"r{number}", str(base / "kept"), destroys=[BOARD])
        checks.append(timed(lambda task=task: down.check(task)))  # type: ignore[misc]
        mains.append(timed(lambda task=task: down.main(task, check_mode=False)))  # type: ignore[misc]
        server.psql("DROP DATABASE copy")
    alone, look, whole = (statistics.median(each) * 1000 for each in (bare, checks, mains))
    print(f"| {rows:,} | {alone:.0f} ms | {look:.0f} ms | {whole:.0f} ms | {whole - alone:.0f} ms |")


if __name__ == "__main__":
    main()
