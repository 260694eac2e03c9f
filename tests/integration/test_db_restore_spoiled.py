"""Backups that must not come back: each is refused with its reason, and the live database is as it was."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.catalog import names
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import check, restore
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration import database_restores
from tests.integration.database_restores import (
    cut,
    databases,
    dump,
    edited,
    quoted,
    seen,
    small_tablespace,
    spoiled_directory,
    task,
    untouched,
)
from tests.servers.postgresql import Server

server, dumps, live = database_restores.server, database_restores.dumps, database_restores.live

Make = Callable[[Path, Path, Server], Path]
LATER = "only the restore into the copy can know"
NOT_COMPARED = "NOT compared with the backup's rows: "
COPIES = "ALTER TABLE ONLY public.documents"


class Spoiled(NamedTuple):
    """How a backup is spoiled, and what `check` and `main` say to it."""

    make: Make
    check: str
    main: str = ""


def replaced(old: str, new: str) -> Make:
    return lambda dumps, folder, server: edited(dumps, folder / "x.sql", old, new)


def of_a_newer_server(dumps: Path, folder: Path, server: Server) -> Path:
    major = server.psql("SHOW server_version").partition(".")[0]
    return edited(dumps, folder / "x.sql", f"from database version {major}", "from database version 99")


def written(content: bytes) -> Make:
    def make(dumps: Path, folder: Path, server: Server) -> Path:
        (folder / "x.sql").write_bytes(content)
        return folder / "x.sql"

    return make


def flipped(source: str, place: int) -> Make:
    """One byte is another."""

    def make(dumps: Path, folder: Path, server: Server) -> Path:
        content = bytearray((dumps / source).read_bytes())
        content[place] ^= 0xFF
        (folder / source).write_bytes(content)
        return folder / source

    return make


def of_another_product(dumps: Path, folder: Path, server: Server) -> Path:
    server.psql("CREATE DATABASE payroll")
    try:
        server.psql(
            "CREATE TABLE salaries AS SELECT 1 AS id; CREATE TABLE cards (); CREATE TABLE written ()", "payroll"
        )
        return dump(server, folder / "x.dump", "-Fc", database="payroll")
    finally:
        server.psql("DROP DATABASE payroll")


def without_a_table_of_contents(dumps: Path, folder: Path, server: Server) -> Path:
    shutil.copytree(dumps / "s.dir", folder / "x.dir")
    (folder / "x.dir" / "toc.dat").unlink()
    return folder / "x.dir"


def without_a_file(dumps: Path, folder: Path, server: Server) -> Path:
    shutil.copytree(dumps / "s.dir", folder / "x.dir")
    next(file for file in sorted((folder / "x.dir").iterdir()) if file.name != "toc.dat").unlink()
    return folder / "x.dir"


def with_a_wrong_checksum(dumps: Path, folder: Path, server: Server) -> Path:
    shutil.copy(dumps / "s.sql", folder / "x.sql")
    (folder / "x.sql.sha256").write_text(f"{'0' * 64}  x.sql\n")
    return folder / "x.sql"


def ending(text: str) -> Make:
    """Behind all that is in it."""

    def make(dumps: Path, folder: Path, server: Server) -> Path:
        (folder / "x.sql").write_text((dumps / "s.sql").read_text() + text)
        return folder / "x.sql"

    return make


def a_line(line: str) -> Make:
    return replaced("\nSET client_encoding", f"\n{line}\nSET client_encoding")


def touching(command: str) -> Make:
    """``{}`` in the command is a file that must not come to be; so is its whole text in the middle of a line."""
    return lambda dumps, folder, server: a_line(command.format(folder / "touched"))(dumps, folder, server)


def orphaned(dumps: Path, folder: Path, server: Server) -> Path:
    constraint = "ADD CONSTRAINT documents_pkey PRIMARY KEY (id);"
    refers = "ALTER TABLE public.written ADD FOREIGN KEY (n) REFERENCES public.documents;"
    path = edited(dumps, folder / "x.sql", constraint, f"{constraint}\n{refers}")
    path.write_text(
        path.read_text().replace("public.written (n) FROM stdin;\n", "public.written (n) FROM stdin;\n7000\n")
    )
    return path


SPOILED: dict[str, Spoiled] = {
    "half a plain one": Spoiled(
        lambda d, t, s: cut(d / "s.sql", t / "x.sql"),
        "truncated: it ends at line .*, in the rows of public.documents",
        "truncated: somewhere before its end",
    ),
    "half a gz": Spoiled(
        lambda d, t, s: cut(d / "s.sql.gz", t / "x.gz"), "cannot be read to its end: .*unexpected end of file"
    ),
    "a gz with a wrong sum": Spoiled(flipped("s.sql.gz", -8), "cannot be read to its end: .*(crc|invalid)"),
    "half a zst": Spoiled(lambda d, t, s: cut(d / "s.sql.zst", t / "x.zst"), "cannot be read to its end"),
    "a zst with a wrong sum": Spoiled(flipped("s.sql.zst", -2), "cannot be read to its end: .*checksum"),
    "half a custom one": Spoiled(
        lambda d, t, s: cut(d / "s.dump", t / "x.dump"),
        "cannot be read to its end: .*end of file",
        "pg_restore ended with 1: .*end of file",
    ),
    "a custom one without its table of contents": Spoiled(
        lambda d, t, s: written((d / "s.dump").read_bytes()[:40])(d, t, s),
        "cannot be read to its end: .*end of file",
        "pg_restore ended with 1",
    ),
    "half a file of a directory": Spoiled(
        lambda d, t, s: spoiled_directory(d, t / "x.dir"), "cannot be read to its end", "pg_restore ended with 1: "
    ),
    "a directory without its table of contents": Spoiled(without_a_table_of_contents, r"a directory without toc\.dat"),
    "a directory without one file": Spoiled(
        without_a_file, "cannot be read to its end: .*No such file", "pg_restore ended with 1: .*No such file"
    ),
    "pg_dump's tar": Spoiled(lambda d, t, s: dump(s, t / "x.tar", "-Ft"), "tar format; expected plain"),
    "a wrong checksum": Spoiled(with_a_wrong_checksum, "its SHA-256 is .*expected 0000"),
    "UTF-16": Spoiled(
        lambda d, t, s: written((d / "s.sql").read_text().encode("utf-16"))(d, t, s), "text in UTF-16, .*iconv"
    ),
    "another encoding": Spoiled(
        replaced("client_encoding = 'UTF8'", "client_encoding = 'LATIN1'"), "written in LATIN1; expected UTF8"
    ),
    "bytes of no character": Spoiled(
        lambda d, t, s: written((d / "s.sql").read_bytes().replace("№".encode(), b"\xff", 1))(d, t, s),
        LATER,
        'psql ended with 3: .*invalid byte sequence for encoding "UTF8"',
    ),
    "a NUL byte": Spoiled(
        lambda d, t, s: written((d / "s.sql").read_bytes().replace(b"\n\\.\n", b"\0\n\\.\n", 1))(d, t, s),
        "line .* has a NUL byte",
    ),
    "a newer server's": Spoiled(
        of_a_newer_server,
        r"taken from PostgreSQL 99; expected \d+ or older",
    ),
    "another product's": Spoiled(
        of_another_product, r"2 of its 3 tables are not in the live database: public\.cards, public\.salaries"
    ),
    "MySQL's": Spoiled(written(b"-- MySQL dump 10.13\nCREATE TABLE `x` (id int);\n"), "but as a dump of MySQL"),
    "an error page": Spoiled(written(b"<!doctype html>\n<title>403 Forbidden</title>\n"), "but as a web page"),
    "empty": Spoiled(written(b""), "x.sql: empty"),
    "an error in the middle": Spoiled(
        replaced(COPIES, f"SELECT 1/0;\n{COPIES}"), LATER, r"psql ended with 3: line \d+: ERROR: division by zero"
    ),
    "a row that does not fit": Spoiled(
        replaced("\n17\t", "\nBudi Santoso\t"),
        LATER,
        r"in the rows of public.documents: ERROR: invalid input syntax for type integer: \(value left out\)",
    ),
    "a column that is not there": Spoiled(
        replaced("documents (id, title, body)", "documents (id, title, text)"), LATER, 'column "text" of relation'
    ),
    "too few columns": Spoiled(
        replaced("documents (id, title, body)", "documents (id, title)"), LATER, "extra data after last expected column"
    ),
    "a key twice": Spoiled(replaced("\n17\t", "\n18\t"), LATER, "could not create unique index"),
    "a reference to nothing": Spoiled(orphaned, LATER, "violates foreign key constraint"),
    "a role is missing": Spoiled(
        replaced("TO clerk", "TO nobody_here"), "lacks: nobody_here", 'role "nobody_here" does not exist'
    ),
    "an extension is missing": Spoiled(
        replaced("EXTENSION IF NOT EXISTS citext", 'EXTENSION IF NOT EXISTS "not-there"'),
        "extensions that the server lacks: not-there",
    ),
    "it connects elsewhere": Spoiled(a_line(r"\connect postgres"), r"line \d+ would leave .*\\connect"),
    "it drops a database": Spoiled(a_line("DROP DATABASE postgres;"), "would leave .*DROP DATABASE"),
    "it drops a database in other words": Spoiled(
        a_line("SELECT 1; drop /* it */\n  database if exists postgres with (force);"),
        r"line \d+ would leave .*: drop database if exists postgres with",
    ),
    "it drops a database at its very end": Spoiled(ending("drop database postgres\n"), "would leave .*drop database"),
    "it drops a role": Spoiled(a_line("Drop Role clerk;"), "would change the whole server: Drop Role clerk"),
    "it takes rights on a database": Spoiled(
        a_line("REVOKE CONNECT ON DATABASE live FROM PUBLIC;"), "would change the whole server"
    ),
    "it ends sessions": Spoiled(
        a_line("SELECT pg_terminate_backend(pid) FROM pg_stat_activity;"), "would reach outside the database"
    ),
    "it has a block of its own": Spoiled(a_line("DO $$ BEGIN NULL; END $$;"), "would run what nobody can judge"),
    "made with --create": Spoiled(
        lambda d, t, s: dump(s, t / "x", "--create"), r"leave .*: CREATE DATABASE known_good .*without --create"
    ),
    "it runs a command": Spoiled(touching(r"\! touch {}"), r"would leave .*: \\! touch"),
    "it runs a command in the middle of a line": Spoiled(
        touching(r"SELECT 1; \! touch {}"), r"would give psql a command: \\! touch"
    ),
    "it runs a command by copying": Spoiled(
        touching(r"SELECT 1; \copy (select 1) TO PROGRAM 'touch {}'"), "would give psql a command"
    ),
    "it runs a command on the server": Spoiled(
        touching("COPY documents FROM\nPROGRAM 'touch {}';"), "line 1[0-9] would run a program on the server"
    ),
    "it writes a file on the server": Spoiled(
        touching("COPY (SELECT 1) TO '{}';"), "would run a program on the server, or use one of its files"
    ),
    "it ends the restriction by itself": Spoiled(
        touching("\\restrict abc\n\\unrestrict abc\nSELECT 1; \\! touch {}"), "would give psql a command"
    ),
    "made with --schema-only": Spoiled(lambda d, t, s: dump(s, t / "x", "-s"), "holds no rows"),
    "made with --data-only": Spoiled(lambda d, t, s: dump(s, t / "x", "-a"), "creates no table .*without -a"),
    "an archive made with --data-only": Spoiled(
        lambda d, t, s: dump(s, t / "x", "-a", "-Fc"), "creates no table .*without -a"
    ),
    "made with --clean": Spoiled(
        lambda d, t, s: dump(s, t / "x", "--clean"), LATER, "does not exist.*--clean without --if-exists"
    ),
    "made of one table, without the type that it needs": Spoiled(
        lambda d, t, s: dump(s, t / "x", "-Fc", "-t", "documents"),
        "schemas are not in it: law firm",
        "does not exist.*a backup of the whole database",
    ),
    "line ends of Windows": Spoiled(
        lambda d, t, s: written((d / "s.sql").read_bytes().replace(b"\n", b"\r\n"))(d, t, s),
        r"line ends of Windows \(CRLF\)",
    ),
    "not there": Spoiled(lambda d, t, s: t / "x.sql", "no such file"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_backup_is_refused(live, dumps, tmp_path, what):
    spoiled = SPOILED[what]
    job = task(live, tmp_path, spoiled.make(dumps, tmp_path, live), checks=[])
    with untouched(live):
        if spoiled.check == LATER:
            check(job)
        else:
            with pytest.raises(BalikError, match=spoiled.check):
                check(job)
            assert not (tmp_path / "now").exists(), "check only reads"
        # Whoever does not look first is refused all the same.
        with pytest.raises(BalikError, match=spoiled.main or spoiled.check) as refused:
            restore(job)
    assert "Budi" not in str(refused.value)
    assert not (tmp_path / "touched").exists()


def test_the_line_that_an_error_names_is_the_dumps(live, dumps, tmp_path):
    """Its rows, and what psql gets before the script, are not what the session with the error was given."""
    path = edited(dumps, tmp_path / "x.sql", COPIES, f"SELECT 1/0;\n{COPIES}")
    line = path.read_text().split("\n").index("SELECT 1/0;") + 1
    with untouched(live), pytest.raises(BalikError, match=f"line {line}: ERROR: division by zero"):
        restore(task(live, tmp_path, path, checks=[], jobs=3))


def test_a_copy_that_has_no_room_half_way_is_dropped(live, dumps, tmp_path):
    rows = "\n".join(f"{n}\t{'x' * 1000}\t" for n in range(5000, 20000))
    big = edited(dumps, tmp_path / "x.sql", "\n4000\t", f"\n{rows}\n4000\t")
    with small_tablespace(live, "21m"), untouched(live), pytest.raises(BalikError, match=r"could not extend file"):
        restore(task(live, tmp_path, big, ignore_space=True, checks=[]))


def test_a_copy_that_cannot_be_dropped_is_named(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql", keep_failed=True, checks=[{"query": "SELECT 1", "expect": 2}])
    with pytest.raises(
        BalikError, match=r"The copy .*__restore_.* is still there; the next start of this run drops it"
    ):
        restore(job)
    assert restore(replace(job, checks=()))["evidence"]["leftover_dropped"] is True


def test_a_database_of_the_copys_name_is_dropped_only_where_nothing_was_made_in_it(live, dumps, tmp_path):
    job = task(live, tmp_path, dumps / "s.sql", checks=[])
    name = names(job.database, job.run).beside
    live.psql(f"CREATE DATABASE {quoted(name)}")
    for theirs, gone in (
        ("CREATE TABLE theirs (n int)", "DROP TABLE theirs"),
        ("SELECT lo_from_bytea(7, 'precious')", "SELECT lo_unlink(7)"),
        ("CREATE SCHEMA theirs", "DROP SCHEMA theirs"),
        ("CREATE PUBLICATION theirs FOR ALL TABLES", "DROP PUBLICATION theirs"),
    ):
        live.psql(theirs, name)
        with untouched(live), pytest.raises(BalikError, match=f"{re.escape(name)}: exists, and is not this run's"):
            restore(job)
        live.psql(gone, name)
    assert restore(job)["evidence"]["leftover_dropped"] is True


def test_what_is_wanted_all_the_same_is_accepted(live, dumps, tmp_path):
    path = of_another_product(dumps, tmp_path, live)
    done = restore(task(live, tmp_path, path, checks=[], accept=["another product"]))
    assert done["evidence"]["tables"] == 3


def test_an_old_gz_that_was_appended_to_is_read_whole(live, dumps, tmp_path):
    """Two members one after the other are one text: what comes after the dump's end is read, and refused."""
    with gzip.open(tmp_path / "x.sql.gz", "wb") as file:
        file.write((dumps / "s.sql").read_bytes())
    with gzip.open(tmp_path / "x.sql.gz", "ab") as file:
        file.write(b"\\connect postgres\n")
    with untouched(live), pytest.raises(BalikError, match="would leave"):
        restore(task(live, tmp_path, tmp_path / "x.sql.gz"))


