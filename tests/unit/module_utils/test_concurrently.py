from __future__ import annotations

import threading
import time

from ansible_collections.balik.rollback.plugins.module_utils.concurrently import Late, as_done


def test_a_job_that_hangs_delays_nobody_beyond_its_limit() -> None:
    release = threading.Event()

    def broken() -> None:
        raise KeyError("x")

    began = time.monotonic()
    arrived = []
    found = {}
    for name, result in as_done(
        {"hangs": (lambda: release.wait(30), 2.0), "quick": (lambda: 1, 5.0), "broken": (broken, 5.0)}
    ):
        arrived.append((name, time.monotonic() - began))
        found[name] = result
    release.set()
    assert found["quick"] == 1
    assert isinstance(found["broken"], KeyError)
    assert str(found["hangs"]) == "no answer within 2 s"
    assert isinstance(found["hangs"], Late)
    assert arrived[-1][0] == "hangs"
    assert arrived[-2][1] < 1.5
    assert time.monotonic() - began < 5


def test_an_answer_that_comes_late_is_not_taken() -> None:
    answers, ends = threading.Event(), threading.Event()
    jobs = as_done({"late": (lambda: answers.wait(30), 0.05), "slow": (lambda: ends.wait(30), 30.0)})
    first = next(jobs)
    answers.set()
    threading.Timer(0.2, ends.set).start()
    found = [first, *jobs]
    assert [name for name, _ in found] == ["late", "slow"]
    assert isinstance(found[0][1], Late)


def test_many_jobs_at_once() -> None:
    began = time.monotonic()
    jobs = {str(index): (lambda: time.sleep(0.2), 5.0) for index in range(100)}
    assert len(list(as_done(jobs))) == 100
    assert time.monotonic() - began < 2
