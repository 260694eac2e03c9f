"""``tools/engine stop`` on an engine of the test's own: it ends what it started, unless others still use it."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.docker_engine import DOCKER, eventually

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.docker


class Engine:
    """A dockerd beside the machine's, as ``tools/engine start`` leaves it."""

    def __init__(self, folder: Path) -> None:
        state = folder / "balik" / "engine"
        state.mkdir(parents=True)
        (state / "started-by").write_text(f"{PROJECT}\n")
        socket = f"unix://{folder}/docker.sock"
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "DOCKER_HOST": socket}
        own = [f"--{name}={folder}/{name}" for name in ("data-root", "exec-root")]
        alone = ["--bridge=none", "--iptables=false", "--storage-driver=vfs", f"--pidfile={state}/dockerd.pid"]
        # In a network of its own: without a bridge, it takes the machine's docker0 away. With mounts of its own: where
        # / is not shared (a chroot), it binds its data-root and leaves that mounted, and the folder cannot be removed.
        command = ["unshare", "--net", "--mount", "dockerd", "--host", socket, *own, *alone]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        # Else what has ended would stay there as a zombie, and seem to go on.
        threading.Thread(target=self.process.wait, daemon=True).start()
        eventually(lambda: self.run(DOCKER, "version").returncode == 0, says=f"the engine of {folder}/log")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=PROJECT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture
def engine() -> Iterator[Engine]:
    # A socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="balik-") as folder:
        made = Engine(Path(folder))
        yield made
        made.process.terminate()
        made.process.wait(60)


def image(engine: Engine, folder: Path) -> str:
    """An image that can sleep, of this machine's own program."""
    libraries = re.findall(
        r"/\S+", subprocess.run(["ldd", "/bin/sleep"], capture_output=True, text=True, check=True).stdout
    )
    with tarfile.open(folder / "image.tar", "w") as tar:
        for path in ("/bin/sleep", *libraries):
            tar.add(Path(path).resolve(), path)
    done = engine.run(DOCKER, "import", str(folder / "image.tar"), "small")
    assert done.returncode == 0, done.stderr
    return "small"


def test_an_engine_on_which_others_run_is_left_on(engine: Engine, tmp_path: Path) -> None:
    sleeps = (image(engine, tmp_path), "/bin/sleep", "600")
    done = engine.run(DOCKER, "run", "--detach", "--name", "theirs", "--network", "none", *sleeps)
    assert done.returncode == 0, done.stderr
    kept = engine.run("tools/engine", "stop")
    assert kept.returncode == 0, kept.stderr
    assert kept.stdout == (
        "engine: left on, for containers run on it: 1 (`docker ps` shows them); "
        "`tools/engine stop` ends it once they are gone\n"
    )
    assert engine.process.poll() is None

    assert engine.run(DOCKER, "kill", "theirs").returncode == 0
    stopped = engine.run("tools/engine", "stop")
    assert stopped.stdout == "engine: stopped\n", stopped.stderr
    assert engine.process.wait(10) == 0
