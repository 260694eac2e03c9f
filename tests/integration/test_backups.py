"""Backups made, found, fetched and stored, with real servers: a folder, sshd, and a bucket."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.backups.fetching import fetch, folder_of
from ansible_collections.balik.rollback.plugins.module_utils.backups.making import Wanted, make, store
from ansible_collections.balik.rollback.plugins.module_utils.backups.manifest import manifest_of, read_manifest
from ansible_collections.balik.rollback.plugins.module_utils.backups.places import Options, place_of
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access, Deadline
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.modules.database_backup import act

from tests.integration.database_restores import small_disk, wait_for
from tests.integration.roles_in_a_play import ROOT, play
from tests.servers.moto import moto
from tests.servers.postgresql import Server, postgresql
from tests.servers.sshd import Sshd, sshd

PATTERN = "pre-golive-snapshot-YYYYMMDD.sql"
LAUNCH = "2099-01-10T20:00:00+07:00"
KEYS = {"access_key": "AKIDEXAMPLE", "secret_key": "s3cr3t-k3y-never-shown", "region": "ap-southeast-3"}
BUCKET = "lawyers-hub-backups"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as running:
        running.psql("CREATE DATABASE hub")
        running.psql(
            "CREATE TABLE documents (id int PRIMARY KEY, title text);"
            "INSERT INTO documents SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, 20000) n;"
            'CREATE TABLE "Äpfel" (x int); INSERT INTO "Äpfel" VALUES (1)',
            "hub",
        )
        yield running


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto() as url:
        bucket_of(url).create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": KEYS["region"]})
        yield url


def bucket_of(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=KEYS["region"],
        aws_access_key_id=KEYS["access_key"],
        aws_secret_access_key=KEYS["secret_key"],
    )


def wanted(server: Server, folder: Path, name: str = PATTERN, **more: Any) -> Wanted:
    access = Access(server.host, server.port, "postgres", application="balik backup")
    given: dict[str, Any] = {"golive": LAUNCH, "jobs": 2, "limit": 60, **more}
    return Wanted(access, "hub", str(folder / name), **given)


def limit() -> Deadline:
    return Deadline(30)


@pytest.fixture(scope="module")
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with its manifest."""
    return Path(make(wanted(server, tmp_path_factory.mktemp("made")))["path"])


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".sql", "plain"), (".sql.gz", "gz"), (".sql.zst", "zst"), (".dump", "custom"), (".dir", "directory")],
)
def test_a_backup_is_made_with_a_manifest_that_is_true(server, tmp_path, ending, kind):
    place = wanted(server, tmp_path / "new", f"pre-golive-snapshot-YYYYMMDD{ending}")
    assert make(place, dry=True)["changed"]
    assert not (tmp_path / "new").exists(), "a check run makes nothing"
    done = make(place)
    path = Path(done["path"])
    manifest = read_manifest(path)
    assert manifest
    assert (manifest["kind"], manifest["database"], manifest["file"]) == (kind, "hub", path.name)
    assert manifest["tables"]["public.documents"]["rows"] == 20000
    assert manifest["tables"]["public.documents"]["inserted"] == 20000
    assert manifest["tables"]["public.Äpfel"]["rows"] == 1
    assert manifest["server_version"] == server.psql("SHOW server_version").split()[0]
    assert [entry.stat().st_mode & 0o077 for entry in path.parent.rglob("*")].count(0) == len([*path.parent.rglob("*")])
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(
        [path.name, f"{path.name}.manifest.json", f"{path.name}.sha256"]
    )
    if not path.is_dir():
        subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, check=True, capture_output=True)
    local, name = place_of(str(path.with_name(f"pre-golive-snapshot-YYYYMMDD{ending}")))
    found = fetch(local, name, LAUNCH, tmp_path, limit(), "hub")
    assert (found.path, found.changed) == (path, False)
    assert "by its manifest" in found.says
    with pytest.raises(BalikError, match="exists already; expected a free name"):
        make(place)
    assert read_manifest(path) == manifest, "what was there is as it was"


