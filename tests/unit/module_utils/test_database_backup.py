"""Which backup is meant, of what kind it is, and what it says that it holds."""

from __future__ import annotations

import gzip
import hashlib
import re

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import backup, space
from ansible_collections.balik.rollback.plugins.module_utils.database.access import first_line, without_values
from ansible_collections.balik.rollback.plugins.module_utils.database.catalog import names
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from hypothesis import given
from hypothesis import strategies as st

DUMP = rb'''--
-- PostgreSQL database dump
--

\restrict 4hQkxPvuH2

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;

CREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA public;

--
-- Name: documents; Type: TABLE; Schema: public; Owner: lawyers hub
--

CREATE TABLE public.documents (
    id integer
);


ALTER TABLE public.documents OWNER TO "lawyers hub";

--
-- Data for Name: documents; Type: TABLE DATA; Schema: public; Owner: lawyers hub
--

COPY public.documents (id, title) FROM stdin;
1	DROP DATABASE lawyers_hub;
2	\\connect other
CREATE DATABASE x
-- PostgreSQL database dump complete
\.


--
-- Name: empty; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.empty (id) FROM stdin;
\.


GRANT SELECT ON TABLE public.documents TO "read ""only""";
GRANT SELECT ON TABLE public.documents TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE migrator IN SCHEMA public GRANT SELECT ON TABLES TO reader;

--
-- PostgreSQL database dump complete
--

\unrestrict 4hQkxPvuH2

'''


def read(text: bytes, size: int = backup.CHUNK, sink: backup.Sink | None = None) -> backup.Contents:
    reader = backup.Reader("backup", sink=sink)
    for at in range(0, len(text), size):
        reader.feed(text[at : at + size])
    return reader.finish()


def test_a_dump_says_what_it_needs_and_holds():
    contents = read(DUMP)
    assert contents.dumped_from == 15
    assert contents.roles == {"lawyers hub", 'read "only"', "migrator"}
    assert contents.extensions == {"uuid-ossp"}
    assert contents.tables == 1
    assert contents.copies == [("public.documents", 4), ("public.empty", 0)]
    assert contents.size == len(DUMP)


@given(st.integers(1, 200))
def test_it_does_not_matter_where_the_pieces_are_cut(size):
    assert read(DUMP, size) == read(DUMP)


@given(st.integers(0, len(DUMP) - len(b"-- PostgreSQL database dump complete\n--\n\n\\unrestrict 4hQkxPvuH2\n\n")))
def test_a_dump_cut_anywhere_is_refused(length):
    with pytest.raises(BalikError, match=r"truncated|does not begin"):
        read(DUMP[:length])


def test_the_rows_where_it_was_cut_are_named():
    with pytest.raises(BalikError, match=r"ends at line 30, in the rows of public\.documents"):
        read(DUMP[: DUMP.index(b"2\t")])


@pytest.mark.parametrize("line", [b"\\connect other", b"\\! rm x", b"DROP DATABASE x;", b"CREATE DATABASE x;"])
def test_what_would_leave_the_database_is_refused(line):
    with pytest.raises(BalikError, match="line 12 would leave the database"):
        read(DUMP.replace(b"\nCREATE EXTENSION", b"\n" + line + b"\nCREATE EXTENSION"))


@pytest.mark.parametrize(
    "statement",
    [
        b"COPY t FROM PROGRAM 'x';",
        b"copy public.t (a, b)\n  from\n  program 'x';",
        b"COPY (SELECT 1) TO '/etc/x';",
        b"""COPY "a b".t FROM E'/etc/passwd';""",
    ],
)
def test_what_would_use_the_servers_programs_or_files_is_refused(statement):
    with pytest.raises(BalikError, match=r"line 1[1-5] would run a program on the server, or use one of its files"):
        read(DUMP.replace(b"\nCREATE EXTENSION", b"\n" + statement + b"\nCREATE EXTENSION"))


def test_a_program_of_the_dumps_own_is_refused_whatever_it_holds():
    statement = b"DO $$BEGIN COPY t FROM PROGRAM $x$y$x$; END$$;"
    with pytest.raises(BalikError, match=r"line 12 would run what nobody can judge beforehand: DO \$"):
        read(DUMP.replace(b"\nCREATE EXTENSION", b"\n" + statement + b"\nCREATE EXTENSION"))


@pytest.mark.parametrize(
    "statement", [b"-- a copy from 'x'", b"COMMENT ON TABLE t IS 'copy from ''a''';", b"SELECT 'x';"]
)
def test_words_that_only_look_like_it_are_not(statement):
    read(DUMP.replace(b"\nCREATE EXTENSION", b"\n" + statement + b"\nCREATE EXTENSION"))


def inserted(statement: bytes) -> bytes:
    return DUMP.replace(b"\nCREATE EXTENSION", b"\n" + statement + b"\nCREATE EXTENSION")


class Taken:
    """What psql would get of a dump between its rows."""

    def __init__(self) -> None:
        self.text = b""

    def sql(self, text: bytes) -> None:
        self.text += text

    def rows(self, block: object, text: bytes) -> None:
        pass

    def end(self, block: object) -> None:
        pass


@given(st.integers(1, 200))
def test_the_dumps_own_restriction_is_handed_on_as_a_comment(size):
    """What only looks like it, within a string, is handed on as it is."""
    kept = b"SELECT 'x\n\\restrict abc\n\\unrestrict abc\n', $$\n\\restrict abc\n$$;\n"
    taken = Taken()
    read(inserted(kept), size, taken)
    assert kept in taken.text
    assert b"\n--estrict 4hQkxPvuH2\n" in taken.text
    assert b"\n--nrestrict 4hQkxPvuH2\n" in taken.text


