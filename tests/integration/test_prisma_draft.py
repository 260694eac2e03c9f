"""The playbook that drafts the missing down.sql files, with the real Prisma, and the way there and back with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, down, sql
from ansible_collections.balik.rollback.plugins.module_utils.prisma.draft import Project, write
from ansible_collections.balik.rollback.plugins.module_utils.prisma.sql import DRAFT

from tests.servers.postgresql import Server, postgresql
from tests.servers.prisma import PACKAGES, Prisma

ROOT = Path(__file__).parents[2]
INIT, BOARD = "20260101000000_init", "20260102000000_leaderboard"
UP = {
    INIT: 'CREATE TABLE "User" ("id" SERIAL PRIMARY KEY, "name" TEXT);\nINSERT INTO "User" DEFAULT VALUES;\n',
    BOARD: """CREATE TYPE "Kind" AS ENUM ('DAY');
CREATE TABLE "Score" ("id" SERIAL PRIMARY KEY, "kind" "Kind", "userId" INTEGER REFERENCES "User" ON DELETE CASCADE);
""",
}
SECRET = "kata-sandi-42"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as running:
        running.psql(f"CREATE ROLE developer LOGIN SUPERUSER PASSWORD '{SECRET}'")
        yield running


def made(server: Server, folder: Path, version: str) -> tuple[Prisma, str]:
    """A project with its own Prisma, and the URL of an empty shadow database."""
    name = f"p{version.replace('.', '')}_{folder.parent.name[-8:].replace('-', '_')}"
    for database in (name, f"{name}_shadow"):
        server.psql(f'CREATE DATABASE "{database}"')
    url = f"postgresql://developer:{SECRET}@{server.host}:{server.port}/{name}"
    prisma = Prisma(version, folder, url)
    for migration, up in UP.items():
        (prisma.migrations / migration).mkdir()
        (prisma.migrations / migration / "migration.sql").write_text(up)
    (folder / "node_modules").symlink_to(prisma.home / "node_modules")
    return prisma, f"{url}_shadow"


@pytest.mark.parametrize("version", PACKAGES)
def test_drafts_are_written_once_read_and_then_lead_back(server: Server, tmp_path: Path, version: str) -> None:
    prisma, shadow = made(server, tmp_path / "project", version)
    mine = prisma.migrations / INIT / "down.sql"
    mine.write_text('DROP TABLE "User"; -- mine\n')
    given = {
        "prisma_draft_project": str(prisma.folder),
        "prisma_draft_migrations": str(prisma.migrations),
        "prisma_draft_shadow_url": shadow,
    }
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        "localhost,",
        "--diff",
        "-e",
        json.dumps(given),
    ]
    environment = {
        **os.environ,
        **prisma.environment,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }
    environment.pop("DATABASE_URL")
    done = subprocess.run(
        [*map(str, command), str(ROOT / "playbooks" / "prisma-down-draft.yml")],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"drafted {BOARD}; " in done.stdout and SECRET not in done.stdout + done.stderr
    assert mine.read_text() == 'DROP TABLE "User"; -- mine\n'
    file = prisma.migrations / BOARD / "down.sql"
    draft = file.read_text()
    assert draft.startswith(DRAFT) and 'destroys all rows of "Score"' in draft

    assert prisma.run("migrate", "deploy").code == 0
    task = down.Task(address.read(prisma.url), str(prisma.migrations), INIT, "r1", str(tmp_path / "kept"))
    with pytest.raises(BalikError, match="is a draft that nobody has read"):
        down.check(task)
    file.write_text(draft.partition("\n")[2])
    down.main(task, check_mode=False)
    status = prisma.run("migrate", "status")
    assert f"Following migration have not yet been applied:\n{BOARD}" in status.output


def test_what_prisma_writes_wrongly_is_left_to_a_person_and_the_others_are_drafted(
    server: Server, tmp_path: Path
) -> None:
    prisma, shadow = made(server, tmp_path / "project", "7.10.0")
    quoted, last = "20260103000000_quoted", "20260104000000_last"
    for name, up in {quoted: 'CREATE TABLE "Skör ""q""" ("id" INT);', last: 'CREATE TABLE "Last" ("id" INT);'}.items():
        (prisma.migrations / name).mkdir()
        (prisma.migrations / name / "migration.sql").write_text(up)
    project = Project(prisma.folder, prisma.migrations, address.read(shadow), shadow, environment=prisma.environment)
    says = write(project, check_mode=False)["says"]
    assert f"drafted {INIT}, {BOARD}, {quoted}, {last}; " in says and f"to be written by hand: {quoted}" in says
    drafts = {name: (prisma.migrations / name / "down.sql").read_text() for name in (*UP, quoted, last)}
    assert drafts[last].endswith('DROP TABLE "Last";\n')
    assert "what Prisma wrote cannot be read (line 2: syntax error" in drafts[quoted]
    # Whoever deletes the first line only is told again.
    assert "down.sql, line" in " ".join(sql.read(drafts[quoted].partition("\n")[2], ["public"]).problems)


def test_who_writes_one_meanwhile_keeps_it(server: Server, tmp_path: Path) -> None:
    prisma, shadow = made(server, tmp_path / "project", "7.10.0")
    mine = prisma.migrations / INIT / "down.sql"
    # Somebody writes theirs while Prisma is at work.
    (prisma.folder / "node_modules").unlink()
    package = Path("node_modules", "prisma", "package.json")
    (prisma.folder / package).parent.mkdir(parents=True)
    shutil.copy(prisma.home / package, prisma.folder / package)
    program = prisma.folder / "node_modules" / ".bin" / "prisma"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh\necho '-- mine' > '{mine}'\nexec '{prisma.program}' "$@"\n""")
    program.chmod(0o755)
    project = Project(prisma.folder, prisma.migrations, address.read(shadow), shadow, environment=prisma.environment)
    done = write(project, check_mode=False)
    assert done["says"].startswith(f"drafted {BOARD}; ")
    assert done["says"].endswith(f"; written by somebody else meanwhile: {INIT}")
    assert done["drafts"] == [str(prisma.migrations / BOARD / "down.sql")]
    assert mine.read_text() == "-- mine\n"


def test_a_shadow_database_with_anything_in_it_is_refused(server: Server, tmp_path: Path) -> None:
    prisma, shadow = made(server, tmp_path / "project", "7.10.0")
    server.psql("CREATE TABLE customers (name text)", shadow.rpartition("/")[2])
    project = Project(prisma.folder, prisma.migrations, address.read(shadow), shadow, environment=prisma.environment)
    with pytest.raises(BalikError, match=r"holds public.customers; expected an empty database"):
        write(project, check_mode=False)
    assert not list(prisma.migrations.glob("*/down.sql"))


def test_a_failing_prisma_is_told_with_its_words_and_without_the_password(server: Server, tmp_path: Path) -> None:
    prisma, shadow = made(server, tmp_path / "project", "7.10.0")
    shutil.rmtree(prisma.migrations / INIT)
    project = Project(prisma.folder, prisma.migrations, address.read(shadow), shadow, environment=prisma.environment)
    with pytest.raises(BalikError) as caught:
        write(project, check_mode=False)
    assert f"prisma migrate diff for {BOARD}: ended with 1" in str(caught.value) and SECRET not in str(caught.value)
    (prisma.folder / "node_modules").unlink()
    with pytest.raises(BalikError, match="Run `npm install` in the project"):
        write(project, check_mode=False)
