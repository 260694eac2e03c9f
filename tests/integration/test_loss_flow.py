"""What a restore loses, through a whole rollback: told to whoever decides, kept as files, and in the report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.flow.product import Product
from tests.servers.postgresql import Server, postgresql
from tests.servers.sshd import sshd
from tests.servers.webhook import Hook, webhook

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


def decided_and_kept(product: Product, server: Server, hook: Hook) -> None:
    with product.started("-e", "rollback_reason='data korup'") as rollback:
        rollback.until(lambda: hook.bodies)
        text = hook.bodies[0]["text"]
        assert "would lose 3 rows (2 inserted, 1 changed)" in text
        assert "1 rows that were deleted since would come back" in text
        assert "public.documents: 2 inserted, 1 changed, 1 deleted, from 2026-01-10 14:00:00 UTC" in text
        told = product.entries("loss")[0].body["hosts"]["localhost"]
        assert (told["exact"], told["total"]["lost"]) == (True, 3)
        assert told["backup"].endswith("pre-golive-snapshot-20260109.sql")
        server.psql("INSERT INTO documents VALUES (1003, 'sesudah ditanya', now())", "hub")  # while people think
        product.decide("go", "dua dokumen bisa ditulis ulang")
        assert rollback.wait() == 0, rollback.stdout()
        said = rollback.stdout()
    assert server.psql("SELECT count(*) FROM documents", "hub") == "100"
    assert "balik: localhost: what was lost is kept: 5 rows in 3 files in" in said

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


def test_a_database_that_does_not_answer_is_told_as_unknown_and_within_time(product: Product) -> None:
    product.write(db_restore_login_port=1, rollback_decision={**product.plan["rollback_decision"], "wait": "1m"})
    began = time.monotonic()
    run = product.play("-e", "rollback_reason='data korup'")
    assert time.monotonic() - began < 40
    assert "NOT DECIDED: no answer from Lead" in run.stdout, run.stdout
    assert "balik: localhost: what db-restore would lose is UNKNOWN: database postgres on PostgreSQL at" in run.stdout
    lost: dict[str, Any] = product.entries("loss")[0].body["hosts"]["localhost"]
    assert "lost" not in lost
    assert "unknown" in Path(product.outcome()["report"]).read_text()
