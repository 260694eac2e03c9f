"""A throw-away PostgreSQL on loopback, with its data in memory where there is room.

``with postgresql(wal_level="logical") as server: server.psql("select 1")``
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.servers.loopback import free_port, hold, wait_for_end

SUPERUSER = "postgres"
_ROOM = 2 * 1024**3
_START_LIMIT = 30.0
_QUICK = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB", "max_connections": "60"}


def programs() -> Path:
    """The newest PostgreSQL's programs as Debian installs them.

    :raises FileNotFoundError: the server's package is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4]))
    if not found:
        raise FileNotFoundError("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


def as_server_user() -> dict[str, object]:
    """Arguments for :mod:`subprocess`: PostgreSQL refuses to run as root, so root becomes ``postgres``."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": user.pw_dir}


class Server:
    """One running server. The superuser is ``postgres``; everybody on loopback is trusted."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.host = "127.0.0.1"
        self.socket_dir = str(folder)
        self.port = 0
        self.bin = programs()
        self._settings = {**_QUICK, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [
                self.bin / "initdb",
                "-D",
                self.data,
                "-U",
                SUPERUSER,
                "-A",
                "trust",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            timeout=60,
            **as_server_user(),  # type: ignore[call-overload]
        )

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        assert self._process, "the server was stopped"
        return self._process.pid

    def start(self) -> None:
        """Starts it (again), on the port it had.

        :raises RuntimeError: it ended, or did not answer within half a minute; with the end of its log.
        """
        self.port = self.port or free_port()
        settings = {
            **self._settings,
            "port": self.port,
            "listen_addresses": self.host,
            "unix_socket_directories": self.socket_dir,
        }
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *(f"--{k}={v}" for k, v in settings.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **as_server_user(),  # type: ignore[call-overload]
            )
        limit = time.monotonic() + _START_LIMIT
        while time.monotonic() < limit and self._process.poll() is None:
            ready = [str(self.bin / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
            if subprocess.run(ready, check=False, timeout=10).returncode == 0:
                return
            time.sleep(0.02)
        self.kill()
        log_end = "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-10:])
        raise RuntimeError(f"PostgreSQL on port {self.port} did not start:\n{log_end}")

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """A libpq connection string; any name will do, quotes and spaces included."""
        pairs = {"host": self.host, "port": self.port, "user": user, "dbname": database}
        quoted = {key: str(value).replace("\\", r"\\").replace("'", r"\'") for key, value in pairs.items()}
        return " ".join(f"{key}='{value}'" for key, value in quoted.items())

    def psql(self, sql: str, database: str = "postgres", user: str = SUPERUSER) -> str:
        """What ``psql -At`` prints for ``sql``, without the last newline.

        :raises RuntimeError: with psql's message.
        """
        done = subprocess.run(
            [self.bin / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(database, user), "-f", "-"],
            input=sql,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.rstrip("\n")

    def stop(self, immediate: bool = False) -> None:
        """Ends it: all sessions are cut (``immediate``: as at a loss of power). Its data stays."""
        self._end(signal.SIGQUIT if immediate else signal.SIGINT)

    def kill(self) -> None:
        """``kill -9`` of the postmaster, and of its children, which might answer once more before they notice.

        A child that has not ended yet keeps the shared memory, and the next start is refused.
        """
        children: list[int] = []
        if self._process:
            hold(self.pid)  # it starts no other
            own = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            children = [int(child) for child in own.split()]
        self._end(signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            wait_for_end(child)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def postgresql(in_memory: bool = True, **settings: object) -> Iterator[Server]:
    """A running server, with ``settings`` as in ``postgresql.conf``; ended and removed afterwards.

    :param in_memory: its data in memory, where there is room.
    """
    memory = Path("/dev/shm")
    roomy = in_memory and memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="balik-pg-", dir=memory if roomy else None))
    try:
        folder.chmod(0o755)  # the socket is in it, and whoever tests may connect
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = Server(folder, settings)
        try:
            server.start()
            yield server
        finally:
            server.stop(immediate=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
