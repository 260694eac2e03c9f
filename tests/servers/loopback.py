"""What the servers on loopback share: a port for one, and the wait for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_LIMIT = 10.0
#: Before a server's command: it ends with whoever started it, even where that was killed.
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(
    port: int, process: subprocess.Popen[bytes], limit: float = _START_LIMIT, log: Path | None = None
) -> None:
    """:raises RuntimeError: the process ended, or does not listen within the limit; with the end of its log."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    said = "\n" + log.read_text(errors="replace")[-2000:] if log else ""
    raise RuntimeError(f"{process.args!r} does not listen on port {port} (ended with {process.poll()}){said}")


def wait_for_silence(port: int, limit: float = _START_LIMIT) -> None:
    """:raises RuntimeError: somebody still listens on the port after the limit."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.01)
    raise RuntimeError(f"port {port} is still listened on")


@contextmanager
def hanging(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Meanwhile the process and its children take connections and do not answer."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pids = [process.pid, *map(int, children)]
    try:
        for pid in pids:
            hold(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def hold(pid: int, limit: float = _START_LIMIT) -> None:
    """Stop a process until ``SIGCONT``, and wait until each of its threads stands.

    ``kill`` returns before that: one thread takes the signal, and on a busy machine another still answers meanwhile.

    :raises ProcessLookupError: there is no such process.
    :raises RuntimeError: a thread of it still runs after the limit.
    """
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + limit
    while not all(_state(thread) in _STOPPED + _ENDED for thread in Path("/proc").glob(f"{pid}/task/*")):
        if time.monotonic() > end:
            raise RuntimeError(f"process {pid} still runs after SIGSTOP")
        time.sleep(0.001)


def wait_for_end(pid: int, limit: float = _START_LIMIT) -> None:
    """Wait for a process that was killed and may be nobody's to wait for.

    :raises RuntimeError: it is still there after the limit.
    """
    end = time.monotonic() + limit
    while _state(Path(f"/proc/{pid}")) not in _ENDED:
        if time.monotonic() > end:
            raise RuntimeError(f"process {pid} has not ended within {limit:g} s")
        time.sleep(0.001)


#: States in ``proc_pid_stat(5)``.
_STOPPED, _ENDED = "Tt", "ZX"


def _state(process: Path) -> str:
    """One letter of a process or thread in ``/proc``."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
