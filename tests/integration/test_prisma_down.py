"""prisma-down against a real server, and what the real Prisma says before and after."""

from __future__ import annotations

import hashlib
import itertools
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, database, down
from ansible_collections.balik.rollback.plugins.module_utils.record import Entry
from ansible_collections.balik.rollback.plugins.module_utils.run import read_runs
from ansible_collections.balik.rollback.plugins.module_utils.units import iso, utc_now

from tests.integration.roles_in_a_play import play
from tests.servers.postgresql import Server, postgresql
from tests.servers.prisma import PACKAGES, Prisma

ROOT = Path(__file__).parents[2]
RUN = "20260110T130000Z-3f9a"
INIT, BOARD, INDEX = "20260101000000_init", "20260102000000_leaderboard", "20260103000000_index"
UP = {
    INIT: """
        -- CreateTable
        CREATE TABLE "User" ("id" SERIAL NOT NULL, "name" TEXT NOT NULL, CONSTRAINT "User_pkey" PRIMARY KEY ("id"));
        INSERT INTO "User" ("name") SELECT 'user ' || n FROM generate_series(1, 10) n;
    """,
    BOARD: """
        CREATE TYPE "Kind" AS ENUM ('DAY', 'WEEK');
        ALTER TABLE "User" ADD COLUMN "score" INTEGER;
        CREATE TABLE "Score" ("id" SERIAL NOT NULL, "userId" INTEGER NOT NULL, "kind" "Kind" NOT NULL, "note" TEXT,
            CONSTRAINT "Score_pkey" PRIMARY KEY ("id"));
        ALTER TABLE "Score" ADD CONSTRAINT "Score_userId_fkey" FOREIGN KEY ("userId") REFERENCES "User"("id")
            ON DELETE CASCADE ON UPDATE CASCADE;
    """,
    INDEX: 'CREATE INDEX "Score_userId_idx" ON "Score"("userId");\n',
}
DOWN = {
    INIT: 'DROP TABLE "User";\n',
    BOARD: """-- Schema-qualified, as Prisma's own migrate diff writes it.
ALTER TABLE "public"."Score" DROP CONSTRAINT "Score_userId_fkey";
ALTER TABLE "public"."User" DROP COLUMN "score";
DROP TABLE "public"."Score";
DROP TYPE "public"."Kind";
""",
    INDEX: 'DROP INDEX "Score_userId_idx";\n',
}
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql(max_prepared_transactions=2) as running:
        yield running


class Product:
    """A database with a folder of migrations."""

    def __init__(self, server: Server, folder: Path, name: str, schema: str = "") -> None:
        self.server, self.name, self.folder = server, name, folder
        self.migrations = folder / "migrations"
        self.url = f"postgresql://postgres@{server.host}:{server.port}/{name}" + (f"?schema={schema}" if schema else "")

    def write(self, name: str, up: str, down_sql: str | None = None) -> None:
        folder = self.migrations / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "migration.sql").write_text(up)
        if down_sql is not None:
            (folder / "down.sql").write_text(down_sql)

    def apply(self, name: str, row: bool = True) -> None:
        """As `migrate deploy` does, in a hundredth of its time."""
        up = (self.migrations / name / "migration.sql").read_text()
        self.sql(up)
        if row:
            self.record(name, hashlib.sha256(up.encode()).hexdigest())

    def record(self, name: str, checksum: str, finished: str = "now()", rolled_back: str = "NULL") -> None:
        self.sql(
            "INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, rolled_back_at, started_at,"
            f" applied_steps_count) VALUES ('{uuid.uuid4()}', '{checksum}', {finished}, '{name}', {rolled_back},"
            " clock_timestamp(), 1)"
        )

    def sql(self, text: str, user: str = "postgres") -> str:
        return self.server.psql(text, self.name, user)

    def applied(self) -> list[str]:
        return self.sql("SELECT migration_name FROM _prisma_migrations ORDER BY 1").split()

    def tables(self) -> list[str]:
        return self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").split()

    def state(self) -> str:
        """What must not change when something is refused."""
        dump = [str(self.server.bin / "pg_dump"), "-d", self.server.dsn(self.name)]
        told = subprocess.run(dump, capture_output=True, text=True, check=True, timeout=60).stdout
        # Each dump has a word of its own against foreign input.
        return "\n".join(line for line in told.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))

    def task(self, to: str = INIT, **more: Any) -> down.Task:
        given: dict[str, Any] = {"keep_dir": str(self.folder / "kept"), "lock_timeout": 0.5, "limit": 30, **more}
        return down.Task(address.read(self.url), str(self.migrations), to, RUN, **given)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        before = self.state()
        yield
        assert self.state() == before
        assert not (self.folder / "kept").exists() or not list((self.folder / "kept" / RUN).iterdir())


@pytest.fixture(scope="module")
def deployed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Product:
    """All three migrations, applied by the real Prisma 7 once; each test gets a copy."""
    folder = tmp_path_factory.mktemp("deployed")
    server.psql("CREATE DATABASE deployed")
    product = Product(server, folder, "deployed")
    prisma = Prisma("7.10.0", folder, product.url)
    for name, up in UP.items():
        product.write(name, up, DOWN[name])
    done = prisma.run("migrate", "deploy")
    assert done.code == 0, done.output
    return product


@pytest.fixture
def product(deployed: Product, tmp_path: Path) -> Iterator[Product]:
    name = f"product_{next(numbers)}"
    deployed.server.psql(f"CREATE DATABASE {name} TEMPLATE deployed")
    shutil.copytree(deployed.migrations, tmp_path / "migrations")
    made = Product(deployed.server, tmp_path, name)
    yield made
    deployed.server.psql(f"DROP DATABASE {name} WITH (FORCE)")


def fill(product: Product, rows: int = 5) -> None:
    product.sql(
        f"""INSERT INTO "Score" ("userId", "kind", "note")
        SELECT n, 'DAY', E'tab\\there\\nline ' || n FROM generate_series(1, {rows}) n;
        UPDATE "User" SET "score" = "id" * 10 WHERE "id" <= 3"""
    )


def why(task: down.Task, entry: Any = down.check) -> str:
    with pytest.raises(BalikError) as caught:
        entry(task)
    return str(caught.value)


