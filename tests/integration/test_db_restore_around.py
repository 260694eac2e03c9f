"""What hangs on a database from outside of it is named by `check`, or refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import catalog
from ansible_collections.balik.rollback.plugins.module_utils.database.restore import check, restore
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration import database_restores
from tests.integration.database_restores import DATABASE, task, untouched, wait_for
from tests.servers.postgresql import Server, as_server_user

server, dumps, live = database_restores.server, database_restores.dumps, database_restores.live


@contextmanager
def replica(server: Server) -> Iterator[None]:
    """A physical replica of ``server``, called laporan."""
    folder = server.folder / "replica"
    port = server.port + 1 if server.port < 65000 else server.port - 1
    base = [str(server.bin / "pg_basebackup"), "-h", server.host, "-p", str(server.port), "-U", "postgres"]
    as_user = as_server_user()
    options = ["-R", "-X", "stream", "--no-sync", "-c", "fast", "-D"]
    subprocess.run([*base, *options, str(folder)], check=True, timeout=60, **as_user)  # type: ignore[call-overload]
    with (folder / "postgresql.auto.conf").open("a") as file:
        file.write(
            f"primary_conninfo = 'host={server.host} port={server.port} user=postgres application_name=laporan'\n"
        )
    settings = [f"--port={port}", "--hot_standby=on", f"--unix_socket_directories={server.folder}", "--fsync=off"]
    settings += ["--max_prepared_transactions=4", "--max_connections=60", "--wal_level=logical"]
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
