"""HTTP requests in sequence: does what matters to a user work, and how fast?"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from .. import specs
from ..conditions import Condition
from ..errors import BalikError
from ..http_probe import (
    Answers,
    NotAnswered,
    NotReached,
    WrongAnswer,
    cleaning_limit,
    dig,
    full_url,
    masked,
    requests_of,
    run_sequence,
    secrets_of,
    sequence_spec,
    shown_url,
)
from ..units import utc_now
from .base import Ask, Measured, Sample

_SPEC = sequence_spec({"value": specs.text})


class Http:
    """``{requests: […], after: […], value: failed|latency|status|<JSON path>}``.

    ``failed`` (the default) is 1 when a request was not answered as expected, else 0. ``latency`` is that of the
    slowest request in seconds, ``status`` that of the last answer, and a JSON path a number in it.

    Where the system could not be asked at all (no such name, no route, no trust in the certificate) the sample
    is missing. So it is for values other than ``failed`` when a request fails: a quick error is not a good
    latency. Waiting in vain for longer than the latency that is unsafe is unsafe.
    """

    def check(self, spec: object, where: str) -> list[BalikError]:
        return _SPEC(spec, where)

    def check_with(self, spec: Any, unsafe: Condition, hold: float, limit: float, where: str) -> list[BalikError]:
        if spec.get("value") == "latency" and unsafe.op in {">", ">="} and unsafe.threshold >= limit:
            return [
                BalikError(
                    f"{where}.timeout",
                    f"is {limit:g} s, before an answer could be {unsafe}",
                    f"more than {unsafe.threshold:g} s",
                )
            ]
        return []

    def implied(self, spec: Any) -> Condition | None:
        return Condition("==", 1, "failed") if spec.get("value", "failed") == "failed" else None

    def query(self, spec: Any, criterion: str) -> str:
        def shown(request: Any) -> str:
            method = request.get("method") or ("POST" if "body" in request or "json" in request else "GET")
            return f"{method} {shown_url(full_url(spec, str(request['url'])))}"

        return " → ".join(shown(request) for request in requests_of(spec))

    def patience(self, spec: Any, hold: float, limit: float) -> float:
        # With `for`, the last sample may begin when the one before it ended late.
        once = limit + cleaning_limit(spec, limit)
        return (hold + 2 * once if hold else once) + 1

    def lasts(self, hold: float) -> bool:
        return hold > 0

    def measure(self, spec: Any, ask: Ask) -> Measured:
        """There is no history to ask for: with ``for`` it samples until one is good, or for that long."""
        started, begin = time.monotonic(), utc_now()
        samples: list[Sample] = []
        every = ask.every
        while True:
            after = time.monotonic() - started
            at = begin + timedelta(seconds=after)
            sample = _sample(spec, ask, at)
            samples.append(replace(sample, note=masked(sample.note, secrets_of(spec))))
            value = samples[-1].value
            took = time.monotonic() - started - after
            # A probe that took its time watched for that long: no gap.
            every = max(every, took)
            if (value is not None and not ask.unsafe.holds(value)) or after >= ask.hold:
                break
            # Not after the probe's own duration, so that the samples keep their distance.
            pause = min(len(samples) * ask.every, ask.hold) - (time.monotonic() - started)
            if ask.stop.wait(max(0.0, pause)):
                break
        return Measured(samples, at, every)


def _sample(spec: Any, ask: Ask, at: datetime) -> Sample:
    kind = spec.get("value", "failed")
    if kind == "status":
        # The status is what is asked for: none of them is wrong.
        any_status = {"status": ["1xx", "2xx", "3xx", "4xx", "5xx"]}
        requests = [{**each, "expect": {**any_status, **each.get("expect", {})}} for each in requests_of(spec)]
        spec = {**spec, "requests": requests}
    try:
        answers = run_sequence(spec, ask.limit)
    except NotReached as error:
        return Sample(at, None, str(error))
    except (NotAnswered, WrongAnswer) as error:
        if kind == "failed":
            return Sample(at, 1.0, str(error))
        waited = getattr(error, "waited", None)
        # Only a lower bound: it can prove that the system is too slow, not that it is fast enough.
        if kind == "latency" and waited is not None and ask.unsafe.holds(waited):
            return Sample(at, waited, str(error))
        return Sample(at, None, str(error))
    note = answers.says + (f"; {answers.cleaned}" if answers.cleaned else "")
    try:
        return Sample(at, _value(kind, answers), note)
    except BalikError as error:
        return Sample(at, None, str(error))


def _value(kind: str, answers: Answers) -> float:
    if kind == "failed":
        return 0.0
    if kind == "latency":
        return answers.slowest
    if kind == "status":
        return float(answers.last.status)
    found = dig(answers.last.json(), kind, "the last answer")
    try:
        return float(found)
    except (TypeError, ValueError):
        raise WrongAnswer("the last answer", f"{kind} is {found!r}", "a number") from None