def restored(product: Product, kept: str | Path) -> None:
    """Runs the restore.sql of a folder as a person does."""
    command = [str(product.server.bin / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "--single-transaction"]
    dsn = product.server.dsn(product.name)
    ran = subprocess.run(
        [*command, "-f", "restore.sql", "-d", dsn], cwd=kept, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


# With the real Prisma


@pytest.mark.parametrize("version", PACKAGES)
def test_prisma_itself_agrees_before_and_after(server: Server, tmp_path: Path, version: str) -> None:
    name = f"product_{next(numbers)}"
    server.psql(f"CREATE DATABASE {name}")
    new = Product(server, tmp_path / "new", name)
    both = {tree: Prisma(version, tmp_path / tree, new.url) for tree in ("new", "old")}
    for each in (INIT, BOARD):
        new.write(each, UP[each], DOWN[each])
    shutil.copytree(new.migrations / INIT, both["old"].migrations / INIT)
    assert both["new"].run("migrate", "deploy").code == 0
    # What only adds may be left: the old tree's Prisma does not mind.
    assert "Database schema is up to date!" in both["old"].run("migrate", "status").output

    found = down.check(new.task())
    assert found["says"].startswith(f"down: {BOARD} (destroys nothing); then {INIT} is the newest")
    task = replace(new.task(), saved=found["before"])
    assert down.main(task, check_mode=False)["changed"]

    with ThreadPoolExecutor() as pool:
        asked = [("old", "status"), ("old", "deploy"), ("new", "status")]
        said = list(pool.map(lambda one: both[one[0]].run("migrate", one[1]), asked))
    assert (said[0].code, "Database schema is up to date!" in said[0].output) == (0, True), said[0].output
    assert (said[1].code, "No pending migrations to apply." in said[1].output) == (0, True), said[1].output
    assert said[2].code == 1
    assert f"Following migration have not yet been applied:\n{BOARD}\n" in said[2].output

    # Forward again, by `undo` or by Prisma's own hand: nothing was left behind, and nothing is missing.
    if version < "7":
        deploy = both["new"].run("migrate", "deploy")
        assert (deploy.code, "All migrations have been successfully applied." in deploy.output) == (0, True), (
            deploy.output
        )
    else:
        assert down.undo(task, check_mode=False)["changed"]
        status = both["new"].run("migrate", "status")
        assert (status.code, "Database schema is up to date!" in status.output) == (0, True), status.output


def test_undo_puts_everything_back_as_it_was(product: Product) -> None:
    fill(product)
    before = product.state()
    task = product.task(INIT, destroys=[BOARD])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    assert "Score" not in product.tables()
    assert down.undo(task, check_mode=False)["changed"]
    assert product.state() == before


# Down


def test_down_is_newest_first_idempotent_and_says_what_it_kept(product: Product) -> None:
    fill(product)
    limits = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout")
    for limit in limits:
        product.server.psql(f"ALTER DATABASE {product.name} SET {limit} = 50")
    task = product.task(INIT, destroys=[BOARD])
    try:
        with database.connect(task.address, RUN) as connection:
            assert [connection.execute(f"SHOW {limit}").fetchone() for limit in limits] == [("0",)] * 3
        found = down.check(task)
    finally:
        product.server.psql(f"ALTER DATABASE {product.name} RESET ALL")
    assert list(found["before"]["migrations"]) == [INDEX, BOARD]
    assert found["diff"]["after"].index(INDEX) < found["diff"]["after"].index("DROP TYPE")
    assert (
        '(destroys values of column "public"."User"."score": 3 rows, table "public"."Score": 5 rows)' in found["says"]
    )
    would = down.main(task, check_mode=True)
    assert would["changed"] and product.applied() == [INIT, BOARD, INDEX]

    done = down.main(task, check_mode=False)
    assert done["changed"]
    assert product.applied() == [INIT]
    assert product.tables() == ["User", "_prisma_migrations"]
    lost = {each["name"]: each["lost"] for each in done["evidence"]["migrations"]}
    assert lost == {
        INDEX: {},
        BOARD: {'values of column "public"."User"."score"': 3, 'table "public"."Score"': 5},
    }
    kept = Path(done["evidence"]["migrations"][1]["kept"])
    assert {path.stat().st_mode & 0o77 for path in [kept, *kept.iterdir()]} == {0}
    manifest = json.loads((kept / "manifest.json").read_text())
    assert manifest["rows"][0]["migration_name"] == BOARD

    again = down.main(task, check_mode=False)
    assert not again["changed"]
    before = f"{INIT} is the newest already; {BOARD} went down before in this run (lost, and kept in {kept}: "
    assert again["says"].startswith(before)
    assert down.verify(task)["says"] == f"{INIT} is the newest migration"


def test_what_was_kept_can_be_read_back_by_hand(product: Product) -> None:
    fill(product)
    dump = product.sql('TABLE "Score"'), product.sql('SELECT "id", "score" FROM "User" ORDER BY 1')
    down.main(product.task(INIT, destroys=[BOARD]), check_mode=False)
    product.apply(BOARD)
    (kept,) = (product.folder / "kept" / RUN).iterdir()
    restored(product, kept)
    assert dump == (product.sql('TABLE "Score"'), product.sql('SELECT "id", "score" FROM "User" ORDER BY 1'))


def test_a_url_of_prisma_with_its_schema_is_taken(server: Server, tmp_path: Path) -> None:
    name = f"product_{next(numbers)}"
    server.psql(f"CREATE DATABASE {name}")
    product = Product(server, tmp_path, name, 'app "1"&connection_limit=5&sslmode=disable'.replace(" ", "%20"))
    product.sql('CREATE SCHEMA "app ""1"""; CREATE TABLE "Score" (other int); INSERT INTO "Score" VALUES (1)')
    product.sql(f"ALTER DATABASE {name} SET search_path = 'app \"1\"'")
    for each in (INIT, BOARD):
        product.write(each, UP[each], DOWN[each].replace('"public".', ""))
    product.sql(
        """CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL,
        finished_at timestamptz, migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
        started_at timestamptz NOT NULL DEFAULT now(), applied_steps_count int NOT NULL DEFAULT 0)"""
    )
    product.apply(INIT)
    product.apply(BOARD)
    product.sql(f"ALTER DATABASE {name} RESET search_path")
    done = down.main(product.task(), check_mode=False)
    assert done["changed"]
    # What has the same name in another schema is another table.
    assert product.sql('SELECT other FROM public."Score"') == "1"
    assert product.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'app \"1\"'") == "2"
    product.url = product.url.partition("?")[0]
    assert 'but in the schema "app ""1"""' in why(product.task())


def test_the_role_goes_down_and_back_and_shows_no_secret(product: Product) -> None:
    fill(product)
    role, secret = f"owner_{next(numbers)}", "kata%2Fsandi-42"
    product.sql(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'kata/sandi-42'")
    given = {
        "prisma_down_url": product.url.replace("postgres@", f"{role}:{secret}@"),
        "prisma_down_migrations": str(product.migrations),
        "prisma_down_to": INIT,
        "prisma_down_destroys": [BOARD],
        "prisma_down_keep_dir": str(product.folder / "kept"),
    }
    saved = down.check(product.task(destroys=[BOARD]))["before"]
    assert secret not in json.dumps(saved)
    steps = [("prisma-down", entry) for entry in ("check", "main", "verify", "main", "undo")]
    shown = play(product.folder, steps, given, saved, secret)
    assert [each["changed"] for each in shown] == [False, True, False, False, True]
    assert "sandi" not in json.dumps(shown)
    assert shown[0]["before"] == saved
    assert product.applied() == [INIT, BOARD, INDEX]
    assert product.sql('SELECT count(*) FROM "Score"') == "5"
    product.sql(f"DROP ROLE {role}")


# What is refused, with nothing touched


def test_every_difference_between_database_and_folder_is_named_at_once(product: Product) -> None:
    product.record("20251231000000_foreign", "0" * 64)
    product.write("20260101120000_never", "SELECT 1;", "")
    product.write("20260104000000_failed", "SELECT 1;", "")
    product.record("20260104000000_failed", "0" * 64, finished="NULL")
    (product.migrations / BOARD / "migration.sql").write_text("SELECT 2;")
    (product.migrations / INDEX / "down.sql").unlink()
    with product.untouched():
        words = why(product.task())
        assert words == why(product.task(), lambda task: down.main(task, check_mode=False))
    for part in (
        "20260104000000_failed failed, or was never ended",
        "20251231000000_foreign is applied, and unknown to the folder",
        f"20260101120000_never was never applied, though the newer {INDEX} is",
        f"{BOARD}: its migration.sql is not what was applied (checksum)",
        f"{INDEX}: has no down.sql; draft one with playbooks/prisma-down-draft.yml",
    ):
        assert part in words


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("20260102000000_laederboard", "is not in the folder"),
        ("20260109000000_pending", "is not applied, so it cannot be what stays"),
        ("", "is not in the folder"),
    ],
)
def test_a_target_that_cannot_stay_is_refused(product: Product, target: str, words: str) -> None:
    product.write("20260109000000_pending", "SELECT 1;")
    with product.untouched():
        assert words in why(product.task(target))


def test_all_go_when_none_is_to_stay(product: Product) -> None:
    product.sql('TRUNCATE "User" CASCADE')
    done = down.main(product.task("no-migration"), check_mode=False)
    assert [each["name"] for each in done["evidence"]["migrations"]] == [INDEX, BOARD, INIT]
    assert product.tables() == ["_prisma_migrations"]


def test_a_merged_branch_goes_in_the_order_of_application_when_told_so(product: Product) -> None:
    late = "20260102120000_late"
    product.write(late, 'ALTER TABLE "Score" ADD COLUMN "late" INT;', 'ALTER TABLE "Score" DROP COLUMN "late";')
    product.apply(late)
    with product.untouched():
        assert f"{late} was applied after {INDEX}, which its name puts later" in why(product.task())
    done = down.main(product.task(order="applied"), check_mode=False)
    assert [each["name"] for each in done["evidence"]["migrations"]] == [late, INDEX, BOARD]


def test_all_rows_of_a_migration_go_so_that_prisma_6_is_not_misled(product: Product) -> None:
    checksum = hashlib.sha256(UP[INDEX].encode()).hexdigest()
    product.record(INDEX, checksum, finished="NULL", rolled_back="now()")
    product.record(INDEX, checksum)
    found = down.check(product.task(BOARD))
    assert "stands 2 times as applied" in found["says"]
    assert len(found["before"]["migrations"][INDEX]["rows"]) == 3
    down.main(product.task(BOARD), check_mode=False)
    assert product.applied() == [INIT, BOARD]
    status = Prisma("6.19.3", product.folder, product.url).run("migrate", "status")
    assert status.code == 1 and INDEX in status.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no statement"),
        ("-- only a comment\n/* DROP TABLE x; */", "has no statement"),
        ('BEGIN; DROP TABLE "Score"; COMMIT;', "line 1: BEGIN: ends or begins a transaction"),
        ('DROP TABLE "Score";\nROLLBACK;', "line 2: ROLLBACK: ends or begins a transaction"),
        ("\\i other.sql", "line 1: a line of psql's own"),
        ("DROP DATABASE deployed;", "is about a whole database"),
        ('DROP TABLE other."Score";', "names the schema other; expected public"),
        ("DELETE FROM _prisma_migrations;", "is about _prisma_migrations"),
        ("SET lock_timeout = 0;", "sets lock_timeout, which prisma-down sets itself"),
        ('DO $$ BEGIN DELETE FROM "Score"; END $$;', "runs a program that no parser can judge"),
        ("SELECT pg_terminate_backend(1);", "only setval() is taken"),
        ("ALTER SYSTEM SET fsync = off;", "is a kind of statement that prisma-down does not run"),
        ("DROP TABEL x;", "line 1: syntax error"),
        ('DROP INDEX CONCURRENTLY "Score_userId_idx";', "cannot be repeated after an interruption"),
        (
            "-- balik: draft. Read it, mend it, then delete this line. By diff.\nDROP INDEX a;",
            "a draft that nobody has read",
        ),
    ],
)
def test_a_script_that_is_not_for_here_is_refused(product: Product, text: str, words: str) -> None:
    (product.migrations / INDEX / "down.sql").write_text(text)
    with product.untouched():
        assert words in why(product.task(BOARD))


def test_a_script_may_say_that_there_is_nothing_to_do(product: Product) -> None:
    (product.migrations / INDEX / "down.sql").write_text("-- The index does no harm.\n-- balik: nothing to undo\n")
    down.main(product.task(BOARD), check_mode=False)
    assert product.applied() == [INIT, BOARD]


# What would be lost


def test_rows_are_counted_and_nothing_is_destroyed_without_a_yes(product: Product) -> None:
    fill(product)
    with product.untouched():
        words = why(product.task())
        assert (
            f'{BOARD} would destroy values of column "public"."User"."score": 3 rows; table "public"."Score": 5 rows'
            in words
        )
        assert f"prisma_down_destroys: [{BOARD}]" in words
        assert "leaving it is safe for the old release (prisma_down_leave_additive: true)" in words
        # The yes is for a migration by its name; a name that is none is a mistake.
        assert "there is no migration 2026" in why(product.task(destroys=["2026"]))


def test_a_count_that_does_not_end_is_unknown_and_not_none(product: Product) -> None:
    with psycopg.connect(product.server.dsn(product.name)) as holder:
        holder.execute('LOCK TABLE "Score" IN ACCESS EXCLUSIVE MODE')
        assert 'table "public"."Score": how many rows is not known' in why(product.task(count_limit=0.2))


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ('DELETE FROM "Score" s USING "User" u WHERE u."id" = s."userId" AND u."id" > 3;', 2),
        ('UPDATE "Score" SET "note" = NULL WHERE "id" <= 4;', 4),
        ('TRUNCATE "Score";', 5),
        ('DROP TYPE "Kind" CASCADE;', 5),
        ('ALTER TABLE "User" ALTER COLUMN "score" TYPE SMALLINT USING ("score" / 20);', 3),
        ('WITH gone AS (DELETE FROM "Score" RETURNING *) INSERT INTO "User" ("name") SELECT \'x\' FROM gone;', 5),
        ('CREATE VIEW v AS TABLE "Score"; DROP TABLE "Score" CASCADE;', 5),
    ],
)
def test_what_each_kind_of_statement_destroys_is_counted_and_kept(product: Product, text: str, lost: int) -> None:
    fill(product)
    (product.migrations / INDEX / "down.sql").write_text(text)
    with product.untouched():
        words = why(product.task(BOARD))
        assert f": {lost} rows" in words
    done = down.main(product.task(BOARD, destroys=[INDEX]), check_mode=False)["evidence"]["migrations"][0]
    files = list(Path(done["kept"]).glob("*.copy"))
    assert sum(len(file.read_bytes().splitlines()) for file in files) == lost


def test_a_type_that_gives_all_values_back_destroys_nothing(product: Product) -> None:
    fill(product)
    (product.migrations / INDEX / "down.sql").write_text(
        """ALTER TABLE "User" ALTER COLUMN "score" TYPE SMALLINT;
        CREATE TYPE "New" AS ENUM ('DAY');
        ALTER TABLE "Score" ALTER COLUMN "kind" TYPE "New" USING ("kind"::text::"New");
        DROP TYPE "Kind"; ALTER TYPE "New" RENAME TO "Kind";"""
    )
    assert "destroys nothing" in down.check(product.task(BOARD))["says"]
    assert down.main(product.task(BOARD), check_mode=False)["changed"]


