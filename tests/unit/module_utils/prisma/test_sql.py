"""Scripts as the parser reads them."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.prisma.sql import additive, read

#: Of what the old code writes; "body" has no limit.
SIZES = {("u", one): 4 for one in "abcde"} | {("u", "id"): 8, ("u", "long"): 1300, ("u", "longer"): 1400}


def threats(text: str) -> list[tuple[str, str, str]]:
    found = read(text, ["public"])
    assert found.problems == []
    return [(one.kind, one.name, one.column) for statement in found.statements for one in statement.threats]


def test_statements_are_found_with_their_lines_whatever_stands_in_comments_and_texts() -> None:
    found = read(
        "-- DROP TABLE a;\n/* ; */ INSERT INTO ü VALUES ('; DROP TABLE b;');\n\nDROP TABLE \"Ç;\";", ["public"]
    )
    assert [(one.line, one.text) for one in found.statements] == [
        (2, "INSERT INTO ü VALUES ('; DROP TABLE b;')"),
        (4, 'DROP TABLE "Ç;"'),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('DROP TABLE a, public."B"', [("table", '"a"', ""), ("table", '"public"."B"', "")]),
        ("ALTER TABLE a DROP b, ALTER c TYPE int", [("column", '"a"', "b"), ("retype", '"a"', "c")]),
        ("CREATE TYPE k AS ENUM ('x'); ALTER TABLE a ALTER b TYPE k USING b::text::k", []),
        ("CREATE TYPE k AS ENUM ('x'); ALTER TABLE a ALTER b TYPE k[] USING b::pg_catalog.varchar[]::k[]", []),
        ("CREATE TYPE k AS ENUM ('x'); ALTER TABLE a ALTER b TYPE k USING b::varchar(1)::k", [("retype", '"a"', "b")]),
        ("CREATE TYPE k AS ENUM ('x'); ALTER TABLE a ALTER b TYPE k USING b::char::k", [("retype", '"a"', "b")]),
        ("CREATE TYPE k AS ENUM ('x'); ALTER TABLE a ALTER b TYPE k USING b::name::text::k", [("retype", '"a"', "b")]),
        ("DROP TYPE t", []),
        ("DROP TYPE t CASCADE", [("type", '"t"', "")]),
        ("DROP EXTENSION e", [("extension", '"e"', "")]),
        ("DROP INDEX i; DROP VIEW v; DROP FUNCTION f(); ALTER TABLE a DROP CONSTRAINT k", []),
        ("INSERT INTO a VALUES (1) ON CONFLICT (b) DO UPDATE SET c = 1", [("changed", '"a"', "")]),
        ("INSERT INTO a VALUES (1) ON CONFLICT DO NOTHING", [("inserted", '"a"', "")]),
        ("WITH x AS (DELETE FROM a RETURNING *) UPDATE b SET c = 1", [("changed", '"b"', ""), ("deleted", '"a"', "")]),
    ],
)
def test_what_a_statement_may_destroy(text: str, found: list[tuple[str, str, str]]) -> None:
    assert sorted(threats(text)) == sorted(found)


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON a(b)", True),
        ("VACUUM a", True),
        ("ANALYZE a", False),
        ("REINDEX TABLE a", False),
        ("REINDEX INDEX CONCURRENTLY i", True),
    ],
)
def test_what_no_transaction_can_hold(text: str, outside: bool) -> None:
    assert bool(read(text, ["public"]).outside) is outside


def test_an_enum_grows_within_a_transaction_since_version_12() -> None:
    text = "ALTER TYPE k ADD VALUE IF NOT EXISTS 'x'"
    assert not read(text, ["public"], 12).outside
    assert read(text, ["public"], 11).outside


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DROP INDEX i; VACUUM a", "must stand before all that can"),
        ("ALTER TABLE other.a ADD b int", "names the schema other"),
        ("ALTER TYPE other.k RENAME TO l", "names the schema other"),
        ("ALTER TABLE a SET SCHEMA other", "names the schema other"),
        ("DROP SCHEMA other CASCADE", "names the schema other"),
        ("DROP TABLE elsewhere.public.a", "names another database"),
        ("DROP FUNCTION f() CASCADE", "CASCADE takes what is not named"),
        ("SET ROLE x", "sets role"),
        ("RESET ALL", "takes back what prisma-down has set"),
        ("SET LOCAL track_counts = off", "sets track_counts"),
        ("SET LOCAL standard_conforming_strings = off", "sets standard_conforming_strings"),
        ("SET LOCAL DateStyle = 'SQL'", "sets datestyle"),
        ("SET NAMES 'LATIN1'", "sets client_encoding"),
        ("RESET row_security", "sets row_security"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "sets TRANSACTION"),
        ("SELECT setval('s', length(set_config('track_counts', 'off', true)))", "only setval() is taken"),
        ("INSERT INTO a SELECT set_config('track_counts', 'off', true)", "calls set_config()"),
        ("DELETE FROM a WHERE pg_catalog.set_config('role', b, true) = b", "calls set_config()"),
        ("SELECT setval('s', 1), f()", "only setval() is taken"),
        ("ALTER TYPE t DROP ATTRIBUTE a", "make a new type"),
        ("COPY a TO PROGRAM 'x'", "reads or writes a file"),
        ("CREATE ROLE x", "is a kind of statement that prisma-down does not run"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    assert any(words in problem for problem in read(text, ["public"]).problems)


@pytest.mark.parametrize(
    "text",
    [
        "SET LOCAL work_mem = '1GB'",
        "SET check_function_bodies = off",
        "SET LOCAL app.quiet = 'on'",
        "SET CONSTRAINTS ALL DEFERRED",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = public AS 'SELECT 1'",
    ],
)
def test_a_setting_that_takes_nothing_from_prisma_down_is_taken(text: str) -> None:
    assert read(text, ["public"]).problems == []


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE a (b int REFERENCES u ON DELETE CASCADE); CREATE UNIQUE INDEX i ON a(b); INSERT INTO a SELECT 1",
        "ALTER TABLE u ADD a int, ADD b int NOT NULL DEFAULT 1; CREATE INDEX i ON u(a); CREATE TYPE k AS ENUM ('x')",
        "CREATE TABLE a (b int); WITH x AS (INSERT INTO a VALUES (1) RETURNING b) INSERT INTO a SELECT b FROM x",
        "CREATE TABLE a (b int); CREATE TABLE c () INHERITS (a); INSERT INTO c SELECT n FROM generate_series(1, 3) n",
        "CREATE INDEX i ON u (lower(a), (coalesce(b, c))) WHERE d IS NULL AND e <> 'x'::k",
        "CREATE TABLE a (b int); CREATE UNIQUE INDEX i ON a ((1 / b))",
        "CREATE TABLE a (b text); CREATE INDEX i ON a (b); ALTER TABLE u ADD f text; CREATE INDEX j ON u (f, a)",
        "CREATE INDEX i ON u USING hash (body)",
        "CREATE INDEX i ON u (a) WHERE body IS NOT NULL",
    ],
)
def test_the_old_release_can_live_with_it(text: str) -> None:
    assert additive(text, SIZES) == []


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE a (b int REFERENCES u)",
        "ALTER TABLE u ADD a int NOT NULL",
        "ALTER TABLE u ADD a int UNIQUE",
        "CREATE UNIQUE INDEX i ON u(a)",
        "ALTER TYPE k ADD VALUE 'x'",
        "ALTER TABLE u DROP a",
        "UPDATE u SET a = 1",
        "CREATE TRIGGER t AFTER INSERT ON u EXECUTE FUNCTION f()",
        "CREATE TABLE a (b int); WITH x AS (DELETE FROM u RETURNING *) INSERT INTO a SELECT b FROM x",
        "CREATE TABLE a (b int); WITH x AS (UPDATE u SET c = 1 RETURNING *) INSERT INTO a SELECT b FROM x",
        "CREATE TABLE a (b int); WITH x AS (INSERT INTO u VALUES (1) RETURNING *) INSERT INTO a SELECT b FROM x",
        "CREATE TABLE a (b int); INSERT INTO a SELECT f()",
        "ALTER TABLE u ADD a int DEFAULT f()",
        "CREATE TABLE a () INHERITS (u); INSERT INTO a VALUES (1)",
        "CREATE TABLE a PARTITION OF u FOR VALUES IN (1)",
        "CREATE TABLE a (b int); ALTER TABLE a INHERIT u",
        "CREATE TABLE a (b int) PARTITION BY LIST (b); ALTER TABLE a ATTACH PARTITION u FOR VALUES IN (1)",
        "CREATE TABLE a (b int); ALTER TABLE a ADD c int REFERENCES u",
        "CREATE TABLE IF NOT EXISTS u (b int); INSERT INTO u VALUES (1)",
        "CREATE SCHEMA s CREATE TABLE a (b int REFERENCES u)",
        "CREATE INDEX i ON u ((1 / (id - 500)))",
        "CREATE INDEX i ON u ((a::int))",
        "CREATE INDEX i ON u (f(a))",
        "CREATE INDEX i ON u (a) WHERE 1 / b > 0",
        "CREATE INDEX i ON u (body)",
        "CREATE INDEX i ON u (lower(body))",
        "CREATE INDEX i ON u (a) INCLUDE (body)",
        "CREATE INDEX i ON u (long, longer)",
        "ALTER TABLE u ADD COLUMN IF NOT EXISTS body text; CREATE INDEX i ON u (body)",
        "no SQL",
    ],
)
def test_the_old_release_may_be_disturbed(text: str) -> None:
    assert additive(text, SIZES)