def test_rows_that_the_copy_has_not_are_a_failure(live, dumps, tmp_path):
    """A rule of the restored database throws a row away; psql and the server count as if it were there."""
    trigger = (
        "CREATE FUNCTION public.lose() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.title := 'x'; RETURN NEW; END$$;\n"
        "CREATE TRIGGER lose BEFORE INSERT ON public.documents FOR EACH ROW WHEN (NEW.id = 17)"
        " EXECUTE FUNCTION public.lose();\n"
    )
    spoiled = edited(dumps, tmp_path / "x.sql", "COPY public.documents", f"{trigger}COPY public.documents")
    with (
        untouched(live),
        pytest.raises(BalikError, match=r"not the backup's rows in public\.documents \(4,000 rows; 4,000"),
    ):
        restore(task(live, tmp_path, spoiled))
    unproved = restore(task(live, tmp_path, spoiled, compare=False))
    assert (
        "NOT compared with the backup's rows: public.documents, public.written, since db_restore_compare is false"
        in (unproved["says"])
    )


def test_tables_that_cannot_be_compared_are_named(live, dumps, tmp_path):
    path = dump(live, tmp_path / "x.sql", "--inserts", "--rows-per-insert=100")
    named = f"{NOT_COMPARED}public.documents, public.written, since the backup has them otherwise than by COPY"
    assert named in check(task(live, tmp_path, path))["says"]
    done = restore(task(live, tmp_path, path))
    assert named in done["says"]
    assert done["evidence"]["tables_compared"] == 0
    assert done["evidence"]["tables_not_compared"] == ["public.documents", "public.written"]