def test_values_that_are_cut_off_on_the_way_to_an_enum_are_kept(product: Product) -> None:
    fill(product)
    product.sql(
        """UPDATE "Score" SET "note" = 'Active since 2020' WHERE "id" > 2;
        UPDATE "Score" SET "note" = 'A' WHERE "id" = 1"""
    )
    (product.migrations / INDEX / "down.sql").write_text(
        """CREATE TYPE "State" AS ENUM ('A', 't');
        ALTER TABLE "Score" ALTER COLUMN "note" TYPE "State" USING ("note"::varchar(1)::"State");"""
    )
    with product.untouched():
        words = 'values of column "public"."Score"."note": how many rows is not known'
        assert words in why(product.task(BOARD))
        # By then the type is there, and it can be asked.
        words = 'would destroy values of column "public"."Score"."note": 4 rows'
        assert words in why(product.task(BOARD), lambda task: down.main(task, check_mode=False))
    done = down.main(product.task(BOARD, destroys=[INDEX]), check_mode=False)["evidence"]["migrations"][0]
    assert done["lost"] == {'values of column "public"."Score"."note"': 4}
    assert "5\tActive since 2020\n" in (Path(done["kept"]) / "01.copy").read_text()


def test_a_value_that_the_old_type_does_not_know_stops_it(product: Product) -> None:
    product.sql('INSERT INTO "Score" ("userId", "kind") VALUES (1, \'WEEK\')')
    (product.migrations / INDEX / "down.sql").write_text(
        """CREATE TYPE "New" AS ENUM ('DAY');
        ALTER TABLE "Score" ALTER COLUMN "kind" TYPE "New" USING ("kind"::text::"New");"""
    )
    with product.untouched():
        words = why(product.task(BOARD), lambda task: down.main(task, check_mode=False))
    assert "line 2: ALTER TABLE" in words and "(value left out)" in words and "WEEK" not in words


def test_rows_that_came_since_the_check_are_seen(product: Product) -> None:
    product.write(
        INDEX, UP[INDEX], 'DROP INDEX "Score_userId_idx"; ALTER TABLE "Score" RENAME TO "Old"; DROP TABLE "Old";'
    )
    fill(product)
    with product.untouched():
        assert 'table "Old", which is not there now: how many rows is not known' in why(product.task(BOARD))
        task = product.task(BOARD)
        # As when the rows come between the check and the statement: main itself looks again, under the lock.
        words = why(task, lambda task: down.main(task, check_mode=False))
        assert 'line 1: DROP TABLE "Old": would destroy table "public"."Old": 5 rows' in words
    done = down.main(product.task(BOARD, destroys=[INDEX]), check_mode=False)
    assert done["evidence"]["migrations"][0]["lost"] == {'table "public"."Old"': 5}


def test_what_only_adds_may_stay(product: Product) -> None:
    fill(product)
    with product.untouched():
        task = product.task(leave_additive=True)
        found = down.check(task)
        assert (
            f"left in place, because it only adds and the old release can live with it: {BOARD}, {INDEX}"
            in found["says"]
        )
        assert not down.main(task, check_mode=False)["changed"]
    assert "left in place" in down.verify(task)["says"]
    # What stands right above the target stays; what does not only add goes, though it is newer.
    product.write(INDEX, UP[INDEX] + 'ALTER TABLE "User" DROP COLUMN "name";', DOWN[INDEX])
    checksum = hashlib.sha256((product.migrations / INDEX / "migration.sql").read_bytes()).hexdigest()
    product.sql(f"UPDATE _prisma_migrations SET checksum = '{checksum}' WHERE migration_name = '{INDEX}'")
    down.main(task, check_mode=False)
    assert product.applied() == [INIT, BOARD]


@pytest.mark.parametrize(
    ("columns", "stays"),
    [
        ('"id", "name", "price", "at", "ip", "kind"', True),
        ('"body"', False),
        ('"any"', False),
        ('"code"', False),
        ('"tags"', False),
        ('"twice"', False),
    ],
)
def test_an_index_that_may_refuse_a_long_value_is_not_left(product: Product, columns: str, stays: bool) -> None:
    product.sql(
        """CREATE TABLE "Doc" ("id" UUID, "name" VARCHAR(191), "price" NUMERIC(65,30), "at" TIMESTAMP(3), "ip" INET,
            "kind" "Kind", "body" TEXT, "any" NUMERIC, "code" VARCHAR, "tags" "Kind"[], "twice" INT);
        CREATE SCHEMA other; CREATE TABLE other."Doc" ("twice" TEXT)"""
    )
    name = "20260104000000_doc"
    product.write(name, f'CREATE INDEX "Doc_idx" ON "Doc" ({columns})', 'DROP INDEX "Doc_idx"')
    product.apply(name)
    task = product.task(INDEX, leave_additive=True)
    assert ("left in place" in down.check(task)["says"]) == stays
    assert down.main(task, check_mode=False)["changed"] != stays
    down.verify(task)


def test_an_index_on_what_gets_its_longer_type_back_is_not_left(product: Product) -> None:
    product.sql('CREATE TABLE "Doc" ("body" TEXT)')
    index, short = "20260104000000_doc", "20260105000000_short"
    product.write(index, 'CREATE INDEX "Doc_idx" ON "Doc" ("body")', 'DROP INDEX "Doc_idx"')
    up = 'ALTER TABLE "Doc" ALTER "body" TYPE VARCHAR(20)'
    product.write(short, up, up.replace("VARCHAR(20)", "TEXT"))
    for name in (index, short):
        product.apply(name)
    task = product.task(INDEX, leave_additive=True)
    assert down.main(task, check_mode=False)["changed"]
    down.verify(task)
    assert product.applied() == [INIT, BOARD, INDEX]


def test_what_only_adds_above_what_does_not_is_not_advised_to_stay(product: Product) -> None:
    grow, table = "20260104000000_grow", "20260105000000_table"
    product.write(grow, "ALTER TYPE \"Kind\" ADD VALUE 'MONTH';", "-- balik: nothing to undo\n")
    product.write(table, 'CREATE TABLE "Prize" ("id" INT); INSERT INTO "Prize" VALUES (1);', 'DROP TABLE "Prize";')
    for each in (grow, table):
        product.apply(each)
    for given in (False, True):
        words = why(product.task(INDEX, leave_additive=given))
        assert f"It only adds, but cannot be left: {grow} below it goes, which does not only add" in words
        assert "prisma_down_leave_additive" not in words
    # Right above the target it is, whatever stands above it.
    assert "(prisma_down_leave_additive: true)" in why(product.task(grow))
    fill(product)
    board = next(line for line in why(product.task()).splitlines() if line.startswith(f"- {BOARD}"))
    assert "(prisma_down_leave_additive: true)" in board


def test_a_new_table_that_got_its_rows_from_an_old_one_is_not_left(product: Product) -> None:
    name = "20260104000000_archive"
    product.write(
        name,
        """CREATE TABLE "Archive" ("id" INT);
        WITH gone AS (DELETE FROM "User" WHERE "id" > 5 RETURNING "id") INSERT INTO "Archive" SELECT "id" FROM gone;""",
        'DROP TABLE "Archive";',
    )
    product.apply(name)
    with product.untouched():
        words = why(product.task(INDEX, leave_additive=True))
        assert f'{name} would destroy table "public"."Archive": 5 rows' in words
        assert "not known to be safe for the old release (line 2" in words


def test_partitions_identities_and_generated_columns_come_back(product: Product) -> None:
    name = "20260104000000_parts"
    product.write(
        name,
        """CREATE SCHEMA audit;
        CREATE TABLE audit."Event" ("id" BIGINT GENERATED ALWAYS AS IDENTITY, "at" DATE, "twice" INT GENERATED ALWAYS
            AS (EXTRACT(day FROM "at") * 2) STORED) PARTITION BY RANGE ("at");
        CREATE TABLE audit."old" PARTITION OF audit."Event" FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
        CREATE TABLE audit."new" PARTITION OF audit."Event" FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        CREATE TABLE audit."Parent" ("a" INT); CREATE TABLE audit."Heir" ("b" INT) INHERITS (audit."Parent");
        INSERT INTO audit."Parent" VALUES (1);""",
        "DROP SCHEMA audit CASCADE;",
    )
    product.apply(name)
    product.sql(
        """INSERT INTO audit."Event" ("at") VALUES ('2025-03-04'), ('2026-03-04'), ('2026-03-05');
        INSERT INTO audit."Heir" VALUES (2, 3)"""
    )
    before = product.state()
    task = product.task(INDEX, destroys=[name])
    with product.untouched():
        assert "names the schema audit" in why(task)
    task = replace(task, schemas=["audit"])
    task = replace(task, saved=down.check(task)["before"])
    lost = down.main(task, check_mode=False)["evidence"]["migrations"][0]["lost"]
    assert lost == {
        **{'table "audit"."old"': 1, 'table "audit"."new"': 2},
        **{'table "audit"."Parent"': 1, 'table "audit"."Heir"': 1},
    }
    down.undo(task, check_mode=False)
    assert product.state() == before


def test_what_an_extension_or_a_reference_takes_with_it_is_counted(product: Product) -> None:
    fill(product)
    product.sql('CREATE EXTENSION citext; ALTER TABLE "User" ADD "email" citext; UPDATE "User" SET "email" = \'x\'')
    product.write(INDEX, UP[INDEX], 'DROP EXTENSION citext CASCADE;\nDELETE FROM "User" WHERE "id" = 1;')
    words = why(product.task(BOARD))
    assert 'values of column "public"."User"."email": 10 rows' in words
    assert 'rows of "public"."User": 1 row; of those that refer to them, all rows of "public"."Score": 5 rows' in words
    done = down.main(product.task(BOARD, destroys=[INDEX]), check_mode=False)["evidence"]["migrations"][0]
    assert sorted(done["lost"].values()) == [1, 5, 10]
    product.sql(
        """CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
        CREATE TRIGGER mine BEFORE DELETE ON "Score" FOR EACH ROW EXECUTE FUNCTION f()"""
    )
    product.write(BOARD, UP[BOARD], 'DELETE FROM "Score" WHERE "id" > 100;')
    assert 'what the trigger mine of "public"."Score" does: how many rows is not known' in why(product.task())


PURGE = """
    CREATE TABLE "Log" ("n" INT);
    CREATE FUNCTION purge() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM "Score"; RETURN 1; END $$;
    CREATE FUNCTION keep_out(i int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN DELETE FROM "Score"; RETURN true; END $$;
"""


@pytest.mark.parametrize(
    "text",
    [
        'DELETE FROM "Log" WHERE keep_out("n");',
        'UPDATE "User" SET "name" = purge();',
        'ALTER TABLE "User" ALTER COLUMN "name" TYPE INT USING purge();',
        'INSERT INTO "Log" SELECT purge();',
        "CREATE TABLE x AS SELECT purge();",
        'ALTER TABLE "User" ADD COLUMN "z" INT DEFAULT purge();',
        'CREATE INDEX x ON "User" ((purge()));',
    ],
)
def test_what_a_function_destroys_is_neither_done_by_looking_nor_without_being_kept(
    product: Product, text: str
) -> None:
    fill(product)
    product.sql(PURGE)
    product.sql('INSERT INTO "Log" VALUES (1)')
    (product.migrations / INDEX / "down.sql").write_text(text)
    with product.untouched():
        words = why(product.task(BOARD))
        assert '"() does: how many rows is not known' in words.replace('purge"', '"()').replace('keep_out"', '"()')
        why(product.task(BOARD), lambda task: down.main(task, check_mode=False))
        # A yes is for what is kept. What is not is taken back.
        task = product.task(BOARD, destroys=[INDEX])
        why(task, lambda task: down.main(task, check_mode=False))


