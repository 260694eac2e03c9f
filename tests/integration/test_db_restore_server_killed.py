"""``kill -9`` of the server in every phase: the next start says what it found and ends right, and nothing is lost."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import check, restore
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration import database_restores
from tests.integration.database_restores import (
    BESIDE,
    DATABASE,
    KEPT,
    SLOWLY,
    databases,
    edited,
    said,
    seen,
    started,
    task,
    wait_for,
)
from tests.servers.postgresql import Server

server, dumps, live = database_restores.server, database_restores.dumps, database_restores.live


def is_active(server: Server, query: str) -> bool:
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    return server.psql(f"{running} AND query LIKE '{query}'") != "0"


@pytest.fixture
def job(live, dumps, tmp_path):
    return task(live, tmp_path, dumps / "s.sql", checks=[])


@pytest.mark.parametrize("phase", ["dump", "restore", "verification", "swap"])
def test_the_server_is_killed(live, dumps, tmp_path, job, phase):
    before = seen(live)
    slow = job
    if phase == "restore":
        source = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", "\nSELECT pg_sleep(60);\nALTER TABLE ONLY")
        slow = replace(job, source=str(source))
    elif phase == "swap":
        source = edited(dumps, tmp_path / "x.sql", "\nALTER TABLE ONLY", SLOWLY)
        slow = replace(job, source=str(source))
    elif phase == "verification":
        slow = replace(job, checks=[{"query": "SELECT pg_sleep(60)::text", "expect": ""}])
    with ExitStack() as stack:
        if phase == "dump":
            holder = stack.enter_context(closing(psycopg.connect(live.dsn(DATABASE))))
            holder.execute("LOCK TABLE documents")
        process = stack.enter_context(started(slow))
        if phase == "dump":
            wait_for(lambda: list(Path(job.folder).glob("*.part-*")), "the backup of now is being written")
        elif phase == "swap":
            wait_for(lambda: BESIDE in databases(live), "the copy is made")
            live.psql("BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'owed'", DATABASE)
            wait_for(lambda: is_active(live, "ALTER DATABASE%RENAME%"), "the swap waits")
        else:
            wait_for(lambda: is_active(live, "SELECT pg_sleep%"), f"it is in the middle of the {phase}")
        live.kill()
        assert process.wait(30) == 1
        assert b"BalikError" in said(process), "told in our words"
    live.start()
    if phase == "swap":
        live.psql("ROLLBACK PREPARED 'owed'", DATABASE)
    left = BESIDE in databases(live)
    assert left == (phase != "dump")
    assert {**seen(live), "databases": before["databases"]} == before, "the live database is the old one, and open"
    assert (f"{BESIDE} is what an interrupted start of this run left" in check(job)["says"]) == left
    done = restore(job)
    assert done["evidence"]["leftover_dropped"] == left
    assert seen(live)["row"][5:] == (4000, None)
    assert databases(live) == [DATABASE, KEPT]
    assert sorted(file.suffix for file in Path(job.folder).iterdir()) == [".dump", ".of"]


def test_a_lock_held_for_ever_is_told(live, job):
    with closing(psycopg.connect(live.dsn(DATABASE), application_name="laporan")) as holder:
        holder.execute("LOCK TABLE documents")
        with pytest.raises(
            BalikError, match=r"timeout; tables are locked by pid \d+ \(postgres, laporan, idle in transaction\) since"
        ):
            restore(replace(job, lock_limit=1))
    assert databases(live) == [DATABASE]


def test_a_right_that_was_taken_away_is_told(live, job):
    """Between `check` and `main`."""
    live.psql("CREATE ROLE lately LOGIN SUPERUSER")
    mine = replace(job, access=replace(job.access, user="lately"))
    before = check(mine)["before"]
    live.psql("ALTER ROLE lately NOSUPERUSER")
    with pytest.raises(BalikError, match=r"role lately .* lacks CREATEDB, membership in"):
        restore(replace(mine, saved=before))
    assert databases(live) == [DATABASE]
