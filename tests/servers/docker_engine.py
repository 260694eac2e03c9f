"""This machine's own Docker engine, with tiny test images, and everything that a test made on it removed at the end.

``with docker_lab() as lab: lab.run("app-1", lab.image("2.0.0"), "--publish", "127.0.0.1::8000")``
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# By its path: a test may hide the program from what it tests.
DOCKER = shutil.which("docker") or "docker"
BASE = "balik/debian:12"
PREFIX = "balik-test-ir-"
_LIMIT = 120.0

_SERVER = """
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ.get("APP_VERSION", "none").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", 8000), Answer).serve_forever()
"""

# Kinds of images; each is tiny, over the base image.
_SERVES = """
ENV APP_VERSION={version} APP_HOME=/srv/{version}
LABEL org.opencontainers.image.version={version}
EXPOSE 8000
WORKDIR /srv
VOLUME /srv/data
STOPSIGNAL SIGKILL
CMD ["python3", "/srv/server.py"]
"""
_CHECKED = "HEALTHCHECK --interval=500ms --timeout=5s --retries=3 CMD {check}\n"
_PROBE = "bash -c ':</dev/tcp/127.0.0.1/8000'"
KINDS = {
    "healthy": _SERVES + _CHECKED.format(check=_PROBE),
    "unchecked": _SERVES,
    "unhealthy": _SERVES + _CHECKED.format(check="sh -c 'echo {version}-secret-of-the-check; exit 1'"),
    # A few MB of its own instead of the base image, for what goes through a registry.
    "small": """
RUN mkdir /small && cp --parents --dereference /bin/sleep $(ldd /bin/sleep | grep --only-matching '/[^ ]*') /small
FROM scratch
COPY --from=0 /small /
ENV APP_VERSION={version}
STOPSIGNAL SIGKILL
CMD ["/bin/sleep", "600"]
""",
    "exits": _SERVES + 'CMD ["sh", "-c", "echo {version}-secret-of-the-log; exit 3"]\n',
}


def docker(*arguments: str, check: bool = True) -> str:
    """What the command line client prints.

    :raises AssertionError: it failed; the message holds what it said.
    """
    ended = subprocess.run(
        [DOCKER, *arguments], capture_output=True, text=True, timeout=_LIMIT, stdin=subprocess.DEVNULL, check=False
    )
    assert not check or ended.returncode == 0, f"docker {' '.join(arguments)}: {ended.stderr}"
    return ended.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    """What ``docker inspect`` shows of a container, or ``{}``."""
    shown = docker("container", "inspect", name, check=False)
    return json.loads(shown)[0] if shown not in ("", "[]") else {}


def eventually(true: Callable[[], object], limit: float = 30.0, says: str = "it") -> None:
    """Wait until a condition holds.

    :raises AssertionError: it did not within the limit (seconds).
    """
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, f"{says} did not come true within {limit:g} s"
        time.sleep(0.05)


class Lab:
    """Names, images and containers of one test; all begin with ``prefix``."""

    def __init__(self) -> None:
        self.prefix = f"{PREFIX}{secrets.token_hex(3)}-"

    def name(self, name: str) -> str:
        return self.prefix + name

    def image(self, version: str, kind: str = "healthy", tag: str = "", extra: str = "") -> str:
        """Build a tiny image; its full name, ``<repository>:<version>-<kind>`` unless ``tag`` names another."""
        name = tag or f"{self.prefix}app:{version}-{kind}"
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            content = f"FROM {BASE}\nCOPY server.py /srv/\n{KINDS[kind].format(version=version)}{extra}\n"
            (Path(folder) / "Dockerfile").write_text(content)
            (Path(folder) / "server.py").write_text(_SERVER)
            docker("build", "--quiet", "--tag", name, folder)
        return name

    def foreign_image(self, architecture: str) -> str:
        """Load an (empty) image that is built for another machine; its full name."""
        name, layer = f"{self.prefix}app:{architecture}", b"\0" * 1024
        layers = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}
        config = {"architecture": architecture, "os": "linux", "rootfs": layers}
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            path = Path(folder) / "image.tar"
            with tarfile.open(path, "w") as tar:
                for file, content in (
                    ("config.json", json.dumps(config).encode()),
                    ("manifest.json", json.dumps(manifest).encode()),
                    ("layer.tar", layer),
                ):
                    entry = tarfile.TarInfo(file)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
            docker("load", "--input", str(path))
        return name

    def run(self, name: str, image: str, *options: str, command: tuple[str, ...] = ()) -> str:
        """Start a container; its full name."""
        docker("run", "--detach", "--name", self.name(name), *options, image, *command)
        return self.name(name)

    def remove_containers(self) -> None:
        """Remove the containers whose names begin with the prefix."""
        self._remove(("ps", "--all", "--format", "{{.Names}}"), ("rm", "--force", "--volumes"))

    def remove(self) -> None:
        """Remove everything whose name begins with the prefix."""
        self.remove_containers()
        kinds = (
            (("network", "ls", "--format", "{{.Name}}"), ("network", "rm")),
            (("volume", "ls", "--format", "{{.Name}}"), ("volume", "rm", "--force")),
            (("images", "--format", "{{.Repository}}:{{.Tag}}"), ("rmi", "--force")),
            # What was pulled by digest has no tag.
            (("images", "--digests", "--format", "{{.Repository}}@{{.Digest}}"), ("rmi", "--force")),
        )
        for listing, removal in kinds:
            self._remove(listing, removal)

    def _remove(self, listing: tuple[str, ...], removal: tuple[str, ...]) -> None:
        names = [name for name in docker(*listing).split() if self.prefix in name and "<none>" not in name]
        if names:
            docker(*removal, *names, check=False)


def image_id(name: str) -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", name)


def version_of(container: str) -> str:
    """What the app in a container answers on its first published port; empty when it does not."""
    ports = inspect(container).get("NetworkSettings", {}).get("Ports", {}).get("8000/tcp") or []
    if not ports:
        return ""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]['HostPort']}/", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@contextmanager
def docker_lab() -> Iterator[Lab]:
    """A lab, emptied at the end, also after a failure."""
    lab = Lab()
    try:
        yield lab
    finally:
        lab.remove()