def test_only_the_table_that_is_written_otherwise_is_not_compared(live, dumps, tmp_path):
    path = edited(
        dumps, tmp_path / "x.sql", "public.written (n) FROM stdin;\n", "public.written (n) FROM stdin CSV;\n5\n"
    )
    named = f"{NOT_COMPARED}public.written, since"
    assert named in check(task(live, tmp_path, path))["says"]
    done = restore(task(live, tmp_path, path))
    assert named in done["says"]
    assert (done["evidence"]["tables_compared"], done["evidence"]["tables_not_compared"]) == (1, ["public.written"])


@pytest.mark.parametrize("end", [" from stdin;", " FROM STDIN WITH (FORMAT text);", "FROM stdin (format 'text') ;"])
def test_a_copy_that_means_the_same_is_compared(live, dumps, tmp_path, end):
    """Columns without a space before them, too."""
    copy = "COPY public.documents (id, title, body) FROM stdin;"
    path = edited(dumps, tmp_path / "x.sql", copy, f"copy public.documents(id, title, body) {end}")
    said = check(task(live, tmp_path, path))["says"]
    assert "4,000 rows in 2 tables" in said and NOT_COMPARED not in said
    done = restore(task(live, tmp_path, path))
    assert (done["evidence"]["tables_compared"], NOT_COMPARED in done["says"]) == (2, False)