@pytest.mark.parametrize("ending", [".sql", ".sql.gz", ".dir"])
def test_a_second_one_of_a_name_leaves_the_first_one_alone(server, tmp_path, ending):
    place = wanted(server, tmp_path, f"pre-golive-snapshot-YYYYMMDD{ending}")
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(server.dsn("hub")) as holder:
            holder.execute("LOCK TABLE documents")
            first = pool.submit(make, place)
            wait_for(lambda: list(tmp_path.glob("*.part-*")), "the first one is being written")
            with pytest.raises(BalikError, match=rf"{ending}: another process is making it"):
                make(place)
        path = Path(first.result()["path"])
    assert not list(tmp_path.glob("*.part-*"))
    assert fetch(*place_of(str(path)), LAUNCH, tmp_path, limit(), "hub").manifest


def test_rows_that_come_while_it_is_made_are_in_neither_file_nor_manifest(server, tmp_path):
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            server.psql("INSERT INTO busy SELECT generate_series(1, 100)", "hub")

    server.psql("CREATE TABLE busy (x int)", "hub")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        manifest = make(wanted(server, tmp_path))["manifest"]
    finally:
        stop.set()
        writer.join()
    text = (tmp_path / manifest["file"]).read_text()
    rows = text.split("COPY public.busy (x) FROM stdin;\n")[1].split("\\.\n")[0].count("\n")
    assert manifest["tables"]["public.busy"]["rows"] == rows
    server.psql("DROP TABLE busy", "hub")


@pytest.mark.parametrize("name", [PATTERN, "latest.sql"])
def test_a_backup_after_go_live_says_that_none_will_choose_it_and_none_does(server, tmp_path, name):
    launched = "2026-01-10T20:00:00+07:00"
    done = make(wanted(server, tmp_path, name, golive=launched))
    assert "BEWARE: go-live was at 2026-01-10" in done["says"]
    place, _ = place_of(done["path"])
    for asked in (name, Path(done["path"]).name):
        with pytest.raises(BalikError, match=r"taken .*Z by its manifest, after go-live"):
            fetch(place, asked, launched, tmp_path, limit(), "hub")
    assert fetch(place, name, LAUNCH, tmp_path, limit(), "hub").warning == ""


