"""PgBouncer in front: its clients wait for the swap and see no error, and never longer than they must."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import pgbouncer as front
from ansible_collections.balik.rollback.plugins.module_utils.database.access import find_programs
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import check, restore, undo
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration import database_restores
from tests.integration.database_restores import (
    BESIDE,
    DATABASE,
    KEPT,
    databases,
    seen,
    started,
    task,
    untouched,
    wait_for,
)
from tests.servers.pgbouncer import Server, pgbouncer

server, dumps, live = database_restores.server, database_restores.dumps, database_restores.live


@pytest.fixture
def pooler(live):
    with pgbouncer(live, {"hub": DATABASE, "reports": DATABASE, "other": "postgres"}) as running:
        yield running


@pytest.fixture
def job(live, dumps, tmp_path, pooler):
    return task(live, tmp_path, dumps / "s.sql", pgbouncer=[pooler.console], pgbouncer_limit=5)


def paused(pooler: Server) -> bool:
    pools = front.find([pooler.console], DATABASE, find_programs(15))
    return any(pool.paused for pool in pools)


class Client(threading.Thread):
    """Asks without a pause, each time in a transaction of its own; keeps the first error and the longest wait."""

    def __init__(self, pooler: Server) -> None:
        super().__init__(daemon=True)
        self.dsn, self.stop, self.asked, self.longest, self.error = pooler.dsn("hub"), False, 0, 0.0, ""

    def run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None) as connection:
            while not self.stop:
                began = time.monotonic()
                try:
                    connection.execute("INSERT INTO written VALUES (1)")
                except psycopg.Error as error:
                    self.error = str(error)
                    return
                self.asked, self.longest = self.asked + 1, max(self.longest, time.monotonic() - began)


def test_clients_of_pgbouncer_see_no_error(live, job, pooler):
    said = check(job)["says"]
    assert "PgBouncer would be paused for the swap: hub, reports" in said
    clients = [Client(pooler) for _ in range(4)]
    for client in clients:
        client.start()
    wait_for(lambda: all(client.asked > 5 for client in clients), "the clients write")
    evidence = [restore(job)["evidence"], undo(job)["evidence"]]
    before = [client.asked for client in clients]
    wait_for(lambda: all(client.asked > was + 5 or client.error for client, was in zip(clients, before)), "they go on")
    for client in clients:
        client.stop = True
        client.join(10)
    assert [client.error for client in clients] == [""] * 4
    assert [(one["pgbouncer"]["paused"], one["pgbouncer"]["late"]) for one in evidence] == [
        (["hub", "reports"], False)
    ] * 2
    assert max(client.longest for client in clients) < 5
    assert not paused(pooler)


def test_a_transaction_that_stays_open_does_not_hold_the_swap_up(live, job, pooler):
    with psycopg.connect(pooler.dsn("hub"), prepare_threshold=None) as lazy:
        lazy.execute("SELECT 1")
        done = restore(replace(job, pgbouncer_limit=1))["evidence"]
        assert done["pgbouncer"]["late"] is True
        with pytest.raises(psycopg.Error):
            lazy.execute("SELECT 1")
    with psycopg.connect(pooler.dsn("hub"), prepare_threshold=None) as client:
        assert client.execute("SELECT count(*) FROM documents").fetchone() == (4000,)


def keepers() -> list[int]:
    """Process ids of the keepers that run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"Pauses PgBouncers and resumes them" in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_killed_while_paused_it_is_resumed_by_itself(live, job, pooler):
    with psycopg.connect(pooler.dsn("hub"), prepare_threshold=None) as lazy:
        lazy.execute("SELECT 1")  # so that PAUSE waits
        with untouched(live), started(replace(job, pgbouncer_limit=60)) as process:
            wait_for(lambda: BESIDE in databases(live), "the copy is made")
            wait_for(lambda: paused(pooler), "PgBouncer is paused")
            assert len(keepers()) == 1
            assert b"kata-sandi" not in Path(f"/proc/{keepers()[0]}/cmdline").read_bytes()
            process.kill()  # -9
            process.wait()
            lazy.rollback()
            wait_for(lambda: not paused(pooler), "PgBouncer goes on by itself")
            wait_for(lambda: not keepers(), "nobody is left")
            assert restore(job)["changed"], "the same run, again"
            undo(job)
            live.psql(f'DROP DATABASE "{DATABASE.replace(chr(34), chr(34) * 2)}__restored_{job.run}"')


def test_when_its_keeper_is_killed_the_run_resumes(live, pooler):
    with front.paused([pooler.console], DATABASE, find_programs(15), 5) as told:
        assert told["paused"] == ["hub", "reports"]
        assert paused(pooler)
        (keeper,) = keepers()
        subprocess.run(["kill", "-9", str(keeper)], check=True)
    assert not paused(pooler)


def test_a_pause_that_takes_too_long_ends_by_itself(live, pooler, monkeypatch):
    monkeypatch.setattr(front, "HOLD", 1.0)
    with front.paused([pooler.console], DATABASE, find_programs(15), 5):
        wait_for(lambda: not paused(pooler), "PgBouncer goes on after its limit")


def test_what_pgbouncer_refuses_is_told(live, dumps, tmp_path, job, pooler):
    with untouched(live):
        with pytest.raises(BalikError, match="password authentication failed") as refused:
            check(replace(job, pgbouncer=[pooler.console.replace("penjaga", "salah")]))
        assert "salah" not in str(refused.value)
        with pytest.raises(BalikError, match="not allowed"):
            check(
                replace(
                    job, pgbouncer=[pooler.console.replace("user=warden", "user=app").replace(pooler.password, "none")]
                )
            )
        with pytest.raises(BalikError, match="PgBouncer 1 in db_restore_pgbouncer: not a connection string"):
            check(replace(job, pgbouncer=["127.0.0.1:6432"]))
        with psycopg.connect(f"{pooler.console} dbname=pgbouncer", autocommit=True) as console:
            console.execute("PAUSE reports")
            for act in (check, restore):
                with pytest.raises(BalikError, match=r'database reports: is paused already.*RESUME "reports"'):
                    act(job)
            console.execute("RESUME reports")
    assert "PgBouncer has no client" in check(replace(job, database="known_good", pgbouncer=[pooler.console]))["says"]
    assert KEPT not in databases(live)
    assert seen(live)["row"][1] is True
