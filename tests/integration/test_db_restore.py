"""A whole database restored beside and swapped in, against a real server; and everything that must be refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import filling, sessions, tables, verification
from ansible_collections.balik.rollback.plugins.module_utils.database import task as database_task
from ansible_collections.balik.rollback.plugins.module_utils.database.access import find_programs
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import (
    Task,
    check,
    restore,
    undo,
    verify,
)
from ansible_collections.balik.rollback.plugins.module_utils.database.task import application
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked, statement

from tests.integration import database_restores
from tests.integration.database_restores import (
    BESIDE,
    DATABASE,
    FORMATS,
    KEPT,
    LIMIT,
    OLD_STYLE,
    OWNER,
    RUN,
    SLOWLY,
    cut,
    databases,
    dump,
    edited,
    quoted,
    said,
    seen,
    small_disk,
    small_tablespace,
    started,
    task,
    untouched,
    wait_for,
)
from tests.integration.database_writers import writing
from tests.servers.postgresql import Server, postgresql

server, dumps, live = database_restores.server, database_restores.dumps, database_restores.live


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
    proof = done["evidence"]
    assert (proof["rows"], proof["tables"], proof["tables_compared"], proof["amcheck"]) == (4000, 2, 2, "sound")
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


@pytest.mark.parametrize("kind", ["plain", "gz"])
def test_a_large_tables_rows_are_dealt_out_among_sessions(live, dumps, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sessions, "_SHARED_FROM", 0)
    monkeypatch.setattr(filling, "CHUNK", 20_000)
    done = restore(task(live, tmp_path, dumps / FORMATS[kind], jobs=3, compare=False))["evidence"]
    assert (done["rows"], done["amcheck"]) == (4000, "sound")
    assert int(live.psql("SELECT count(DISTINCT xmin::text) FROM documents", DATABASE)) == 3


def test_a_dump_that_changes_its_schema_on_its_way_is_restored(live, tmp_path):
    path = tmp_path / "old.sql"
    path.write_text(OLD_STYLE)
    checks = [{"query": "SELECT string_agg(title, ' ' ORDER BY id) FROM other.documents", "expect": "eleven twelve"}]
    job = task(live, tmp_path, path, checks=checks, accept=["another product", "extension citext"], jobs=2)
    assert restore(job)["evidence"]["tables_compared"] == 2


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(("kind", "options"), [("x.sql", ["--inserts"]), ("x.sql", []), ("x.dump", ["-Fc"])])
def test_text_that_looks_like_a_line_of_a_dump_comes_back_as_it_was(live, tmp_path, kind, options, jobs):
    text = (
        "\n\\restrict abc\n\\unrestrict abc\n\\connect elsewhere\nGRANT nobody TO nobody;\nCREATE EXTENSION nowhere;\n"
        "-- Dumped from database version 99\n-- PostgreSQL database cluster dump\n\\.\nCOPY a.b (c) FROM stdin;\r\n--"
    )
    live.psql("CREATE DATABASE texts")
    try:
        with psycopg.connect(live.dsn("texts")) as connection:
            literal = psycopg.sql.Literal(text).as_string(connection)
            name = quoted(text[:60])
            connection.execute(
                f"CREATE TABLE documents (id int, title text DEFAULT {literal}, {name} int);"
                f"INSERT INTO documents VALUES (1, {literal}, 2), (2, 'x', 3); COMMENT ON TABLE documents IS {literal};"
                f"CREATE FUNCTION body() RETURNS text LANGUAGE sql AS $$SELECT {literal}$$"
            )
        path = dump(live, tmp_path / kind, *options, database="texts")
    finally:
        live.psql("DROP DATABASE texts")
    job = task(live, tmp_path, path, jobs=jobs, checks=[], accept=["another product"])
    check(job)
    restore(job)
    with psycopg.connect(live.dsn(DATABASE)) as connection:
        row = connection.execute(
            f"SELECT title, {name}, body(), obj_description('documents'::regclass) FROM documents WHERE id = 1"
        ).fetchone()
        default = connection.execute("INSERT INTO documents VALUES (9) RETURNING title").fetchone()
    assert (row, default) == ((text, 2, text, text), (text,))


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


@pytest.mark.parametrize("kind", FORMATS)
def test_a_glance_is_enough_where_reading_all_takes_hours(live, dumps, tmp_path, kind):
    job = task(live, tmp_path, dumps / FORMATS[kind], inspect=False)
    assert check(job)["before"]["backup"] == str(dumps / FORMATS[kind])


def test_a_glance_sees_the_missing_end_of_a_plain_dump(live, dumps, tmp_path):
    job = task(live, tmp_path, cut(dumps / "s.sql", tmp_path / "x.sql"), inspect=False)
    with untouched(live), pytest.raises(BalikError, match="truncated"):
        check(job)


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
    ("query", "expect", "holds"),
    [
        ("SELECT 9007199254740993", 9007199254740993, True),
        ("SELECT 9007199254740993", 9007199254740992, False),
        ("SELECT 0.10", 0.1, True),
        ("SELECT 4000", "4000", True),
        ("SELECT '1.10'", "1.10", True),
        ("SELECT '1.10'", "1.1", False),
        ("SELECT '007'", "7", False),
        ("SELECT true", True, True),
        ("SELECT true", 1, False),
        ("SELECT 'NaN'::float8", "NaN", False),
    ],
)
def test_an_answer_is_what_is_expected_to_its_last_digit(live, dumps, tmp_path, query, expect, holds):
    job = task(live, tmp_path, dumps / "s.sql", checks=[{"query": query, "expect": expect}])
    if holds:
        assert verification.hold(job, DATABASE) == "1 checks hold"
    else:
        with pytest.raises(BalikError, match=f"expected {expect}"):
            verification.hold(job, DATABASE)


@pytest.mark.parametrize("enabled", ["", "ALTER EVENT TRIGGER watched ENABLE ALWAYS;"])
def test_an_event_trigger_neither_forbids_the_proof_nor_writes_what_the_backup_has_not(live, dumps, tmp_path, enabled):
    end = "\n--\n-- PostgreSQL database dump complete"
    trigger = """
