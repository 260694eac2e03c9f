"""A throw-away HAProxy on loopback, as master and worker: ``with haproxy(app.address) as server: server.url``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.servers.loopback import free_port, hanging, wait_for_port, wait_for_silence

_CONFIG = """\
global
    stats socket {folder}/admin.sock mode 600 expose-fd listeners
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend hub
    bind 127.0.0.1:{port}
{extra}
    default_backend app
backend app
    server app-1 {app}
"""


class Server:
    """One HAProxy before ``app``; ``hub`` is its only frontend."""

    def __init__(self, folder: Path, app: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.switch = folder / "maintenance"
        self.socket = folder / "admin.sock"
        self.config = folder / "haproxy.cfg"
        self._app = app
        self._process: subprocess.Popen[bytes] | None = None
        self.configure("")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def reload(self) -> str:
        """The command that makes it load its configuration."""
        assert self._process, "HAProxy was stopped"
        return f"kill -USR2 {self._process.pid}"

    def configure(self, extra: str) -> None:
        """Writes the configuration with lines of its owner in the frontend; does not load it."""
        values = {"folder": self.folder, "port": self.port, "app": self._app}
        self.config.write_text(_CONFIG.format(extra=extra, **values))

    def start(self) -> None:
        self._process = subprocess.Popen(["haproxy", "-W", "-q", "-f", self.config], stdin=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def hangs(self) -> AbstractContextManager[None]:
        """Meanwhile it does not answer."""
        assert self._process, "it was stopped"
        return hanging(self._process)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            wait_for_silence(self.port)  # a worker outlives for a moment a master that was ended while it started


@contextmanager
def haproxy(app: str) -> Iterator[Server]:
    """A running HAProxy; ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="balik-haproxy-"))
    server = Server(folder, app)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
