"""A whole database restored beside and swapped in, against a real server; and everything that must be refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access, find_programs
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import (
    Task,
    check,
    restore,
    undo,
    verify,
)
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable

from tests.integration.database_writers import writing
from tests.servers.postgresql import Server, postgresql

DATABASE = 'Låwyers\' "Hub" 法'
OWNER = 'own\'er "of" it'
RUN = "20260110T130000Z-3f9a"
KEPT = f"{DATABASE}__before_{RUN}"
BESIDE = f"{DATABASE}__restore_{RUN}"
FORMATS = {"plain": "s.sql", "gz": "s.sql.gz", "zst": "s.sql.zst", "custom": "s.dump", "directory": "s.dir"}
LIMIT = 20.0


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
    access = Access(server.host, server.port, "postgres", application=f"balik {RUN}")
    given: dict[str, Any] = {
        "jobs": 1,
        "limit": 60,
        "checks": [{"query": "SELECT count(*) FROM documents", "expect": 4000}],
        **more,
    }
    return Task(access, DATABASE, RUN, source=str(source), folder=str(tmp_path / "now"), **given)


def seen(server: Server, database: str = DATABASE) -> dict:
    """What must not change when a restore is refused or fails."""
    with psycopg.connect(server.dsn(database)) as connection:
        row = connection.execute(
            "SELECT oid, datallowconn, datconnlimit, shobj_description(oid, 'pg_database'), datacl::text,"
            " (SELECT count(*) FROM documents), to_regclass('bad_release')::text"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        return {"row": row, "databases": databases(server)}


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


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_comes_back_and_can_be_undone(live, dumps, tmp_path, kind):
    job = task(live, tmp_path, dumps / FORMATS[kind], jobs=2)
    old = seen(live)["row"]
    before = check(job)["before"]
    assert before["oid"] == old[0]
    job = replace(job, saved=before)
    assert restore(job, check_mode=True)["changed"]
    assert databases(live) == [DATABASE]

    done = restore(job)
    assert done["changed"]
    assert seen(live)["row"][5:] == (4000, None)
    assert databases(live) == [DATABASE, KEPT]
    assert done["evidence"]["rows"] == (4000 if kind in ("plain", "gz", "zst") else 0)
    assert live.psql(f"SELECT datallowconn FROM pg_database WHERE oid = {old[0]}") == "f"
    assert "oid" in verify(job)["evidence"]
    assert restore(job)["changed"] is False
    assert check(job)["before"] == before

    assert undo(job)["changed"]
    assert seen(live)["row"] == old
    assert databases(live) == [DATABASE, f"{DATABASE}__restored_{RUN}"]
    assert undo(job)["changed"] is False
    with pytest.raises(BalikError, match="expected the one this run restored"):
        verify(job)


def test_what_no_dump_holds_is_carried_over(live, dumps, tmp_path):
    name = quoted(DATABASE)
    live.psql(f"""
        ALTER DATABASE {name} SET search_path TO "law firm", public;
        ALTER DATABASE {name} SET timezone TO 'Asia/Jakarta';
        ALTER DATABASE {name} SET balik.note TO 'it''s'; ALTER ROLE app IN DATABASE {name} SET work_mem TO '7MB';
        ALTER DATABASE {name} SET default_transaction_read_only TO on;
        ALTER DATABASE {name} SET statement_timeout TO '1ms';
        REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO app WITH GRANT OPTION;
        ALTER DATABASE {name} CONNECTION LIMIT 17; COMMENT ON DATABASE {name} IS 'Basis data ''utama''';
        SET ROLE app; GRANT CONNECT ON DATABASE {name} TO clerk;
    """)
    live.psql("SET default_transaction_read_only TO off; SET statement_timeout TO 0; CREATE EXTENSION hstore", DATABASE)
    read = f"""
        SELECT pg_get_userbyid(datdba), encoding, datcollate, datctype, datconnlimit, datallowconn,
        shobj_description(oid, 'pg_database'), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a),
        (SELECT array_agg(c ORDER BY c) FROM pg_db_role_setting, unnest(setconfig) c WHERE setdatabase = oid)
        FROM pg_database WHERE datname = '{DATABASE.replace("'", "''")}'
    """
    before = live.psql(read)
    done = restore(task(live, tmp_path, dumps / "s.sql", checks=[]))
    assert live.psql(read) == before
    assert done["evidence"]["extensions_added"] == ["hstore"]
    inside = """
        SET statement_timeout TO 0;
        SELECT tableowner, has_table_privilege('clerk', 'public.documents', 'SELECT'),
        (SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension)
        FROM pg_tables WHERE tablename = 'documents'
    """
    assert live.psql(inside, DATABASE) == f"{OWNER}|t|citext hstore plpgsql"


def test_the_backup_of_now_restores_what_was_live(live, dumps, tmp_path):
    saved = restore(task(live, tmp_path, dumps / "s.sql"))["evidence"]["backup_of_now"]
    assert Path(saved).stat().st_mode & 0o077 == 0
    live.psql("CREATE DATABASE again")
    subprocess.run([live.bin / "pg_restore", "-d", live.dsn("again"), saved], check=True, timeout=60)
    assert seen(live, "again")["row"][5:] == (10, "bad_release")


def cut(path: Path, to: Path) -> Path:
    to.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return to


def spoiled_directory(dumps: Path, to: Path) -> Path:
    shutil.copytree(dumps / "s.dir", to)
    largest = max((file for file in to.iterdir() if file.name != "toc.dat"), key=lambda file: file.stat().st_size)
    cut(largest, largest)
    return to


def edited(dumps: Path, to: Path, old: str, new: str) -> Path:
    text = (dumps / "s.sql").read_text()
    assert old in text
    to.write_text(text.replace(old, new, 1))
    return to


MAKE: dict[str, tuple[Callable[[Path, Path, Server], Path], str]] = {
    "half a plain one": (
        lambda d, t, s: cut(d / "s.sql", t / "x.sql"),
        "truncated: it ends at line .*, in the rows of",
    ),
    "half a gz": (
        lambda d, t, s: cut(d / "s.sql.gz", t / "x.gz"),
        "cannot be read to its end: .*unexpected end of file",
    ),
    "half a zst": (lambda d, t, s: cut(d / "s.sql.zst", t / "x.zst"), "cannot be read to its end"),
    "half a custom one": (lambda d, t, s: cut(d / "s.dump", t / "x.dump"), "cannot be read to its end: .*end of file"),
    "half a directory": (lambda d, t, s: spoiled_directory(d, t / "x.dir"), "cannot be read to its end"),
    "pg_dump's tar": (lambda d, t, s: dump(s, t / "x.tar", "-Ft"), "tar format; expected plain"),
    "a newer server's": (
        lambda d, t, s: edited(d, t / "x", "from database version 15", "from database version 19"),
        "taken from PostgreSQL 19; expected 15 or older",
    ),
    "a role is missing": (lambda d, t, s: edited(d, t / "x", "TO clerk", "TO nobody_here"), "lacks: nobody_here"),
    "an extension is missing": (
        lambda d, t, s: edited(d, t / "x", "EXTENSION IF NOT EXISTS citext", 'EXTENSION IF NOT EXISTS "not-there"'),
        "extensions that the server lacks: not-there",
    ),
    "it connects elsewhere": (
        lambda d, t, s: edited(d, t / "x", "\nSET ", "\n\\connect postgres\nSET "),
        r"leave .*\\connect",
    ),
    "made with --create": (lambda d, t, s: dump(s, t / "x", "--create"), "leave .* CREATE DATABASE"),
    "made with --clean --create": (lambda d, t, s: dump(s, t / "x", "-cC"), "leave .* DROP DATABASE"),
    "made with --schema-only": (lambda d, t, s: dump(s, t / "x", "-s"), "holds no rows"),
    "empty": (lambda d, t, s: edited(d, t / "x", (d / "s.sql").read_text(), ""), "empty"),
    "not there": (lambda d, t, s: t / "x.sql", "no such file"),
    "none so old": (lambda d, t, s: t / "x-YYYYMMDD.sql", "no backup dated"),
}


@pytest.mark.parametrize("what", MAKE)
def test_a_spoiled_backup_is_refused_by_check(live, dumps, tmp_path, what):
    make, reason = MAKE[what]
    job = task(live, tmp_path, make(dumps, tmp_path, live), golive="2026-01-10T20:00:00+07:00")
    with untouched(live), pytest.raises(BalikError, match=reason):
        check(job)
    assert not (tmp_path / "now").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_glance_is_enough_where_reading_all_takes_hours(live, dumps, tmp_path, kind):
    job = task(live, tmp_path, dumps / FORMATS[kind], inspect=False)
    assert check(job)["before"]["backup"] == str(dumps / FORMATS[kind])


def test_a_glance_sees_the_missing_end_of_a_plain_dump(live, dumps, tmp_path):
    job = task(live, tmp_path, cut(dumps / "s.sql", tmp_path / "x.sql"), inspect=False)
    with untouched(live), pytest.raises(BalikError, match="truncated"):
        check(job)


FAIL: dict[str, tuple[Callable[[Path, Path, Server], Path], str]] = {
    **{key: MAKE[key] for key in ("half a plain one", "half a gz", "half a zst", "it connects elsewhere")},
    "half a custom one": (MAKE["half a custom one"][0], "pg_restore ended with 1: .*end of file"),
    "half a directory": (MAKE["half a directory"][0], "pg_restore ended with 1: "),
    "an error half way": (
        lambda d, t, s: edited(
            d, t / "x", "ALTER TABLE ONLY public.documents", "SELECT 1/0;\nALTER TABLE ONLY public.documents"
        ),
        r"psql ended with 3: line \d+: ERROR: division by zero",
    ),
    "a row that does not fit": (
        lambda d, t, s: edited(d, t / "x", "\n17\t", "\nBudi Santoso\t"),
        r"invalid input syntax for type integer: \(value left out\)",
    ),
    "a role is missing": (MAKE["a role is missing"][0], 'role "nobody_here" does not exist'),
}


@pytest.mark.parametrize("what", FAIL)
def test_a_restore_that_fails_leaves_the_live_database_alone(live, dumps, tmp_path, what):
    make, reason = FAIL[what]
    job = task(live, tmp_path, make(dumps, tmp_path, live))
    with untouched(live), pytest.raises(BalikError, match=reason) as refused:
        restore(job)
    assert "Budi" not in str(refused.value)
    assert len(list((tmp_path / "now").iterdir())) == 1


def test_a_failed_copy_is_kept_when_asked_for(live, dumps, tmp_path):
    job = task(
        live, tmp_path, dumps / "s.sql", checks=[{"name": "enough", "query": "SELECT 1", "expect": 2}], keep_failed=True
    )
    with pytest.raises(BalikError, match=r"check enough in .*: found 1; expected 2"):
        restore(job)
    assert databases(live) == [DATABASE, BESIDE]
    assert restore(replace(job, checks=()))["changed"]
    assert databases(live) == [DATABASE, KEPT]


def test_a_plan_s_check_cannot_write(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql", checks=[{"query": "DELETE FROM documents", "expect": 0}])
    with untouched(live), pytest.raises(BalikError, match="cannot execute DELETE in a read-only transaction"):
        restore(job)


@pytest.mark.parametrize(
    ("statement", "undo_it", "reason"),
    [
        (
            "BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'owed'",
            "ROLLBACK PREPARED 'owed'",
            "prepared transaction owed",
        ),
        (
            "SELECT pg_create_logical_replication_slot('reports', 'test_decoding')",
            "SELECT pg_drop_replication_slot('reports')",
            "logical replication slot reports",
        ),
    ],
)
def test_what_holds_on_to_the_database_is_named(live, dumps, tmp_path, statement, undo_it, reason):
    live.psql(statement, DATABASE)
    try:
        with untouched(live), pytest.raises(BalikError, match=f"cannot be renamed while it has {reason}"):
            check(task(live, tmp_path, dumps / "s.sql"))
    finally:
        live.psql(undo_it, DATABASE)


def test_a_closed_database_is_told(live, dumps, tmp_path):
    live.psql(f"ALTER DATABASE {quoted(DATABASE)} ALLOW_CONNECTIONS false")
    with pytest.raises(BalikError, match=r"accepts no connections.*ALLOW_CONNECTIONS true"):
        check(task(live, tmp_path, dumps / "s.sql"))
    live.psql(f"ALTER DATABASE {quoted(DATABASE)} ALLOW_CONNECTIONS true")


def test_a_role_without_the_rights_is_told_and_one_with_them_is_enough(live, dumps, tmp_path):
    live.psql("CREATE ROLE restorer LOGIN")
    job = task(live, tmp_path, dumps / "s.sql")
    job = replace(job, access=replace(job.access, user="restorer"))
    with pytest.raises(
        BalikError, match=r"role restorer .* lacks CREATEDB, membership in .*, membership in pg_signal_backend"
    ):
        check(job)
    live.psql(f"ALTER ROLE restorer CREATEDB; GRANT {quoted(OWNER)}, pg_signal_backend, clerk, app TO restorer")
    live.psql(f"ALTER TABLE bad_release OWNER TO {quoted(OWNER)}", DATABASE)
    check(job)
    assert restore(job)["changed"]
    assert seen(live)["row"][5:] == (4000, None)


def test_nothing_answers_and_nothing_is_there(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    with pytest.raises(Unreachable, match="no connection to database 'postgres' as postgres"):
        check(replace(job, access=replace(job.access, port=1)))
    with pytest.raises(BalikError, match="database gone: not on"):
        check(replace(job, database="gone"))
    with pytest.raises(BalikError, match="a database of your own"):
        check(replace(job, database="postgres"))
    with pytest.raises(BalikError, match="psql, pg_dump, pg_restore, vacuumdb not found in /nowhere"):
        find_programs(15, "/nowhere")


def test_a_database_that_somebody_else_replaced_is_left_alone(live, dumps, tmp_path):
    job = replace(task(live, tmp_path, dumps / "s.sql"), saved={"oid": 1})
    with untouched(live), pytest.raises(BalikError, match="somebody else replaced it"):
        restore(job)


def test_a_backup_that_changed_since_check_is_refused(live, dumps, tmp_path):
    shutil.copy(dumps / "s.sql", tmp_path / "x.sql")
    job = task(live, tmp_path, tmp_path / "x.sql")
    job = replace(job, saved=check(job)["before"])
    with (tmp_path / "x.sql").open("a") as file:
        file.write("\n")
    with untouched(live), pytest.raises(BalikError, match="bytes that were checked"):
        restore(job)


def test_undo_says_where_the_backup_is_when_the_old_database_is_gone(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    saved = check(job)["before"]
    done = restore(job)
    live.psql(f"DROP DATABASE {quoted(KEPT)}")
    with pytest.raises(BalikError, match=r"not there any more.*by hand") as refused:
        undo(replace(job, saved=saved))
    assert done["evidence"]["backup_of_now"] in str(refused.value)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "balik-test", folder], check=False, capture_output=True
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


def test_a_backup_of_now_that_does_not_fit_is_refused(live, dumps, tmp_path):
    live.psql("INSERT INTO written SELECT random() * 1e9 FROM generate_series(1, 9999)", DATABASE)
    with small_disk(tmp_path / "now", "4k"):
        job = task(live, tmp_path, dumps / "s.sql")
        with untouched(live), pytest.raises(BalikError, match=r"4 kB free; expected about .* for the backup of now"):
            check(job)
        job = replace(job, ignore_space=True)
        check(job)
        with untouched(live), pytest.raises(BalikError, match=r"pg_dump ended with 1: .*No space left on device"):
            restore(job)
        assert list((tmp_path / "now").iterdir()) == []


def test_a_copy_that_has_no_room_half_way_is_dropped(live, dumps, tmp_path):
    rows = "\n".join(f"{n}\t{'x' * 1000}\t" for n in range(5000, 20000))
    big = edited(dumps, tmp_path / "x.sql", "\n4000\t", f"\n{rows}\n4000\t")
    with small_tablespace(live, "21m"), untouched(live), pytest.raises(BalikError, match=r"could not extend file"):
        restore(task(live, tmp_path, big, ignore_space=True, checks=[]))


def test_a_copy_that_does_not_fit_on_the_servers_disk_is_refused(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    with small_tablespace(live, "14m"):
        with untouched(live), pytest.raises(BalikError, match=r"free; expected about .* for the restored copy"):
            check(job)
        # It would fit as long as nothing is written from memory to the disk.
        with untouched(live), pytest.raises(BalikError, match="what was restored could not be written"):
            restore(replace(job, ignore_space=True))


def test_a_limit_ends_the_work(live, dumps, tmp_path):
    source = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(60);\nALTER TABLE ONLY")
    began = time.monotonic()
    with untouched(live), pytest.raises(BalikError, match="not done within 3s"):
        restore(task(live, tmp_path, source, limit=3))
    assert time.monotonic() - began < 10


def test_eight_writing_clients_see_a_short_gap(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.dump")
    worst = []
    for act in (restore, undo):
        with writing(live.dsn(DATABASE, "app")) as clients:
            act(job)
        worst.append(max(clients["gaps"]))
    # Other work on the machine can make one of them longer; what the swap itself costs shows in the better one.
    assert 0 < min(worst) < 250, worst
    assert seen(live)["row"][1] is True


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


def kill_and_restore(live: Server, job: Task, process: subprocess.Popen) -> None:
    process.kill()  # -9
    process.wait()
    assert seen(live)["row"][5:] == (10, "bad_release"), "the live database is the old one, and open"
    assert restore(job)["changed"]
    assert databases(live) == [DATABASE, KEPT]
    assert seen(live)["row"][5:] == (4000, None)
    assert [file.suffix for file in Path(job.folder).iterdir()] == [".dump"]


def test_killed_while_backing_up(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    with psycopg.connect(live.dsn(DATABASE)) as holder, started(job) as process:
        holder.execute("LOCK TABLE documents")
        wait_for(lambda: list((tmp_path / "now").glob("*.part-*")), "the backup of now is being written")
        process.kill()
        holder.rollback()
        kill_and_restore(live, job, process)


def test_killed_while_restoring(live, dumps, tmp_path):
    slow = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(60);\nALTER TABLE ONLY")
    job = task(live, tmp_path, slow)
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    with started(job) as process:
        wait_for(lambda: live.psql(sleeping) == "1", "psql is in the middle of the dump")
        assert databases(live) == [DATABASE, BESIDE]
        kill_and_restore(live, replace(job, source=str(dumps / "s.sql")), process)
    assert live.psql(sleeping) == "0"


def test_killed_while_swapping(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    renaming = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER DATABASE%RENAME%' AND state = 'active'"
    with started(job) as process:
        wait_for(lambda: BESIDE in databases(live), "the copy is made")
        # Begun after the check, so that the rename has something to wait for.
        live.psql("BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'owed'", DATABASE)
        wait_for(lambda: live.psql(renaming) == "1", "the swap waits")
        process.kill()
        wait_for(lambda: live.psql(renaming) == "0", "the server has taken the renames back")
        live.psql("ROLLBACK PREPARED 'owed'", DATABASE)
        kill_and_restore(live, job, process)


def test_a_swap_that_cannot_be_made_says_who_is_in_the_way(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    with untouched(live), started(job) as process:
        wait_for(lambda: BESIDE in databases(live), "the copy is made")
        live.psql("BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'owed'", DATABASE)
        try:
            assert process.wait(LIMIT + 20) == 1
        finally:
            live.psql("ROLLBACK PREPARED 'owed'", DATABASE)
        assert b"still there: prepared transaction owed" in said(process)


def test_the_server_dies_half_way(dumps, tmp_path):
    with postgresql() as server:
        for role in (OWNER, "app", "clerk"):
            server.psql(f"CREATE ROLE {quoted(role)}")
        server.psql(f"CREATE DATABASE {quoted(DATABASE)}")
        server.psql("CREATE TABLE documents AS SELECT 1; CREATE TABLE bad_release ()", DATABASE)
        slow = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(60);\nALTER TABLE ONLY")
        job = task(server, tmp_path, slow)
        with started(job) as process:
            wait_for(lambda: BESIDE in databases(server), "the copy is made")
            time.sleep(0.3)
            server.kill()
            assert process.wait(LIMIT) == 1
            message = said(process)
        assert b"BalikError" in message
        assert b"psql ended with" in message
        server.start()
        assert seen(server)["row"][5:] == (1, "bad_release")
        assert restore(replace(job, source=str(dumps / "s.sql")))["changed"]
        assert databases(server) == [DATABASE, KEPT]


def test_two_at_once(live, dumps, tmp_path):
    slow = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(60);\nALTER TABLE ONLY")
    job = task(live, tmp_path, slow)
    with started(job) as process:
        wait_for(lambda: BESIDE in databases(live), "the first one works")
        with pytest.raises(BalikError, match=rf"balik {RUN} \(pid \d+\) since .* is restoring it"):
            restore(job)
        assert process.poll() is None
