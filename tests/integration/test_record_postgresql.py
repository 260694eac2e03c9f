"""The record in a real PostgreSQL: its contract, and what a server can do to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.record import Record, RecordUnavailable
from psycopg.conninfo import conninfo_to_dict

from tests.contracts.record import RecordContract, Tamper, appender
from tests.integration.flow.product import BREAK_GLASS, HOSTS, PROJECT, STEPS, Product, kill_tree
from tests.servers.pgbouncer import pgbouncer
from tests.servers.postgresql import Server, postgresql

RECORD = "ansible_collections.balik.rollback.plugins.module_utils.record"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as running:
        yield running


@pytest.fixture
def place(server: Server) -> str:
    name = f"record_{time.time_ns()}"
    server.psql(f"CREATE DATABASE {name}")
    return server.dsn(name)


class TestPostgresql(RecordContract):
    @pytest.fixture
    def place(self, server: Server) -> str:
        name = f"record_{time.time_ns()}"
        server.psql(f"CREATE DATABASE {name}")
        return server.dsn(name)

    @pytest.fixture
    def tamper(self, place: str) -> Tamper:
        def run(sql: str) -> None:
            with psycopg.connect(place) as connection:
                connection.execute("ALTER TABLE balik_entries DISABLE TRIGGER ALL")
                connection.execute(sql)
                connection.execute("ALTER TABLE balik_entries ENABLE TRIGGER ALL")

        return run

    def test_the_table_cannot_be_emptied(self, place: str) -> None:
        with Record(place, "shop") as record:
            record.append("note", {})
            with pytest.raises(psycopg.Error, match="only appended to"):
                record._connection.execute("TRUNCATE balik_entries")


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])
def test_a_database_with_other_habits_orders_writers_all_the_same(server: Server, place: str, isolation: str) -> None:
    name = place.rpartition("dbname=")[2].strip("'")
    server.psql(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    writers = [appender(place, f"w{number}", 50) for number in range(3)]
    for writer in writers:
        _out, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
    with Record(place, "shop") as record:
        assert (record.verify().whole, record.verify().entries) == (True, 150)


def test_products_that_begin_at_once_share_the_tables(place: str) -> None:
    writers = [appender(place, "w", 5, product=f"shop-{number}") for number in range(4)]
    for writer in writers:
        _out, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err


def test_a_server_that_dies_between_two_entries_is_named_and_the_first_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{RECORD}.RETURN_SECONDS", 0.5)
    with postgresql(fsync="on") as mortal:
        with Record(mortal.dsn(), "shop") as record:
            first = record.append("note", {"n": 1})
            mortal.kill()
            with pytest.raises(BalikError) as refused:
                record.append("note", {"n": 2})
        assert "cannot be written" in refused.value.found
        assert f"port='{mortal.port}'" in refused.value.what
        assert "the server?" in refused.value.do
        with pytest.raises(Unreachable, match="cannot be opened"):
            Record(mortal.dsn(), "shop")
        mortal.start()
        with Record(mortal.dsn(), "shop") as record:
            assert list(record.entries()) == [first]
            assert record.append("note", {"n": 2}).previous == first.hash


def test_a_server_that_restarts_between_two_entries_is_waited_for() -> None:
    with postgresql(fsync="on") as mortal, Record(mortal.dsn(), "shop") as record:
        first = record.append("note", {"n": 1})
        mortal.kill()
        back = threading.Timer(1, mortal.start)
        back.start()
        try:
            assert record.append("note", {"n": 2}).previous == first.hash
        finally:
            back.join()


def test_a_session_that_was_cut_between_two_entries_is_opened_anew(server: Server, place: str) -> None:
    with Record(place, "shop") as record:
        first = record.append("note", {})
        server.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname ~ 'record'"
        )
        assert list(record.entries()) == [first]


def test_a_pooler_may_give_one_session_to_several_records(server: Server, place: str) -> None:
    with pgbouncer(server, {"record": str(conninfo_to_dict(place)["dbname"])}) as pooler:
        for product in ("shop", "school"):
            with Record(pooler.dsn("record"), product) as record:
                heads = {record.head() for _look in range(10)}
                assert heads == {record.head()}
                assert record.append("note", {}).hash == record.head()


def test_a_session_that_is_cut_within_an_entry_leaves_nothing_of_it(server: Server, place: str) -> None:
    with Record(place, "shop") as record:
        with pytest.raises(RecordUnavailable, match="cannot be written"), record._transaction("be written"):
            server.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname ~ 'record'"
            )
            record._execute("SELECT 1")
        assert list(record.entries()) == []


def test_a_session_that_is_cut_while_it_takes_the_lock_does_not_take_anothers(server: Server, place: str) -> None:
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname ~ 'record'"
    with Record(place, "shop") as record:
        with pytest.raises(RecordUnavailable, match="terminating connection"), record._transaction("be locked"):
            server.psql(cut)
            record.lock()
        assert record.lock() is None, "the next one has a session of its own"


def test_a_writer_that_does_not_end_is_not_waited_for_ever(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{RECORD}.BUSY_SECONDS", 1)
    with Record(place, "shop") as slow, Record(place, "shop") as record:
        with slow._transaction("be held"):
            began = time.monotonic()
            with pytest.raises(BalikError, match="lock timeout"):
                record.append("note", {})
            assert time.monotonic() - began < 5
        record.append("note", {})


def test_a_user_without_rights_is_told(server: Server, place: str) -> None:
    server.psql("DROP ROLE IF EXISTS intern; CREATE ROLE intern LOGIN")
    with pytest.raises(BalikError, match="cannot be made: permission denied"):
        Record(place.replace("user='postgres'", "user='intern'"), "shop")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://rina:geheim@127.0.0.1:1/balik",
        "postgresql://rina:ge/heim@127.0.0.1:1/balik",
        "postgresql://rina:geheim%zz@127.0.0.1:1/balik",
        "postgresql://rina@127.0.0.1:1/balik?password=geheim",
        "host=127.0.0.1 port=1 dbname=balik password=geheim",
        "host=127.0.0.1 port=1 dbname=balik password=ge heim",
        "host=127.0.0.1 port=1 dbname=balik password='geheim",
        "host=127.0.0.1 port=geheim dbname=balik password=geheim",
        "host=127.0.0.1 port=1 user=rina password=geheim",
    ],
)
def test_no_message_shows_a_dsns_password(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BalikError) as refused:
        Record(dsn, "shop")
    shown = f"{refused.value} {refused.value.what}".replace("port=geheim", "").replace('"geheim"', "")
    assert "heim" not in shown
    assert "geheim" not in repr(list(tmp_path.iterdir())), "a DSN was taken for a file's name"


class Job:
    """A job as AWX has it: its runner, with process ids and a folder of its own that are gone when it ends."""

    def __init__(self, product: Product, folder: Path, **extra: Any) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder.with_suffix(".log")
        environment = product.environment()
        asked = {
            "private_data_dir": str(folder),
            "project_dir": str(PROJECT),
            "playbook": "rollback.yml",
            "inventory": str(product.inventory),
            "envvars": {k: v for k, v in environment.items() if k.startswith("ANSIBLE_") or k == "PATH"},
            "extravars": {"rollback_state_dir": str(folder / "state"), **extra},
            "timeout": 120,
        }
        run = "import ansible_runner, json, sys; sys.exit(ansible_runner.run(**json.loads(sys.argv[1])).rc)"
        with self.log.open("w") as log:
            own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
            command = [*own, sys.executable, "-c", run, json.dumps(asked)]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def namespace(self) -> Path:
        """That of its process ids."""
        return Path(f"/proc/{self._process.pid}/ns/pid_for_children")

    def until(self, there: Any) -> None:
        end = time.monotonic() + 120
        while not there():
            assert self._process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def wait(self) -> int:
        try:
            return self._process.wait(120)
        finally:
            kill_tree(self._process.pid)
            shutil.rmtree(self.folder)

    def kill(self) -> None:
        kill_tree(self._process.pid)
        self.wait()


def test_a_job_whose_container_is_lost_is_gone_on_with_by_the_next(place: str, tmp_path: Path) -> None:
    product = Product(tmp_path, rollback_record_dsn=place)
    (product.folder / "revert-it" / "slow").write_text("60")
    by = {"awx_user_name": "rina", "rollback_role": "lead", "rollback_break_glass": "dari AWX"}
    lost = Job(product, tmp_path / "job-41", **by, awx_job_id=41)
    try:
        lost.until(lambda: product.everywhere("revert-it", "half"))
        # As long as this is open the kernel gives its number to no other: that one could know that all in it are gone.
        namespace = lost.namespace.open()
    finally:
        lost.kill()
    (product.folder / "revert-it" / "slow").unlink()

    with namespace:
        refused = Job(product, tmp_path / "job-42", **by, awx_job_id=42)
        assert refused.wait() != 0
    assert "rollback_take_lock=true" in refused.log.read_text()
    taken = Job(product, tmp_path / "job-43", **by, awx_job_id=43, rollback_take_lock="true")
    assert taken.wait() == 0, taken.log.read_text()
    assert "balik: found revert-it: interrupted" in taken.log.read_text()
    with Record(place, "flow") as record:
        entries = list(record.entries())
        assert record.verify().whole
        assert record.lock() is None
    assert [entry.kind for entry in entries].count("run-opened") == 1
    assert entries[-1].body["outcome"] == "rolled-back"
    assert product.lines() == {f"{step} {host}": "on" for step in STEPS for host in HOSTS[step]}


@pytest.mark.parametrize("password", ["", "geheim-rahasia"])
def test_a_lost_end_is_found_whatever_the_outcome_may_say_of_the_place(
    server: Server, tmp_path: Path, password: str
) -> None:
    name = f"record_{time.time_ns()}"
    server.psql(f"CREATE DATABASE {name}")
    user = f"postgres:{password}" if password else "postgres"
    place = f"postgresql://{user}@{server.host}:{server.port}/{name}"
    product = Product(tmp_path, rollback_record_dsn=place)
    assert product.play(*BREAK_GLASS).returncode == 0
    assert product.play("-e", "verify=true", playbook="playbooks/record.yml").returncode == 0
    with psycopg.connect(place) as connection:
        connection.execute("ALTER TABLE balik_entries DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM balik_entries WHERE seq > 9")
        connection.execute("ALTER TABLE balik_entries ENABLE TRIGGER ALL")
    cut = product.play("-e", "verify=true", playbook="playbooks/record.yml")
    assert cut.returncode != 0, cut.stdout
    assert "the end of the record was cut off" in " ".join(cut.stdout.split())
    assert "WARNING: the record" in product.play("--check").stdout
    assert not password or password not in repr(product.everything_written())
    # Another record has not lost what this one ended with.
    server.psql(f"CREATE DATABASE {name}_2")
    product.write(rollback_record_dsn=f"{place}_2")
    assert "WARNING: the record" not in product.play("--check").stdout