LOOKS_LIKE_IT = rb"""
\connect elsewhere
\! touch x
GRANT nobody TO nobody_either;
REVOKE ALL ON TABLE x FROM nobody;
ALTER DEFAULT PRIVILEGES FOR ROLE nobody GRANT SELECT ON TABLES TO nobody;
CREATE EXTENSION nowhere;
ALTER TABLE ONLY a.b ATTACH PARTITION a.c FOR VALUES IN (1);
ALTER TABLE ONLY a.b FORCE ROW LEVEL SECURITY;
SET search_path = elsewhere, pg_catalog;
-- Name: x; Type: TABLE; Schema: a; Owner: nobody
-- Dumped from database version 99
-- PostgreSQL database cluster dump
"""


@pytest.mark.parametrize("around", ["COMMENT ON TABLE t IS '{}';", 'SELECT 1 AS "{}";', "/*{}*/", "SELECT $x${}$x$;"])
@pytest.mark.parametrize("size", [7, backup.CHUNK])
def test_what_strings_names_and_comments_hold_says_nothing_of_the_dump(around, size):
    found = read(inserted(around.format(LOOKS_LIKE_IT.decode()).encode()), size)
    found.size = len(DUMP)
    assert found == read(DUMP)


def test_an_insert_within_a_function_is_no_data():
    function = b"CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$\nINSERT INTO t VALUES (1);\n$$;"
    with pytest.raises(BalikError, match="no rows for any"):
        read(re.sub(rb"COPY .*?\n\\\.\n", b"", inserted(function), flags=re.S))


def test_a_line_that_is_refused_has_its_number():
    text = inserted(b"SELECT 'a\n\nb';\n\n-- c\nSELECT $$\n\\x\n$$,\n  1; DROP DATABASE x;")
    line = text.decode().split("\n").index("  1; DROP DATABASE x;") + 1
    for size in (5, 60, backup.CHUNK):
        with pytest.raises(BalikError, match=f"line {line} would leave"):
            read(text, size)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (re.sub(rb"COPY .*?\n\\\.\n", b"", DUMP, flags=re.S), "no rows for any"),
        (DUMP.replace(b"PostgreSQL database dump", b"PostgreSQL database cluster dump"), "pg_dumpall"),
        (b"CREATE TABLE x();\n", "does not begin as pg_dump writes"),
    ],
)
def test_what_is_no_dump_of_one_database_is_refused(text, reason):
    with pytest.raises(BalikError, match=reason):
        read(text)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(DUMP, "plain"), (gzip.compress(DUMP), "gz"), (b"\x28\xb5\x2f\xfd...", "zst"), (b"PGDMP\1", "custom")],
)
def test_the_kind_is_judged_by_content(tmp_path, content, kind):
    (tmp_path / "misnamed.sql").write_bytes(content)
    assert backup.kind_of(tmp_path / "misnamed.sql") == kind


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"\0\1\2", "of no known kind")])
def test_what_is_no_backup_is_refused(tmp_path, content, reason):
    (tmp_path / "x.sql").write_bytes(content)
    with pytest.raises(BalikError, match=reason):
        backup.kind_of(tmp_path / "x.sql")


def test_checksums_given_beside_and_of_a_directory(tmp_path):
    file, digest = tmp_path / "x.sql", hashlib.sha256(DUMP).hexdigest()
    file.write_bytes(DUMP)
    assert backup.verify_checksum(file) == "no checksum beside it"
    assert backup.verify_checksum(file, f"sha256:{digest.upper()}") == "its checksum holds"
    with pytest.raises(BalikError, match=f"its SHA-256 is {digest}"):
        backup.verify_checksum(file, "0" * 64)
    (tmp_path / "x.sql.sha256").write_text(f"{'1' * 64}  x.sql\n")
    with pytest.raises(BalikError, match="expected 1111"):
        backup.verify_checksum(file)
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "toc.dat").write_bytes(DUMP)
    (tmp_path / "d.sha256").write_text(f"{digest}  d/toc.dat\n")
    assert backup.verify_checksum(folder) == "its checksum holds"
    (folder / "1.dat").write_bytes(b"")
    with pytest.raises(BalikError, match=r"without a checksum: 1\.dat"):
        backup.verify_checksum(folder)


def test_no_value_of_a_row_is_told():
    error = 'COPY failed for table "t": ERROR:  invalid input syntax for type integer: "Budi"'
    assert without_values(error).endswith('"t": ERROR: invalid input syntax for type integer: (value left out)')
    assert first_line("duplicate key\nDETAIL:  Key (name)=(Budi) already exists.") == "duplicate key"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63))
def test_names_fit_and_differ(database):
    made = names(database, "20260110T130000Z-3f9a")
    parts = [made.beside, made.kept, made.aside]
    assert all(len(part.encode()) <= 63 for part in parts)
    assert len({database, *parts}) == 4


def test_a_run_that_cannot_stand_in_a_name_is_refused():
    with pytest.raises(BalikError, match="the run's name"):
        names("x", "a b")


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_the_estimate_stays_near_the_dump(live, script):
    assert 0.8 * script - 1 <= space.estimate(live, script) - space.estimate(0, 1) <= 2 * script


def test_sizes_for_people():
    sizes = [17, 2048, 44 * 1024**2, 1181116006]
    assert [space.human(size) for size in sizes] == ["17 bytes", "2 kB", "44 MB", "1.1 GB"]
