"""The real Prisma command line, of the versions that products use, without its downloads.

``prisma = Prisma("7.10.0", tmp_path, url); prisma.run("migrate", "deploy")``

Its packages are installed once, by name, into ``~/.cache/balik``. What Prisma would download is its native schema
engine; ``prisma_schema_engine.js`` puts Prisma's own WASM build of the same engine in its place.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import NamedTuple

#: Version → the packages that go together.
PACKAGES = {
    "7.10.0": (
        "prisma@7.10.0",
        "@prisma/adapter-pg@7.10.0",
        "@prisma/driver-adapter-utils@7.10.0",
        "@prisma/schema-engine-wasm@7.10.0-4.0edf323efd1d98336f3f0a68684b56f689b900d3",
    ),
    "6.19.3": (
        "prisma@6.19.3",
        "@prisma/adapter-pg@7.2.0",
        "@prisma/driver-adapter-utils@7.2.0",
        "@prisma/schema-engine-wasm@7.1.1-3.c2990dca591cba766e3b7ef5d9e8a84796e47ab7",
    ),
}
#: Node's own program as a package of npm, for where the system's is too old for Prisma 7 (20.19, 22.12, 24 or newer).
_NODE = "20.19.5"
_ENGINE = Path(__file__).with_name("prisma_schema_engine.js")
_INSTALL_LIMIT, _LIMIT = 300, 60

_CONFIG = """
export default {{
  schema: 'schema.prisma',
  migrations: {{ path: 'migrations' }},
  datasource: {{ url: process.env.DATABASE_URL{shadow} }},
}}
"""
_SCHEMA = """
datasource db {{
  provider = "postgresql"{more}
}}
"""


class Done(NamedTuple):
    """A command's exit code, and what it printed on both channels."""

    code: int
    output: str


def _packages(version: str) -> tuple[str, ...]:
    """What is installed for a version: Node too, where the system's is too old, or is not there."""
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False) if which("node") else None
    found = re.match(r"v(\d+)\.(\d+)", said.stdout) if said else None
    major, minor = (int(found[1]), int(found[2])) if found else (0, 0)
    if (major == 20 and minor >= 19) or (major == 22 and minor >= 12) or major >= 24:
        return PACKAGES[version]
    machine = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    return (*PACKAGES[version], f"node-linux-{machine}@{_NODE}")


def installed(version: str) -> Path:
    """The folder of an installation, made where it is missing.

    :raises RuntimeError: npm could not; its words.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balik"
    folder = cache / f"prisma-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = _packages(version)
        wanted = " ".join(packages)
        mark = folder / "installed"
        if not mark.exists() or mark.read_text() != wanted:
            print(f"installing {wanted} into {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder / "node_modules", ignore_errors=True)
            (folder / "package.json").write_text('{"private": true}\n')
            command = [
                "npm",
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--save-exact",
                *packages,
            ]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_LIMIT, check=False
            )
            if done.returncode:
                raise RuntimeError(f"npm install {wanted} failed:\n{done.stderr[-2000:]}")
            mark.write_text(wanted)
        engine = folder / "schema-engine"
        if not engine.exists() or engine.read_bytes() != _ENGINE.read_bytes():
            shutil.copy(_ENGINE, engine)
            engine.chmod(0o755)
    return folder


class Prisma:
    """A product's folder with its ``migrations``, and Prisma's command line in it.

    :param url: the DATABASE_URL; the database must exist.
    :param shadow: of a database that Prisma may empty, for ``migrate diff``.
    """

    def __init__(self, version: str, folder: Path, url: str, shadow: str = "") -> None:
        self.version, self.folder, self.home = version, folder, installed(version)
        self.url, self.shadow = url, shadow
        self.migrations = folder / "migrations"
        self.migrations.mkdir(parents=True, exist_ok=True)
        (self.migrations / "migration_lock.toml").write_text('provider = "postgresql"\n')
        seven = version >= "7"
        more = "" if seven else '\n  url = env("DATABASE_URL")'
        if seven:
            line = ", shadowDatabaseUrl: process.env.SHADOW_DATABASE_URL" if shadow else ""
            (folder / "prisma.config.ts").write_text(_CONFIG.format(shadow=line))
        elif shadow:
            more += '\n  shadowDatabaseUrl = env("SHADOW_DATABASE_URL")'
        (folder / "schema.prisma").write_text(_SCHEMA.format(more=more))

    @property
    def program(self) -> Path:
        return self.home / "node_modules" / ".bin" / "prisma"

    @property
    def environment(self) -> dict[str, str]:
        """For Prisma's programs, whoever starts them."""
        engine = str(self.home / "schema-engine")
        node = [str(path.parent) for path in self.home.glob("node_modules/node-linux-*/bin/node")]
        return {
            "PATH": os.pathsep.join([*node, os.environ["PATH"]]),
            "DATABASE_URL": self.url,
            "SHADOW_DATABASE_URL": self.shadow,
            "PRISMA_SCHEMA_ENGINE_BINARY": engine,
            # Version 6 wants to see that this one is there; it is not started by `migrate`.
            "PRISMA_QUERY_ENGINE_LIBRARY": engine,
            "CHECKPOINT_DISABLE": "1",
            "PRISMA_HIDE_UPDATE_MESSAGE": "1",
            "NO_COLOR": "1",
        }

    def run(self, *arguments: str) -> Done:
        """What a command said; nothing is raised for what it did not like."""
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
        return Done(done.returncode, done.stdout + done.stderr)
