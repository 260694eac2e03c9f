"""A throw-away PgBouncer: ``with pgbouncer(server, {"hub": "lawyers_hub"}) as pooler: pooler.dsn("hub")``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.loopback import free_port, wait_for_port
from tests.servers.postgresql import Server as Database

_CONFIGURATION = """
[databases]
{databases}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
admin_users = warden
pool_mode = {mode}
pidfile = {folder}/pid
"""


@dataclass(frozen=True)
class Server:
    port: int
    password: str
    pid: int

    @property
    def console(self) -> str:
        """The admin console, as libpq writes connections."""
        return f"host=127.0.0.1 port={self.port} user=warden password={self.password}"

    def dsn(self, database: str, user: str = "postgres") -> str:
        """A client's connection."""
        return f"host=127.0.0.1 port={self.port} dbname='{database}' user={user} password=none"


@contextmanager
def pgbouncer(
    server: Database, databases: Mapping[str, str], mode: str = "transaction", password: str = "kata-sandi-penjaga"
) -> Iterator[Server]:
    """A pooler in front of ``server``; it ends with the block.

    :param databases: name for clients → name on the server.
    :param password: of ``warden``, who may give orders on the console.
    :raises FileNotFoundError: Debian's pgbouncer is not installed.
    """
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        raise FileNotFoundError("no pgbouncer: apt-get install pgbouncer")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        lines = [
            f"""{alias} = host={server.host} port={server.port} dbname='{real.replace("'", "''")}'"""
            for alias, real in databases.items()
        ]
        users = {"warden": password, "postgres": "none", "app": "none"}
        (folder / "users").write_text("".join(f'"{user}" "{word}"\n' for user, word in users.items()))
        (folder / "ini").write_text(
            _CONFIGURATION.format(databases="\n".join(lines), port=port, folder=folder, mode=mode)
        )
        as_user = []
        if os.geteuid() == 0:  # it refuses to be root
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, "postgres", "postgres")
            as_user = ["-u", "postgres"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, *as_user, str(folder / "ini")], stdout=log, stderr=log)
            try:
                wait_for_port(port, process, log=folder / "log")
                yield Server(port, password, process.pid)
            finally:
                process.terminate()
                process.wait(10)