@pytest.mark.parametrize("partitions", [2, 1])
def test_partitions_whose_rows_go_through_the_whole_are_compared(live, dumps, tmp_path, partitions):
    live.psql("CREATE DATABASE parted TEMPLATE known_good")
    try:
        live.psql(
            "CREATE TABLE days (n int) PARTITION BY RANGE (n);"
            "CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (50);"
            "INSERT INTO days SELECT generate_series(1, 9)",
            "parted",
        )
        if partitions > 1:
            live.psql("CREATE TABLE days_2 PARTITION OF days DEFAULT; INSERT INTO days VALUES (99)", "parted")
        path = dump(live, tmp_path / "x.dump", "-Fc", "--load-via-partition-root", database="parted")
    finally:
        live.psql("DROP DATABASE parted")
    job = task(live, tmp_path, path, accept=["another product"])
    assert NOT_COMPARED not in check(job)["says"]
    assert restore(job)["evidence"]["tables_not_compared"] == []


@pytest.mark.parametrize("kind", ["s.sql", "s.dump", "s.dir"])
def test_rows_that_are_only_written_another_way_are_the_same(live, dumps, tmp_path, kind):
    live.psql("CREATE DATABASE zoned TEMPLATE known_good")
    try:
        live.psql("CREATE TABLE seen AS SELECT n, now() AS at FROM generate_series(1, 9) n", "zoned")
        environment = {"PGTZ": "Asia/Jakarta", "PATH": "/usr/bin"}
        form, path = {"s.sql": "-Fp", "s.dump": "-Fc", "s.dir": "-Fd"}[kind], tmp_path / kind
        command = [live.bin / "pg_dump", "-d", live.dsn("zoned"), form, "-f", path]
        subprocess.run(command, check=True, timeout=60, env=environment)
    finally:
        live.psql("DROP DATABASE zoned")
    assert restore(task(live, tmp_path, path))["evidence"]["tables_compared"] == 3


