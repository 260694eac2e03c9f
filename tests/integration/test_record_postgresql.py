"""The record in a real PostgreSQL: its contract, and what a server can do to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.record import Record

from tests.contracts.record import RecordContract, Tamper, appender
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


def test_a_server_that_dies_between_two_entries_is_named_and_the_first_one_stays() -> None:
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


def test_a_session_that_was_cut_is_said_to_be(server: Server, place: str) -> None:
    with Record(place, "shop") as record:
        record.append("note", {})
        server.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname ~ 'record'"
        )
        with pytest.raises(BalikError, match="cannot be read"):
            list(record.entries())


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