def test_a_backup_without_a_manifest_whose_file_is_of_after_go_live_is_told(server, made, tmp_path):
    """Nobody knows when it was taken; whoever decides reads it in check and in the loss statement."""
    path = tmp_path / "latest.sql"
    path.write_bytes(made.read_bytes())
    at = {"login_host": server.host, "login_port": server.port, "login_user": "postgres"}
    place, _ = place_of(str(path))
    for unknown in (LAUNCH, ""):
        found = fetch(place, path.name, unknown, tmp_path, limit(), "hub")
        assert re.search(r"latest\.sql in .*, its file of .* UTC; it has no manifest$", found.says)
    launched = "2026-01-10T20:00:00+07:00"
    plan = {
        "db_restore_database": "hub",
        "db_restore_backup": str(path),
        "db_restore_golive": launched,
        "db_restore_backup_dir": str(tmp_path / "now"),
        **{f"db_restore_{key}": value for key, value in at.items()},
    }
    says = play(tmp_path, [("db-restore", "check")], plan, {})[0]["says"]
    said = (
        r"WARNING: latest\.sql has no manifest .* its file is of \S+ \S+ UTC, after go-live .* would be restored from"
    )
    assert re.search(said, says), says
    asked = {"state": "told", "database": "hub", "backup": str(path), "golive": launched, **at}
    for wait in ("0", "1m"):
        told = subprocess.run(
            ["ansible", "localhost", "-c", "local", "-m", "balik.rollback.database_loss", "-a",
             json.dumps({**asked, "limit": wait})],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "  WARNING: latest.sql has no manifest that says when it was taken" in told.stdout


def test_a_dump_that_fails_leaves_nothing(server, tmp_path):
    with pytest.raises(BalikError, match="database nothere: not on PostgreSQL"):
        make(replace(wanted(server, tmp_path), database="nothere"))
    with psycopg.connect(server.dsn("hub")) as somebody:
        somebody.execute("LOCK TABLE documents")
        with pytest.raises(BalikError, match="not done within"):
            make(wanted(server, tmp_path, limit=1))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("ending", [".sql", ".sql.gz", ".dir"])
def test_whoever_keeps_a_table_locked_is_named(server, tmp_path, ending):
    with psycopg.connect(server.dsn("hub"), application_name="nightly import") as somebody:
        somebody.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE")
        pid = somebody.info.backend_pid
        said = rf"tables are locked by pid {pid} \(postgres, nightly import, .*raise db_restore_lock_limit"
        with pytest.raises(BalikError, match=said):
            make(wanted(server, tmp_path, f"x{ending}", lock_limit=1, limit=30))
    assert [*tmp_path.iterdir()] == []


def test_a_role_that_may_not_read_a_table_is_told_what_to_do(server, tmp_path):
    server.psql("CREATE ROLE reader LOGIN")
    as_reader = replace(wanted(server, tmp_path), access=Access(server.host, server.port, "reader"))
    with pytest.raises(BalikError, match=r"permission denied for table .*GRANT pg_read_all_data TO reader"):
        make(as_reader)
    assert [*tmp_path.iterdir()] == []


def test_a_disk_that_looks_too_small_can_be_ignored(server, tmp_path):
    with small_disk(tmp_path / "small", "6m") as folder:
        with pytest.raises(BalikError, match=r"6 MB free; expected about .* or set db_restore_ignore_space"):
            make(wanted(server, folder))
        assert make(wanted(server, folder, "x.sql.gz", ignore_space=True))["changed"]


def test_without_room_for_its_manifest_a_backup_leaves_nothing(server, tmp_path):
    told = ""
    for files in range(2, 12):
        with small_disk(tmp_path / "small", "64m", files) as folder:
            try:
                made = make(wanted(server, folder))
            except BalikError as error:
                told += f"{error}\n"
                assert [each.name for each in folder.iterdir() if not each.name.startswith(".")] == [], files
            else:
                assert Path(made["path"]).exists()
                break
    else:
        pytest.fail(told)
    assert "the backup is whole, and cannot get its name or manifest: No space left on device" in told


def test_killed_before_it_is_whole_its_name_is_free(server, tmp_path):
    """Killed while the checksum is written: no snapshot stands there without its manifest."""
    place = wanted(server, tmp_path)
    name = Path(make(place, dry=True)["path"]).name
    os.mkfifo(tmp_path / f"{name}.sha256")  # whoever opens it to write waits for a reader
    process = os.fork()
    if not process:
        try:
            make(place)
        finally:
            os._exit(0)
    try:
        end = time.monotonic() + 30
        while not manifest_of(tmp_path / name).exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert not (tmp_path / name).exists()
    (tmp_path / f"{name}.sha256").unlink()
    done = make(place)
    assert read_manifest(tmp_path / name) == done["manifest"]
    assert len([*tmp_path.iterdir()]) == 3


def test_a_snapshot_never_stands_there_without_its_manifest(server, tmp_path):
    place = wanted(server, tmp_path)
    name = Path(make(place, dry=True)["path"]).name
    (tmp_path / f"{name}.sha256").mkdir()
    with pytest.raises(OSError, match="directory"):
        make(place)
    assert [each.name for each in tmp_path.iterdir()] == [f"{name}.sha256"]


def rewritten(**values: Any) -> Callable[[Path], Any]:
    """The manifest with other values; without those that are ...: they are left out."""

    def change(path: Path) -> None:
        manifest = {**json.loads(manifest_of(path).read_text()), **values}
        kept = {key: value for key, value in manifest.items() if value is not ...}
        manifest_of(path).write_text(json.dumps(kept))

    return change


def folder_instead(path: Path) -> None:
    manifest_of(path).unlink()
    manifest_of(path).mkdir()


AS_WRITTEN = "expected a manifest as balik writes it. Write it anew, or take it away"
SPOIL = {
    "cut": (lambda path: os.truncate(path, 1000), "size is 1000, .* in the manifest; sha256 is"),
    "another byte": (lambda path: path.write_bytes(path.read_bytes().replace(b"1\t", b"2\t", 1)), "sha256 is"),
    "another database": (rewritten(database="shop"), "database is hub, shop in the manifest"),
    "no manifest": (lambda path: manifest_of(path).write_text("[]"), "is no JSON object; expected a manifest"),
    "nothing but brackets": (lambda path: manifest_of(path).write_text("[" * 200_000), "is no JSON object"),
    "a newer manifest": (rewritten(format=2), "a manifest of format 2; expected format 1"),
    "another backup's manifest": (rewritten(file="other.sql"), r"the manifest of other\.sql; expected pre-golive-"),
    "no sum": (rewritten(sha256=...), rf"\.sql\.manifest\.json.*: sha256 is missing; {AS_WRITTEN}"),
    "null for the sum": (rewritten(sha256=None), f"sha256 is missing; {AS_WRITTEN}"),
    "true for a number": (rewritten(format=True), f"format is true, no number; {AS_WRITTEN}"),
    "a list of tables": (rewritten(tables=[1, 2]), rf"tables is \[1, 2\], no object; {AS_WRITTEN}"),
    "a number for a table": (rewritten(tables={"public.a": 5}), f"tables.public.a is 5, no object; {AS_WRITTEN}"),
    "a text for rows": (rewritten(tables={"a": {"rows": "x"}}), f'tables.a.rows is "x", no number; {AS_WRITTEN}'),
    "a list of files": (rewritten(files=[{}]), rf"files is \[{{}}\], no object; {AS_WRITTEN}"),
    "Latin-1": (lambda path: manifest_of(path).write_bytes(b'{"file": "\xe9"}'), "json: is no text in UTF-8"),
    "a folder": (folder_instead, r"manifest\.json: cannot be read: Is a directory"),
}


@pytest.mark.parametrize("spoil", SPOIL)
def test_each_difference_from_the_manifest_is_named(made, tmp_path, spoil):
    path = copied(made, tmp_path)
    change, says = SPOIL[spoil]
    change(path)
    place, name = place_of(str(path))
    for asked in (name, PATTERN):
        with pytest.raises(BalikError, match=says):
            fetch(place, asked, LAUNCH, tmp_path, limit(), "hub")


def test_the_backup_of_another_database_is_refused_by_its_manifest(server, made, tmp_path):
    server.psql("CREATE DATABASE other TEMPLATE hub")
    at = {"login_host": server.host, "login_port": server.port, "login_user": "postgres"}
    plan = {
        "db_restore_database": "other",
        "db_restore_backup": str(made),
        "db_restore_backup_dir": str(tmp_path / "now"),
        **{f"db_restore_{key}": value for key, value in at.items()},
    }
    says = (
        r"database is other, hub in the manifest; .* If other was called so then, list 'database hub' in db_restore_acc"
    )
    with pytest.raises(AssertionError, match=says):
        play(tmp_path, [("db-restore", "check")], plan, {})
    accepted = play(tmp_path, [("db-restore", "check")], {**plan, "db_restore_accept": ["database hub"]}, {})
    assert "would be restored from" in accepted[0]["says"]
    asked = {"state": "told", "database": "other", "backup": str(made), "limit": "0", **at}
    for accept in ([], ["database hub"]):
        command = ["ansible", "localhost", "-c", "local", "-m", "balik.rollback.database_loss", "-a"]
        told = subprocess.run(
            [*command, json.dumps({**asked, "accept": accept})], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert ("database is other, hub in the manifest" in told.stdout) is not bool(accept)
    server.psql("DROP DATABASE other")


@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_a_spoiled_manifest_of_another_place_is_named(made, remote, endpoint, tmp_path, kind):
    place, name = place_at(kind, tmp_path / f"spoiled {kind}", remote, endpoint)
    (tmp_path / f"{made.name}.manifest.json").write_bytes(b'{"file": "\xe9"}')
    for each in (made, tmp_path / f"{made.name}.manifest.json"):
        place.store(each, each.name, limit())
    for asked in (made.name, name):
        with pytest.raises(BalikError, match=rf"{made.name}\.manifest\.json in .*: is no text in UTF-8"):
            fetch(place, asked, LAUNCH, tmp_path / "here", limit(), "hub")


def test_a_manifest_on_another_host_that_cannot_be_read_is_not_none(made, remote, tmp_path):
    place, _ = place_at("ssh", tmp_path / "vault", remote, "")
    (tmp_path / "vault" / made.name).write_bytes(made.read_bytes())
    manifest_of(tmp_path / "vault" / made.name).mkdir()
    with pytest.raises(BalikError, match=r"manifest\.json cannot be read: .*Is a directory"):
        fetch(place, made.name, LAUNCH, tmp_path / "here", limit(), "hub")


def copied(made: Path, folder: Path) -> Path:
    for each in made.parent.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    return folder / made.name


def place_at(kind: str, folder: Path, remote: Sshd, endpoint: str, name: str = PATTERN) -> tuple[Any, str]:
    if kind == "ssh":
        folder.mkdir(exist_ok=True)
        return place_of(f"ssh://{remote.target}:{remote.port}{folder}/{name}", Options(ssh=remote.options))
    return place_of(f"s3://{BUCKET}/{folder.name}/{name}", Options(s3={**KEYS, "endpoint_url": endpoint}))


def taken_away(kind: str, path: Path, endpoint: str) -> None:
    if kind == "ssh":
        path.unlink()
    else:
        bucket_of(endpoint).delete_object(Bucket=BUCKET, Key=f"{path.parent.name}/{path.name}")


def to_bucket(bucket: str, server: Server, endpoint: str, folder: Path) -> dict[str, Any]:
    """What database_backup is given for a snapshot that goes to a bucket."""
    return {
        **dict.fromkeys(["login_user", "bin_dir", "login_password", "ca_cert"], ""),
        "state": "made", "place": f"s3://{bucket}/{PATTERN}", "folder": str(folder), "database": "hub",
        "golive": LAUNCH, "limit": "1m", "lock_limit": "10s", "ignore_space": False, "jobs": 1, "ssh_options": [],
        "s3": {**KEYS, "endpoint_url": endpoint}, "login_host": server.host, "login_port": server.port,
        "login_user": "postgres", "ssl_mode": "prefer", "maintenance_database": "postgres",
    }  # fmt: skip


def test_what_a_place_refused_is_stored_by_the_next_start(server, endpoint, tmp_path):
    """It refuses while its bucket is not there; what was made is stored then, and not made anew."""
    bucket = "refuses-at-first"
    given = to_bucket(bucket, server, endpoint, tmp_path)
    with pytest.raises(BalikError, match=f"s3://{bucket}: refused: NoSuchBucket"):
        act(given, check_mode=False)
    (made_then,) = tmp_path.glob("*/*.sql")
    unstored = made_then.with_name(f"{made_then.name}.unstored")
    assert (unstored.exists(), unstored.stat().st_mode & 0o077) == (True, 0)
    assert fetch(*place_of(str(made_then.with_name(PATTERN))), LAUNCH, tmp_path, limit(), "hub").path == made_then
    with pytest.raises(BalikError, match=r"already, of the database hub; .* give this one another name or prefix"):
        act({**given, "database": "postgres"}, check_mode=False)
    content = made_then.read_bytes()
    os.truncate(made_then, 1000)
    with pytest.raises(BalikError, match=r"size is 1000.* It cannot be stored\. Remove it, and run again"):
        act(given, check_mode=False)
    made_then.write_bytes(content)
    before = made_then.stat()
    for name in ("pre-golive-snapshot-20260101.sql", "weekly.sql"):
        for each in (name, f"{name}.unstored"):
            made_then.with_name(each).touch()
    made_then.with_name("pre-golive-snapshot-20260103.sql.unstored").touch()  # the file has been removed
    bucket_of(endpoint).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": KEYS["region"]})
    assert "was made before, as its manifest says: taken 2" in act(given, check_mode=True)["says"]
    done = act(given, check_mode=False)
    assert done["says"].partition("rows; ")[2] == (
        f"stored in s3://{bucket}. BEWARE: pre-golive-snapshot-20260101.sql was made in {made_then.parent}, too, and "
        "never stored: remove it, or store it with its name as db_restore_backup"
    )
    assert not unstored.exists()
    assert (made_then.stat().st_mtime, made_then.stat().st_ino) == (before.st_mtime, before.st_ino)
    place, name = place_of(given["place"], Options(s3=given["s3"]))
    assert fetch(place, name, LAUNCH, tmp_path / "here", limit(), "hub").path.read_bytes() == made_then.read_bytes()
    unstored.touch()
    fetched = fetch(place, name, LAUNCH, tmp_path, limit(), "hub")
    assert not unstored.exists(), "the place has it"
    # Whoever restores hears of it, too.
    assert f". BEWARE: pre-golive-snapshot-20260101.sql was made in {made_then.parent}, too" in fetched.says
    # As a store leaves it that breaks off before the manifest.
    bucket_of(endpoint).delete_object(Bucket=bucket, Key=f"{made_then.name}.manifest.json")
    unstored.touch()
    fetch(place, name, LAUNCH, tmp_path, limit(), "hub")
    assert act(given, check_mode=False)["says"].partition("rows; ")[2].startswith(f"stored in s3://{bucket}.")
    # Another one of that name is not lost to what the place has.
    made_then.write_bytes(b"another")
    unstored.touch()
    with pytest.raises(BalikError, match="made here and never stored, and other than what"):
        fetch(place, name, LAUNCH, tmp_path, limit(), "hub")
    assert made_then.read_bytes() == b"another"


def test_what_was_stored_and_taken_away_on_purpose_is_not_stored_again(server, endpoint, tmp_path):
    given = to_bucket(f"{BUCKET}/taken-away", server, endpoint, tmp_path)
    done = act(given, check_mode=False)
    place, _ = place_of(given["place"], Options(s3=given["s3"]))
    for taken in (False, True):
        for each in place.list() if taken else []:
            bucket_of(endpoint).delete_object(Bucket=BUCKET, Key=f"taken-away/{each.name}")
        for check in (True, False):
            with pytest.raises(BalikError, match=r"exists already; .* choose another name"):
                act(given, check_mode=check)
    assert place.list() == []
    assert Path(done["path"]).exists()


@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_a_backup_goes_to_another_place_and_comes_back(made, remote, endpoint, tmp_path, kind):
    place, name = place_at(kind, tmp_path / f"kept {kind}", remote, endpoint)
    assert store(place, made, limit()) == f"stored in {place.title}"
    unstored = made.with_name(f"{made.name}.unstored")
    unstored.touch()  # as if it had been killed at the very end
    with pytest.raises(BalikError, match="exists already"):
        store(place, made, limit())
    assert not unstored.exists()
    assert sorted(each.name for each in place.list()) == sorted(each.name for each in made.parent.iterdir())
    for left in (["manifest.json"], ["manifest.json", "sql"]):  # what has come when it breaks off
        for each in place.list():
            if each.name.endswith(tuple(left)):
                taken_away(kind, tmp_path / f"kept {kind}" / each.name, endpoint)
        store(place, made, limit())
        with pytest.raises(BalikError, match="exists already"):
            store(place, made, limit())
    assert sorted(each.name for each in place.list()) == sorted(each.name for each in made.parent.iterdir())

    here = tmp_path / "here"
    dry = fetch(place, name, LAUNCH, here, limit(), "hub", dry=True)
    assert (dry.changed, here.exists()) == (True, False)
    found = fetch(place, name, LAUNCH, here, limit(), "hub")
    assert found.path.read_bytes() == made.read_bytes()
    assert found.changed
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert {each.stat().st_mode & 0o777 for each in (here, found.path.parent)} == {0o700}
    assert "by its manifest" in found.says
    assert found.manifest == read_manifest(made)
    again = fetch(place, name, LAUNCH, here, limit(), "hub")
    assert (again.path, again.changed) == (found.path, False)


@pytest.mark.parametrize("kind", ["ssh", "s3"])
@pytest.mark.parametrize("there", ["half of it", "another file"])
def test_what_broke_off_is_gone_on_with_and_proved(made, remote, endpoint, tmp_path, kind, there):
    place, name = place_at(kind, tmp_path / f"resumed {there}", remote, endpoint)
    if not place.list():
        store(place, made, limit())
    here = tmp_path / "here"
    mine = folder_of(place, here)
    mine.mkdir(parents=True)
    half = made.read_bytes()[:100_000]
    (mine / f"{made.name}.part").write_bytes(half if there == "half of it" else half.replace(b"a", b"b"))
    found = fetch(place, name, LAUNCH, here, limit(), "hub")
    assert found.path.read_bytes() == made.read_bytes()
    assert not (mine / f"{made.name}.part").exists()


@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_a_file_of_another_place_is_never_taken_for_this_ones(made, remote, endpoint, tmp_path, kind):
    """Two products whose backups have one name, one size and no manifest, and one folder on this host."""
    here, name = tmp_path / "here", "pre-golive-snapshot-20260109.sql"
    content = made.read_bytes()
    texts = {"staging": content, "production": content.replace(b"a", b"b")}
    for product, text in texts.items():
        (tmp_path / "made" / product).mkdir(parents=True)
        (tmp_path / "made" / product / name).write_bytes(text)
        place, pattern = place_at(kind, tmp_path / product, remote, endpoint)
        place.store(tmp_path / "made" / product / name, name, limit())
        if product == "production":  # what broke off while it was fetched had another content
            folder_of(place, here).mkdir(parents=True)
            (folder_of(place, here) / f"{name}.part").write_bytes(texts["staging"][:100_000])
        found = fetch(place, pattern, LAUNCH, here, limit())
        assert found.changed
        assert found.path.read_bytes() == text
        assert fetch(place, pattern, LAUNCH, here, limit()).changed is False


@pytest.mark.parametrize("beside", ["a manifest", "a checksum", "nothing"])
def test_a_file_that_is_another_by_now_is_fetched_anew(made, remote, tmp_path, beside):
    place, _ = place_at("ssh", tmp_path / "vault", remote, "")
    store(place, made, limit())
    vault, here = tmp_path / "vault", tmp_path / "here"
    if beside != "a manifest":
        manifest_of(vault / made.name).unlink()
    if beside == "nothing":
        (vault / f"{made.name}.sha256").unlink()
    assert fetch(place, made.name, LAUNCH, here, limit()).changed
    assert fetch(place, made.name, LAUNCH, here, limit()).changed is False
    text = made.read_bytes().replace(b"a", b"b")
    before = (vault / made.name).stat().st_mtime
    (vault / made.name).write_bytes(text)
    os.utime(vault / made.name, (before + (beside == "nothing"),) * 2)
    sha = sha256(text).hexdigest()
    if beside == "a manifest":
        manifest = json.loads(manifest_of(made).read_text())
        manifest_of(vault / made.name).write_text(json.dumps({**manifest, "sha256": sha}))
    if beside == "a checksum":
        (vault / f"{made.name}.sha256").write_text(f"{sha}  {made.name}\n")
    dry = fetch(place, made.name, LAUNCH, here, limit(), dry=True)
    assert dry.changed
    assert "other than what was fetched before" in dry.says
    found = fetch(place, made.name, LAUNCH, here, limit())
    assert found.changed
    assert found.path.read_bytes() == text


def test_names_in_a_place_may_hold_anything(made, remote, tmp_path):
    place, pattern = place_at("ssh", tmp_path / "vault", remote, "")
    store(place, made, limit())
    for name in ("a\tb", "a\nb\t1", "a b"):
        (tmp_path / "vault" / name).write_text("x")
    assert {each.name for each in place.list()} >= {"a\tb", "a\nb\t1", "a b", made.name}
    assert fetch(place, pattern, LAUNCH, tmp_path / "here", limit()).changed


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("/etc/passwd", "/etc/passwd: no folder; expected a folder, for /etc/passwd/from-"),
        ("/proc/nope", "/proc/nope: cannot be made: No such file"),
        ("backups/now", "db_restore_backup_dir: found 'backups/now', a relative path"),
    ],
)
def test_a_folder_that_cannot_be_one_is_named(made, remote, tmp_path, folder, says):
    place, pattern = place_at("ssh", tmp_path / "vault", remote, "")
    store(place, made, limit())
    with pytest.raises(BalikError, match=says):
        fetch(place, pattern, LAUNCH, Path(folder), limit())


