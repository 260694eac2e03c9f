"""Dumps that are rare and right: db-restore brings each back as psql does, by several sessions, and compares it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import filling, sessions
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import Task, check, restore

from tests.servers.postgresql import Server, postgresql

TABLES = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
BODY = "INSERT INTO t SELECT n, repeat('x', 20) FROM generate_series(1, 3000) n;"


@dataclass
class Legal:
    """A database by the SQL that makes it; ``edit`` changes its dump, ``dump`` are arguments for ``pg_dump``."""

    sql: str
    edit: Callable[[str], str] = str
    options: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    custom_script: bool = False  # as `pg_restore -1 -f` writes it
    encoding: str = "utf-8"


def in_transaction(text: str) -> str:
    """As somebody writes it who wants all of the rows or none, and no trigger meanwhile."""
    begin = "BEGIN;\nALTER TABLE public.t DISABLE TRIGGER ALL;\n"
    end = "ALTER TABLE public.t ENABLE TRIGGER ALL;\nCOMMIT;\n"
    return re.sub(r"COPY public\.t .*?\n\\\.\n", lambda found: f"{begin}{found[0]}{end}", text, flags=re.DOTALL)


LEGAL = {
    "a generated column that asks for another table's rows": Legal(
        """
        CREATE TABLE a_rate (id int PRIMARY KEY, filler text, rate numeric);
        INSERT INTO a_rate SELECT n, repeat('f', 200), n / 7.0 FROM generate_series(1, 30000) n;
        CREATE FUNCTION rate(i int) RETURNS numeric IMMUTABLE LANGUAGE sql
            AS 'SELECT rate FROM public.a_rate WHERE id = i';
        CREATE TABLE b_order (id int, price numeric GENERATED ALWAYS AS (public.rate(id)) STORED);
        INSERT INTO b_order SELECT n FROM generate_series(29000, 30000) n;
        """
    ),
    "a check that asks for another table's rows": Legal(
        """
        CREATE TABLE a_parent AS SELECT n AS id FROM generate_series(1, 5000) n;
        CREATE FUNCTION there(i int) RETURNS bool LANGUAGE sql
            AS 'SELECT EXISTS (SELECT FROM public.a_parent WHERE id = i)';
        CREATE TABLE b_child (id int CHECK (public.there(id)));
        INSERT INTO b_child SELECT n FROM generate_series(4990, 5000) n;
        """
    ),
    "a COPY in the body of a function, and in a comment": Legal(
        "CREATE TABLE t (a int, b text);"
        + BODY
        + """
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $of$SELECT $$
COPY public.t (a) FROM stdin;
$$$of$;
        COMMENT ON TABLE t IS E'Tanya Budi''s catatan \\\\:
COPY public.t (a) FROM stdin;
--';
        """
    ),
    "rows within a transaction of the script": Legal(
        "CREATE TABLE t (a int, b text); CREATE TABLE u (a int);" + BODY + "INSERT INTO u VALUES (1);", in_transaction
    ),
    "pg_restore -1 -f": Legal(
        "CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE u (a int REFERENCES t);"
        + BODY
        + "INSERT INTO u VALUES (1);",
        custom_script=True,
    ),
    "a parent with children, dumped in another time zone": Legal(
        """
        CREATE TABLE parent (at timestamptz); INSERT INTO parent VALUES ('2026-01-10 20:00+07');
        CREATE TABLE child (z int) INHERITS (parent);
        INSERT INTO child SELECT '2026-01-11 20:00+07', n FROM generate_series(1, 5) n;
        """,
        environment={"PGTZ": "Asia/Jakarta"},
    ),
    "names with parentheses": Legal(
        """
        CREATE TABLE "skor (lama)" ("a (b)" int); CREATE TABLE "skor (baru)" ("a (b)" int, c text);
        INSERT INTO "skor (lama)" VALUES (1); INSERT INTO "skor (baru)" VALUES (2, 'x'), (3, NULL);
        """
    ),
    "letters of LATIN1": Legal(
        "SET client_encoding TO 'UTF8';"
        'CREATE TABLE "café" ("prénom" text); INSERT INTO "café" SELECT \'Zoé\' FROM generate_series(1, 30000);'
        " CREATE TABLE plain (a int); INSERT INTO plain VALUES (1); CREATE TABLE other (a int);",
        options="ENCODING 'LATIN1'",
        encoding="latin-1",
    ),
    "bytes of SQL_ASCII": Legal(
        "CREATE TABLE t (a text); INSERT INTO t VALUES (E'caf\\351 \\377');",
        options="ENCODING 'SQL_ASCII'",
        encoding="latin-1",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as started:
        yield started


@pytest.mark.parametrize("name", LEGAL)
@pytest.mark.parametrize(("jobs", "shared_from"), [(2, 8_000_000), (3, 20_000)])
def test_it_comes_back_as_by_psql(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, jobs: int, shared_from: int
) -> None:
    monkeypatch.setattr(sessions, "_SHARED_FROM", shared_from)
    monkeypatch.setattr(filling, "CHUNK", 10_000)
    legal, path = LEGAL[name], tmp_path / "x.sql"
    for database in ("source", "live", "by_psql"):
        server.psql(f"DROP DATABASE IF EXISTS {database} (FORCE)")
        server.psql(f"CREATE DATABASE {database} {legal.options} TEMPLATE template0 LOCALE 'C'")
    for database in ("source", "live"):
        server.psql(legal.sql, database)
    form = ["-Fc"] if legal.custom_script else []
    written = dumped(server, "source", *form, environment=legal.environment)
    if legal.custom_script:
        (tmp_path / "x.dump").write_bytes(written)
        command = [str(server.bin / "pg_restore"), "-1", "-f", str(path), str(tmp_path / "x.dump")]
        subprocess.run(command, check=True, timeout=60)
    else:
        path.write_bytes(legal.edit(written.decode(legal.encoding)).encode(legal.encoding))
    psql = [str(server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", server.dsn("by_psql")]
    subprocess.run([*psql, "-f", str(path)], check=True, timeout=60, stdout=subprocess.DEVNULL)

    access = Access(server.host, server.port, "postgres")
    task = Task(access, "live", "r1", source=str(path), folder=str(tmp_path / "now"), limit=30, jobs=jobs)
    check(task)
    proof = restore(task)["evidence"]
    server.psql(f"DROP DATABASE {proof['kept']} (FORCE)")
    assert proof["tables_compared"] == int(
        server.psql(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace", "live"
        )
    )
    assert lines(dumped(server, "live")) == lines(dumped(server, "by_psql"))


def dumped(server: Server, database: str, *more: str, environment: dict[str, str] | None = None) -> bytes:
    command = [str(server.bin / "pg_dump"), *more, "-d", server.dsn(database)]
    env = {**os.environ, **(environment or {})}
    return subprocess.run(command, check=True, timeout=60, capture_output=True, env=env).stdout


def lines(dump: bytes) -> list[bytes]:
    """Whatever the order of a table's rows."""
    return sorted(line for line in dump.split(b"\n") if not re.match(rb"\\(un)?restrict ", line))
