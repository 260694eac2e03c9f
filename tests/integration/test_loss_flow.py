"""What a restore or a way down loses, in a rollback: told to whoever decides, kept as files, and in the report."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.flow.product import Product
from tests.servers.postgresql import Server, postgresql
from tests.servers.sshd import sshd
from tests.servers.webhook import Hook, webhook

HOUSE = Path(__file__).parents[2]
SECRET = "S4ng4t-r4h4sia"
LAUNCHED = "2026-01-10T20:00:00+07:00"
DAY_BEFORE = 1767960000  # 2026-01-09T12:00:00Z


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as running:
        yield running


@pytest.fixture
def snapshot(server: Server, tmp_path: Path) -> Path:
    server.psql("DROP DATABASE IF EXISTS hub WITH (FORCE)")
    server.psql("CREATE DATABASE hub")
    server.psql(
        "CREATE TABLE documents (id int PRIMARY KEY, title text, created_at timestamptz);"
        "INSERT INTO documents SELECT n, 'Surat ' || n, '2026-01-01Z' FROM generate_series(1, 100) n",
        "hub",
    )
    path = tmp_path / "backups" / "pre-golive-snapshot-20260109.sql"
    path.parent.mkdir()
    subprocess.run([server.bin / "pg_dump", "-d", server.dsn("hub"), "-f", path], check=True, timeout=60)
    os.utime(path, (DAY_BEFORE, DAY_BEFORE))
    server.psql(
        "INSERT INTO documents VALUES (1001, 'baru', '2026-01-10 14:00Z'), (1002, 'terakhir', '2026-01-10 15:00Z');"
        "UPDATE documents SET title = 'diubah' WHERE id = 7; DELETE FROM documents WHERE id = 8",
        "hub",
    )
    return path


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook() as receiver:
        yield receiver


@pytest.fixture
def product(tmp_path: Path, server: Server, snapshot: Path, hook: Hook) -> Product:
    return Product(
        tmp_path,
        web=False,
        rollback_people={"lead": {"title": "Lead", "reach": {"webhook": hook.url}}},
        rollback_remedies={
            "all": {"covers": ["frontend", "backend", "database"], "takes": "1m", "revert": ["revert-it", "db-restore"]}
        },
        rollback_messages={"asked": {"to": ["lead"], "subject": "Go?", "says": "Go atau No-Go: <reason>"}},
        rollback_loss={"exact": "always"},
        db_restore_database="hub",
        db_restore_backup=str(snapshot.with_name("pre-golive-snapshot-YYYYMMDD.sql")),
        db_restore_backup_dir=str(tmp_path / "now"),
        db_restore_login_host=server.host,
        db_restore_login_port=server.port,
        db_restore_login_user="postgres",
        db_restore_login_password=SECRET,
    )


def test_whoever_decides_reads_what_would_be_lost_and_it_is_kept(
    product: Product, server: Server, hook: Hook, tmp_path: Path
) -> None:
    """The backup lies on another host, and is brought here first."""
    (tmp_path / "sshd").mkdir()
    with sshd(tmp_path / "sshd") as remote:
        place = f"ssh://{remote.target}:{remote.port}{tmp_path}/backups/pre-golive-snapshot-YYYYMMDD.sql"
        product.write(db_restore_backup=place, db_restore_ssh_options=remote.options)
        decided_and_kept(product, server, hook)


def test_a_database_that_lets_nobody_in_is_known_before_anybody_is_asked(
    product: Product, server: Server, hook: Hook, tmp_path: Path
) -> None:
    """The backup is not here yet, and so is not read."""
    server.psql("DROP ROLE IF EXISTS restorer")
    server.psql("CREATE ROLE restorer SUPERUSER LOGIN PASSWORD 'right'")
    rules = server.data / "pg_hba.conf"
    rules.write_text("host all restorer 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    server.psql("SELECT pg_reload_conf()")
    (tmp_path / "sshd").mkdir()
    with sshd(tmp_path / "sshd") as remote:
        place = f"ssh://{remote.target}:{remote.port}{tmp_path}/backups/pre-golive-snapshot-YYYYMMDD.sql"
        product.write(db_restore_backup=place, db_restore_ssh_options=remote.options, db_restore_login_user="restorer")
        refused = product.play("-e", "rollback_reason='data korup'")
        assert refused.returncode != 0
        told = "no connection to database 'postgres' as restorer: .*password authentication failed for user"
        assert re.search(told, refused.stdout), refused.stdout
        assert "Nothing was touched, and nobody was asked." in refused.stdout
        assert (hook.bodies, product.line("hold-it"), SECRET in refused.stdout) == ([], "off", False)

        product.write(db_restore_login_password="right")
        looked = product.play("-e", "rollback_reason='data korup'", "--check")
        assert looked.returncode == 0, looked.stdout

        product.write(db_restore_login_port=1)  # the new release may keep it busy
        with product.started("-e", "rollback_reason='data korup'") as rollback:
            rollback.until(lambda: hook.bodies)
            assert "no connection to database 'postgres' as restorer" in rollback.stdout()
    assert [name for name, text in product.everything_written().items() if SECRET in text] == []


def decided_and_kept(product: Product, server: Server, hook: Hook) -> None:
    with product.started("-e", "rollback_reason='data korup'") as rollback:
        rollback.until(lambda: hook.bodies)
        text = hook.bodies[0]["text"]
        assert "would lose 3 rows (2 inserted, 1 changed)" in text
        assert "1 row that was deleted since would come back" in text
        assert "public.documents: 2 inserted, 1 changed, 1 deleted, from 2026-01-10 14:00:00 UTC" in text
        told = product.entries("loss")[0].body["hosts"]["localhost"]
        assert (told["exact"], told["total"]["lost"]) == (True, 3)
        assert told["backup"].endswith("pre-golive-snapshot-20260109.sql")
        server.psql("INSERT INTO documents VALUES (1003, 'sesudah ditanya', now())", "hub")  # while people think
        product.decide("go", "dua dokumen bisa ditulis ulang")
        assert rollback.wait() == 0, rollback.stdout()
        said = rollback.stdout()
    assert server.psql("SELECT count(*) FROM documents", "hub") == "100"
    assert "balik: localhost: what was lost is kept: 5 rows in 3 files in" in said, said

    kept = product.entries("loss-exported")[0].body["hosts"]["localhost"]
    files = {file["kind"]: Path(kept["folder"]) / file["file"] for file in kept["files"]}
    assert Path(kept["folder"]).parent == product.folder / "now", "beside the backup of that moment"
    with files["inserted"].open(newline="") as rows:
        assert [row["title"] for row in csv.DictReader(rows)] == ["baru", "terakhir", "sesudah ditanya"]
    assert files["changed"].read_text() == "id,title,created_at\n7,diubah,2026-01-01 00:00:00+00\n"
    assert files["deleted"].read_text() == "id,title,created_at\n8,Surat 8,2026-01-01 00:00:00+00\n"
    closed = "SELECT datallowconn FROM pg_database WHERE datname LIKE 'hub\\_\\_before%'"
    assert server.psql(closed) == "f", "the replaced database is closed again"
    assert server.psql("SELECT count(*) FROM pg_database WHERE datname LIKE '%loss%'") == "0"

    report = Path(product.outcome()["report"])
    found = json.loads(report.with_suffix(".json").read_text())["loss"]
    assert found["told"][0]["tables"][0]["inserted"] == 2
    assert found["exported"][0]["folder"] == kept["folder"]
    for ending in (".html", ".md"):
        text = report.with_suffix(ending).read_text()
        assert "What was lost" in text
        assert "3 rows would be lost. Every row was compared." in text
        assert kept["folder"].replace("_", "") in text.replace("\\_", "").replace("_", "")
    assert [name for name, text in product.everything_written().items() if SECRET in text] == []
    assert SECRET not in said

    again = product.play("-e", json.dumps({"loss_export": True}), playbook="playbooks/loss.yml")
    assert again.returncode == 0, again.stdout
    assert f"files in {kept['folder']}" in again.stdout


def test_it_is_told_alone_and_a_check_run_makes_no_database(product: Product, server: Server) -> None:
    before = server.psql("SELECT count(*), max(oid) FROM pg_database")
    checked = product.play("--check", playbook="playbooks/loss.yml")
    assert checked.returncode == 0, checked.stdout
    assert "not exactly known: this is a check run" in checked.stdout
    assert server.psql("SELECT count(*), max(oid) FROM pg_database") == before
    made = product.play(playbook="playbooks/backup.yml")
    assert made.returncode == 0, made.stdout
    assert "BEWARE: go-live was at 2026-01-10" in made.stdout
    manifest = next(Path(product.plan["db_restore_backup"]).parent.glob("*.manifest.json"))
    assert json.loads(manifest.read_text())["tables"]["public.documents"]["rows"] == 101
    told = product.play(playbook="playbooks/loss.yml")
    assert told.returncode == 0, told.stdout
    assert "(exactly, by comparing every row with the backup)" in told.stdout
    assert product.entries() == [], "no run, no entry"


def test_a_single_table_may_be_named_as_a_text(product: Product, server: Server) -> None:
    """As Ansible takes it where a list of texts is wanted."""
    server.psql("CREATE TABLE new (x int); INSERT INTO new VALUES (1), (2)", "hub")
    product.write(db_restore_scope="tables", db_restore_tables="public.documents", db_restore_drop_tables="public.new")
    told = product.play(playbook="playbooks/loss.yml")
    assert told.returncode == 0, told.stdout
    assert "public.documents: 2 inserted, 1 changed, 1 deleted" in told.stdout
    assert "public.new: new since, all its 2 rows" in told.stdout


def test_told_alone_no_table_is_left_out(product: Product, server: Server) -> None:
    tables = [f"later_{number}" for number in range(12)]
    server.psql("; ".join(f"CREATE TABLE {name} (x int); INSERT INTO {name} VALUES (1)" for name in tables), "hub")
    told = product.play(playbook="playbooks/loss.yml")
    assert told.returncode == 0, told.stdout
    assert [name for name in tables if f"public.{name}: new since, its only row" not in told.stdout] == []
    assert "the report names" not in told.stdout


def test_a_database_that_does_not_answer_is_told_as_unknown_and_within_time(product: Product) -> None:
    product.write(db_restore_login_port=1, rollback_decision={**product.plan["rollback_decision"], "wait": "1m"})
    run = product.play("-e", "rollback_reason='data korup'")
    assert "NOT DECIDED: no answer from Lead" in run.stdout, run.stdout
    assert "balik: localhost: what db-restore would lose is UNKNOWN: database postgres on PostgreSQL at" in run.stdout
    (opened,), (entry,) = product.entries("run-opened"), product.entries("loss")
    assert (datetime.fromisoformat(entry.at) - datetime.fromisoformat(opened.at)).total_seconds() < 40
    assert "lost" not in entry.body["hosts"]["localhost"]
    assert "unknown" in Path(product.outcome()["report"]).read_text()


INIT, BOARD = "20251201000000_init", "20260101000000_leaderboard"
BOOKKEEPING = """
CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL, finished_at timestamptz,
  migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(), applied_steps_count int NOT NULL DEFAULT 0);
