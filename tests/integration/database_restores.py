"""What the tests of db-restore share: a server with a known-good database, its dumps, and the live one gone bad."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import Task
from ansible_collections.balik.rollback.plugins.module_utils.database.task import application

from tests.servers.postgresql import Server, postgresql

DATABASE = 'Låwyers\' "Hub" 法'
OWNER = 'own\'er "of" it'
RUN = "20260110T130000Z-3f9a"
KEPT = f"{DATABASE}__before_{RUN}"
BESIDE = f"{DATABASE}__restore_{RUN}"
FORMATS = {"plain": "s.sql", "gz": "s.sql.gz", "zst": "s.sql.zst", "custom": "s.dump", "directory": "s.dir"}
LIMIT = 20.0

#: As pg_dump wrote before 2018: names without their schema, which stands before them.
OLD_STYLE = """--
-- PostgreSQL database dump
--

-- Dumped from database version 9.6.6

SET client_encoding = 'UTF8';
CREATE SCHEMA other;
SET search_path = public, pg_catalog;
--
-- Name: documents; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE documents (id integer NOT NULL, title text);
SET search_path = other, pg_catalog;
--
-- Name: documents; Type: TABLE; Schema: other; Owner: postgres
--

CREATE TABLE documents (id integer NOT NULL, title text);
SET search_path = public, pg_catalog;

--
-- Data for Name: documents; Type: TABLE DATA; Schema: public; Owner: postgres
--

COPY documents (id, title) FROM stdin;
1\tone
\\.

SET search_path = other, pg_catalog;

--
-- Data for Name: documents; Type: TABLE DATA; Schema: other; Owner: postgres
--

COPY documents (id, title) FROM stdin;
11\televen
12\ttwelve
\\.

--
-- PostgreSQL database dump complete
--
"""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql(max_prepared_transactions=4, wal_level="logical") as running:
        running.psql(f"""
            CREATE ROLE {quoted(OWNER)}; CREATE ROLE app LOGIN; CREATE ROLE clerk;
            CREATE DATABASE known_good OWNER {quoted(OWNER)} LC_COLLATE 'C' TEMPLATE template0;
        """)
        running.psql(
            f"""
            CREATE EXTENSION citext;
            CREATE SCHEMA "law firm" AUTHORIZATION {quoted(OWNER)};
            GRANT ALL ON SCHEMA public TO {quoted(OWNER)};
            SET ROLE {quoted(OWNER)};
            CREATE TABLE documents (id int PRIMARY KEY, title text, body citext);
            INSERT INTO documents SELECT n, 'Surat №' || n, E'baris\\t\\\\' || repeat('x' || n, 20) || E'\\n' || n
            FROM generate_series(1, 4000) n;
            CREATE INDEX ON documents (title);
            CREATE TABLE written (n int);
            GRANT SELECT ON documents TO clerk;
            GRANT ALL ON written TO app;
            """,
            "known_good",
        )
        yield running


@pytest.fixture(scope="module")
def dumps(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The known-good database in every format."""
    folder = tmp_path_factory.mktemp("dumps")
    for letter, name in {"p": "s.sql", "c": "s.dump", "d": "s.dir"}.items():
        dump(server, folder / name, f"-F{letter}")
    subprocess.run(["gzip", "-k", folder / "s.sql"], check=True)
    subprocess.run(["zstd", "-q", folder / "s.sql"], check=True)
    return folder


def dump(server: Server, path: Path, *options: str, database: str = "known_good") -> Path:
    subprocess.run([server.bin / "pg_dump", "-d", server.dsn(database), *options, "-f", path], check=True, timeout=60)
    return path


@pytest.fixture
def live(server: Server) -> Iterator[Server]:
    """The same database after a bad release: rows gone, a table more, settings of its own."""
    server.psql(f"CREATE DATABASE {quoted(DATABASE)} TEMPLATE known_good OWNER {quoted(OWNER)}")
    server.psql("DELETE FROM documents WHERE id > 10; CREATE TABLE bad_release (x int)", DATABASE)
    yield server
    for name in databases(server):
        server.psql(f"DROP DATABASE {quoted(name)} WITH (FORCE)")