def test_an_index_that_is_invalid_or_lacks_a_row_is_found(live, dumps, tmp_path):
    statement = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.documents_title_idx'::regclass;"
    end = "\n--\n-- PostgreSQL database dump complete"
    with untouched(live), pytest.raises(BalikError, match=r"invalid indexes: documents_title_idx"):
        restore(task(live, tmp_path, edited(dumps, tmp_path / "x.sql", end, f"\n{statement}{end}")))
    # A function that lies about being immutable: the index holds another value than the row gives later.
    lie = (
        "CREATE FUNCTION public.sign(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$SELECT $1 * {}$$;\n"
        "CREATE INDEX signed ON public.documents (public.sign(id));\n"
        "CREATE OR REPLACE FUNCTION public.sign(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$SELECT $1 * {}$$;\n"
    )
    spoiled = edited(dumps, tmp_path / "y.sql", end, f"\n{lie.format(1, -1)}{end}")
    with (
        untouched(live),
        pytest.raises(BalikError, match=r"pg_amcheck ended with 2: .*heap tuple .* lacks matching index"),
    ):
        restore(task(live, tmp_path, spoiled, amcheck="heapallindexed"))


def test_the_spoiled_ones_leave_nothing_behind(live):
    assert len(databases(live)) == 1
    assert seen(live)["row"][5] == 10
