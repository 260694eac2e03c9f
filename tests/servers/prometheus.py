"""A throw-away Prometheus on loopback, with a history of the test's choice.

``with prometheus({'errors{app="a"}': [(moment, 0.1), …]}) as server: server.url``
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.loopback import WITH_PARENT, free_port

_START_LIMIT = 20.0

#: Series as PromQL writes it → its samples: seconds since 1970, value.
History = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Server:
    url: str
    folder: Path


@contextmanager
def prometheus(history: History | None = None, config: str = "", web: str = "", port: int = 0) -> Iterator[Server]:
    """:param config: Prometheus' own configuration, such as ``scrape_configs``.
    :param web: its web configuration (TLS, users).
    :param port: on loopback; 0 for a free one.
    :raises FileNotFoundError: Debian's prometheus is not installed.
    """
    program, tool = shutil.which("prometheus"), shutil.which("promtool")
    if program is None or tool is None:
        raise FileNotFoundError("no prometheus: apt-get install prometheus")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        folder = Path(name)
        if history:
            _backfill(tool, history, folder)
        (folder / "prometheus.yml").write_text(config or "global: {}\n")
        (folder / "web.yml").write_text(web)
        process = subprocess.Popen(
            [
                *WITH_PARENT,
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--web.config.file={folder / 'web.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(port, process, folder)
            yield Server(f"http://127.0.0.1:{port}", folder)
        finally:
            process.terminate()
            process.wait(_START_LIMIT)


def _backfill(tool: str, history: History, folder: Path) -> None:
    names: dict[str, list[str]] = {}
    for series, samples in history.items():
        lines = names.setdefault(series.split("{")[0], [])
        lines += [f"{series} {value} {at:.3f}" for at, value in samples]
    text = "".join(f"# TYPE {name} gauge\n" + "\n".join(lines) + "\n" for name, lines in names.items())
    (folder / "history.om").write_text(text + "# EOF\n")
    made = subprocess.run(
        [tool, "tsdb", "create-blocks-from", "openmetrics", folder / "history.om", folder / "data"],
        capture_output=True,
        text=True,
        timeout=_START_LIMIT,
        check=False,
    )
    if made.returncode:
        raise ValueError(f"promtool refused the history: {made.stderr}")


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + _START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1).close()
        except urllib.error.HTTPError as error:
            # One that asks for a password tells nobody without whether it is ready; its log does.
            if error.code == 401 and "Server is ready" in (folder / "log").read_text():
                return
            time.sleep(0.05)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"Prometheus on port {port} is not up: {(folder / 'log').read_text()[-500:]}")