@pytest.mark.parametrize(
    "made",
    [
        """CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM "Score"; RETURN NEW; END';
        CREATE TRIGGER t BEFORE INSERT ON "Log" FOR EACH ROW EXECUTE FUNCTION f()""",
        'CREATE RULE r AS ON INSERT TO "Log" DO ALSO DELETE FROM "Score"',
        'ALTER TABLE "Log" ADD "m" INT DEFAULT purge()',
        """CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN TRUNCATE "Score"; RETURN 1; END';
        ALTER TABLE "Log" ADD "m" INT DEFAULT f()""",
        """CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN DROP TABLE "Score"; RETURN 1; END';
        ALTER TABLE "Log" ADD "m" INT DEFAULT f()""",
        """CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN ALTER TABLE "User" DROP "score"; RETURN 1; END';
        ALTER TABLE "Log" ADD "m" INT DEFAULT f()""",
    ],
)
def test_what_was_hidden_from_every_parser_is_seen_by_the_servers_counters_and_taken_back(
    product: Product, made: str
) -> None:
    product.sql(PURGE)
    product.sql(made)
    fill(product)
    (product.migrations / INDEX / "down.sql").write_text('INSERT INTO "Log" ("n") VALUES (1);')
    with product.untouched():
        task = product.task(BOARD, destroys=[INDEX])
        words = why(task, lambda task: down.main(task, check_mode=False))
        assert "did more than was kept: " in words and "as it was" in words


def test_what_a_trigger_puts_off_to_the_commit_is_seen_before_it(product: Product) -> None:
    fill(product)
    product.sql(PURGE)
    product.sql(
        """CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM "Score"; RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER t AFTER INSERT ON "Log" DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TABLE "Node" ("id" INT PRIMARY KEY, "of" INT NOT NULL REFERENCES "Node" DEFERRABLE INITIALLY DEFERRED)"""
    )
    (product.migrations / INDEX / "down.sql").write_text('INSERT INTO "Log" VALUES (1); DROP INDEX "Score_userId_idx";')
    task = product.task(BOARD, destroys=[INDEX])
    with product.untouched():
        words = why(task, lambda task: down.main(task, check_mode=False))
        assert (
            f"{INDEX}: a trigger that was put off to the end of its down.sql: did more than was kept: 5 rows" in words
        )
        assert f"{INDEX} is as it was" in words
    # What waits for the end only because it must (a circle of foreign keys) is no fault.
    text = 'INSERT INTO "Node" VALUES (1, 2); INSERT INTO "Node" VALUES (2, 1);'
    (product.migrations / INDEX / "down.sql").write_text(text + 'ALTER TABLE "Node" ADD "n" INT;')
    with product.untouched():
        words = why(product.task(BOARD), lambda task: down.main(task, check_mode=False))
        assert 'the server refused: cannot ALTER TABLE "Node" because it has pending trigger events' in words
        assert f"{INDEX} is as it was; down already: none. If a check was put off" in words
    text += 'SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE "Node" ADD "n" INT;'
    (product.migrations / INDEX / "down.sql").write_text(text)
    assert down.main(product.task(BOARD), check_mode=False)["changed"]


TOUCH = """
    ALTER TABLE "User" ADD "updated" timestamptz;
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW."updated" := now(); RETURN NEW; END';
    CREATE TRIGGER touch BEFORE UPDATE ON "User" FOR EACH ROW EXECUTE FUNCTION touch();
"""


@pytest.mark.parametrize(("where", "rows"), [("", 10), ('WHERE "id" > 100', 0)])
def test_a_trigger_that_takes_nothing_but_what_is_kept_is_no_loss_of_its_own(
    product: Product, where: str, rows: int
) -> None:
    product.sql(TOUCH)
    (product.migrations / INDEX / "down.sql").write_text(
        f'{DOWN[INDEX]} UPDATE "User" SET "name" = upper("name") {where};'
    )
    given = {
        "prisma_down_url": product.url,
        "prisma_down_migrations": str(product.migrations),
        "prisma_down_to": BOARD,
        "prisma_down_destroys": [INDEX],
        "prisma_down_keep_dir": str(product.folder / "kept"),
    }
    saved = down.check(product.task(BOARD, destroys=[INDEX]))["before"]
    checked, done = play(product.folder, [("prisma-down", "check"), ("prisma-down", "main")], given, saved)
    assert 'what the trigger touch of "public"."User" does: how many rows is not known' in checked["says"]
    lost = {'old values in rows of "public"."User"': rows} if rows else {}
    assert done["evidence"]["migrations"][0]["lost"] == lost
    assert ("lost, and kept in" in done["says"]) == bool(rows)
    assert product.applied() == [INIT, BOARD]
    # That there was nothing to keep after all is kept, too.
    (run,) = (product.folder / "kept").iterdir()
    undone = down.undo(replace(product.task(BOARD), run=run.name, saved=saved), check_mode=False)
    assert undone["says"].startswith(f"{INDEX} is applied again")
    if not rows:
        product.sql(f"UPDATE _prisma_migrations SET id = 'by somebody else' WHERE migration_name = '{INDEX}'")
        again = down.undo(replace(product.task(BOARD), run=run.name, saved=saved), check_mode=False)
        assert again["says"] == "nothing to put back"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SET LOCAL track_counts = off;", "sets track_counts, which prisma-down sets itself or goes by"),
        ("INSERT INTO \"Log\" SELECT length(set_config('track_counts', 'off', true));", "calls set_config()"),
        ('INSERT INTO "Log" SELECT uncounted();', "track_counts is off"),
    ],
)
def test_no_script_switches_the_counting_off(product: Product, text: str, words: str) -> None:
    product.sql(PURGE)
    product.sql(
        """CREATE FUNCTION uncounted() RETURNS int LANGUAGE sql AS
        'SELECT length(set_config(''track_counts'', ''off'', true))';
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM "Score"; RETURN NEW; END';
        CREATE TRIGGER t BEFORE UPDATE ON "User" FOR EACH ROW EXECUTE FUNCTION f()"""
    )
    fill(product)
    (product.migrations / INDEX / "down.sql").write_text(text + '\nUPDATE "User" SET "name" = "name" WHERE "id" = 1;')
    with product.untouched():
        task = product.task(BOARD, destroys=[INDEX])
        assert words in why(task, lambda task: down.main(task, check_mode=False))


@pytest.mark.parametrize(
    "text",
    [
        'DELETE FROM "Dice" WHERE random() < 0.5;',
        'DELETE FROM ONLY "Dice" d USING "User" u WHERE u."id" = d."id" % 10 AND (random() < 0.3 OR random() < 0.3);',
        'DELETE FROM "Dice" WHERE "id" IN (SELECT "id" FROM "Dice" ORDER BY random() LIMIT 300);',
        'UPDATE "Dice" SET "n" = -1 WHERE random() < 0.5;',
        'UPDATE "Dice" d SET ("n") = (SELECT -1) FROM "User" u WHERE u."id" = d."id" % 10 AND random() < 0.5;',
    ],
)
def test_what_is_kept_is_what_is_destroyed_whatever_the_condition(product: Product, text: str) -> None:
    product.sql(
        """CREATE TABLE "Dice" ("id" INT PRIMARY KEY, "n" INT, "twice" INT GENERATED ALWAYS AS ("n" * 2) STORED);
        INSERT INTO "Dice" SELECT n, n FROM generate_series(1, 1000) n"""
    )
    (product.migrations / INDEX / "down.sql").write_text(text)
    with product.untouched():
        assert 'rows of "public"."Dice": how many rows is not known' in why(product.task(BOARD))
    done = down.main(product.task(BOARD, destroys=[INDEX]), check_mode=False)["evidence"]["migrations"][0]
    (file,) = Path(done["kept"]).glob("*.copy")
    kept = {tuple(map(int, line.split("\t"))) for line in file.read_text().splitlines()}
    stays = {int(line) for line in product.sql('SELECT "id" FROM "Dice" WHERE "n" <> -1').split()}
    gone = set(range(1, 1001)) - stays
    assert 0 < len(gone) < 1000
    assert kept == {(each, each) for each in gone}
    assert list(done["lost"].values()) == [len(gone)]


def test_a_server_that_does_not_count_is_refused(product: Product) -> None:
    product.sql(f"ALTER DATABASE {product.name} SET track_counts = off")
    with product.untouched():
        assert "track_counts is off" in why(product.task(BOARD))


def test_rows_that_refer_to_themselves_or_to_a_changed_key_are_kept_too(product: Product) -> None:
    fill(product)
    product.sql(
        """CREATE TABLE "Answer" ("id" INT PRIMARY KEY, "to" INT REFERENCES "Answer" ON DELETE CASCADE);
        INSERT INTO "Answer" VALUES (1, NULL), (2, 1), (3, 2)"""
    )
    down_sql = 'DELETE FROM "Answer" WHERE "id" = 1;\nUPDATE "User" SET "id" = "id" + 100 WHERE "id" = 1;'
    (product.migrations / INDEX / "down.sql").write_text(down_sql)
    assert 'of those that refer to them, all rows of "public"."Score": 5 rows' in why(product.task(BOARD))
    done = down.main(product.task(BOARD, destroys=[INDEX]), check_mode=False)["evidence"]["migrations"][0]
    assert sorted(done["lost"].values()) == [1, 3, 5]


def test_rows_behind_a_view_are_not_taken_through_it(product: Product) -> None:
    fill(product)
    product.sql('CREATE VIEW v AS SELECT "id" FROM "Score"')
    (product.migrations / INDEX / "down.sql").write_text("DELETE FROM v;")
    with product.untouched():
        assert "is no table" in why(product.task(BOARD, destroys=[INDEX]))


def test_an_index_without_a_transaction_runs_no_unknown_function(product: Product) -> None:
    product.sql("CREATE FUNCTION own(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'")
    (product.migrations / INDEX / "down.sql").write_text(
        'CREATE INDEX CONCURRENTLY IF NOT EXISTS x ON "User" (own("id"));'
    )
    with product.untouched():
        assert "no transaction can take it back" in why(
            product.task(BOARD, destroys=[INDEX], outside_transaction=[INDEX])
        )


def test_undo_says_what_it_cannot_put_back(product: Product) -> None:
    fill(product)
    product.write(INDEX, UP[INDEX], DOWN[INDEX] + 'UPDATE "Score" SET "note" = NULL;')
    task = product.task(BOARD, destroys=[INDEX])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    assert down.undo(task, check_mode=True)["says"] == f"would apply again: {INDEX}"
    assert (
        'to be put back by hand: old values in rows of "public"."Score" (' in down.undo(task, check_mode=False)["says"]
    )
    assert product.applied() == [INIT, BOARD, INDEX]
    assert down.undo(task, check_mode=False) == {
        "changed": False,
        "says": "nothing to put back",
        "evidence": {"migrations": []},
    }


