"""AWS's API on loopback, as far as moto knows it; nothing leaves this machine.

``with moto() as url: boto3.client("autoscaling", endpoint_url=url, region_name=..., ...)``
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from tests.servers.loopback import free_port

_LIMIT = 30.0


@contextmanager
def moto() -> Iterator[str]:
    """The URL of a server with nothing in it; ended afterwards."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _LIMIT
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"moto's server is not ready (ended with {process.poll()})")
            time.sleep(0.1)
        yield url
    finally:
        process.kill()  # it has nothing to keep, and takes seconds to end otherwise
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/moto-api/", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
