"""Two real load balancers in front of one application, as the tests of the traffic's roles name them to Ansible."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.servers import haproxy as haproxy_server
from tests.servers import nginx as nginx_server
from tests.servers.upstream import Upstream, upstream

needed = pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("haproxy")), reason="needs nginx, haproxy")


class Balancers(NamedTuple):
    """``lb-web`` is nginx, and ``lb-api`` HAProxy."""

    app: Upstream
    nginx: nginx_server.Server
    haproxy: haproxy_server.Server

    @property
    def hosts(self) -> dict[str, dict[str, Any]]:
        """Each host's variables for ``maintenance-page``."""
        return {
            "lb-web": {
                "maintenance_page_backend": "nginx",
                "maintenance_page_url": self.nginx.url,
                "maintenance_page_dir": str(self.nginx.switch),
                "maintenance_page_nginx_command": self.nginx.command,
                "maintenance_page_nginx_servers": ["hub.example"],
            },
            "lb-api": {
                "maintenance_page_backend": "haproxy",
                "maintenance_page_url": self.haproxy.url,
                "maintenance_page_dir": str(self.haproxy.switch),
                "maintenance_page_haproxy_socket": str(self.haproxy.socket),
                "maintenance_page_haproxy_config": [str(self.haproxy.config)],
                "maintenance_page_haproxy_reload": self.haproxy.reload,
            },
        }

    def configure(self) -> None:
        """What their owner does when ``prepare`` has said which lines they need."""
        self.nginx.configure(self.nginx.include)
        self.haproxy.configure((self.haproxy.switch / "frontend.cfg").read_text())

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        """Afterwards both stand there as before, started anew: the page on or off, their files, their switch."""
        with tempfile.TemporaryDirectory() as kept:
            for server in (self.nginx, self.haproxy):
                shutil.copytree(server.switch, Path(kept, server.folder.name))
            try:
                yield
            finally:
                for server in (self.nginx, self.haproxy):
                    server.stop()
                    for folder in server.folder.glob(f"{server.switch.name}*"):
                        shutil.rmtree(folder)
                    shutil.copytree(Path(kept, server.folder.name), server.switch)
                    server.start()


@contextmanager
def balancers() -> Iterator[Balancers]:
    """Both, and what they stand in front of."""
    with upstream() as app, nginx_server.nginx(app.address) as nginx, haproxy_server.haproxy(app.address) as haproxy:
        yield Balancers(app, nginx, haproxy)
