"""What is written above the statements of a draft."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, sql
from ansible_collections.balik.rollback.plugins.module_utils.prisma.draft import LOOK, Project, _written, marked, write

BY_PRISMA = """
-- AlterEnum
BEGIN;
CREATE TYPE "public"."Kind_new" AS ENUM ('A');
ALTER TABLE "public"."Score" ALTER COLUMN "kind" TYPE "public"."Kind_new" USING ("kind"::text::"public"."Kind_new");
COMMIT;

-- AlterTable
ALTER TABLE "public"."User" DROP COLUMN "title",
ADD COLUMN     "name" TEXT NOT NULL;


"""
UP = """ALTER TYPE "Kind" ADD VALUE 'B';
ALTER TABLE "User" RENAME COLUMN "name" TO "title";
UPDATE "User" SET "title" = upper("title");
CREATE VIEW v AS TABLE "User";
"""


def test_a_draft_is_prismas_script_with_comments_where_they_belong() -> None:
    text = marked(BY_PRISMA, UP)
    lines = text.splitlines()
    assert lines[0].startswith(sql.DRAFT)
    assert [line.removeprefix(LOOK).partition(":")[0] for line in lines[1:4]] == [
        "migration.sql, line 2",
        "migration.sql, line 3",
        "migration.sql, line 4",
    ]
    assert [line for line in lines[4:] if not line.startswith(LOOK)] == [
        "",
        "-- AlterEnum",
        "CREATE TYPE \"Kind_new\" AS ENUM ('A');",
        'ALTER TABLE "Score" ALTER COLUMN "kind" TYPE "Kind_new" USING ("kind"::text::"Kind_new");',
        "",
        "-- AlterTable",
        'ALTER TABLE "User" DROP COLUMN "title",',
        'ADD COLUMN     "name" TEXT NOT NULL;',
    ]
    above = lines.index('ALTER TABLE "User" DROP COLUMN "title",')
    assert lines[above - 3 : above] == [
        LOOK + 'destroys the values of "User"."title"',
        LOOK + 'the column "name" comes back empty; what it held is only in a backup',
        LOOK + '"name" may not be empty and has no default: it fails as soon as there is a row',
    ]
    # Once its first line is deleted, what remains is a script that can be run.
    assert sql.read(text, ["public"]).problems == [
        f"its down.sql is a draft that nobody has read: the line {sql.DRAFT!r} still stands in it"
    ]
    assert sql.read("\n".join(lines[1:]), ["public"]).problems == []


def test_the_schema_stays_where_the_migration_names_it() -> None:
    assert 'DROP TABLE "public"."A";' in marked('DROP TABLE "public"."A";', 'CREATE TABLE "public"."A" (b int);')
    assert 'DROP TABLE "other"."public";' in marked('DROP TABLE "other"."public";', "CREATE TABLE a (b int);")


def test_what_prisma_does_not_see_is_no_draft_that_could_be_run() -> None:
    text = marked("-- This is an empty migration.\n\n", "UPDATE a SET b = 1;")
    assert "UPDATE a SET b = 1: changes rows; the draft does not put them back" in text
    assert any("has no statement" in problem for problem in sql.read(text, ["public"]).problems)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ('{"version": "next"}', "version next; expected 6 or 7"),
        ('{"version": "5.22.0"}', "version 5.22.0; expected 6 or 7"),
        ("[]", "Run `npm install` in the project"),
    ],
)
def test_a_prisma_that_was_never_tried_is_refused(tmp_path: Path, package: str, words: str) -> None:
    url = "postgresql://me@localhost/shadow"
    file = tmp_path / "node_modules" / "prisma" / "package.json"
    file.parent.mkdir(parents=True)
    file.write_text(package)
    with pytest.raises(BalikError, match=words):
        print(Project(tmp_path, tmp_path, address.read(url), url).major)


def test_a_link_that_leads_nowhere_is_no_missing_draft(tmp_path: Path) -> None:
    url = "postgresql://me@localhost/shadow"
    folder = tmp_path / "20260101000000_init"
    folder.mkdir()
    (folder / "migration.sql").write_text("SELECT 1;")
    (folder / "down.sql").symlink_to(tmp_path / "nowhere.sql")
    with pytest.raises(BalikError, match=r"_init/down\.sql: is a link that leads nowhere"):
        write(Project(tmp_path, tmp_path, address.read(url), url), check_mode=True)


def test_no_time_at_all_is_no_limit() -> None:
    url = "postgresql://me@localhost/shadow"
    with pytest.raises(BalikError, match="prisma_draft_limit: found 0s; expected more than that, such as 2m"):
        Project(Path(), Path(), address.read(url), url, limit=0)


def test_a_draft_for_which_there_is_no_room_is_no_draft(tmp_path: Path) -> None:
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, room[1]))
    try:
        with pytest.raises(BalikError, match="cannot be written: File too large"):
            _written(tmp_path / "down.sql", "SELECT 1;\n" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert not list(tmp_path.iterdir())
