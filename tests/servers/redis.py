"""A throw-away Redis on loopback: ``with redis_server(password="s3cret") as server: server.url``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.servers.loopback import free_port, wait_for_port


@dataclass(frozen=True)
class Server:
    host: str
    port: int
    url: str


@contextmanager
def redis_server(password: str = "", user: str = "") -> Iterator[Server]:
    """Nothing is kept; the server ends with the block.

    :raises FileNotFoundError: Debian's redis-server is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("no redis-server: apt-get install redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        arguments += ["--requirepass", password] if password else []
        process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        try:
            wait_for_port(port, process)
            login = f"{user}:{password}@" if password else ""
            yield Server("127.0.0.1", port, f"redis://{login}127.0.0.1:{port}/0")
        finally:
            process.terminate()
            process.wait(10)