def test_undo_is_whole_or_not_at_all(product: Product) -> None:
    fill(product)

    def undo(task: down.Task) -> Any:
        return down.undo(task, check_mode=False)

    task = product.task(INIT, destroys=[BOARD])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    before = product.state()
    # Without what check saw, or what main kept, it would bring back empty tables and call that success.
    assert "rollback_step_saved: not handed in" in why(replace(task, saved={}), undo)
    away = replace(task, keep_dir=str(product.folder / "elsewhere"))
    words = why(away, undo)
    assert f"elsewhere/{RUN}: nothing is kept there of {BOARD}; expected what check said would be lost (" in words
    assert 'table "public"."Score": 5 rows' in words and f"`prisma migrate deploy` applies {BOARD} again" in words
    assert product.state() == before
    product.sql('DELETE FROM "User" WHERE "id" = 2')
    before = product.state()
    words = why(task, undo)
    assert f"{BOARD} stays down" in words and "violates foreign key" in words
    assert product.state() == before
    product.write(BOARD, UP[BOARD] + "-- changed")
    assert "is not the one that was applied before" in why(task, undo)


FAMILY = """
    CREATE TABLE "Parent" ("id" INT PRIMARY KEY, "favourite" INT);
    CREATE TABLE "Child" ("id" INT PRIMARY KEY, "parent" INT NOT NULL,
        "older" INT REFERENCES "Child" ON DELETE RESTRICT);
    ALTER TABLE "Child" ADD CONSTRAINT "Child_parent" FOREIGN KEY ("parent") REFERENCES "Parent" ON DELETE RESTRICT;
    ALTER TABLE "User" ADD COLUMN "parent" INT REFERENCES "Parent";
    CREATE TABLE "Audit" ("of" INT);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN INSERT INTO "Audit" VALUES (NEW."id"); NEW."id" = NEW."id" + 1000; RETURN NEW; END $$;
    CREATE TRIGGER spoils BEFORE INSERT ON "Child" FOR EACH ROW EXECUTE FUNCTION audit();
    CREATE TRIGGER changes BEFORE UPDATE ON "User" FOR EACH ROW EXECUTE FUNCTION audit();
    ALTER TABLE "Child" ENABLE ALWAYS TRIGGER spoils;
    INSERT INTO "Parent" VALUES (90);
"""
FAMILY_DOWN = """
    DROP TRIGGER changes ON "User"; ALTER TABLE "User" DROP COLUMN "parent";
    ALTER TABLE "Child" DROP CONSTRAINT "Child_parent";
    {first}; {second};
    DROP TABLE "Audit"; DROP FUNCTION audit() {cascade};
"""


@pytest.mark.parametrize("order", [("Parent", "Child"), ("Child", "Parent")])
@pytest.mark.parametrize("way", ["undo", "by hand"])
def test_rows_come_back_whatever_refers_to_what_and_no_trigger_changes_them(
    product: Product, order: tuple[str, str], way: str
) -> None:
    name = "20260105000000_family"
    drops = {"first": f'DROP TABLE "{order[0]}"', "second": f'DROP TABLE "{order[1]}"', "cascade": ""}
    product.write(name, FAMILY, FAMILY_DOWN.format(**drops))
    product.apply(name)
    product.sql(
        """ALTER TABLE "Child" DISABLE TRIGGER spoils; ALTER TABLE "User" DISABLE TRIGGER changes;
        INSERT INTO "Parent" VALUES (1, 7), (2, NULL); INSERT INTO "Child" VALUES (11, 1, 12), (12, 2, NULL);
        UPDATE "User" SET "parent" = 2 WHERE "id" = 3;
        ALTER TABLE "Child" ENABLE ALWAYS TRIGGER spoils; ALTER TABLE "User" ENABLE TRIGGER changes"""
    )
    before = product.state()
    task = product.task(INDEX, destroys=[name])
    task = replace(task, saved=down.check(task)["before"])
    done = down.main(task, check_mode=False)["evidence"]["migrations"][0]
    if way == "undo":
        assert "3 rows" in down.undo(task, check_mode=False)["says"]
        assert product.state() == before
    else:
        product.apply(name, row=False)
        product.sql('DELETE FROM "Parent"')
        restored(product, done["kept"])
        rows = [line for line in before.splitlines() if name not in line]
        assert [line for line in product.state().splitlines() if name not in line] == rows


NEW_KEY = """
    ALTER TABLE "Member" DROP CONSTRAINT "Member_pkey", ADD COLUMN "uid" {type},
        ADD CONSTRAINT "Member_pkey" PRIMARY KEY ("uid");
    CREATE TABLE "Badge" ("of" {refers} REFERENCES "Member" ("uid") ON UPDATE CASCADE);
    COMMENT ON CONSTRAINT "Badge_of_fkey" ON "Badge" IS 'whose';
    COMMENT ON CONSTRAINT "Member_pkey" ON "Member" IS 'the new key''s';
    COMMENT ON INDEX "Member_pkey" IS 'the new index''s';
    ALTER TABLE "Member" CLUSTER ON "Member_pkey";
"""
NEW_KEY_DOWN = """
    DROP TABLE "Badge";
    ALTER TABLE "Member" DROP CONSTRAINT "Member_pkey", DROP COLUMN "uid",
        ADD CONSTRAINT "Member_pkey" PRIMARY KEY ("id");
"""
KEY, NICK = "20260105000000_key", "20260106000000_nick"


def member(product: Product, kind: str) -> None:
    """A table that gets another primary key by one migration, and a column with a number of its own by the next."""
    types = {"type": "SERIAL", "refers": "INT"}
    if kind == "uuid":
        types = {"type": "UUID NOT NULL DEFAULT gen_random_uuid()", "refers": "UUID"}
    product.sql(
        """CREATE TABLE "Member" ("id" INT PRIMARY KEY, "email" TEXT NOT NULL, "half" TEXT UNIQUE);
        INSERT INTO "Member" SELECT n, 'm' || n FROM generate_series(1, 5) n;
        CREATE PUBLICATION replica FOR TABLE "Member" """
    )
    product.write(KEY, NEW_KEY.format(**types), NEW_KEY_DOWN)
    up = """ALTER TABLE "Member" ADD "nick" TEXT, ADD "no" SERIAL; CREATE UNIQUE INDEX "Member_no" ON "Member" ("no");
        COMMENT ON INDEX "Member_no" IS 'for replicas';
        ALTER TABLE "Member" REPLICA IDENTITY USING INDEX "Member_no";"""
    product.write(NICK, up, 'ALTER TABLE "Member" REPLICA IDENTITY DEFAULT, DROP "nick", DROP "no"')
    for name in (KEY, NICK):
        product.apply(name)
    # Rows that change move behind the others: made anew, the numbers would be given in another order.
    product.sql(
        """INSERT INTO "Badge" SELECT "uid" FROM "Member"; UPDATE "Member" SET "nick" = 'n' || "id";
        UPDATE "Member" SET "nick" = NULL WHERE "id" = 2; UPDATE "Member" SET "nick" = 'first' WHERE "id" = 1;
        INSERT INTO "Member" ("id", "email") SELECT n, 'm' || n FROM generate_series(6, 9) n;
        DELETE FROM "Member" WHERE "id" BETWEEN 6 AND 8"""
    )


@pytest.mark.parametrize("kind", ["serial", "uuid"])
@pytest.mark.parametrize("way", ["undo", "by hand"])
def test_a_column_that_is_the_key_comes_back_to_its_rows_and_its_sequence_goes_on(
    product: Product, kind: str, way: str
) -> None:
    member(product, kind)
    product.sql('ALTER TABLE "Member" ADD UNIQUE ("email")')
    before = sorted(product.state().splitlines())
    task = product.task(INDEX, destroys=[KEY, NICK])
    task = replace(task, saved=down.check(task)["before"])
    done = down.main(task, check_mode=False)["evidence"]["migrations"]
    if way == "undo":
        said = down.undo(task, check_mode=False)["says"]
        assert 'values of column "public"."Member"."uid": 6 rows' in said and "by hand" not in said
    else:
        for each in reversed(done):
            product.apply(each["name"], row=False)
            restored(product, each["kept"])
        for row in (row for each in task.saved["migrations"].values() for row in each["rows"]):
            product.sql(
                "INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, finished_at,"
                " applied_steps_count) VALUES ('{id}', '{checksum}', '{migration_name}', '{started_at}',"
                " '{finished_at}', 1)".format(**row)
            )
    assert sorted(product.state().splitlines()) == before
    product.sql('INSERT INTO "Member" ("id", "email") VALUES (10, \'m10\')')
    assert product.sql('SELECT "no" FROM "Member" WHERE "id" = 10') == "10"


@pytest.mark.parametrize("way", ["undo", "by hand"])
def test_a_unique_index_of_a_partitioned_table_and_a_column_that_went_before_its_table_come_back(
    product: Product, way: str
) -> None:
    name = "20260105000000_slug"
    product.sql(
        """CREATE TABLE "Event" ("id" INT, "at" DATE, PRIMARY KEY ("id", "at")) PARTITION BY RANGE ("at");
        CREATE TABLE "Event_new" PARTITION OF "Event" FOR VALUES FROM ('2026-01-03') TO ('2027-01-01');
        CREATE TABLE "Event_rest" PARTITION OF "Event" DEFAULT;
        INSERT INTO "Event" SELECT n, date '2026-01-01' + n FROM generate_series(1, 4) n"""
    )
    product.write(
        name,
        """ALTER TABLE "Event" ADD "slug" TEXT; CREATE UNIQUE INDEX "Event_slug" ON "Event" ("slug", "at");
        CREATE TABLE "Note" ("id" INT PRIMARY KEY, "text" TEXT)""",
        'ALTER TABLE "Event" DROP "slug"; ALTER TABLE "Note" DROP "text"; DROP TABLE "Note"',
    )
    product.apply(name)
    product.sql("""UPDATE "Event" SET "slug" = 's' || "id"; INSERT INTO "Note" VALUES (1, 'one')""")
    before = [line for line in product.state().splitlines() if name not in line]
    task = product.task(INDEX, destroys=[name])
    task = replace(task, saved=down.check(task)["before"])
    done = down.main(task, check_mode=False)["evidence"]["migrations"][0]
    if way == "undo":
        down.undo(task, check_mode=False)
    else:
        product.apply(name, row=False)
        restored(product, done["kept"])
    assert product.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = '\"Event_slug\"'::regclass") == "t"
    assert [line for line in product.state().splitlines() if name not in line] == before


