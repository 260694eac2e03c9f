"""The loss statement of a table of ten million rows: from asking to knowing, with the backup's own loading.

``python -m tests.benchmarks.loss [--size 10000000] [--changed 10000] [--rounds 3]`` from the project's root prints the
table of docs/benchmarks.md. The changes are spread over the whole table; as many rows are new, and a tenth is gone.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "collections")

from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked, statement

from tests.servers.postgresql import Server, postgresql

FORMS = {"plain": "p", "custom": "c", "directory": "d"}


def fill(server: Server, rows: int) -> None:
    """Rows of about a hundred bytes, as a table of documents has them."""
    server.psql("CREATE DATABASE live")
    server.psql(
        "CREATE TABLE documents (id bigint, title text, body text, fee numeric(12,2), created_at timestamptz,"
        " updated_at timestamptz); INSERT INTO documents SELECT n, 'Surat ' || n, repeat('x', (n % 40)::int),"
        f" n / 100.0, '2026-01-01Z', '2026-01-01Z' FROM generate_series(1, {rows}) n;"
        " ALTER TABLE documents ADD PRIMARY KEY (id); ANALYZE documents",
        "live",
    )


def change(server: Server, rows: int, changed: int) -> None:
    server.psql(
        f"UPDATE documents SET body = body || '!', updated_at = '2026-01-10Z' WHERE id % {rows // changed} = 1;"
        f" DELETE FROM documents WHERE id % {rows // changed * 10} = 2;"
        f" INSERT INTO documents SELECT n, 'baru', '', 1, '2026-01-10Z' FROM generate_series({rows + 1},"
        f" {rows + changed}) n",
        "live",
    )


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--size", type=int, default=10_000_000)
    asked.add_argument("--changed", type=int, default=10_000)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    given = asked.parse_args()
    with postgresql(shared_buffers="512MB", max_wal_size="4GB") as server, tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        fill(server, given.size)
        backups = {form: Path(name) / f"live.{form}" for form in given.forms}
        for form, path in backups.items():
            packed = [] if form == "plain" else ["-Z", "1"]
            command = [str(server.bin / "pg_dump"), "-d", server.dsn("live"), f"-F{FORMS[form]}", *packed]
            subprocess.run([*command, "-f", str(path)], check=True)
        change(server, given.size, given.changed)
        bytes_ = int(server.psql("SELECT pg_total_relation_size('documents')", "live"))
        print(f"{given.size:,} rows, {bytes_ / 1e9:.2f} GB; medians of {given.rounds} rounds.\n")
        print("| backup | statement | loading the backup | meanwhile, reading what is live | comparing | memory |")
        print("|---|---|---|---|---|---|")
        for form, path in backups.items():
            measure(server, form, path, given)


def measure(server: Server, form: str, path: Path, given: argparse.Namespace) -> None:
    access = Access(server.host, server.port, "postgres", application="balik loss")
    found = [
        statement(Asked(access, "live", f"r{n}", str(path), limit=600, exact="always")) for n in range(given.rounds)
    ]
    for each in found:
        total = each["total"]
        assert each["exact"], each["reason"]
        assert (total["inserted"], total["changed"]) == (given.changed, given.changed), total
        assert total["deleted"] == given.changed // 10, total
    seconds = [
        f"{statistics.median(each['seconds'][part] for each in found):.1f} s"
        for part in ("all", "load", "read", "compare")
    ]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {form} | {' | '.join(seconds)} | {memory:.0f} MB |")


if __name__ == "__main__":
    main()
