"""What hangs on a database from outside of it is named by `check`, or refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import catalog, tables
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import check, restore
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration import database_restores
from tests.integration.database_restores import DATABASE, KEPT, databases, dump, quoted, task, untouched, wait_for
from tests.servers.postgresql import Server, as_server_user

server, dumps, live = database_restores.server, database_restores.dumps, database_restores.live


@contextmanager
def replica(server: Server) -> Iterator[None]:
    """A physical replica of ``server``, called laporan."""
    folder = server.folder / "replica"
    port = server.port + 1  # for the name of its socket only
    base = [str(server.bin / "pg_basebackup"), "-h", server.host, "-p", str(server.port), "-U", "postgres"]
    as_user = as_server_user()
    options = ["-R", "-X", "stream", "--no-sync", "-c", "fast", "-D"]
    subprocess.run([*base, *options, str(folder)], check=True, timeout=60, **as_user)  # type: ignore[call-overload]
    with (folder / "postgresql.auto.conf").open("a") as file:
        file.write(
            f"primary_conninfo = 'host={server.host} port={server.port} user=postgres application_name=laporan'\n"
        )
    settings = [f"--port={port}", "--hot_standby=on", f"--unix_socket_directories={server.folder}", "--fsync=off"]
    settings += ["--listen_addresses=", "--max_prepared_transactions=4", "--max_connections=60", "--wal_level=logical"]
    with (server.folder / "replica.log").open("wb") as log:
        process = subprocess.Popen(
            [server.bin / "postgres", "-D", folder, *settings],
            stdout=log,
            stderr=log,
            **as_user,  # type: ignore[call-overload]
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def test_replicas_are_named_with_how_far_they_are_behind(live, dumps, tmp_path):
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'laporan'"
    with replica(live):
        wait_for(lambda: live.psql(streaming) == "1", "the replica follows")
        looked = check(task(live, tmp_path, dumps / "s.sql"))
        assert "replicas: laporan at 127.0.0.1 (streaming, " in looked["says"]
        assert restore(task(live, tmp_path, dumps / "s.sql"))["changed"]
    assert len(looked["evidence"]["around"]["replicas"]) == 1


def test_long_transactions_and_other_databases_servers_are_named(live, dumps, tmp_path):
    live.psql(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER hub FOREIGN DATA WRAPPER postgres_fdw OPTIONS"
        f" (dbname {psycopg.sql.Literal(DATABASE).as_string(None)})"
    )
    live.psql(
        "CREATE PUBLICATION feed; CREATE SUBSCRIPTION quiet CONNECTION '' PUBLICATION p WITH (connect = false)",
        DATABASE,
    )
    live.psql("CREATE DATABASE shut; ALTER DATABASE shut CONNECTION LIMIT 0; CREATE ROLE looker LOGIN")
    for name, of in {"copy__loss_killed": DATABASE, "other__loss_killed": "other"}.items():
        mark = psycopg.sql.Literal(catalog.marking("killed", of, **catalog.COMPARED)).as_string(None)
        live.psql(f"CREATE DATABASE {name}")
        live.psql(f"COMMENT ON DATABASE {name} IS {mark}")
    try:
        with closing(psycopg.connect(live.dsn(DATABASE), application_name="laporan malam")) as session:
            session.execute("SELECT 1")
            job = task(live, tmp_path, dumps / "s.sql", long_transaction=0)
            says = check(job)["says"]
            assert "(postgres, laporan malam, idle in transaction) since 20" in says
            assert "publications: feed" in says
            assert "subscriptions: quiet: disabled" in says
            assert "foreign servers: hub in database postgres" in says
            assert "copies: copy__loss_killed: left by a comparison that was killed" in says
            assert "other__loss_killed" not in says.partition("copies: ")[2].partition(";")[0]
            assert "long" not in check(replace(job, long_transaction=300))["says"]
    finally:
        live.psql("ALTER SUBSCRIPTION quiet SET (slot_name = NONE); DROP SUBSCRIPTION quiet", DATABASE)
        live.psql("DROP EXTENSION postgres_fdw CASCADE")


@pytest.fixture
def subscriber(live: Server) -> Iterator[Server]:
    """The live database receives the rows of table feed from another one."""
    live.psql("CREATE DATABASE publisher")
    live.psql(
        "CREATE TABLE feed (n int PRIMARY KEY); INSERT INTO feed VALUES (1); CREATE PUBLICATION news FOR TABLE feed",
        "publisher",
    )
    live.psql("SELECT pg_create_logical_replication_slot('news', 'pgoutput')", "publisher")
    live.psql(
        "CREATE TABLE feed (n int PRIMARY KEY); CREATE SUBSCRIPTION news CONNECTION"
        f" 'host={live.host} port={live.port} user=postgres dbname=publisher'"
        " PUBLICATION news WITH (create_slot = false)",
        DATABASE,
    )
    yield live
    for name in databases(live):
        live.psql(f"ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS true")
        if live.psql(
            "SELECT 1 FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database()",
            name,
        ):
            live.psql("ALTER SUBSCRIPTION news DISABLE; ALTER SUBSCRIPTION news SET (slot_name = NONE)", name)
            live.psql("DROP SUBSCRIPTION news", name)
    ended = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active"
    wait_for(lambda: live.psql(ended) == "0", "nobody uses the slots")
    live.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def received(server: Server, n: int) -> None:
    """What is published from now on arrives, and the publisher knows that it has."""
    server.psql(f"INSERT INTO feed VALUES ({n})", "publisher")
    wait_for(lambda: server.psql(f"SELECT n FROM feed WHERE n = {n}", DATABASE), f"row {n} arrives")
    written = server.psql("SELECT pg_current_wal_lsn()")
    confirmed = f"SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = 'news'"
    wait_for(lambda: server.psql(confirmed) == "t", f"row {n} is confirmed")


@pytest.mark.parametrize("kind", ["-Fp", "-Fc"])
def test_the_tables_of_a_subscriber_are_restored_and_it_goes_on(subscriber, tmp_path, kind):
    received(subscriber, 2)
    path = dump(subscriber, tmp_path / "x", kind, database=DATABASE)
    subscriber.psql("DELETE FROM documents", DATABASE)
    job = task(subscriber, tmp_path, path, tables=["public.documents"], checks=[])
    assert "subscription" not in tables.check(job)["says"]
    assert tables.restore(job)["evidence"]["restored"] == {"public.documents": 10}
    assert databases(subscriber) == [DATABASE, "publisher"]
    received(subscriber, 3)
    assert (
        "public.feed goes on receiving rows by subscription news"
        in (tables.check(replace(job, tables=["public.feed"], run="another"))["says"])
    )


def test_a_copy_of_a_subscriber_is_dropped_and_the_publisher_keeps_its_slot(subscriber, tmp_path):
    received(subscriber, 2)
    path = dump(subscriber, tmp_path / "x.dump", "-Fc", database=DATABASE)
    subscriber.psql("ALTER SUBSCRIPTION news DISABLE", DATABASE)
    job = task(subscriber, tmp_path, path, checks=[{"query": "SELECT 1", "expect": 2}])
    assert "subscriptions: news: disabled; so it is in the restored database" in check(job)["says"]
    with untouched(subscriber), pytest.raises(BalikError, match="found 1; expected 2"):
        restore(job)
    restore(replace(job, checks=[]))
    assert databases(subscriber) == [DATABASE, KEPT, "publisher"]
    subscriber.psql("ALTER SUBSCRIPTION news ENABLE", DATABASE)
    subscriber.psql("ALTER SUBSCRIPTION news REFRESH PUBLICATION WITH (copy_data = false)", DATABASE)
    received(subscriber, 3)


def test_an_enabled_subscription_is_refused(live, dumps, tmp_path):
    live.psql(
        "CREATE SUBSCRIPTION busy CONNECTION 'port=1' PUBLICATION p WITH (connect = false);"
        "ALTER SUBSCRIPTION busy SET (slot_name = busy); ALTER SUBSCRIPTION busy ENABLE",
        DATABASE,
    )
    try:
        with untouched(live), pytest.raises(BalikError, match="receives rows by subscription busy"):
            check(task(live, tmp_path, dumps / "s.sql"))
    finally:
        live.psql(
            "ALTER SUBSCRIPTION busy DISABLE; ALTER SUBSCRIPTION busy SET (slot_name = NONE); DROP SUBSCRIPTION busy",
            DATABASE,
        )


def test_an_extension_of_another_version_is_brought_to_it_or_refused(live, dumps, tmp_path):
    live.psql("CREATE EXTENSION hstore VERSION '1.4'", DATABASE)
    job = task(live, tmp_path, dumps / "s.sql")
    assert restore(job)["evidence"]["extensions_added"] == ["hstore"]
    version = "SELECT extversion FROM pg_extension WHERE extname = 'hstore'"
    assert live.psql(version, DATABASE) == "1.4"
    path = Path(tmp_path / "with.sql")
    subprocess.run([live.bin / "pg_dump", "-d", live.dsn(DATABASE), "-f", path], check=True, timeout=60)
    again = replace(job, run="second", source=str(path))
    with untouched(live), pytest.raises(BalikError, match=r"extension hstore .*version 1\.8 .*expected 1\.4"):
        restore(again)
    assert restore(replace(again, accept=["extension hstore"]))["changed"]
    assert live.psql(version, DATABASE) == "1.8"