CREATE FUNCTION public.watched() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN
INSERT INTO public.written VALUES (1);
IF current_query() LIKE '%amcheck%' THEN RAISE 'no DDL in production'; END IF; END$$;
CREATE EVENT TRIGGER watched ON ddl_command_end EXECUTE FUNCTION public.watched();
"""
    live.psql("CREATE EXTENSION pgcrypto", DATABASE)
    done = restore(task(live, tmp_path, edited(dumps, tmp_path / "x.sql", end, f"\n{trigger}{enabled}{end}")))
    assert (done["evidence"]["amcheck"], done["evidence"]["extensions_added"]) == ("sound", ["pgcrypto"])
    assert live.psql("SELECT count(*) FROM written", DATABASE) == "0"
    assert live.psql("SELECT evtenabled FROM pg_event_trigger", DATABASE) == ("A" if enabled else "O")


@pytest.mark.parametrize("enabled", ["", "ALTER EVENT TRIGGER frozen ENABLE ALWAYS;"])
def test_a_failed_copy_with_a_subscription_and_a_forbidding_event_trigger_is_dropped(live, dumps, tmp_path, enabled):
    end = "\n--\n-- PostgreSQL database dump complete"
    frozen = f"""
CREATE SUBSCRIPTION feed CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = 'feed');
CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no DDL in production'; END$$;
CREATE EVENT TRIGGER frozen ON ddl_command_start EXECUTE FUNCTION public.no(); {enabled}
"""
    job = task(live, tmp_path, edited(dumps, tmp_path / "x.sql", end, f"\n{frozen}{end}"))
    wrong = [{"query": "SELECT 1", "expect": 2}]
    with untouched(live), pytest.raises(BalikError, match=r"found 1; expected 2(?!.*is still there)"):
        restore(replace(job, checks=wrong))


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
    live.psql(f"ALTER DATABASE {quoted(DATABASE)} CONNECTION LIMIT 4")
    with (
        untouched(live),
        pytest.raises(BalikError, match=r"LIMIT 4, .*; expected at least 5.* Set db_restore_jobs to 3"),
    ):
        check(replace(job, jobs=4))
    job = replace(job, jobs=3, source=str(dumps / "s.dump"))
    assert restore(job)["changed"]
    assert seen(live)["row"][5:] == (4000, None)


def test_rows_that_the_role_does_not_see_are_told_by_check(live, dumps, tmp_path):
    live.psql(
        f"ALTER TABLE bad_release OWNER TO {quoted(OWNER)}; ALTER TABLE bad_release ENABLE ROW LEVEL SECURITY", DATABASE
    )
    live.psql(f"CREATE ROLE limited LOGIN CREATEDB; GRANT {quoted(OWNER)}, pg_signal_backend, clerk, app TO limited")
    job = task(live, tmp_path, dumps / "s.sql")
    job = replace(job, access=replace(job.access, user="limited"))
    check(job)
    live.psql("ALTER TABLE bad_release FORCE ROW LEVEL SECURITY", DATABASE)
    told = r'role limited: .* hides rows of public\.bad_release in .*; expected .* ALTER ROLE "limited" BYPASSRLS'
    for act in (check, restore):
        with untouched(live), pytest.raises(BalikError, match=told):
            act(job)
    forced = {form: dump(live, tmp_path / f"forced.{form}", f"-F{form}", database=DATABASE) for form in "pc"}
    live.psql("ALTER TABLE bad_release NO FORCE ROW LEVEL SECURITY", DATABASE)
    for path in forced.values():
        with untouched(live), pytest.raises(BalikError, match=told):
            check(replace(job, source=str(path)))
    live.psql("ALTER ROLE limited BYPASSRLS; ALTER TABLE bad_release FORCE ROW LEVEL SECURITY", DATABASE)
    job = replace(job, source=str(forced["c"]), checks=[])
    check(job)
    assert restore(job)["changed"]


def test_nothing_answers_and_nothing_is_there(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    with pytest.raises(Unreachable, match="no connection to database 'postgres' as postgres"):
        check(replace(job, access=replace(job.access, port=1)))
    with pytest.raises(BalikError, match="database gone: not on"):
        check(replace(job, database="gone"))
    with pytest.raises(BalikError, match="a database of your own"):
        check(replace(job, database="postgres"))
    with pytest.raises(BalikError, match=r"db_restore_database: found 'hub\\x00'; expected a name without a NUL"):
        check(replace(job, database="hub\0"))
    with pytest.raises(BalikError, match="psql, pg_dump, pg_restore, vacuumdb not found in /nowhere"):
        find_programs(15, "/nowhere")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tables": ["public.documents"]}, r"db_restore_scope: database, .*db_restore_tables \(public.documents\) set"),
        ({"drop_tables": ["public.x"]}, r"and db_restore_drop_tables .*.* Set db_restore_scope to tables"),
        ({"settings": {"maintenance_work_memm": "1GB"}}, r"db_restore_session_settings: .*\"maintenance_work_memm\""),
        ({"settings": {"work_mem": "lots"}}, r"db_restore_session_settings: .* parameter \"work_mem\""),
        ({"folder": "backups/now"}, r"db_restore_backup_dir: found 'backups/now', a relative path; expected /folder"),
        (
            {"accept": ["another product", "xx"]},
            r"db_restore_accept: found xx; expected NAME after extension, encoding, schema",
        ),
    ],
)
@pytest.mark.parametrize("act", [check, restore])
def test_settings_that_mean_something_else_are_refused(live, dumps, tmp_path, act, given, says):
    with untouched(live), pytest.raises(BalikError, match=says):
        act(task(live, tmp_path, dumps / "s.sql", **given))


def test_a_question_that_is_no_sql_is_refused_before_anything_has_begun(live, dumps, tmp_path):
    with untouched(live), pytest.raises(BalikError, match=r"check 1: syntax error .* Correct it in db_restore_checks"):
        check(task(live, tmp_path, dumps / "s.sql", checks=[{"query": "SELEC 1", "expect": 1}]))


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        ("DELETE FROM documents", "it would write, or lock rows"),
        ("WITH gone AS (DELETE FROM documents RETURNING id) SELECT count(*) FROM gone", "it would write"),
        ("SELECT id FROM documents FOR UPDATE", "or lock rows"),
        ("TRUNCATE documents", "it answers nothing"),
        ("SHOW server_encoding", ""),
        ("WITH few AS (SELECT id FROM documents) SELECT count(*) > 0 -- some\nFROM few", ""),
        ("VALUES (1)", ""),
    ],
)
def test_a_question_that_writes_is_refused_before_anything_has_begun(live, dumps, tmp_path, query, refused):
    job = task(live, tmp_path, dumps / "s.sql", checks=[{"name": "mine", "query": query, "expect": 1}])
    with untouched(live):
        if not refused:
            check(job)
            return
        with pytest.raises(BalikError, match=f"check mine: .*{refused}.*; expected one query that only reads"):
            check(job)


def test_a_question_about_what_only_the_backup_has_is_told(live, dumps, tmp_path):
    live.psql("DROP TABLE written", DATABASE)
    checks = [
        {"query": "SELECT count(*) FROM written", "expect": 0, "name": "writes"},
        {"query": "SHOW server_encoding", "expect": "UTF8"},
    ]
    job = task(live, tmp_path, dumps / "s.sql", checks=checks)
    says = check(job)["says"]
    assert 'check writes cannot be asked of the live database (relation "written" does not exist), only of' in says
    assert "check 2" not in says
    assert restore(job)["evidence"]["checks"] == "2 checks hold"


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
        assert [file.suffix for file in (tmp_path / "now").iterdir()] == [".of"]


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
    worst = []
    # Other work on the machine can make some of them longer; what the swap itself costs shows in the best one.
    for number in range(4):
        job = replace(task(live, tmp_path, dumps / "s.dump"), run=f"{RUN}-{number}")
        for act in (restore, undo):
            with writing(live.dsn(DATABASE, "app")) as clients:
                act(job)
            worst.append(max(clients["gaps"]))
        if min(worst) < 250:
            break
    assert 0 < min(worst) < 250, worst
    assert seen(live)["row"][1] is True


def kill_and_restore(live: Server, job: Task, process: subprocess.Popen) -> None:
    process.kill()  # -9
    process.wait()
    assert seen(live)["row"][5:] == (10, "bad_release"), "the live database is the old one, and open"
    assert restore(job)["changed"]
    assert databases(live) == [DATABASE, KEPT]
    assert seen(live)["row"][5:] == (4000, None)
    assert sorted(file.suffix for file in Path(job.folder).iterdir()) == [".dump", ".of"]


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
    job = task(live, tmp_path, edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", SLOWLY))
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
    job = task(live, tmp_path, edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", SLOWLY))
    with untouched(live), started(job) as process:
        wait_for(lambda: BESIDE in databases(live), "the copy is made")
        live.psql("BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'owed'", DATABASE)
        try:
            assert process.wait(LIMIT + 20) == 1
        finally:
            live.psql("ROLLBACK PREPARED 'owed'", DATABASE)
        assert re.search(rb"still there: .*prepared transaction owed", message := said(process)), message


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
        live.psql("CREATE DATABASE maintenance")
        for way in ("postgres", "maintenance"):
            with pytest.raises(BalikError, match=rf"balik {RUN} \w+ \(pid \d+\) since 20.* is restoring it"):
                restore(replace(job, maintenance=way))
        assert process.poll() is None


@contextmanager
def idle_limit(server: Server) -> Iterator[None]:
    """The server ends sessions that wait for longer than half a second."""
    for setting in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
        server.psql(f"ALTER SYSTEM SET {setting} = '500ms'")
    server.psql("SELECT pg_reload_conf()")
    try:
        wait_for(lambda: server.psql("SHOW idle_session_timeout") == "500ms", "the server ends idle sessions")
        yield
    finally:
        server.psql("ALTER SYSTEM RESET ALL")
        server.psql("SELECT pg_reload_conf()")


def test_what_the_server_sets_against_idle_sessions_does_not_end_the_work(live, dumps, tmp_path):
    slow = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(1);\nALTER TABLE ONLY")
    job = task(live, tmp_path, slow)
    asked = Asked(job.access, DATABASE, RUN, str(slow), limit=60, exact="always")
    with idle_limit(live):
        assert {each["how"] for each in statement(asked)["tables"]} == {"key", "new"}
        assert restore(job)["changed"]
        parts = replace(job, run="tables", tables=["public.documents"], checks=[])
        live.psql("DELETE FROM documents", DATABASE)
        assert tables.restore(parts)["changed"]
    assert seen(live)["row"][5:] == (4000, None)


@pytest.mark.parametrize("other", ["accounts", "akun 法"])
def test_two_databases_of_one_server_in_one_run_do_not_disturb_each_other(live, dumps, tmp_path, other):
    slow = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(1);\nALTER TABLE ONLY")
    job = task(live, tmp_path, slow)
    live.psql(f"CREATE DATABASE {quoted(other)} TEMPLATE known_good")
    access = replace(job.access, application=application(RUN, other))
    with started(job) as process:
        wait_for(lambda: BESIDE in databases(live), "the first one works")
        assert restore(replace(job, access=access, database=other, source=str(dumps / "s.dump")))["changed"]
        assert process.wait(LIMIT) == 0, said(process)
    assert seen(live)["row"][5:] == seen(live, other)["row"][5:] == (4000, None)


def test_what_an_earlier_start_still_finishes_is_not_done_again(live, dumps, tmp_path, monkeypatch):
    slow = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(1);\nALTER TABLE ONLY")
    job = task(live, tmp_path, slow)
    monkeypatch.setattr(database_task, "_ENDING", 60)
    with started(job) as process:
        wait_for(lambda: BESIDE in databases(live), "the first one works")
        assert restore(job)["changed"] is False
        assert process.wait(LIMIT) == 0
    assert seen(live)["row"][5:] == (4000, None)


def test_the_backup_of_an_earlier_start_is_said_to_be_older(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    with pytest.raises(BalikError, match="found 4000"):
        restore(replace(job, checks=[{"query": "SELECT count(*) FROM documents", "expect": 1}]))
    live.psql("INSERT INTO written VALUES (777)", DATABASE)
    says = restore(job)["says"]
    assert re.search(rf"kept as .*__before_{RUN}, which alone has what was written after 20\S+Z, when an earlier", says)


def test_a_name_that_is_taken_is_told_before_anything_is_done(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql")
    live.psql(f"CREATE DATABASE {quoted(KEPT)}")
    for act in (check, restore):
        with untouched(live), pytest.raises(BalikError, match=rf"{RUN}: there already; .* DROP DATABASE \".*__before_"):
            act(job)
    live.psql(f"DROP DATABASE {quoted(KEPT)}")
    assert restore(job)["changed"]
    assert undo(job)["changed"]
    assert restore(job)["changed"]
    aside = f"{DATABASE}__restored_{RUN}"
    with untouched(live), pytest.raises(BalikError, match=rf"{RUN}: there already; .* DROP DATABASE \".*__restored_"):
        undo(job)
    live.psql(f"DROP DATABASE {quoted(aside)}")
    assert undo(job)["changed"]
    assert seen(live)["row"][5:] == (10, "bad_release")
