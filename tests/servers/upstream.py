"""A small application on loopback, in a process of its own: keep-alive, and slow where it is asked to be.

``with upstream() as app: app.url``. ``/healthz`` says ok, ``/slow`` takes a second and gives back the body's length,
``/broken`` says 500, ``/arrived`` how often ``/slow`` was asked, all else says ``application`` and ``200``.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from tests.servers.loopback import free_port, wait_for_port

PROJECT = Path(__file__).parents[2]


@dataclass
class Upstream:
    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def arrived(self) -> int:
        """How often ``/slow`` was asked so far."""
        with urlopen(f"http://{self.address}/arrived", timeout=10) as answer:
            return int(answer.read())


@contextmanager
def upstream() -> Iterator[Upstream]:
    """A running application; ended afterwards."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", __name__, str(port)], stdin=subprocess.DEVNULL, cwd=PROJECT)
    try:
        wait_for_port(port, process)
        yield Upstream(port, process)
    finally:
        process.kill()
        process.wait(10)


class _Application(asyncio.Protocol):
    """One keep-alive connection; requests come one after the other."""

    arrived = 0

    def __init__(self) -> None:
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, separator, body = self._got.partition(b"\r\n\r\n")
        if not separator:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(body) < length:
            return
        self._got = body[length:]
        path = head.split(b" ", 2)[1]
        if path == b"/slow":
            _Application.arrived += 1
            asyncio.get_running_loop().call_later(1.0, self._answer, 200, str(length).encode())
        elif path == b"/broken":
            self._answer(500, b"broken")
        elif path == b"/arrived":
            self._answer(200, str(self.arrived).encode())
        else:
            self._answer(200, b"ok" if path == b"/healthz" else b"application")

    def _answer(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Application, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
