"""What a restore would lose, against a real server: told exactly, in time, and kept as files that can be replayed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import sessions
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access, Deadline
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.loss import compare, scratch
from ansible_collections.balik.rollback.plugins.module_utils.loss.compare import would_drop
from ansible_collections.balik.rollback.plugins.module_utils.loss.export import export, told
from ansible_collections.balik.rollback.plugins.module_utils.loss.psql import reach
from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked, compared, statement

from tests.integration.database_restores import OLD_STYLE
from tests.servers.postgresql import Server, postgresql

DATABASE = "Toko 'Hukum'"
RUN = "20260110T130000Z-3f9a"
MORNING = 1768003200  # 2026-01-10T00:00:00Z
TIMES = {"created": "created_at", "updated": "updated_at"}
#: Another name of this machine, which the module does not take for its own.
FAR = "127.1"

THEN = """
CREATE EXTENSION citext; CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('senang', 'sedih');
CREATE SCHEMA "law firm";
CREATE TABLE documents (id bigserial PRIMARY KEY, title text, fee numeric, mood mood, tags citext[], about jsonb,
  size float8, created_at timestamptz NOT NULL, updated_at timestamptz,
  long text GENERATED ALWAYS AS (title || '!') STORED);
INSERT INTO documents (title, fee, mood, tags, about, size, created_at, updated_at) SELECT 'Surat №' || n, n / 100.0,
  'senang', ARRAY['a'], '{"n": 1.0}', n / 3.0, '2026-01-01 00:00Z', '2026-01-02 00:00Z' FROM generate_series(1, 3000) n;
CREATE TABLE "law firm"."Case Files" (code citext, part int, body text, PRIMARY KEY (code, part));
INSERT INTO "law firm"."Case Files"
  SELECT 'Perkara ' || n, n % 3, E'baris\\t"kutip", \\\\' || n || E'\\n' FROM generate_series(1, 500) n;