@pytest.mark.parametrize("way", ["undo", "by hand"])
def test_sequences_are_no_loss_and_go_on_where_they_were(product: Product, way: str) -> None:
    name = "20260105000000_numbers"
    product.sql('CREATE TABLE "Log" ("id" SERIAL); CREATE TABLE "Plain" ("id" INT PRIMARY KEY)')
    product.write(
        name,
        """CREATE SEQUENCE "invoice" START 1000; CREATE SEQUENCE "new"; CREATE TABLE "Empty" ("id" SERIAL);
        ALTER TABLE "Plain" ALTER "id" ADD GENERATED ALWAYS AS IDENTITY, ADD "note" TEXT""",
        """DROP SEQUENCE "invoice", "new"; DROP TABLE "Empty";
        ALTER TABLE "Plain" ALTER "id" DROP IDENTITY, DROP "note"; TRUNCATE "Log" RESTART IDENTITY""",
    )
    product.apply(name)
    task = product.task(INDEX)
    # What nobody has asked for a number yet needs no room, nor does a column without any value.
    (product.folder / "kept").write_text("no folder")
    down.check(task)
    product.sql(
        """SELECT nextval('"invoice"'); INSERT INTO "Empty" SELECT FROM generate_series(1, 5); DELETE FROM "Empty";
        INSERT INTO "Plain" SELECT FROM generate_series(1, 3); INSERT INTO "Log" DEFAULT VALUES; DELETE FROM "Log";
        SELECT nextval('"invoice"')"""
    )
    before = [line for line in product.state().splitlines() if name not in line]
    assert "cannot be made" in why(task)
    (product.folder / "kept").unlink()
    found = down.check(task)
    assert f"{name} (destroys nothing)" in found["says"]
    task = replace(task, saved=found["before"])
    done = down.main(task, check_mode=False)
    kept = Path(done["evidence"]["migrations"][0]["kept"])
    assert f"(nothing is lost; what undo needs is kept in {kept})" in done["says"]
    assert sorted(file.name for file in kept.iterdir()) == ["manifest.json", "restore.sql"]
    if way == "undo":
        assert down.undo(task, check_mode=False)["says"] == f"{name} is applied again with 4 sequences where they were"
    else:
        product.apply(name, row=False)
        restored(product, kept)
    assert [line for line in product.state().splitlines() if name not in line] == before


@pytest.mark.parametrize("way", ["undo", "by hand"])
@pytest.mark.parametrize(
    ("meanwhile", "number", "back"),
    # The old release numbers its rows itself; or nothing shows any more that the last number was given.
    [
        ('INSERT INTO "Old" VALUES (102)', "103", ""),
        ('DELETE FROM "Old" WHERE "id" = 101', "102", " with 1 sequence where it was"),
    ],
)
def test_a_sequence_that_migration_sql_sets_is_not_taken_back(
    product: Product, meanwhile: str, number: str, back: str, way: str
) -> None:
    name = "20260105000000_numbered"
    product.sql('CREATE TABLE "Old" ("id" INT PRIMARY KEY); INSERT INTO "Old" VALUES (100)')
    product.write(
        name,
        """CREATE SEQUENCE "no"; ALTER TABLE "Old" ALTER "id" SET DEFAULT nextval('"no"');
        SELECT setval('"no"', (SELECT max("id") + 1 FROM "Old"), false)""",
        'ALTER TABLE "Old" ALTER "id" DROP DEFAULT; DROP SEQUENCE "no"',
    )
    product.apply(name)
    product.sql('INSERT INTO "Old" DEFAULT VALUES')
    task = product.task(INDEX)
    task = replace(task, saved=down.check(task)["before"])
    kept = down.main(task, check_mode=False)["evidence"]["migrations"][0]["kept"]
    product.sql(meanwhile)
    if way == "undo":
        assert down.undo(task, check_mode=False)["says"] == f"{name} is applied again{back}"
    else:
        product.apply(name, row=False)
        restored(product, kept)
    product.sql('INSERT INTO "Old" DEFAULT VALUES')
    assert product.sql('SELECT max("id") FROM "Old"') == number


@pytest.mark.parametrize(("meanwhile", "number"), [(1, "-3"), (3, "-4")])
def test_a_sequence_that_counts_downwards_goes_on_from_its_lowest(
    product: Product, meanwhile: int, number: str
) -> None:
    name = "20260105000000_numbered"
    product.sql('CREATE TABLE "Log" ("id" INT GENERATED ALWAYS AS IDENTITY (INCREMENT BY -1))')
    product.write(
        name, 'ALTER TABLE "Log" ADD "note" TEXT', 'TRUNCATE "Log" RESTART IDENTITY; ALTER TABLE "Log" DROP "note"'
    )
    product.apply(name)
    inserted = 'INSERT INTO "Log" SELECT FROM generate_series(1, {})'
    product.sql(f'{inserted.format(2)}; DELETE FROM "Log"')
    task = product.task(INDEX)
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    product.sql(inserted.format(meanwhile))
    down.undo(task, check_mode=False)
    assert product.sql('INSERT INTO "Log" DEFAULT VALUES RETURNING "id"').split()[0] == number


