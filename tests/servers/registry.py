"""A throw-away image registry (Debian's docker-registry) on loopback, which engines trust without TLS."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.docker_engine import docker
from tests.servers.loopback import free_port

_START_LIMIT = 20.0


class Registry:
    """A running registry; ``address`` is what stands before a repository's name."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def push(self, image: str, name: str) -> str:
        """Push a local image as ``name`` (``app:1.0``); its digest. The local name is given up again."""
        full = f"{self.address}/{name}"
        docker("tag", image, full)
        docker("push", "--quiet", full)
        docker("rmi", full)
        return self.digest(name)

    def digest(self, name: str) -> str:
        return self._manifest(name, "HEAD")

    def delete(self, name: str, digest: str) -> None:
        """Take a manifest out of the registry, by its digest."""
        self._manifest(f"{name}:{digest}", "DELETE")

    def _manifest(self, name: str, method: str) -> str:
        repository, _, reference = name.partition(":")
        request = urllib.request.Request(
            f"http://{self.address}/v2/{repository}/manifests/{reference}",
            method=method,
            headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers.get("Docker-Content-Digest", ""))


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def registry() -> Iterator[Registry]:
    """Start one; its data goes with it.

    :raises FileNotFoundError: the package is not installed.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise FileNotFoundError("docker-registry is not installed: apt-get install docker-registry")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="balik-registry-") as folder:
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": f"{folder}/data"}, "delete": {"enabled": True}},
            "http": {"addr": f"127.0.0.1:{port}"},
        }
        path = Path(folder) / "config.yml"
        path.write_text(json.dumps(config))
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([program, "serve", str(path)], stdout=log, stderr=log)
        server = Registry(port)
        try:
            end = time.monotonic() + _START_LIMIT
            while not _answers(server.address):
                said = (Path(folder) / "log").read_text()[-500:]
                assert process.poll() is None, f"docker-registry ended: {said}"
                assert time.monotonic() < end, f"docker-registry did not answer within {_START_LIMIT:g} s: {said}"
                time.sleep(0.05)
            yield server
        finally:
            process.terminate()
            process.wait(10)