CREATE TABLE clicks (page text, at timestamp);
INSERT INTO clicks SELECT '/' || n % 10, '2026-01-05' FROM generate_series(1, 100) n;
CREATE TABLE parts (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parts_id PARTITION OF parts FOR VALUES IN ('id');
CREATE TABLE parts_my PARTITION OF parts FOR VALUES IN ('my');
INSERT INTO parts SELECT n, CASE n % 2 WHEN 0 THEN 'id' ELSE 'my' END, 'x' FROM generate_series(1, 50) n;
CREATE TABLE gone (x int); INSERT INTO gone VALUES (1), (2);
CREATE TABLE same (x int PRIMARY KEY); INSERT INTO same VALUES (1);
CREATE INDEX ON documents (title); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE INSERT ON documents FOR EACH ROW EXECUTE FUNCTION f();
"""
SINCE = """
INSERT INTO documents (title, created_at) SELECT 'baru' || n, '2026-01-10 13:00Z' FROM generate_series(1, 7) n;
INSERT INTO documents (title, created_at, updated_at) VALUES ('terakhir', '2026-01-10 13:30Z', '2026-01-10 14:00Z');
UPDATE documents SET fee = 1.000, updated_at = '2026-01-10 12:00Z' WHERE id = 100;  -- 1.0 before: other digits
UPDATE documents SET about = '{"n": 1.00}', updated_at = '2026-01-10 12:30Z' WHERE id = 5;
UPDATE documents SET tags = ARRAY['A'], mood = 'sedih', updated_at = '2026-01-10 12:40Z' WHERE id = 6;
UPDATE documents SET title = title WHERE id < 50;  -- written, and as before
DELETE FROM documents WHERE id IN (2000, 2001, 2002);
UPDATE "law firm"."Case Files" SET body = 'berubah "di sini",' || chr(10) || 'baris' WHERE code = 'perkara 7';
INSERT INTO "law firm"."Case Files" VALUES ('O''Brien', 1, NULL), ('kosong', 1, '');
INSERT INTO clicks SELECT '/3', '2026-01-05' FROM generate_series(1, 4);
INSERT INTO clicks VALUES ('/neu', '2026-01-11');
DELETE FROM clicks WHERE ctid IN (SELECT ctid FROM clicks WHERE page = '/1' LIMIT 2);
UPDATE parts SET note = 'y' WHERE id = 1; DELETE FROM parts WHERE id = 2;
DROP TABLE gone;
CREATE TABLE leaderboard (player text PRIMARY KEY, score int, created timestamptz);
INSERT INTO leaderboard VALUES ('Budi', 10, '2026-01-10 13:00Z'), ('Sari', 9, '2026-01-10 15:00Z');
ALTER TABLE same ADD COLUMN colour text; UPDATE same SET colour = 'merah';
"""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with postgresql() as running:
        yield running


@pytest.fixture(scope="module")
def backups(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database as it was before, in three formats; and then what happened since."""
    folder = tmp_path_factory.mktemp("backups")
    server.psql(f"CREATE DATABASE {quoted(DATABASE)}")
    server.psql(THEN, DATABASE)
    for form, file in {"p": "s.sql", "c": "s.dump", "d": "s.dir"}.items():
        subprocess.run(
            [server.bin / "pg_dump", "-d", server.dsn(DATABASE), f"-F{form}", "-f", folder / file],
            check=True,
            timeout=60,
        )
    server.psql(SINCE, DATABASE)
    return folder


def asked(server: Server, backup: Path, **more: Any) -> Asked:
    access = Access(server.host, server.port, "postgres", application=f"balik {RUN}")
    given: dict[str, Any] = {"limit": 60, "exact": "always", **more}
    return Asked(access, DATABASE, RUN, str(backup), **given)


def databases(server: Server) -> set[str]:
    with psycopg.connect(server.dsn()) as connection:
        names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
    return names - {"postgres", "template0", "template1"}


def counts(found: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        each["table"]: (each["how"], each["inserted"], each["changed"], each["deleted"]) for each in found["tables"]
    }


EXACT = {
    "public.documents": ("key", 8, 3, 3),
    "law firm.Case Files": ("key", 2, 1, 0),
    "public.clicks": ("rows", 5, None, 2),
    "public.parts": ("key", 0, 1, 1),
    "public.gone": ("dropped", 0, 0, 2),
    "public.leaderboard": ("new", 2, 0, 0),
    "public.same": ("key", 0, 0, 0),
}


@pytest.mark.parametrize("file", ["s.sql", "s.dump", "s.dir"])
def test_each_row_that_was_inserted_changed_or_deleted_is_counted(server, backups, file):
    found = statement(asked(server, backups / file))
    assert found["exact"], found["reason"]
    assert counts(found) == EXACT
    tables = {each["table"]: each for each in found["tables"]}
    documents = tables["public.documents"]
    assert (documents["oldest"], documents["newest"]) == ("2026-01-10T12:00:00.000000Z", "2026-01-10T14:00:00.000000Z")
    assert documents["by"] == "created_at, updated_at"
    assert tables["public.leaderboard"]["newest"] == "2026-01-10T15:00:00.000000Z"
    assert tables["public.same"]["columns"] == {"colour": 1}
    assert found["sequences"] == [{"sequence": "public.documents_id_seq", "now": 3008, "then": 3000}]
    assert found["total"]["lost"] == 11 + 3 + 5 + 1 + 2
    assert found["total"]["deleted"] == 3 + 2 + 1 + 2
    assert databases(server) == {DATABASE}, "the scratch database is gone"


@pytest.mark.parametrize("file", ["s.sql", "s.dump", "s.dir"])
def test_large_tables_are_looked_at_in_ranges_of_keys(server, backups, monkeypatch, file):
    """Every table as a large one: the ranges are of numbers where the key begins with one, else of a hash."""
    monkeypatch.setattr(compare, "_SMALL", 0)
    monkeypatch.setattr(scratch, "_LARGE_BYTES", 0)
    with compared(asked(server, backups / file)) as done:
        assert {each.table: (each.how, each.inserted, each.changed, each.deleted) for each in done.differences} == EXACT
        unlogged = done.scratch.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u'")
    assert {"documents", "Case Files", "clicks", "parts_id", "same"} <= {row["relname"] for row in unlogged}


def test_a_server_without_hashes_of_records_tells_the_same(server, backups, monkeypatch):
    """PostgreSQL 13 has none: the text of a row is hashed there."""
    monkeypatch.setattr(compare.Pair, "_hashed", compare.Pair.hashed_as_text)
    found = statement(asked(server, backups / "s.dump"))
    assert (found["exact"], counts(found)) == (True, EXACT), found["reason"]


def test_it_is_told_in_a_few_lines_the_greatest_loss_first(server, backups):
    says = statement(asked(server, backups / "s.sql"))["says"]
    assert says[0].startswith(f"restoring {DATABASE} from s.sql, the file's time 20"), says[0]
    assert (
        "would lose 22 rows (17 inserted, 5 changed), written from 2026-01-10 12:00:00 UTC to 2026-01-10 15:00:00"
        in says[0]
    )
    assert "8 rows that were deleted since would come back (exactly," in says[0]
    assert says[1].startswith("  public.documents: 8 inserted, 3 changed, 3 deleted, from 2026-01-10 12:00:00 UTC to")
    assert "  sequence public.documents_id_seq would go back from 3008 to 3000" in says


def read(folder: Path, manifest: dict[str, Any], table: str, kind: str) -> list[dict[str, str]]:
    file = next(each for each in manifest["files"] if (each["table"], each["kind"]) == (table, kind))
    with (folder / file["file"]).open(newline="", encoding="utf-8") as rows:
        found = list(csv.DictReader(rows))
    assert len(found) == file["rows"]
    return found


def test_what_was_lost_can_be_written_again(server, backups, tmp_path):
    """The backup with what was exported is, row by row, the database that was replaced."""
    done = export(asked(server, backups / "s.dump"), str(tmp_path))
    folder = Path(done["folder"])
    assert folder.parent == tmp_path
    assert {entry.stat().st_mode & 0o777 for entry in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert json.loads((folder / "manifest.json").read_text())["files"] == done["files"]
    assert len(read(folder, done, "public.documents", "inserted")) == 8
    changed = read(folder, done, "law firm.Case Files", "changed")
    assert changed == [{"code": "Perkara 7", "part": "1", "body": 'berubah "di sini",\nbaris'}]
    assert {row["id"] for row in read(folder, done, "public.documents", "deleted")} == {"2000", "2001", "2002"}
    assert read(folder, done, "public.same", "columns") == [{"x": "1", "colour": "merah"}]
    assert len(read(folder, done, "public.clicks", "inserted")) == 5
    assert databases(server) == {DATABASE}

    server.psql("CREATE DATABASE replayed")
    subprocess.run(
        [server.bin / "pg_restore", "-d", server.dsn("replayed"), backups / "s.dump"], check=True, timeout=60
    )
    server.psql("CREATE TABLE leaderboard (player text PRIMARY KEY, score int, created timestamptz)", "replayed")
    replay(server, folder, done)
    for table in ("documents", '"law firm"."Case Files"', "clicks", "parts", "leaderboard"):
        query = f"SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\")) FROM {table} t"
        assert server.psql(query, "replayed") == server.psql(query, DATABASE), table
    server.psql("DROP DATABASE replayed")

    again = export(asked(server, backups / "s.dump"), str(tmp_path))
    assert (again["changed"], again["files"]) == (False, done["files"])


def replay(server: Server, folder: Path, manifest: dict[str, Any]) -> None:
    """As docs/loss.md tells it."""
    for file in manifest["files"]:
        if file["kind"] == "columns":
            continue
        schema, _, relation = file["table"].partition(".")
        table, columns = f"{quoted(schema)}.{quoted(relation)}", ", ".join(map(quoted, file["columns"]))
        script = [f"CREATE TEMP TABLE b AS SELECT {columns} FROM {table} LIMIT 0;"]
        script += [f"\\copy b from '{folder / file['file']}' csv header"]
        if file["key"] and file["kind"] in ("changed", "deleted"):
            same = " AND ".join(f"t.{quoted(key)} = b.{quoted(key)}" for key in file["key"])
            script += [f"DELETE FROM {table} t USING b WHERE {same};"]
        elif file["kind"] == "deleted":
            script += [
                f"DELETE FROM {table} t WHERE ctid IN (SELECT ctid FROM (SELECT t.ctid, row_number() OVER (PARTITION BY"
                f" {columns}) n, {columns} FROM {table} t) x"
                f" JOIN (SELECT {columns}, count(*) m FROM b GROUP BY {columns}) y USING ({columns}) WHERE n <= m);"
            ]
        if file["kind"] != "deleted":
            script += [f"INSERT INTO {table} ({columns}) SELECT * FROM b;"]
        subprocess.run(
            [server.bin / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", server.dsn("replayed")],
            input="\n".join(script),
            text=True,
            check=True,
            timeout=60,
        )


def test_a_value_with_the_line_that_ends_a_copy_is_written_again_as_the_docs_say(server, tmp_path):
    server.psql("CREATE DATABASE dots")
    server.psql("CREATE TABLE documents (id int PRIMARY KEY, title text, created_at timestamptz)", "dots")
    path = tmp_path / "dots.dump"
    subprocess.run([server.bin / "pg_dump", "-d", server.dsn("dots"), "-Fc", "-f", path], check=True, timeout=60)
    server.psql(r"INSERT INTO documents VALUES (1, E'a\n\\.\nb', now()), (2, '\.', NULL), (3, '', NULL)", "dots")
    done = export(replace(asked(server, path), database="dots"), str(tmp_path))
    query = "SELECT md5(string_agg(t::text, ';' ORDER BY id)) FROM documents t"
    before = server.psql(query, "dots")
    server.psql("TRUNCATE documents", "dots")
    code = (Path(__file__).parents[2] / "docs" / "loss.md").read_text().split("```python\n")[1].split("```")[0]
    script = code.replace("dbname=lawyers_hub", server.dsn("dots"))
    script = script.replace("003-public.documents.inserted.csv", str(Path(done["folder"]) / done["files"][0]["file"]))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert server.psql(query, "dots") == before
    server.psql("DROP DATABASE dots")


def test_with_nothing_lost_it_says_so(server, tmp_path):
    server.psql("CREATE DATABASE calm")
    server.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)", "calm")
    path = tmp_path / "calm.dump"
    subprocess.run([server.bin / "pg_dump", "-d", server.dsn("calm"), "-Fc", "-f", path], check=True, timeout=60)
    found = statement(replace(asked(server, path), database="calm"))
    assert (found["exact"], found["tables"], found["same"], found["total"]["lost"]) == (True, [], 1, 0)
    assert "would lose nothing" in found["says"][0]
    server.psql("DROP DATABASE calm")


def test_without_time_for_a_comparison_columns_of_times_tell(server, backups):
    os.utime(backups / "s.sql", (MORNING, MORNING))
    found = statement(asked(server, backups / "s.sql", limit=0, times={"public.documents": TIMES}))
    assert not found["exact"]
    assert "no time for a comparison" in found["reason"]
    tables = {each["table"]: each for each in found["tables"]}
    documents = tables["public.documents"]
    assert (documents["how"], documents["inserted"], documents["changed"], documents["deleted"]) == (
        "times",
        8,
        3,
        None,
    )
    assert documents["newest"] == "2026-01-10T14:00:00.000000Z"
    assert "public.documents" in found["total"]["deleted_unknown"]
    clicks = tables["public.clicks"]
    assert clicks["how"] == "statistics"
    assert "an estimate" in clicks["note"]
    assert "8 inserted, 3 changed, deleted unknown" in "\n".join(found["says"])
    assert databases(server) == {DATABASE}


def test_what_is_not_known_is_never_nothing(server, backups):
    """Neither the columns nor the counters say anything of a table: unknown, and not in any sum."""
    server.psql("SELECT pg_stat_reset()", DATABASE)
    server.psql("UPDATE parts SET note = note WHERE id = 4", DATABASE)
    found = statement(asked(server, backups / "s.sql", exact="never"))
    assert "the plan wants no comparison" in found["reason"]
    assert "public.clicks" in found["total"]["unknown"], "the counters begin after the backup, and count nothing"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: text.replace("\nSET ", "\n\\connect postgres\nSET ", 1), "would leave the database"),
        (
            lambda text: text.replace("senang\t", "marah\t", 1),
            "in the rows of public.documents: ERROR: invalid input value",
        ),
    ],
    ids=["truncated", "leaves the database", "a wrong row"],
)
def test_a_spoiled_backup_is_said_and_an_estimate_given(server, backups, tmp_path, spoil, reason):
    path = tmp_path / "x.sql"
    path.write_text(spoil((backups / "s.sql").read_text()))
    found = statement(asked(server, path))
    assert (found["exact"], reason in found["reason"]) == (False, True), found["reason"]
    assert "not exactly known" in found["says"][0]
    assert databases(server) == {DATABASE}