"""
MIGRATIONS = {
    INIT: ('CREATE TABLE "User" (id int PRIMARY KEY);', 'DROP TABLE "User";'),
    BOARD: ('CREATE TABLE "Score" (id int PRIMARY KEY);', 'DROP TABLE "Score";'),
}


@pytest.fixture
def going_down(tmp_path: Path, server: Server, hook: Hook) -> Product:
    """A product whose remedy goes down from a migration that has five rows by now."""
    server.psql("DROP DATABASE IF EXISTS hub WITH (FORCE)")
    server.psql("CREATE DATABASE hub")
    server.psql(BOOKKEEPING, "hub")
    for name, (up, down) in MIGRATIONS.items():
        folder = tmp_path / "migrations" / name
        folder.mkdir(parents=True)
        (folder / "migration.sql").write_text(up)
        (folder / "down.sql").write_text(down)
        server.psql(up, "hub")
        server.psql(
            "INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, applied_steps_count) VALUES"
            f" ('{name[:8]}', '{hashlib.sha256(up.encode()).hexdigest()}', now(), '{name}', 1)",
            "hub",
        )
    server.psql('INSERT INTO "Score" SELECT generate_series(1, 5)', "hub")
    remedy = {"covers": ["frontend", "backend", "database"], "takes": "1m", "revert": ["revert-it", "prisma-down"]}
    return Product(
        tmp_path,
        web=False,
        rollback_people={"lead": {"title": "Lead", "reach": {"webhook": hook.url}}},
        rollback_remedies={"all": remedy},
        rollback_messages={"asked": {"to": ["lead"], "subject": "Go?", "says": "Go atau No-Go: <reason>"}},
        prisma_down_url=f"postgresql://postgres:{SECRET}@{server.host}:{server.port}/hub",
        prisma_down_migrations=str(tmp_path / "migrations"),
        prisma_down_to=INIT,
        prisma_down_keep_dir=str(tmp_path / "kept"),
    )


def test_nobody_is_asked_before_going_down_has_the_yes_that_it_wants(
    going_down: Product, server: Server, hook: Hook
) -> None:
    alone = going_down.play(playbook="playbooks/loss.yml")
    assert "prisma-down would be REFUSED as things stand, also after a Go" in alone.stdout
    refused = going_down.play("-e", "rollback_reason='data korup'")
    assert refused.returncode != 0
    assert hook.bodies == []
    (entry,) = going_down.entries("step-failed")
    why = entry.body["failures"]["localhost"]
    assert f'{BOARD} would destroy table "public"."Score": 5 rows' in why
    assert f"prisma_down_destroys: [{BOARD}]" in why
    assert "Nothing was touched, and nobody was asked." in going_down.outcome()["reason"]
    assert going_down.line("hold-it") == "off"
    assert server.psql('SELECT count(*) FROM "Score"', "hub") == "5"
    assert [name for name, text in going_down.everything_written().items() if SECRET in text] == []


def test_a_database_that_the_release_keeps_busy_keeps_nobody_from_deciding(going_down: Product, hook: Hook) -> None:
    """Once the new release is gone, it may answer again."""
    going_down.write(
        prisma_down_url=f"postgresql://postgres:{SECRET}@127.0.0.1:1/hub",
        rollback_decision={**going_down.plan["rollback_decision"], "wait": "1m"},
    )
    run = going_down.play("-e", "rollback_reason='data korup'")
    assert "NOT DECIDED: no answer from Lead" in run.stdout, run.stdout
    assert "no connection" in hook.bodies[0]["text"]


def test_a_table_that_going_down_brings_back_keeps_nobody_from_deciding(
    going_down: Product, server: Server, hook: Hook
) -> None:
    server.psql("CREATE TABLE dropped_by_the_release (n int)", "hub")
    snapshot = going_down.folder / "snapshot.sql"
    subprocess.run([server.bin / "pg_dump", "-d", server.dsn("hub"), "-f", snapshot], check=True, timeout=60)
    server.psql("DROP TABLE dropped_by_the_release", "hub")
    remedy = going_down.plan["rollback_remedies"]["all"]
    going_down.write(
        prisma_down_destroys=[BOARD],
        db_restore_database="hub",
        db_restore_scope="tables",
        db_restore_tables=["public.dropped_by_the_release"],
        db_restore_backup=str(snapshot),
        db_restore_golive="",
        db_restore_backup_dir=str(going_down.folder / "now"),
        db_restore_login_host=server.host,
        db_restore_login_port=server.port,
        db_restore_login_user="postgres",
        rollback_remedies={"all": {**remedy, "revert": ["revert-it", "prisma-down", "db-restore"]}},
    )
    with going_down.started("-e", "rollback_reason='data korup'") as rollback:
        rollback.until(lambda: hook.bodies)
        assert "table public.dropped_by_the_release in hub: not there" in rollback.stdout()


def test_what_going_down_destroys_is_told_before_and_reported_after(
    going_down: Product, server: Server, hook: Hook, tmp_path: Path
) -> None:
    going_down.write(prisma_down_destroys=[BOARD])
    alone = going_down.play(playbook="playbooks/loss.yml")
    assert alone.returncode == 0, alone.stdout
    destroys = f'prisma-down: down: {BOARD} (destroys table "public"."Score": 5 rows)'
    assert f"balik: localhost: {destroys}" in alone.stdout
    assert (going_down.entries(), (tmp_path / "kept").exists()) == ([], False), "only read"
    with going_down.started("-e", "rollback_reason='data korup'") as rollback:
        rollback.until(lambda: hook.bodies)
        assert destroys in hook.bodies[0]["text"]
        going_down.decide("go", "papan skor boleh hilang")
        assert rollback.wait() == 0, rollback.stdout()
    assert server.psql("SELECT to_regclass('\"Score\"') IS NULL", "hub") == "t"
    report = Path(going_down.outcome()["report"])
    found = json.loads(report.with_suffix(".json").read_text())["loss"]
    assert found["told"][0]["down"]["migrations"] == {BOARD: {'table "public"."Score"': 5}}
    folder = found["kept"][0]["files"][0]
    assert Path(folder).is_dir()
    text = report.with_suffix(".html").read_text()
    assert "was not kept" not in text
    assert f"prisma-down kept what stood there before in {folder}." in text

    # As docs/prisma.md says, all of it comes back.
    undo = documented_undo(tmp_path, going_down.entries()[-1].run)
    unknown = documented_undo(tmp_path, "20260101T000000Z-0000")
    refused = going_down.play(playbook=str(unknown))
    assert refused.returncode != 0
    assert "record_run: found '20260101T000000Z-0000'; expected a run of this record" in refused.stdout
    assert server.psql("SELECT to_regclass('\"Score\"') IS NULL", "hub") == "t"
    done = going_down.play(playbook=str(undo))
    assert done.returncode == 0, done.stdout
    assert server.psql('SELECT array_agg(id ORDER BY id) FROM "Score"', "hub") == "{1,2,3,4,5}"
    names = "SELECT string_agg(migration_name, ' ' ORDER BY migration_name) FROM _prisma_migrations"
    assert server.psql(names, "hub") == f"{INIT} {BOARD}"


def documented_undo(folder: Path, run: str) -> Path:
    """The playbook of docs/prisma.md, for a run."""
    page = (HOUSE / "docs" / "prisma.md").read_text()
    (written,) = (block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "tasks_from: undo" in block)
    playbook = folder / f"undo-{run}.yml"
    playbook.write_text(re.sub(r"rollback_run_id: \S+", f"rollback_run_id: {run}", written, count=1))
    return playbook


def test_with_nothing_to_ask_it_says_so(product: Product) -> None:
    product.write(rollback_remedies={"all": {**product.plan["rollback_remedies"]["all"], "revert": ["revert-it"]}})
    run = product.play(playbook="playbooks/loss.yml")
    assert run.returncode == 0, run.stdout
    assert "there is nothing to ask: no remedy of the plan has a step db-restore or prisma-down" in run.stdout
