"""Pauses PgBouncers and resumes them, whatever becomes of the process that asked.

Run as a process of its own (``python3 -c <this file>``), with nothing but the standard library. Its orders are one
line of JSON. It pauses, says so, and resumes at the next line, at the end of its input, which is the death of the one
who asked, or when it has held for too long. One process does both, so that no pause can come after its resume.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import Any

_AGAIN = 0.3


def main() -> None:
    """Orders: ``pause`` and ``resume``, of [command, environment]; ``limit``, ``hold`` and ``insist``, in seconds."""
    with os.fdopen(0, "rb", buffering=0) as orders_of:
        orders: dict[str, Any] = json.loads(orders_of.readline())
        end, answer, touched = time.monotonic() + orders["limit"], "paused", []
        for (command, environment), resume in zip(orders["pause"], orders["resume"]):
            touched.append(resume)
            try:
                done = _run(command, environment, max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:  # no new query gets through all the same
                answer = "late"
                continue
            if done.returncode:
                answer = f"failed: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'it said nothing'}"
                break
        _say(answer)
        if not answer.startswith("failed"):
            select.select([orders_of], [], [], orders["hold"])
    end = time.monotonic() + orders["insist"]
    left = [each for each in touched if not _resumed(each)]
    while left and time.monotonic() < end:
        time.sleep(_AGAIN)
        left = [each for each in left if not _resumed(each)]
    _say("resumed" if not left else f"{len(left)} not resumed")


def _run(command: list[str], environment: dict[str, str], limit: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False
    )


def _resumed(order: tuple[list[str], dict[str, str]]) -> bool:
    try:
        done = _run(*order, limit=5)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0 or "not paused" in done.stderr


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is there to hear it
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