@pytest.fixture
def small(server: Server, tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    """Makes a database of its own, its backup, and what happened since: an hour later by its file's time."""

    def make(then: str, since: str, form: str = "p", **more: Any) -> Asked:
        server.psql("DROP DATABASE IF EXISTS small WITH (FORCE)")
        server.psql("CREATE DATABASE small")
        server.psql(then, "small")
        path = tmp_path / f"small.{form}"
        subprocess.run(
            [server.bin / "pg_dump", "-d", server.dsn("small"), f"-F{form}", "-f", path], check=True, timeout=60
        )
        os.utime(path, (time.time() - 3600,) * 2)
        server.psql(since, "small")
        return replace(asked(server, path, **more), database="small")

    yield make
    server.psql("DROP DATABASE IF EXISTS small WITH (FORCE)")


@pytest.mark.parametrize("form", ["p", "c", "d"])
def test_a_large_tables_rows_are_loaded_by_several_sessions(small, monkeypatch, form):
    monkeypatch.setattr(sessions, "_SHARED_FROM", 0)
    then = (
        "CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a SELECT n, repeat(n::text, 20) FROM"
        " generate_series(1, 40000) n; CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)"
    )
    wanted = small(then, "UPDATE a SET t = 'x' WHERE id % 4000 = 7; DELETE FROM a WHERE id = 40000", form=form, jobs=3)
    with compared(wanted) as done:
        took = done.scratch.one("SELECT count(*) AS rows, count(DISTINCT xmin::text) AS sessions FROM public.a")
        assert (took["rows"], took["sessions"] > 1) == (40000, True), took
        assert [(each.table, each.changed, each.deleted) for each in done.differences if not each.none] == [
            ("public.a", 10, 1)
        ]


def test_a_row_that_the_server_refuses_ends_all_sessions(server, small, monkeypatch):
    """In the middle of what several sessions take: the others are not waited for, and nothing is left."""
    monkeypatch.setattr(sessions, "_SHARED_FROM", 0)
    wanted = small(
        "CREATE TABLE a (id int, t text); INSERT INTO a SELECT n, repeat(n::text, 20) FROM generate_series(1, 90000) n",
        "SELECT 1",
        jobs=3,
    )
    path = Path(wanted.backup)
    path.write_text(path.read_text().replace("\n45000\t", "\nBudi lahir 1990\t"))
    found = statement(wanted)
    assert not found["exact"]
    assert "invalid input syntax for type integer: (value left out)" in found["reason"]
    assert databases(server) == {DATABASE, "small"}


def test_a_dump_in_another_encoding_keeps_its_names_and_letters(server, tmp_path):
    server.psql("CREATE DATABASE old ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with psycopg.connect(server.dsn("old"), client_encoding="UTF8") as connection:
            connection.execute('CREATE TABLE "données" (id int PRIMARY KEY, nom text)')
            connection.execute("INSERT INTO \"données\" SELECT n, 'François ' || n FROM generate_series(1, 500) n")
        path = tmp_path / "old.sql"
        subprocess.run([server.bin / "pg_dump", "-d", server.dsn("old"), "-E", "LATIN1", "-f", path], check=True)
        assert "données".encode("latin-1") in path.read_bytes()
        with psycopg.connect(server.dsn("old"), client_encoding="UTF8") as connection:
            connection.execute("UPDATE \"données\" SET nom = 'Françoise' WHERE id = 7")
        found = statement(replace(asked(server, path), database="old"))
        assert found["exact"], found["reason"]
        assert counts(found) == {"public.données": ("key", 0, 1, 0)}
    finally:
        server.psql("DROP DATABASE old WITH (FORCE)")


def test_a_column_that_an_index_only_includes_is_no_part_of_the_key(small, tmp_path):
    then = "CREATE TABLE a (id int, note text, v text, PRIMARY KEY (id) INCLUDE (note)); INSERT INTO a SELECT n,"
    then += " CASE WHEN n % 2 = 0 THEN 'x' END, 'v' FROM generate_series(1, 100) n"
    wanted = small(then, "UPDATE a SET v = 'x' WHERE id = 1")
    assert counts(statement(wanted)) == {"public.a": ("key", 0, 1, 0)}
    assert read(tmp_path / f"small-{RUN}.lost", export(wanted, str(tmp_path)), "public.a", "changed")[0]["v"] == "x"


def test_a_column_of_another_type_is_named(small):
    wanted = small(
        "CREATE TABLE a (id int PRIMARY KEY, at timestamp); INSERT INTO a SELECT n, '2026-01-01' FROM"
        " generate_series(1, 5) n; CREATE TABLE b (id int PRIMARY KEY)",
        "ALTER TABLE a ALTER at TYPE timestamptz",
    )
    found = statement(wanted)
    assert counts(found) == {"public.a": ("key", 0, 5, 0)}
    told = "column at is timestamp with time zone, and timestamp without time zone in the backup: rows may count as"
    assert told in found["tables"][0]["note"]
    assert told in "\n".join(found["says"])


def test_a_key_that_is_only_written_otherwise_is_the_same_row(small, tmp_path):
    wanted = small(
        "CREATE TABLE a (id numeric PRIMARY KEY, v text); INSERT INTO a VALUES (1.0, 'x'), (2, 'y'), (3.50, 'z')",
        "UPDATE a SET id = 1.00 WHERE id = 1; DELETE FROM a WHERE id = 3.5; INSERT INTO a VALUES (4.10, 'neu')",
    )
    assert counts(statement(wanted)) == {"public.a": ("key", 1, 1, 1)}
    done = export(wanted, str(tmp_path))
    found = {kind: read(Path(done["folder"]), done, "public.a", kind) for kind in ("inserted", "changed", "deleted")}
    assert found == {
        "inserted": [{"id": "4.10", "v": "neu"}],
        "changed": [{"id": "1.00", "v": "x"}],
        "deleted": [{"id": "3.50", "v": "z"}],
    }


def test_a_value_as_long_as_a_legal_document_is_exported(small, tmp_path):
    wanted = small(
        "CREATE TABLE a (id int PRIMARY KEY, body text); INSERT INTO a VALUES (1, 'lama')",
        "UPDATE a SET body = repeat('surat ', 100000) WHERE id = 1",
    )
    done = export(wanted, str(tmp_path))
    assert len(read(Path(done["folder"]), done, "public.a", "changed")[0]["body"]) == 600_000


def test_tables_without_columns_or_with_any_names_of_columns_are_exported(small, tmp_path):
    wanted = small(
        "CREATE TABLE blank (); INSERT INTO blank DEFAULT VALUES; INSERT INTO blank DEFAULT VALUES;"
        "CREATE TABLE blanker (); INSERT INTO blanker DEFAULT VALUES; CREATE TABLE a (h int, n int);"
        "INSERT INTO a VALUES (1, 2)",
        "INSERT INTO blank DEFAULT VALUES; DELETE FROM blanker; UPDATE a SET n = 3; CREATE TABLE late ();"
        "INSERT INTO late DEFAULT VALUES",
    )
    found = {(file["table"], file["kind"]): file for file in export(wanted, str(tmp_path))["files"]}
    assert {key: file["rows"] for key, file in found.items()} == {
        ("public.blank", "inserted"): 1,
        ("public.blanker", "deleted"): 1,
        ("public.a", "inserted"): 1,
        ("public.a", "deleted"): 1,
        ("public.late", "inserted"): 1,
    }
    files = {key: (tmp_path / f"small-{RUN}.lost" / file["file"]).read_text() for key, file in found.items()}
    assert (files["public.a", "inserted"], files["public.a", "deleted"]) == ("h,n\n1,3\n", "h,n\n1,2\n")


#: After what was written: its counts are there before psql is back, and not some time after the session's end.
COUNTED = "SELECT pg_stat_force_next_flush()"


def test_writes_into_partitions_are_their_tables(small):
    then = (
        "CREATE TABLE ev (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE ev1 PARTITION OF ev FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
    )
    wanted = small(
        then, f"INSERT INTO ev SELECT n, '2026-01-05' FROM generate_series(1, 500) n; {COUNTED}", exact="never"
    )
    os.utime(wanted.backup)  # the counters begin before it
    (found,) = statement(wanted)["tables"]
    assert (found["table"], found["how"], found["inserted"]) == ("public.ev", "statistics", 500), found


def test_a_dump_that_changes_its_schema_on_its_way_is_read_so(server, small):
    """As pg_dump wrote them before 2018."""
    wanted = small("SELECT 1", "SELECT 1")
    Path(wanted.backup).write_text(OLD_STYLE)
    for schema, rows in {"public": "(1, 'one')", "other": "(11, 'eleven'), (12, 'dua belas')"}.items():
        server.psql(f"CREATE SCHEMA IF NOT EXISTS {schema}", "small")
        server.psql(f"CREATE TABLE {schema}.documents (id integer NOT NULL, title text)", "small")
        server.psql(f"INSERT INTO {schema}.documents VALUES {rows}", "small")
    found = statement(wanted)
    assert (found["exact"], counts(found)) == (True, {"other.documents": ("rows", 1, None, 1)}), found["reason"]


@pytest.mark.parametrize("form", ["--inserts", "--column-inserts"])
def test_a_value_that_looks_like_pg_dumps_comment_does_not_end_the_rows(small, tmp_path, server, form):
    value = "see:\n--\n-- Name: x; Type: INDEX; Schema: public; Owner: me\n--\n"
    wanted = small(
        f"CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a VALUES (1, '{value}'), (2, 'b')", "SELECT 1"
    )
    with Path(wanted.backup).open("w") as file:
        subprocess.run([server.bin / "pg_dump", "-d", server.dsn("small"), form], stdout=file, check=True, timeout=60)
    found = statement(wanted)
    assert not found["exact"] and "has rows behind the first index" in found["reason"], found["says"]
    assert "see:" not in str(found)


def test_columns_of_times_that_are_none_are_named(small):
    named = {"public.a": {"created": "nope", "updated": "id"}, "public.b": {"created": "x"}}
    says = statement(small("CREATE TABLE a (id int PRIMARY KEY)", "INSERT INTO a VALUES (1)", times=named))["says"]
    assert "  rollback_loss.times: public.a: created: nope is no column of public.a" in says
    assert "  rollback_loss.times: public.a: updated: id is integer, and no time" in says
    assert "  rollback_loss.times: there is no table public.b" in says


def test_a_role_that_may_not_see_the_disk_is_told_so(server, small):
    wanted = small("CREATE ROLE keeper LOGIN CREATEDB; CREATE TABLE a (id int PRIMARY KEY)", "SELECT 1", exact="auto")
    try:
        server.psql("GRANT SELECT ON a TO keeper", "small")
        found = statement(replace(wanted, access=Access(server.host, server.port, "keeper")))
        assert "its free space cannot be seen from here" in found["reason"], found["reason"]
        assert "rollback_loss: {exact: always}" in found["reason"]
    finally:
        server.psql("DROP DATABASE small WITH (FORCE); ")
        server.psql("DROP ROLE keeper")


@pytest.mark.parametrize("form", ["p", "c"])
def test_the_role_that_may_restore_may_compare_and_export(server, small, tmp_path, form):
    """As documented: no superuser, but CREATEDB, and a member of the owner and of pg_signal_backend."""
    server.psql("CREATE ROLE firm; CREATE ROLE restorer LOGIN CREATEDB; GRANT firm, pg_signal_backend TO restorer")
    try:
        wanted = small(
            "ALTER DATABASE small OWNER TO firm; SET ROLE firm; CREATE TABLE a (id int PRIMARY KEY)",
            "INSERT INTO a VALUES (1)",
            form,
        )
        wanted = replace(wanted, access=replace(wanted.access, user="restorer"))
        found = statement(wanted)
        assert (found["reason"], counts(found)) == ("", {"public.a": ("key", 1, 0, 0)})
        assert read(tmp_path / f"small-{RUN}.lost", export(wanted, str(tmp_path)), "public.a", "inserted")
        assert not [each for each in databases(server) if "__loss_" in each]
    finally:
        server.psql("DROP DATABASE small WITH (FORCE); DROP ROLE restorer; DROP ROLE firm")


def test_the_copy_is_on_the_disk_that_was_looked_at(server, tmp_path):
    folder = server.folder / "big"
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, "postgres", "postgres")
    server.psql(f"CREATE TABLESPACE big LOCATION '{folder}'")
    server.psql("CREATE DATABASE small TABLESPACE big")
    try:
        server.psql("CREATE TABLE a (id int PRIMARY KEY)", "small")
        path = tmp_path / "small.sql"
        subprocess.run([server.bin / "pg_dump", "-d", server.dsn("small"), "-f", path], check=True, timeout=60)
        with compared(replace(asked(server, path), database="small")):
            where = "SELECT string_agg(spcname, ' ') FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace"
            assert server.psql(f"{where} WHERE datname LIKE 'small%'") == "big big"
    finally:
        server.psql("DROP DATABASE small WITH (FORCE)")
        server.psql("DROP TABLESPACE big")


def test_somebody_elses_database_of_that_name_stays(server, small):
    wanted = small("CREATE TABLE a (id int PRIMARY KEY)", "SELECT 1")
    server.psql(f'CREATE DATABASE "small__loss_{RUN}"')
    server.psql("CREATE TABLE theirs (n int)", f"small__loss_{RUN}")
    try:
        found = statement(wanted)
        assert (found["exact"], "already exists" in found["reason"]) == (False, True), found["reason"]
        assert f"small__loss_{RUN}" in databases(server)
    finally:
        server.psql(f'DROP DATABASE "small__loss_{RUN}"')


def test_counters_that_a_crash_threw_away_prove_nothing(tmp_path):
    """After it they begin anew, and PostgreSQL says of the database's own only that nobody has reset them."""
    with postgresql() as server:
        server.psql("CREATE DATABASE hub")
        server.psql("CREATE TABLE docs (id int PRIMARY KEY, t text); CREATE TABLE quiet (x int)", "hub")
        path = tmp_path / "hub.sql"
        subprocess.run([server.bin / "pg_dump", "-d", server.dsn("hub"), "-f", path], check=True, timeout=60)
        wanted = replace(asked(server, path, exact="never"), database="hub")
        server.psql(f"INSERT INTO docs SELECT n, 'b' FROM generate_series(1, 1000) n; CHECKPOINT; {COUNTED}", "hub")
        before = statement(wanted)
        assert counts(before)["public.docs"] == ("statistics", 1000, 0, 0)
        assert "at most" in before["tables"][0]["note"]
        server.kill()
        server.start()
        found = statement(wanted)
        assert set(found["total"]["unknown"]) == {"public.docs", "public.quiet"}, found["says"]
        assert found["total"]["lost"] is None
        assert "would lose an UNKNOWN number of rows" in found["says"][0]
        server.psql(f"INSERT INTO docs VALUES (2001); {COUNTED}", "hub")
        later = statement(wanted)
        assert "would lose at least 1 row" in later["says"][0]
        assert "at least" in next(each for each in later["tables"] if each["table"] == "public.docs")["note"]
        assert later["total"]["unknown"] == ["public.quiet"]


LOCAL = """
CREATE TABLE docs (id int PRIMARY KEY, created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
ALTER DATABASE small SET timezone = 'America/New_York';
"""
TWO_DAYS_AGO = (
    "INSERT INTO docs SELECT n, now() - interval '2 days', now() - interval '2 days' FROM generate_series(1, 5) n"
)
SINCE_THEN = "INSERT INTO docs (id) SELECT generate_series(100, 299); UPDATE docs SET updated_at = now() WHERE id < 4"


@pytest.mark.parametrize("exact", ["never", "always"])
def test_local_times_are_read_as_the_database_writes_them(small, exact):
    """The database's clock is hours behind UTC: read as UTC, its newest rows would be older than the backup."""
    wanted = small(f"{LOCAL} SET timezone = 'America/New_York'; {TWO_DAYS_AGO}", SINCE_THEN, exact=exact)
    found = statement(wanted)
    how = "key" if exact == "always" else "times"
    assert counts(found)["public.docs"][:3] == (how, 200, 3), found["says"]
    newest = datetime.fromisoformat(found["tables"][0]["newest"].replace("Z", "+00:00"))
    assert abs(newest.timestamp() - time.time()) < 120
    assert "(without a zone, read as America/New_York)" in found["says"][1]


def test_times_without_a_zone_are_utc_where_prisma_writes_them_or_what_the_plan_says(small):
    prisma = "SET timezone = 'UTC'; CREATE TABLE _prisma_migrations (id text);"
    wanted = small(f"{LOCAL} {prisma} {TWO_DAYS_AGO}", f"SET timezone = 'UTC'; {SINCE_THEN}", exact="never")
    found = statement(wanted)
    assert counts(found)["public.docs"][:3] == ("times", 200, 3), found["says"]
    assert "read as UTC" in "\n".join(found["says"])
    named = statement(replace(wanted, times={"public.docs": {"zone": "Asia/Jakarta"}}))
    assert "(without a zone, read as Asia/Jakarta)" in "\n".join(named["says"])


def test_a_day_of_birth_says_nothing_of_when_its_row_was_written(small):
    then = "CREATE TABLE peserta (id int PRIMARY KEY, tanggal_lahir date, tanggal_daftar timestamptz DEFAULT now())"
    found = statement(small(then, "INSERT INTO peserta SELECT n, '1985-03-02' FROM generate_series(10, 14) n"))
    assert found["tables"][0]["by"] == "tanggal_daftar"
    assert not found["tables"][0]["oldest"].startswith("1985")


def test_large_objects_are_counted_and_compared(small, tmp_path):
    then = "CREATE TABLE a (id int PRIMARY KEY); SELECT lo_from_bytea(n, 'lama') FROM generate_series(1001, 1003) n"
    since = (
        "SELECT lo_from_bytea(0, 'baru') FROM generate_series(1, 50); SELECT lo_unlink(1001);"
        " SELECT lo_put(1002, 0, 'LAMA')"
    )
    wanted = small(then, since)
    found = statement(wanted)
    assert counts(found) == {"large objects": ("objects", 50, 1, 1)}
    assert found["exact"]
    assert found["says"][1].startswith("  large objects: 50 inserted, 1 changed, 1 deleted")
    exported = export(wanted, str(tmp_path / "kept"))
    assert exported["files"] == []
    assert told(exported)[0].startswith("what was lost of small as it was"), "not: nothing was lost"
    estimate = statement(replace(wanted, exact="never"))
    assert "large objects" in estimate["total"]["unknown"]
    assert statement(small(then, "SELECT 1"))["says"][0].endswith("(exactly, by comparing every row with the backup)")


def test_single_tables_with_any_name_are_told_with_their_sequences(small):
    odd = 'public."Skor ""x"" 1.0"'
    tables = f"CREATE TABLE {odd} (id serial PRIMARY KEY); CREATE TABLE other (id serial);"
    since = f"INSERT INTO {odd} SELECT FROM generate_series(1, 9); INSERT INTO other SELECT FROM generate_series(1, 9)"
    found = statement(small(f"{tables} INSERT INTO {odd} VALUES (DEFAULT)", since, only=[odd]))
    assert found["exact"], found["reason"]
    assert counts(found) == {'public.Skor "x" 1.0': ("key", 9, 0, 0)}
    assert [(each["now"], each["then"]) for each in found["sequences"]] == [(10, 1)], "the other's stays as it is"


def test_an_archive_is_judged_before_a_superuser_loads_it(server, small):
    """Its table of contents may hold any SQL: here a function's definition was replaced."""
    function = "CREATE FUNCTION public.f() RETURNS text\n    LANGUAGE sql\n    AS $$SELECT '" + "x" * 200 + "'$$;"
    wanted = small(f"CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); {function}", "SELECT 1", form="d")
    proof = server.data / "proof"
    contents = Path(wanted.backup) / "toc.dat"
    spoiled = f"COPY (SELECT 1) TO PROGRAM 'touch {proof}';".ljust(len(function)).encode()
    whole = contents.read_bytes()
    assert function.encode() in whole
    contents.write_bytes(whole.replace(function.encode(), spoiled))
    found = statement(wanted)
    assert not proof.exists()
    assert (found["exact"], "would run a program on the server" in found["reason"]) == (False, True), found["reason"]


def test_a_table_that_somebody_holds_does_not_hold_up_the_decision(server, backups):
    with psycopg.connect(server.dsn(DATABASE)) as connection:
        connection.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        found = statement(asked(server, backups / "s.dump"))
        assert time.monotonic() - began < 40
    assert counts(found)["public.clicks"] == EXACT["public.clicks"]
    held = next(each for each in found["tables"] if each["table"] == "public.documents")
    assert (held["how"], held["inserted"], found["exact"]) == ("unknown", None, False)
    assert "lock timeout" in held["note"]
    assert found["total"]["unknown"] == ["public.documents"]


def test_a_limit_is_kept_and_nothing_is_left(server, backups):
    began = time.monotonic()
    found = statement(asked(server, backups / "s.sql", limit=0.1))
    assert time.monotonic() - began < 10
    assert "not done within 100ms" in found["reason"], found["reason"]
    assert databases(server) == {DATABASE}


def test_a_disk_that_cannot_be_seen_is_not_filled(server, backups):
    found = statement(
        replace(asked(server, backups / "s.sql", exact="auto"), access=Access(FAR, server.port, "postgres"))
    )
    assert "its free space cannot be seen from here" in found["reason"]


def test_what_a_killed_run_has_left_is_dropped_by_the_next(server, backups):
    script = f"""
import sys; sys.path.insert(0, "collections")
from ansible_collections.balik.rollback.plugins.module_utils.database import sessions
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access, Deadline
from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked, compared
asked = Asked(Access("{server.host}", {server.port}, "postgres"), {DATABASE!r}, "killed", {str(backups / "s.sql")!r},
              exact="always")
with compared(asked):
    print("there", flush=True); sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "there\n"
    finally:
        process.kill()
        process.wait()
    left = f"{DATABASE}__loss_killed"
    assert left in databases(server)
    end = time.monotonic() + 20
    while (
        server.psql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{left.replace(chr(39), chr(39) * 2)}'")
        != "0"
    ):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert statement(asked(server, backups / "s.dump"))["exact"]
    assert databases(server) == {DATABASE}


def test_what_was_left_before_it_was_marked_is_dropped_by_the_next_of_the_same_run(server, backups):
    left = f"{DATABASE}__loss_{RUN}"
    server.psql(f"CREATE DATABASE {quoted(left)}")
    server.psql(f"COMMENT ON DATABASE {quoted(left)} IS 'the accountant''s'")
    assert "already exists" in statement(asked(server, backups / "s.dump"))["reason"]
    assert left in databases(server)
    server.psql(f"COMMENT ON DATABASE {quoted(left)} IS NULL")
    assert statement(asked(server, backups / "s.dump"))["exact"]
    assert databases(server) == {DATABASE}


def test_only_some_tables_and_never_one_that_is_nowhere(server, backups):
    found = statement(asked(server, backups / "s.dump", only=["clicks", '"law firm"."Case Files"']))
    assert set(counts(found)) == {"public.clicks", "law firm.Case Files"}
    with pytest.raises(BalikError, match=r"table public\.clickz: neither in the database nor in the backup"):
        statement(asked(server, backups / "s.dump", only=["clickz"]))


def test_tables_that_are_only_dropped_lose_all_their_rows(server, backups):
    server.psql("CREATE VIEW best AS SELECT * FROM leaderboard", DATABASE)
    found = statement(replace(asked(server, Path()), backup="", only=["public.leaderboard", "public.best"]))
    server.psql("DROP VIEW best", DATABASE)
    assert (found["exact"], counts(found)) == (True, {"public.leaderboard": ("new", 2, 0, 0)})
    assert found["says"][0].startswith(f"dropping tables of {DATABASE} would lose 2 rows")


def test_a_down_migration_can_ask_what_it_would_destroy(server, backups):
    deadline = Deadline(30)
    access = Access(server.host, server.port, "postgres")
    database = reach(access, "postgres", deadline)[0].to(DATABASE)
    asked_of = [("public", "leaderboard", ""), ("public", "same", "colour"), ("public", "nowhere", "")]
    assert list(would_drop(database, asked_of).values()) == [2, 1, None]


def test_an_export_that_is_killed_leaves_nothing_half_done(server, backups, tmp_path):
    """The replaced database is opened for the export, and closed by the next one where that was killed."""
    kept = f"{DATABASE}__before_{RUN}"
    server.psql(f"CREATE DATABASE {quoted(kept)} TEMPLATE {quoted(DATABASE)}")
    server.psql(f"ALTER DATABASE {quoted(kept)} ALLOW_CONNECTIONS false")
    script = f"""
import sys; sys.path.insert(0, "collections")
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.loss import export
from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked
export._write = lambda *_: (print("there", flush=True), sys.stdin.read())
asked = Asked(Access("{server.host}", {server.port}, "postgres"), {DATABASE!r}, "{RUN}", {str(backups / "s.sql")!r},
              exact="always")
export.export(asked, {str(tmp_path)!r}, {kept!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "there\n"
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in tmp_path.glob("*.lost")] == []
    done = export(asked(server, backups / "s.sql"), str(tmp_path), kept)
    assert len(done["files"]) == 11
    assert [path.name for path in tmp_path.iterdir()] == [Path(done["folder"]).name]
    assert server.psql("SELECT datallowconn FROM pg_database WHERE datname LIKE '%before%'") == "f"
    server.psql(f"DROP DATABASE {quoted(kept)}")
    end = time.monotonic() + 20
    while len(databases(server)) > 1:  # the killed one's, as soon as its sessions are gone
        statement(asked(server, backups / "s.dump"))
        assert time.monotonic() < end