@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_a_place_that_does_not_let_us_in_is_named_and_no_key_is_shown(remote, endpoint, tmp_path, kind):
    if kind == "ssh":
        place, name = place_of(f"ssh://{remote.target}:{remote.port}/nowhere/{PATTERN}", Options(ssh=remote.options))
        with pytest.raises(BalikError, match=r"its files cannot be listed: .*No such file"):
            fetch(place, name, LAUNCH, tmp_path, limit())
        place, name = place_of(f"ssh://{remote.target}:1/x/{PATTERN}", Options(ssh=remote.options))
        with pytest.raises(BalikError, match=r"cannot be listed: .*[Rr]efused"):
            fetch(place, name, LAUNCH, tmp_path, limit())
        return
    with pytest.raises(BalikError, match="refused: NoSuchBucket") as error:
        place, name = place_of(f"s3://no-such-bucket/{PATTERN}", Options(s3={**KEYS, "endpoint_url": endpoint}))
        fetch(place, name, LAUNCH, tmp_path, limit())
    with pytest.raises(BalikError, match=r"s3://no-such-bucket: .*NoSuchBucket"):
        place.store(Path(__file__), "x.sql", limit())
    assert KEYS["secret_key"] not in str(error.value) + repr(place)
    began = time.monotonic()
    with pytest.raises(BalikError, match="Check the endpoint"):
        place, name = place_of(f"s3://b/{PATTERN}", Options(s3={**KEYS, "endpoint_url": "http://127.0.0.1:1"}))
        fetch(place, name, LAUNCH, tmp_path, limit())
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_the_limit_is_kept(made, remote, endpoint, tmp_path, kind):
    place, name = place_at(kind, tmp_path / f"slow {kind}", remote, endpoint)
    store(place, made, limit())
    with pytest.raises(BalikError, match="not done within"):
        fetch(place, name, LAUNCH, tmp_path / "here", Deadline(0))