def databases(server: Server) -> list[str]:
    with psycopg.connect(server.dsn()) as connection:
        names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
    return sorted(names - {"postgres", "template0", "template1", "known_good"})


def task(server: Server, tmp_path: Path, source: Path, **more: Any) -> Task:
    access = Access(server.host, server.port, "postgres", application=application(RUN, DATABASE))
    given: dict[str, Any] = {
        "jobs": 1,
        "limit": 60,
        "folder": str(tmp_path / "now"),
        "checks": [{"query": "SELECT count(*) FROM documents", "expect": 4000}],
        **more,
    }
    return Task(access, DATABASE, RUN, source=str(source), **given)


def seen(server: Server, database: str = DATABASE) -> dict:
    """What must not change when a restore is refused or fails: the database itself, its rows, its neighbours."""
    with psycopg.connect(server.dsn(database)) as connection:
        row = connection.execute(
            "SELECT oid, datallowconn, datconnlimit, shobj_description(oid, 'pg_database'), datacl::text,"
            " (SELECT count(*) FROM documents), to_regclass('bad_release')::text"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        content = connection.execute(
            "SELECT (SELECT md5(string_agg(d::text, '' ORDER BY d::text)) FROM documents d),"
            " (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE oid >= 16384)"
        ).fetchone()
        return {"row": row, "content": content, "databases": databases(server)}


@contextmanager
def untouched(server: Server) -> Iterator[None]:
    before = seen(server)
    yield
    assert seen(server) == before


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT} s: {what}"
        time.sleep(0.02)


def cut(path: Path, to: Path) -> Path:
    to.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return to


def spoiled_directory(dumps: Path, to: Path) -> Path:
    shutil.copytree(dumps / "s.dir", to)
    largest = max((file for file in to.iterdir() if file.name != "toc.dat"), key=lambda file: file.stat().st_size)
    cut(largest, largest)
    return to


#: For :func:`edited`, in the place of the first ALTER TABLE ONLY: the copy is there for two seconds before the swap.
SLOWLY = "\nSELECT pg_sleep(2);\nALTER TABLE ONLY"


def edited(dumps: Path, to: Path, old: str, new: str) -> Path:
    text = (dumps / "s.sql").read_text()
    assert old in text
    to.write_text(text.replace(old, new, 1))
    return to


@contextmanager
def started(job: Task) -> Iterator[subprocess.Popen]:
    """The same restore in a process of its own, to be killed."""
    script = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv[2]);"
        "from ansible_collections.balik.rollback.plugins.module_utils.database import access, restore;"
        "given = json.loads(sys.argv[1]); given['access'] = access.Access(**given['access']);"
        "restore.restore(restore.Task(**given))"
    )
    given = {**vars(job), "access": vars(job.access)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(given), json.dumps(sys.path)], stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen) -> bytes:
    stderr: IO[bytes] | None = process.stderr
    assert stderr
    return stderr.read()


@contextmanager
def small_disk(folder: Path, size: str, files: int = 0) -> Iterator[Path]:
    """A disk in memory with room for this size and, where they are not 0, so many files and folders."""
    folder.mkdir(exist_ok=True)
    room = f"size={size},nr_inodes={files}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", room, "balik-test", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def small_tablespace(server: Server, size: str) -> Iterator[None]:
    """The live database on a small disk of the server."""
    with small_disk(server.folder / "small", size) as folder:
        shutil.chown(folder, "postgres", "postgres")
        server.psql(f"CREATE TABLESPACE small LOCATION '{folder}'")
        server.psql(f"ALTER DATABASE {quoted(DATABASE)} SET TABLESPACE small")
        try:
            yield
        finally:
            server.psql(f"ALTER DATABASE {quoted(DATABASE)} SET TABLESPACE pg_default")
            server.psql("DROP TABLESPACE small")
