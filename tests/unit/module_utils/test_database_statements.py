"""Where the statements of a script end, and which of them no restore may run."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.statements import Statements, refused


def statements(*pieces: str) -> list[str]:
    read = Statements()
    return [statement for piece in pieces for _, statement in read.feed(piece.encode())]


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (["SELECT 1; SELECT\n\t2;\n"], ["SELECT 1", "SELECT 2"]),
        (["DROP\n", "-- a; comment\n", "/* one; /* more; */ */ DATABASE hub;\n"], ["DROP DATABASE hub"]),
        (["SELECT ';', \";\", E'\\';', $of$;$$;$of$, $$;$$;\n"], ["SELECT ', \", ', $, $"]),
        (
            ["CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; NOTIFY u;);\n"],
            ["CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; NOTIFY u;)"],
        ),
        (
            [
                "CREATE FUNCTION f() RETURNS int\nBEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 END;\n",
                " SELECT 2;\nEND;\nSELECT 3;\n",
            ],
            [
                "CREATE FUNCTION BEGIN ATOMIC; END",
                "SELECT 3",
            ],
        ),
        (
            ["COPY t FROM stdin CSV;\ndon't; DROP DATABASE x;\n", "\\.\nSELECT 1;\n"],
            ["COPY t FROM stdin CSV", "SELECT 1"],
        ),
        (["\\restrict don't\nSELECT 1;\n"], ["SELECT 1"]),
    ],
    ids=["two", "comments", "quotes", "parentheses", "body", "rows", "restrict"],
)
def test_each_statement_ends_where_psql_ends_it(pieces: list[str], found: list[str]) -> None:
    assert statements(*pieces) == found


def test_what_nobody_ended_is_known() -> None:
    read = Statements()
    assert not list(read.feed(b"SELECT 1\n"))
    assert (read.rest(), read.inside) == ("SELECT 1", False)
    assert not list(read.feed(b", 'one\n"))
    assert read.inside


@pytest.mark.parametrize(
    "sql",
    [
        "/* x */ DROP /**/ DATABASE victim;",
        "DROP\n  DATABASE victim;",
        "SELECT 1; DROP DATABASE victim;",
        "drop database hub with (force);",
        "alter\tsystem set fsync = off;",
        "CREATE ROLE ro;",
        "drop user ro;",
        "GRANT ro TO clerk;",
        "REVOKE CONNECT ON DATABASE hub FROM PUBLIC;",
        "DROP OWNED BY clerk;",
        "DO $$ BEGIN DROP DATABASE x; END $$;",
        "CALL tidy();",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity;",
        "SELECT pg_catalog.lo_import ('/etc/hostname');",
        "INSERT INTO t SELECT * FROM dblink('host=other', 'SELECT 1') AS t (n int);",
        "SELECT 1 \\! touch x\n;",
        "-- x\rDROP DATABASE victim;",
        "SELECT E'a''b\\' '; DROP DATABASE victim; --'\n;",
        "SET standard_conforming_strings TO off; SELECT 'a\\'' ; DROP DATABASE victim; --'\n;",
        "\n" * 70_000 + "DROP DATABASE victim;",
        "-- x\n" * 70_000 + "DROP DATABASE victim;",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC " + "SELECT 1;\n" * 10_000 + "END; DROP DATABASE victim;",
        "COPY public.t TO /* x */ '/file';",
        """SELECT public."dblink_exec"('host=other', 'DROP TABLE x');""",
        """SELECT public . "dblink_exec" ('host=other', 'x');""",
        "CREATE TABLE t AS SELECT pg_read_file('/etc/passwd') AS x;",
        "CREATE UNLOGGED TABLE t (x) AS (WITH a AS (SELECT dblink_exec('x', 'y')) SELECT * FROM a);",
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM public.dblink('x', 'SELECT 1') AS t (n int);",
        "SELECT * INTO t FROM dblink('x', 'SELECT 1') AS t (n int);",
        "COMMENT ON DATABASE hub IS 'x';",
        "COMMENT ON ROLE clerk IS 'x';",
        "SECURITY LABEL FOR 'selinux' ON DATABASE hub IS 'x';",
        "SECURITY LABEL ON ROLE clerk IS 'x';",
        "ROLLBACK PREPARED 'x';",
        "CREATE SUBSCRIPTION s CONNECTION 'host=other' PUBLICATION p;",
        'ALTER SUBSCRIPTION "s" ENABLE;',
        "COPY t FROM/**/PROGRAM 'id';",
        "COPY t FROM -- x\n '/etc/passwd';",
    ],
)
def test_what_reaches_outside_is_refused_however_it_is_written(sql: str) -> None:
    assert any(refused(statement) for statement in statements(sql + "\n"))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT pg_catalog.setval('public.s', 5, true);",
        "SELECT pg_catalog.lo_create('16401');",
        "CREATE USER MAPPING FOR clerk SERVER other;",
        "CREATE VIEW v AS SELECT pg_read_file('x') AS x;",
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM public.dblink('x', 'SELECT 1') AS t (n int) WITH NO DATA;",
        "CREATE MATERIALIZED VIEW v AS SELECT 1;",
        "CREATE TABLE t AS SELECT 1 AS x;",
        "CREATE TABLE t (n int GENERATED ALWAYS AS IDENTITY, x text DEFAULT pg_read_file('x'));",
        """CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p WITH (connect = false, slot_name = 's');""",
        "ALTER SUBSCRIPTION enable OWNER TO clerk;",
        "SECURITY LABEL ON TABLE t IS 'x';",
        """INSERT INTO public."dblink" ("from", "program") VALUES (1, 2);""",
        """COPY public."to" ("from", "program") FROM stdin;""",
        """GRANT ALL ON TABLE public."database" TO "parameter";""",
        """SELECT 1 AS "dblink", (2);""",
        "CREATE DOMAIN database AS text;",
        "CREATE EVENT TRIGGER t ON sql_drop EXECUTE FUNCTION f();",
        "ALTER TABLE public.system OWNER TO clerk;",
        "ALTER DEFAULT PRIVILEGES FOR ROLE clerk GRANT SELECT ON TABLES TO ro;",
        "GRANT ALL ON FUNCTION pg_catalog.pg_reload_conf() TO clerk;",
        "GRANT SELECT(a),INSERT(a) ON TABLE t TO clerk;",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
        "COMMENT ON TABLE t IS 'DROP DATABASE x;';",
        "INSERT INTO t VALUES (1, 'it''s; DROP DATABASE x; --');",
        "-- DROP DATABASE x;",
        "INSERT INTO public.dblink_log (a, b) VALUES (1, 2);",
        "INSERT INTO public.jpg_file_sizes (a) VALUES (1);",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$\nBEGIN\nCOPY t TO '/tmp/t.csv' CSV;\nEND$$;",
    ],
)
def test_what_pg_dump_writes_is_not(sql: str) -> None:
    assert not [statement for statement in statements(sql + "\n") if refused(statement)]
