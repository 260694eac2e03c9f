"""A throw-away Redis on loopback: ``with redis_server(password="s3cret") as server: server.url``."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_START_LIMIT = 10.0


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        arguments += ["--requirepass", password] if password else []
        process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        try:
            _wait(port, process)
            login = f"{user}:{password}@" if password else ""
            yield Server("127.0.0.1", port, f"redis://{login}127.0.0.1:{port}/0")
        finally:
            process.terminate()
            process.wait(_START_LIMIT)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"redis-server on port {port}: not up within {_START_LIMIT:g} s")
