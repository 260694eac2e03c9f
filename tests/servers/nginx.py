"""A throw-away nginx on loopback, with its own prefix: ``with nginx(app.address) as server: server.url``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.servers.loopback import free_port, hanging, wait_for_port

_CONFIG = """\
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream app {{ server {app}; keepalive 64; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    include {folder}/sites/*;
}}
"""
_SITE = """\
server {{
    listen 127.0.0.1:{port};
    server_name hub.example;
    {extra}
    location / {{ proxy_pass http://app; }}
}}
"""


class Server:
    """One nginx before ``app``; ``sites/hub`` is its only site."""

    def __init__(self, folder: Path, app: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.switch = folder / "maintenance"
        self.command = f"nginx -p {folder} -c {folder}/nginx.conf -e {folder}/error.log"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "sites").mkdir()
        (folder / "nginx.conf").write_text(_CONFIG.format(folder=folder, app=app))
        self.configure("")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def include(self) -> str:
        """The line that its owner has to add."""
        return f"include {self.switch}/switch.conf;"

    def configure(self, extra: str) -> None:
        """Writes the site with lines of its owner; does not load it."""
        (self.folder / "sites/hub").write_text(_SITE.format(port=self.port, extra=extra))

    def start(self) -> None:
        self._process = subprocess.Popen(self.command.split(), stdin=subprocess.DEVNULL)
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


@contextmanager
def nginx(app: str) -> Iterator[Server]:
    """A running nginx; ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="balik-nginx-"))
    folder.chmod(0o755)  # its worker is another user
    server = Server(folder, app)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
