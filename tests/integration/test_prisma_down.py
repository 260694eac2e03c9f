"""prisma-down against a real server, and what the real Prisma says before and after."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, down
from ansible_collections.balik.rollback.plugins.module_utils.prisma.workload import Places

from tests.integration.roles_in_a_play import play
from tests.servers.postgresql import Server, postgresql
from tests.servers.prisma import PACKAGES, Prisma

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
    with postgresql() as running:
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
        return self.sql(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v') AND relnamespace = 'public'::regnamespace ORDER BY 1"
        ).split()

    def state(self) -> str:
        """What must not change when something is refused."""
        return subprocess.run(
            [self.server.bin / "pg_dump", "-d", self.server.dsn(self.name)], capture_output=True, text=True, check=True
        ).stdout

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

    found = down.check(new.task())
    assert found["says"].startswith(f"down: {BOARD} (destroys nothing); then {INIT} is the newest")
    assert down.main(new.task(), check_mode=False)["changed"]

    status = both["old"].run("migrate", "status")
    assert (status.code, "Database schema is up to date!" in status.output) == (0, True), status.output
    deploy = both["old"].run("migrate", "deploy")
    assert (deploy.code, "No pending migrations to apply." in deploy.output) == (0, True), deploy.output
    status = both["new"].run("migrate", "status")
    assert status.code == 1
    assert f"Following migration have not yet been applied:\n{BOARD}\n" in status.output

    # And forward again, by Prisma's own hand: nothing was left behind.
    deploy = both["new"].run("migrate", "deploy")
    assert (deploy.code, "All migrations have been successfully applied." in deploy.output) == (0, True), deploy.output


@pytest.mark.parametrize("version", PACKAGES)
def test_after_undo_prisma_has_nothing_to_do(product: Product, version: str) -> None:
    fill(product)
    before = product.state()
    task = product.task(INIT, destroys=[BOARD])
    task = replace(task, saved=down.check(task)["before"])
    down.main(task, check_mode=False)
    assert "Score" not in product.tables()
    done = down.undo(task, check_mode=False)
    assert done["changed"]
    assert product.state() == before
    status = Prisma(version, product.folder, product.url).run("migrate", "status")
    assert (status.code, "Database schema is up to date!" in status.output) == (0, True), status.output


# Down


def test_down_is_newest_first_idempotent_and_says_what_it_kept(product: Product) -> None:
    fill(product)
    product.sql("ALTER ROLE postgres SET statement_timeout = 1")
    task = product.task(INIT, destroys=[BOARD])
    try:
        found = down.check(task)
    finally:
        product.sql("ALTER ROLE postgres RESET statement_timeout")
    assert [each["name"] for each in found["before"]["migrations"]] == [INDEX, BOARD]
    assert found["diff"]["after"].index(INDEX) < found["diff"]["after"].index("DROP TYPE")
    assert '(destroys values of column "public"."User"."score": 3 rows, table "public"."Score": 5 rows)' in found["says"]
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
    assert (again["changed"], again["says"]) == (False, f"{INIT} is the newest already")
    assert down.verify(task)["says"] == f"{INIT} is the newest migration"


def test_what_was_kept_can_be_read_back_by_hand(product: Product) -> None:
    fill(product)
    dump = product.sql('TABLE "Score"'), product.sql('SELECT "id", "score" FROM "User" ORDER BY 1')
    down.main(product.task(INIT, destroys=[BOARD]), check_mode=False)
    product.apply(BOARD)
    (kept,) = (product.folder / "kept" / RUN).iterdir()
    done = subprocess.run(
        [product.server.bin / "psql", "-X", "-v", "ON_ERROR_STOP=1", "-1", "-f", "restore.sql", "-d", product.server.dsn(product.name)],
        cwd=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert dump == (product.sql('TABLE "Score"'), product.sql('SELECT "id", "score" FROM "User" ORDER BY 1'))