def test_a_number_that_was_given_while_the_sequence_was_waited_for_is_not_given_again(product: Product) -> None:
    name = "20260105000000_invoices"
    product.write(name, 'CREATE SEQUENCE "invoice"', 'DROP SEQUENCE "invoice"')
    product.apply(name)
    task = product.task(INDEX, lock_timeout=20)
    task = replace(task, saved=down.check(task)["before"])
    with psycopg.connect(product.server.dsn(product.name)) as job, ThreadPoolExecutor() as pool:
        job.execute("SELECT nextval('\"invoice\"')")
        going = pool.submit(down.main, task, check_mode=False)
        wait_for(lambda: product.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1", "it waits for the job")
        job.execute("SELECT nextval('\"invoice\"')")
        job.commit()
        going.result()
    down.undo(task, check_mode=False)
    assert product.sql("SELECT nextval('\"invoice\"')") == "3"


def test_the_way_down_of_a_sequence_and_rows_that_ask_it_do_not_wait_for_each_other(product: Product) -> None:
    name = "20260105000000_numbers"
    column = 'ALTER TABLE "Member" ALTER "id"'
    product.write(name, f"{column} ADD GENERATED BY DEFAULT AS IDENTITY", f"{column} DROP IDENTITY")
    product.sql('CREATE TABLE "Member" ("id" INT PRIMARY KEY)')
    product.apply(name)
    task = product.task(INDEX, lock_timeout=20)
    task = replace(task, saved=down.check(task)["before"])
    insert, dsn = 'INSERT INTO "Member" DEFAULT VALUES', product.server.dsn(product.name)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second, ThreadPoolExecutor() as pool:
        first.execute(insert)
        going = pool.submit(down.main, task, check_mode=False)
        wait_for(lambda: product.sql(waiting) == "1", "it waits for the first")
        late = pool.submit(second.execute, insert)
        wait_for(lambda: product.sql(waiting) == "2", "and the second for it")
        first.commit()
        going.result()
        with pytest.raises(psycopg.errors.NotNullViolation):  # there is no identity any more
            late.result()
    down.undo(task, check_mode=False)
    product.sql(insert)
    assert product.sql('SELECT max("id") FROM "Member"') == "2"


def test_dropping_partitions_and_who_reads_their_table_do_not_wait_for_each_other(product: Product) -> None:
    name = "20260105000000_parts"
    product.write(
        name,
        """CREATE TABLE "Part" ("id" INT) PARTITION BY LIST ("id");
        CREATE TABLE "Part_1" PARTITION OF "Part" FOR VALUES IN (1);
        CREATE TABLE "Part_2" PARTITION OF "Part" FOR VALUES IN (2)""",
        'DROP TABLE "Part"',
    )
    product.apply(name)
    dsn, waiting = product.server.dsn(product.name), "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second, ThreadPoolExecutor() as pool:
        first.execute('SELECT FROM "Part_2"')
        going = pool.submit(down.main, product.task(INDEX, lock_timeout=20), check_mode=False)
        wait_for(lambda: product.sql(waiting) == "1", "it waits for the first")
        late = pool.submit(second.execute, 'SELECT FROM "Part"')
        wait_for(lambda: product.sql(waiting) == "2", "and the second for it")
        first.commit()
        assert going.result()["changed"]
        with pytest.raises(psycopg.errors.UndefinedTable):
            late.result()


def test_emptying_a_table_waits_for_who_has_read_it_and_writes(product: Product) -> None:
    fill(product)
    product.write(INDEX, UP[INDEX], 'TRUNCATE "Score"')
    task = product.task(BOARD, destroys=[INDEX], lock_timeout=20)
    with psycopg.connect(product.server.dsn(product.name)) as other, ThreadPoolExecutor() as pool:
        other.execute('TABLE "Score"')
        going = pool.submit(down.main, task, check_mode=False)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_for(lambda: product.sql(waiting) == "1", "it waits for who has read")
        other.execute("""INSERT INTO "Score" ("userId", "kind") VALUES (9, 'DAY')""")
        other.commit()
        (done,) = going.result()["evidence"]["migrations"]
    assert done["lost"] == {'all rows of "public"."Score"': 6}


def test_values_of_rows_that_no_key_finds_again_are_put_back_by_hand(product: Product) -> None:
    # No other key than the one that goes: "half" may be NULL. By that key nothing is found again, also not by others.
    member(product, "serial")
    task = product.task(INDEX, destroys=[KEY, NICK])
    task = replace(task, saved=down.check(task)["before"])
    done = {each["name"]: each for each in down.main(task, check_mode=False)["evidence"]["migrations"]}
    kept = Path(done[KEY]["kept"]) / "02.copy"
    assert "1\tm1\t\\N\t1\n" in kept.read_text()
    said = down.undo(task, check_mode=False)["says"]
    assert f'to be put back by hand: values of column "public"."Member"."uid" ({kept})' in said
    assert f'values of column "public"."Member"."nick" ({done[NICK]["kept"]}/01.copy)' in said
    assert product.sql('SELECT count("nick") FROM "Member"') == "0"


@pytest.mark.parametrize(
    ("renames", "back", "before"),
    [
        ('"Old" RENAME TO "New"', '"New" RENAME TO "Old"', '"New"'),
        ('"Old" RENAME "id" TO "no"', '"Old" RENAME "no" TO "id"', '"Old"'),
    ],
)
def test_a_rename_before_what_goes_is_told_by_the_check(product: Product, renames: str, back: str, before: str) -> None:
    name = "20260105000000_rename"
    product.sql(
        """CREATE TABLE "Old" ("id" INT PRIMARY KEY); INSERT INTO "Old" VALUES (1);
        CREATE TABLE "Bare" ("no" INT); INSERT INTO "Bare" VALUES (1)"""
    )
    up = f"""ALTER TABLE "Old" ADD "of" TEXT; ALTER TABLE {renames};
        ALTER TABLE "Bare" RENAME "no" TO "number"; ALTER TABLE "Bare" ADD "of" TEXT"""
    bare = 'ALTER TABLE "Bare" RENAME "number" TO "no"; ALTER TABLE "Bare" DROP "of"'
    product.write(name, up, f'{bare}; ALTER TABLE {back}; ALTER TABLE "Old" DROP "of"')
    product.apply(name)
    product.sql(f'UPDATE {before} SET "of" = 1; UPDATE "Bare" SET "of" = 1')
    task = product.task(INDEX, destroys=[name])
    said = down.check(task)["says"]
    assert 'what goes of "Old" after this is kept by names that migration.sql does not make again' in said
    assert 'destroys table "Old"."of"' not in said
    # Without a key it is put back by hand, whatever the other columns are called.
    assert 'what goes of "Bare"' not in said
    # By the names of before it comes back.
    product.write(name, up, f'{bare}; ALTER TABLE {before} DROP "of"; ALTER TABLE {back}')
    found = down.check(task)
    assert "migration.sql does not make" not in found["says"]
    task = replace(task, saved=found["before"])
    down.main(task, check_mode=False)
    assert 'by hand: values of column "public"."Bare"."of"' in down.undo(task, check_mode=False)["says"]
    assert product.sql(f'SELECT "of" FROM {before}') == "1"


def test_rows_of_heirs_do_not_get_each_others_values(product: Product) -> None:
    name = "20260105000000_heirs"
    product.sql(
        """CREATE TABLE "Base" ("id" INT PRIMARY KEY); CREATE TABLE "Heir" ("more" INT) INHERITS ("Base");
        INSERT INTO "Base" VALUES (1); INSERT INTO "Heir" VALUES (1, 2)"""
    )
    product.write(name, 'ALTER TABLE "Base" ADD "of" TEXT', 'ALTER TABLE "Base" DROP "of"')
    product.apply(name)
    product.sql('UPDATE "Base" SET "of" = tableoid::regclass')
    task = product.task(INDEX, destroys=[name])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    said = down.undo(task, check_mode=False)["says"]
    assert 'to be put back by hand: values of column "public"."Base"."of" (' in said
    assert product.sql('SELECT count("of") FROM "Base"') == "0"


@pytest.mark.parametrize("way", ["undo", "by hand"])
def test_a_row_without_a_value_does_not_get_migration_sqls(product: Product, way: str) -> None:
    # Prisma's way of a required column that is optional later: the default is gone, and still fills the rows of then.
    # Where the token and the news came from stands nowhere in the catalog.
    name = "20260105000000_quota"
    product.write(
        name,
        """ALTER TABLE "Member" ADD "quota" INT DEFAULT 5, ADD "limit" INT DEFAULT 9, ADD "empty" INT DEFAULT 1,
            ADD "token" UUID DEFAULT gen_random_uuid(), ADD "news" JSON, ADD "plan" TEXT;
        ALTER TABLE "Member" ALTER "limit" DROP DEFAULT, ALTER "token" DROP DEFAULT, ALTER "plan" SET DEFAULT 'free';
        UPDATE "Member" SET "news" = '{}'""",
        """ALTER TABLE "Member" DROP "quota", DROP "limit", DROP "empty", DROP "token";
        ALTER TABLE "Member" DROP "news", DROP "plan" """,
    )
    product.sql('CREATE TABLE "Member" ("id" INT PRIMARY KEY); INSERT INTO "Member" VALUES (1), (2)')
    product.apply(name)
    product.sql(
        """UPDATE "Member" SET "quota" = NULL, "limit" = NULL, "token" = NULL, "news" = NULL WHERE "id" = 1;
        UPDATE "Member" SET "empty" = NULL"""
    )
    before = product.sql('TABLE "Member" ORDER BY 1').splitlines()
    task = product.task(INDEX, destroys=[name])
    found = down.check(task)
    # A value that no row has is no loss, whatever the default.
    assert '"news": 1 row' in found["says"] and '"empty"' not in found["says"] and '"plan"' not in found["says"]
    task = replace(task, saved=found["before"])
    done = down.main(task, check_mode=False)["evidence"]["migrations"][0]
    assert done["lost"] == {
        f'values of column "public"."Member"."{one}"': 1 for one in ("quota", "limit", "token", "news")
    }
    product.sql('INSERT INTO "Member" VALUES (3)')
    if way == "undo":
        said = down.undo(task, check_mode=False)["says"]
        assert '"news": 1 rows' in said and '"empty"' not in said
    else:
        product.apply(name, row=False)
        restored(product, done["kept"])
    assert product.sql('TABLE "Member" ORDER BY 1').splitlines()[:2] == before


@pytest.mark.parametrize("way", ["undo", "by hand"])
def test_a_row_without_a_value_keeps_migration_sqls_where_it_must_have_one(product: Product, way: str) -> None:
    name = "20260105000000_cap"
    up = """ALTER TABLE "Member" ADD "cap" INT NOT NULL DEFAULT 7, ADD "it's" INT NOT NULL DEFAULT 8"""
    product.write(name, up, 'ALTER TABLE "Member" DROP "cap", DROP "it\'s"')
    product.sql('CREATE TABLE "Member" ("id" INT PRIMARY KEY); INSERT INTO "Member" VALUES (1), (2)')
    product.apply(name)
    product.sql(
        """ALTER TABLE "Member" ALTER "cap" DROP NOT NULL, ALTER "it's" DROP NOT NULL;
        UPDATE "Member" SET "cap" = NULLIF("id", 1), "it's" = NULL"""
    )
    task = product.task(INDEX, destroys=[name])
    task = replace(task, saved=down.check(task)["before"])
    (done,) = down.main(task, check_mode=False)["evidence"]["migrations"]
    if way == "undo":
        said = down.undo(task, check_mode=False)["says"]
        assert '"cap": 1 rows; migration.sql\'s value stays in 1 row that had none' in said
        assert "\"it's\": 0 rows; migration.sql's value stays in 2 rows that had none" in said
    else:
        product.apply(name, row=False)
        restored(product, done["kept"])
    assert product.sql('TABLE "Member" ORDER BY 1').splitlines() == ["1|7|8", "2|2|8"]


def test_a_key_whose_own_values_change_finds_no_row_again(product: Product) -> None:
    name = "20260105000000_wide"
    up = 'ALTER TABLE "Member" ALTER "id" TYPE INT, ADD "nick" TEXT'
    text = 'ALTER TABLE "Member" ALTER "id" TYPE SMALLINT USING "id" / 2, DROP "nick"'
    product.write(name, up, text)
    product.sql('CREATE TABLE "Member" ("id" SMALLINT PRIMARY KEY); INSERT INTO "Member" VALUES (1), (5)')
    product.apply(name)
    product.sql('UPDATE "Member" SET "nick" = \'n\' || "id"')
    task = product.task(INDEX, destroys=[name])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    said = down.undo(task, check_mode=False)["says"]
    assert 'to be put back by hand: values of column "public"."Member"."id" (' in said
    assert 'values of column "public"."Member"."nick" (' in said
    # A type that gives all values back is no such change.
    product.write(name, up, text.replace(' USING "id" / 2', ""))
    product.sql('UPDATE "Member" SET "nick" = \'n\' || "id"')
    down.main(task, check_mode=False)
    assert 'with values of column "public"."Member"."nick": 2 rows' in down.undo(task, check_mode=False)["says"]


def test_what_somebody_else_applied_again_is_not_taken_for_undone(product: Product) -> None:
    fill(product)
    task = product.task(INIT, destroys=[BOARD])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    for name in (BOARD, INDEX):
        product.apply(name)
    said = down.undo(task, check_mode=False)
    assert not said["changed"]
    assert said["says"].startswith("nothing to put back; ")
    assert f"{BOARD} was applied again by somebody else, without what it held: that is kept in " in said["says"]
    assert f"{RUN}/{BOARD}.1, with a restore.sql" in said["says"]


def test_undo_is_about_all_that_the_starts_of_a_run_took_down(product: Product) -> None:
    fill(product)
    before = product.state()
    entries = []
    for number, task in enumerate((product.task(BOARD), product.task(INIT, destroys=[BOARD]))):
        saved = {"localhost": down.check(task)["before"]}
        down.main(replace(task, saved=saved["localhost"]), check_mode=False)
        body = {"phase": "revert", "step": "prisma-down", "saved": saved}
        entries.append(Entry("hub", number + 2, iso(utc_now()), "r1", "step-started", body, "", ""))
    opened = Entry("hub", 1, iso(utc_now()), "r1", "run-opened", {"by": "budi"}, "", "")
    (run,) = read_runs([opened, *entries])
    undone = down.undo(product.task(INIT, saved=run.steps["prisma-down"].saved["localhost"]), check_mode=False)
    assert [one["name"] for one in undone["evidence"]["migrations"]] == [BOARD, INDEX]
    assert product.state() == before


def test_undo_takes_the_attempt_that_was_carried_out_and_names_the_others(product: Product) -> None:
    fill(product)
    task = product.task(INIT, destroys=[BOARD])
    task = replace(task, saved=down.check(task)["before"])
    run = product.folder / "kept" / RUN
    # One that was killed while it wrote, far ahead in its number: nothing of it was carried out.
    (run / f"{BOARD}.7").mkdir(parents=True)
    down.main(task, check_mode=False)
    for name in (BOARD, INDEX):
        product.apply(name)
    product.sql('INSERT INTO "Score" ("userId", "kind") VALUES (9, \'DAY\')')
    # Another that was killed after it had written everything, and before it was carried out: taken back by the server.
    with psycopg.connect(product.server.dsn(product.name)) as other:
        number = other.execute("SELECT txid_current()").fetchone()
        other.rollback()
    down.main(task, check_mode=False)
    shutil.copytree(run / f"{BOARD}.9", run / f"{BOARD}.10")
    manifest = json.loads((run / f"{BOARD}.10" / "manifest.json").read_text())
    (run / f"{BOARD}.10" / "manifest.json").write_text(json.dumps({**manifest, "transaction": (number or (0,))[0]}))
    (run / f"{BOARD}.11").mkdir()
    said = down.undo(task, check_mode=False)["says"]
    assert f"kept when it went down before in this run: {run / BOARD}.8" in said
    assert ".10" not in said
    assert product.sql('SELECT "userId" FROM "Score"') == "9"
    # One that had nothing to keep was carried out, too.
    product.sql('TRUNCATE "Score" RESTART IDENTITY; UPDATE "User" SET "score" = NULL')
    assert "kept" not in down.main(task, check_mode=False)["says"]
    assert f"{BOARD} is applied again; kept when" in down.undo(task, check_mode=False)["says"]
    assert product.sql('SELECT count(*) FROM "Score"') == "0"
    assert json.loads((run / f"{BOARD}.12" / "manifest.json").read_text())["items"] == []
    down.main(task, check_mode=False)
    assert f"{run / BOARD}.12" not in down.undo(task, check_mode=False)["says"]


def test_all_folders_that_are_made_are_their_owners_only(product: Product) -> None:
    fill(product)
    task = replace(product.task(INIT, destroys=[BOARD]), keep_dir=str(product.folder / "far" / "away"))
    down.main(task, check_mode=False)
    assert {path.stat().st_mode & 0o77 for path in [product.folder / "far", *(product.folder / "far").rglob("*")]} == {
        0
    }


# Outside of a transaction


def test_what_no_transaction_can_hold_is_announced_and_can_be_repeated(product: Product) -> None:
    fill(product)
    product.write(
        INDEX,
        UP[INDEX],
        """DROP INDEX CONCURRENTLY IF EXISTS "Score_userId_idx";
        CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "Score_one" ON "Score"("kind");
        ALTER TABLE "Score" DROP COLUMN IF EXISTS "gone";""",
    )
    task = product.task(BOARD)
    with product.untouched():
        assert f"prisma_down_outside_transaction: [{INDEX}]" in why(task)
    task = product.task(BOARD, outside_transaction=[INDEX])
    # The five rows have one kind: the unique index cannot be made, and PostgreSQL leaves an invalid one behind.
    words = why(task, lambda task: down.main(task, check_mode=False))
    assert "line 2: CREATE UNIQUE INDEX" in words
    assert product.applied() == [INIT, BOARD, INDEX]
    assert product.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = '\"Score_one\"'::regclass") == "f"
    product.sql('DELETE FROM "Score" WHERE "id" > 1')
    down.main(task, check_mode=False)
    assert product.applied() == [INIT, BOARD]
    assert product.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = '\"Score_one\"'::regclass") == "t"


# Faults


def test_a_lock_that_is_held_for_ever_has_a_limit_and_a_name(product: Product) -> None:
    task = product.task(BOARD, lock_timeout=0.3)
    with (
        psycopg.connect(product.server.dsn(product.name), application_name="forgotten report") as holder,
        product.untouched(),
    ):
        holder.execute('LOCK TABLE "Score" IN ACCESS SHARE MODE')
        began = time.monotonic()
        words = why(task, lambda task: down.main(task, check_mode=False))
        assert time.monotonic() - began < 5
        assert "held a lock for longer than prisma_down_lock_timeout (300ms)" in words
        assert "forgotten report, as postgres, idle in transaction" in words
        assert f"{INDEX} is as it was; down already: none" in words
    product.sql("BEGIN; LOCK TABLE \"Score\"; PREPARE TRANSACTION 'forgotten transfer'")
    try:
        words = why(task, lambda task: down.main(task, check_mode=False))
    finally:
        product.sql("ROLLBACK PREPARED 'forgotten transfer'")
    assert "a prepared transaction (pg_prepared_xacts): forgotten transfer (prepared, for " in words
    assert down.main(task, check_mode=False)["changed"]


def test_a_deadlock_says_to_run_again(product: Product) -> None:
    product.write(INDEX, UP[INDEX], 'ALTER TABLE "User" ADD "a" INT; ALTER TABLE "Score" ADD "a" INT')
    task = product.task(BOARD, lock_timeout=20)
    # Each looks for a deadlock once: it is there when the first does, and the other's look comes much later.
    product.sql(f"ALTER DATABASE {product.name} SET deadlock_timeout = '5s'")
    with psycopg.connect(product.server.dsn(product.name)) as other, ThreadPoolExecutor() as pool:
        other.execute("SET deadlock_timeout = '1min'")
        other.execute('LOCK TABLE "Score"')
        going = pool.submit(why, task, lambda task: down.main(task, check_mode=False))
        wait_for(lambda: product.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1", "it waits")
        other.execute('TABLE "User"')
    assert f"(a deadlock); the server ended this one. {INDEX} is as it was; down already: none. Run again." in (
        going.result()
    )


def test_of_a_lock_whose_holder_a_role_may_not_see_no_age_is_made_up(product: Product) -> None:
    product.sql("CREATE ROLE stranger LOGIN")
    try:
        with psycopg.connect(product.server.dsn(product.name), application_name="report") as holder:
            holder.execute('LOCK TABLE "Score" IN ACCESS SHARE MODE')
            with psycopg.connect(product.server.dsn(product.name, "stranger")) as other:
                (found,) = database.holders(other)
    finally:
        product.sql("DROP ROLE stranger")
    assert found.endswith("(report, as postgres, what it does and since when is not shown to this role)")


def test_what_an_attempt_that_ended_half_way_destroyed_is_told_by_the_next(product: Product) -> None:
    extra = "20260107000000_extra"
    product.write(extra, 'CREATE TABLE "Extra" ("id" int PRIMARY KEY)', 'DROP TABLE "Extra"')
    product.apply(extra)
    product.sql('INSERT INTO "Extra" VALUES (1)')
    fill(product)
    task = product.task(destroys=[extra, BOARD])
    with psycopg.connect(product.server.dsn(product.name)) as holder:
        holder.execute('LOCK TABLE "Score" IN ACCESS SHARE MODE')
        assert "held a lock" in why(task, lambda task: down.main(task, check_mode=False))
    assert product.applied() == [INIT, BOARD, INDEX]
    done = down.main(task, check_mode=False)
    kept = {each["name"]: (each["kept"], each["lost"]) for each in done["evidence"]["migrations"] if each["kept"]}
    folder = product.folder / "kept" / RUN
    assert kept[extra] == (str(folder / f"{extra}.1"), {'table "public"."Extra"': 1})
    assert kept[BOARD][0] == str(folder / f"{BOARD}.1")
    assert f"{extra} went down before in this run (lost, and kept in {folder / extra}.1: table" in done["says"]


def test_a_migrate_that_is_at_work_is_seen(product: Product) -> None:
    with psycopg.connect(product.server.dsn(product.name), application_name="prisma", autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(72707369)")
        with product.untouched():
            assert "a `prisma migrate` is at work now: process" in why(product.task())


def test_a_role_without_the_rights_is_told_before_anything(product: Product) -> None:
    role = f"clerk_{next(numbers)}"
    product.sql(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    task = replace(product.task(), address=address.read(product.url.replace("postgres@", f"{role}@")))
    with product.untouched():
        words = why(task)
    assert f'{role} may not delete from "public"."_prisma_migrations"' in words
    assert '"public"."Score" belongs to postgres' in words
    product.sql(f"GRANT DELETE ON _prisma_migrations TO {role}")
    # An index is nothing that is counted: here the server itself refuses, and the transaction is taken back.
    with product.untouched():
        words = why(replace(task, to=BOARD), lambda task: down.main(task, check_mode=False))
        assert "the server refused: must be owner of index" in words
    product.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("user", ["owner", "postgres"])
def test_rows_that_the_owner_cannot_see_are_found_by_the_check(product: Product, user: str) -> None:
    fill(product)
    role = f"owner_{next(numbers)}"
    product.sql(
        f"""CREATE ROLE {role} LOGIN;
        GRANT ALL ON SCHEMA public TO {role}; ALTER TABLE _prisma_migrations OWNER TO {role};
        ALTER TABLE "Score" OWNER TO {role}; ALTER TABLE "User" OWNER TO {role}; ALTER TYPE "Kind" OWNER TO {role};
        ALTER TABLE "Score" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY few ON "Score" USING ("id" = 1)"""
    )
    name = role if user == "owner" else user
    task = replace(product.task(destroys=[BOARD]), address=address.read(product.url.replace("postgres@", f"{name}@")))
    with product.untouched():
        words = f'the row security of "public"."Score" hides rows from {role}, who would go down'
        assert words in why(task)
        assert words in why(task, lambda task: down.main(task, check_mode=False))
    # A down.sql may let its owner see them.
    text = f'ALTER TABLE "Score" NO FORCE ROW LEVEL SECURITY;\n{DOWN[BOARD]}'
    (product.migrations / BOARD / "down.sql").write_text(text)
    down.check(task)
    lost = down.main(task, check_mode=False)["evidence"]["migrations"][1]["lost"]
    assert lost['table "public"."Score"'] == 5
    product.sql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_killed_server_has_lost_nothing_and_the_next_run_goes_on(tmp_path: Path, deployed: Product) -> None:
    with postgresql(fsync="on") as server:
        server.psql("CREATE DATABASE product")
        product = Product(server, tmp_path, "product")
        shutil.copytree(deployed.migrations, product.migrations)
        server.psql(deployed.state(), "product")
        fill(product)
        product.write(BOARD, UP[BOARD], DOWN[BOARD].replace("DROP TYPE", 'ANALYZE; LOCK TABLE "User"; DROP TYPE'))
        before = {name: product.sql(f'TABLE "{name}"') for name in ("Score", "User")}
        task = product.task(INIT, destroys=[BOARD], lock_timeout=20)
        task = replace(task, saved=down.check(task)["before"])
        # Holds the down of the second migration fast in its midst: "Score" is dropped by then, but for the commit.
        holder = psycopg.connect(server.dsn("product"))
        holder.execute('LOCK TABLE "User" IN ACCESS SHARE MODE')
        words: list[str] = []
        runs = threading.Thread(target=lambda: words.append(why(task, lambda task: down.main(task, check_mode=False))))
        runs.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_for(lambda: server.psql(waiting, "product") != "0", "the down waits")
        server.kill()
        runs.join(30)
        assert "the connection was lost" in words[0] and "Run again" in words[0]
        holder.close()
        server.start()
        assert product.applied() == [INIT, BOARD]
        assert before == {name: product.sql(f'TABLE "{name}"') for name in before}
        done = down.main(task, check_mode=False)
        assert [each["name"] for each in done["evidence"]["migrations"]] == [BOARD]
        assert done["evidence"]["migrations"][0]["lost"]['table "public"."Score"'] == 5
        # Undo is about the whole run, and takes what the last attempt kept.
        assert down.undo(task, check_mode=False)["changed"]
        assert product.applied() == [INIT, BOARD, INDEX]
        assert before == {name: product.sql(f'TABLE "{name}"') for name in before}


def test_a_killed_step_goes_on_where_it_was(product: Product) -> None:
    fill(product)
    # Rows are kept before it comes to the lock.
    product.write(BOARD, UP[BOARD], 'DROP TABLE "Score"; DROP TYPE "Kind"; ALTER TABLE "User" DROP COLUMN "score";')
    task = product.task(INIT, destroys=[BOARD], lock_timeout=2)
    given = {"url": product.url, "migrations": str(product.migrations), "kept": str(product.folder / "kept")}
    code = f"""
import sys; sys.path.insert(0, "collections")
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, down
given = {given!r}
down.main(down.Task(address.read(given["url"]), given["migrations"], {INIT!r}, {RUN!r}, given["kept"],
    destroys=[{BOARD!r}], lock_timeout=2), False)
"""
    with psycopg.connect(product.server.dsn(product.name)) as holder:
        holder.execute('LOCK TABLE "User" IN ACCESS SHARE MODE')
        step = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        try:
            wait_for(lambda: product.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") != "0", "the step waits")
        finally:
            step.kill()
            step.wait(10)
    assert product.applied() == [INIT, BOARD]
    # Its session ends when it sees that nobody is there any more: at the latest with its lock_timeout.
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'balik%'"
    wait_for(lambda: product.sql(ours) == "0", "the killed step's session is gone")
    assert product.applied() == [INIT, BOARD]
    done = down.main(task, check_mode=False)["evidence"]["migrations"]
    assert [each["name"] for each in done] == [BOARD]
    assert done[0]["lost"]['table "public"."Score"'] == 5
    # What the killed one had written by then is left alone.
    assert done[0]["kept"].endswith(".2")


def wait_for(condition: Callable[[], object], what: str, limit: float = 15) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit:g} s: {what}"
        time.sleep(0.05)


def test_a_full_disk_where_it_is_kept_leaves_the_state_before(product: Product) -> None:
    fill(product)
    product.sql("INSERT INTO \"Score\" SELECT n, 1, 'DAY', repeat('x', 1000) FROM generate_series(1000, 4000) n")
    down.main(product.task(BOARD), check_mode=False)
    task = product.task(destroys=[BOARD])
    with product.untouched(), small_files(1 << 20):
        words = why(task, lambda task: down.main(task, check_mode=False))
    assert "what would be lost cannot be written there: File too large" in words
    shutil.rmtree(product.folder / "kept")
    (product.folder / "kept").write_text("no folder")
    assert "cannot be made, because" in why(task)
    # Where nothing goes, main looks for what an earlier start has kept all the same.
    assert "cannot be looked into" in why(product.task(BOARD, keep_dir="/" + "long" * 100))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """The operating system lets this process write no file that is longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