def test_an_address_holds_no_password_and_is_one_of_three():
    for address in ("ssh://me:secret@host/x", "ftp://host/x", "s3://", "ssh://host:port/x"):
        with pytest.raises(BalikError, match="a backup's address") as error:
            place_of(address)
        assert "secret" not in str(error.value)
    with pytest.raises(BalikError, match=r"found 'backups/x\.sql', a relative path"):
        place_of("backups/x.sql")


def test_a_manifest_makes_an_estimate_one_since_the_backup(server, tmp_path):
    """The counters of now less those at the backup, where there is no time for a comparison."""
    from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked, statement

    done = make(wanted(server, tmp_path))
    server.psql(
        "INSERT INTO documents SELECT generate_series(30001, 30007); UPDATE documents SET title = '' WHERE id < 4",
        "hub",
    )
    access = Access(server.host, server.port, "postgres")
    end = time.monotonic() + 10
    while True:  # the server's counters come a little later
        found = statement(Asked(access, "hub", "r", done["path"], limit=0))
        table: dict[str, Any] = next((each for each in found["tables"] if each["table"] == "public.documents"), {})
        if (table.get("inserted"), table.get("changed")) == (7, 3):
            break
        assert time.monotonic() < end, json.dumps(found["tables"])
        time.sleep(0.2)
    assert table["note"] == "an estimate, by the server's counters at the backup"
    assert found["taken_by"] == "manifest"


def test_the_module_shows_no_key(made, endpoint, tmp_path):
    place, name = place_at("s3", tmp_path / "module", None, endpoint)  # type: ignore[arg-type]
    store(place, made, limit())
    arguments = {
        "state": "fetched",
        "place": f"{place.title}/{name}",
        "golive": LAUNCH,
        "folder": str(tmp_path / "here"),
        "s3": {**KEYS, "endpoint_url": endpoint},
    }
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "ansible", "localhost", "-i", "localhost,", "-c", "local", "-vvv", "-m",
         "balik.rollback.database_backup", "-a", json.dumps(arguments), "-e",
         f"ansible_python_interpreter={sys.executable}"],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder_of(place, tmp_path / "here") / made.name).read_bytes() == made.read_bytes()
    assert KEYS["secret_key"] not in done.stdout + done.stderr
