"""Runs of rollback.yml in a sandbox: killed in a chosen moment, or to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tools import demo

LIMIT = 300


def killed_when(seen: Callable[[], bool], log: Path) -> None:
    """Run the rollback, and kill it with all its workers in the moment in which something is seen."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            demo.ansible("rollback.yml"),
            cwd=demo.HOUSE,
            env=demo.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        limit = time.monotonic() + LIMIT
        try:
            while not seen():
                assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
                assert time.monotonic() < limit, log.read_text(encoding="utf-8")[-4000:]
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def started(step: str) -> bool:
    return any(e.kind == "step-started" and e.body["step"] == step for e in demo.entries_after(0))


def run_to_the_end(log: Path) -> dict:
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(
            demo.ansible("rollback.yml"),
            cwd=demo.HOUSE,
            env=demo.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
    return json.loads((demo.STATE / demo.PRODUCT / "outcome.json").read_text(encoding="utf-8"))
