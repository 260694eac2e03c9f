"""Several jobs at once, each with its own limit, none able to hold up the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Late(Exception):
    """A job that did not end within its limit; it is left behind, and ends with the process."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        super().__init__(f"no answer within {limit:g} s")


def as_done(jobs: Mapping[str, tuple[Callable[[], T], float]]) -> Iterator[tuple[str, T | Exception]]:
    """Run all jobs at once; give back each name with its result, or with what it raised, as they end.

    :param jobs: name → (job, limit in seconds). A job over its limit gives a :class:`Late`.
    """
    done: queue.SimpleQueue[tuple[str, T | Exception]] = queue.SimpleQueue()

    def work(name: str, job: Callable[[], T]) -> None:
        try:
            done.put((name, job()))
        except Exception as error:  # noqa: BLE001 - handed to the caller, who knows what it means
            done.put((name, error))

    deadlines: dict[str, float] = {}
    for name, (job, limit) in jobs.items():
        deadlines[name] = time.monotonic() + limit
        # Daemons: a thread stuck in a name look-up must not keep the process alive.
        threading.Thread(target=work, args=(name, job), name=name, daemon=True).start()
    while deadlines:
        next_late = min(deadlines, key=lambda name: deadlines[name])
        try:
            name, result = done.get(timeout=max(0.0, deadlines[next_late] - time.monotonic()))
        except queue.Empty:
            name, result = next_late, Late(jobs[next_late][1])
        if deadlines.pop(name, None) is not None:
            yield name, result
