"""Criteria: a measurement, a condition that means *unsafe*, and for how long it must hold.

The rule (:func:`judge`) is a pure function over samples. It asks whether the claim "every moment of the
last ``for`` was unsafe" is proved, disproved, or neither:

- ``unsafe``: the samples cover the whole window, and all are bad;
- ``safe``: there is a good sample in the window, which disproves the claim whatever else is missing;
- ``unknown``: anything else. No samples, a gap, a history shorter than ``for``, or a newest sample too old
  to speak of now.

So a missing sample is never good and never bad, and losing samples can only lead to ``unknown``. Without
``for`` the newest moment alone decides, and when that one is missing the verdict is ``unknown``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, TypedDict

from . import specs
from .concurrently import Late, as_done
from .conditions import Condition
from .errors import BalikError
from .measurements import MEASUREMENTS
from .measurements.base import Ask, Measured, Sample, Statement, Statements
from .units import format_duration, iso, parse_duration, utc_now

SAFE, UNSAFE, UNKNOWN = "safe", "unsafe", "unknown"
SCOPES = ("frontend", "backend", "database")
TRIGGERS = ("any", "all")

EVERY = 60.0
LIMIT = 10.0
#: More than this many samples in one window is a slip of the pen, and more than Prometheus gives.
_MOST_SAMPLES = 10_000
#: Seconds; at the end of a watch, answers of the others that are older are asked for anew.
_FRESH = 5.0
#: Samples that go into the evidence of one verdict, the newest ones.
_EVIDENCE = 100


@dataclass(frozen=True)
class Criterion:
    """One line of a plan's criteria. Times in seconds; ``every`` and ``hold`` already divided by ``speed``."""

    name: str
    says: str
    measure: dict[str, Any]
    unsafe: Condition
    hold: float = 0.0
    every: float = EVERY
    limit: float = LIMIT
    touches: tuple[str, ...] = ()


class Judgement(NamedTuple):
    verdict: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What was found about one criterion, with its evidence."""

    criterion: str
    says: str
    verdict: str
    reason: str
    samples: tuple[Sample, ...]
    query: str
    at: datetime
    took: float
    touches: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the record, the report and the screen: plain JSON, at most 100 samples, no secrets."""
        return {
            "criterion": self.criterion,
            "says": self.says,
            "verdict": self.verdict,
            "reason": self.reason,
            "query": self.query,
            "at": iso(self.at),
            "took": round(self.took, 3),
            "touches": list(self.touches),
            "sample_count": len(self.samples),
            "samples": [_sample_as_dict(sample) for sample in self.samples[-_EVIDENCE:]],
        }


@dataclass(frozen=True)
class Evaluation:
    """What was found about all criteria, in the plan's order."""

    verdict: str
    reason: str
    verdicts: tuple[Verdict, ...]
    trigger: str
    at: datetime
    took: float

    def of(self, verdict: str) -> list[Verdict]:
        """The criteria found ``safe``, ``unsafe`` or ``unknown``."""
        return [each for each in self.verdicts if each.verdict == verdict]

    @property
    def touches(self) -> tuple[str, ...]:
        """What the unsafe criteria touch: some of frontend, backend, database."""
        touched = {scope for each in self.of(UNSAFE) for scope in each.touches}
        return tuple(scope for scope in SCOPES if scope in touched)

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "trigger": self.trigger,
            "touches": list(self.touches),
            "at": iso(self.at),
            "took": round(self.took, 3),
            "criteria": [each.as_dict() for each in self.verdicts],
        }


class Context(TypedDict, total=False):
    """What measurements need beside their spec: the people's statements, or a function that reads them.

    Each is a dictionary of criterion, verdict (``safe`` or ``unsafe``), by, role, reason and at; and ``before``: what
    has come since, where it no longer counts.
    """

    statements: Statements


# ---- reading a plan -------------------------------------------------------------------------------

_SPEC = specs.keys(
    required={"name": specs.text, "measure": specs.anything},
    optional={
        "says": specs.text,
        "unsafe": specs.anything,
        "for": specs.anything,
        "every": specs.duration,
        "timeout": specs.duration,
        "touches": specs.listing(specs.one_of(*SCOPES)),
    },
)


def check_criterion(
    data: object, where: str, defaults: Mapping[str, Mapping[str, Any]] | None = None
) -> list[BalikError]:
    """Everything that is wrong with a criterion as the plan wrote it; each error names its key path."""
    return _read(data, where, 1.0, defaults or {})[1]


def parse_criterion(
    data: object,
    where: str,
    speed: float = 1.0,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Criterion:
    """The criterion of a plan.

    :param where: its key path, for messages.
    :param speed: divides ``for`` and ``every``; a sandbox runs the plan's waiting times faster.
    :param defaults: measurement → keys for those that its spec leaves out, such as Prometheus' ``url``.
    :raises BalikError: the first thing that is wrong with it.
    """
    criterion, problems = _read(data, where, speed, defaults or {})
    if criterion is None:
        raise problems[0]
    return criterion


def _read(
    data: object, where: str, speed: float, defaults: Mapping[str, Mapping[str, Any]]
) -> tuple[Criterion | None, list[BalikError]]:
    problems = _SPEC(data, where)
    if not isinstance(data, Mapping):
        return None, problems

    def number(key: str, default: float) -> float:
        try:
            return parse_duration(data.get(key, default), f"{where}.{key}")
        except BalikError as error:
            if key == "for":
                problems.append(error)  # the others' durations are checked by the spec
            return default

    hold = number("for", 0.0)
    every = number("every", 0.0) or (min(EVERY, hold) if hold else EVERY)
    limit = number("timeout", LIMIT)
    if hold and every > hold:
        problems.append(BalikError(f"{where}.every", f"found {data['every']!r}", f"at most the {data['for']!r} of for"))
    elif hold / every > _MOST_SAMPLES:
        problems.append(
            BalikError(
                f"{where}.every",
                f"makes {hold / every:.0f} samples in the {data['for']!r} of for",
                f"at most {_MOST_SAMPLES}",
                "Measure less often.",
            )
        )

    kind, spec, found = _measurement(data.get("measure"), f"{where}.measure", defaults)
    if "measure" in data:
        problems += found
    if hold:
        # `every` is the longest distance; a whole number of steps makes `for`.
        every = hold / math.ceil(hold / every)
    condition = None
    if kind is not None and not found:
        condition = MEASUREMENTS[kind].implied(spec)
        if "unsafe" in data:
            try:
                condition = _condition(data["unsafe"], f"{where}.unsafe", condition)
            except BalikError as error:
                problems.append(error)
        elif condition is None:
            problems.append(BalikError(f"{where}.unsafe", "is missing", 'a condition such as "> 0.05"'))
        if condition is not None and not problems:
            problems += MEASUREMENTS[kind].check_with(spec, condition, hold, limit, where)
    elif str(data.get("unsafe")).startswith(("<", ">", "=", "!")):
        problems += _problem(lambda: Condition.parse(data["unsafe"], f"{where}.unsafe"))
    if problems or kind is None or condition is None:
        return None, problems
    criterion = Criterion(
        name=str(data["name"]),
        says=str(data.get("says", data["name"])),
        measure={kind: spec},
        unsafe=condition,
        hold=hold / speed,
        every=every / speed,
        limit=limit,
        touches=tuple(str(scope) for scope in data.get("touches", ())),
    )
    return criterion, problems


def _measurement(
    measure: object, where: str, defaults: Mapping[str, Mapping[str, Any]]
) -> tuple[str | None, Any, list[BalikError]]:
    known = ", ".join(MEASUREMENTS)
    if not isinstance(measure, Mapping) or len(measure) != 1:
        found = ", ".join(map(str, measure)) if isinstance(measure, Mapping) else repr(measure)
        return None, None, [BalikError(where, f"found {found or 'nothing'}", f"exactly one of {known}")]
    kind, spec = next(iter(measure.items()))
    if kind not in MEASUREMENTS:
        return None, None, [specs.unknown_key(f"{where}.{kind}", kind, MEASUREMENTS)]
    if isinstance(spec, Mapping):
        spec = {**defaults.get(kind, {}), **spec}
    return str(kind), spec, MEASUREMENTS[kind].check(spec, f"{where}.{kind}")


def _problem(read: Callable[[], object]) -> list[BalikError]:
    try:
        read()
    except BalikError as error:
        return [error]
    return []


def _condition(value: object, where: str, implied: Condition | None) -> Condition:
    if implied is not None and value == implied.text:
        return implied
    return Condition.parse(value, where)


# ---- the rule -------------------------------------------------------------------------------------


def judge(
    samples: Sequence[Sample],
    unsafe: Condition,
    hold: float,
    every: float,
    now: datetime,
    since: datetime | None = None,
    limit: float = LIMIT,
) -> Judgement:
    """The verdict that samples give, and the reason in one sentence.

    :param samples: in any order; those after ``now`` or before ``since`` do not count.
    :param hold: seconds for which the condition must have held; with 0 the newest sample alone decides.
    :param every: seconds between two samples; more than one and a half times that is a gap, and the
        window's beginning is as sharp as half of that.
    :param limit: seconds that one measurement may take; a newest sample older than that and twice
        ``every`` says nothing about now.
    """
    now = now.astimezone(timezone.utc)
    step, begin = timedelta(seconds=every), now - timedelta(seconds=hold)
    stale = 2 * step + timedelta(seconds=limit)
    earliest = begin - step / 2 if hold else now - stale
    if since:
        earliest = max(earliest, since)
    window = sorted((each for each in samples if earliest <= each.at <= now), key=lambda each: each.at)
    if not hold and window:
        # Only the newest moment counts, and if it is missing then nothing is known.
        window = [each for each in window if each.at == window[-1].at]
    good = [each for each in window if each.value is not None and not unsafe.holds(each.value)]
    bad = [each for each in window if each.value is not None and unsafe.holds(each.value)]
    if not good and not bad:
        why = next((each.note for each in reversed(window) if each.note), "")
        span = f"in the last {format_duration(hold)}" if hold else "now"
        return Judgement(UNKNOWN, f"no data {span}" + (f": {why}" if why else ""))

    known = sorted({each.at for each in good + bad})
    if now - known[-1] > stale:
        age = format_duration((now - known[-1]).total_seconds())
        return Judgement(UNKNOWN, f"the newest sample is {age} old")
    if good:
        return _not_unsafe(good, bad, unsafe, hold, known[-1])

    if not hold:
        return Judgement(UNSAFE, _found(bad[-1], unsafe))
    return _unsafe_if_covered(window, bad, unsafe, begin, now, step)


def _unsafe_if_covered(
    window: list[Sample], bad: list[Sample], unsafe: Condition, begin: datetime, now: datetime, step: timedelta
) -> Judgement:
    known = sorted({each.at for each in bad})
    hold = format_duration((now - begin).total_seconds())
    value = _found(bad[-1], unsafe)
    if known[0] - begin > step / 2:
        held = format_duration((known[-1] - known[0]).total_seconds())
        return Judgement(UNKNOWN, f"{value} for {held} of {hold} so far")
    for left, right in zip(known, [*known[1:], now]):
        if right - left > 1.5 * step:
            why = next((each.note for each in window if each.value is None and left < each.at <= right), "")
            gap = f"no data between {_clock(left)} and {_clock(right)}" + (f" ({why})" if why else "")
            return Judgement(UNKNOWN, f"{value}, but {gap}")
    return Judgement(UNSAFE, f"{value} for {hold} ({len(bad)} sample{'s' if len(bad) > 1 else ''})")


def _not_unsafe(good: list[Sample], bad: list[Sample], unsafe: Condition, hold: float, newest: datetime) -> Judgement:
    last_good = good[-1]
    since_then = [each for each in bad if each.at >= last_good.at]
    if not since_then:
        return Judgement(SAFE, _found(last_good, unsafe))
    if not hold:
        return Judgement(UNKNOWN, f"two samples of {_clock(newest)} disagree")
    held = format_duration((newest - last_good.at).total_seconds())
    return Judgement(
        SAFE,
        f"{_found(since_then[-1], unsafe)}, but only for {held} of {format_duration(hold)}:"
        f" at {_clock(last_good.at)} it was {_found(last_good, unsafe)}",
    )


def _found(sample: Sample, unsafe: Condition) -> str:
    if unsafe.implied and sample.note:
        return sample.note
    value = sample.value or 0.0
    compared = f"{value:.4g}, {'' if unsafe.holds(value) else 'not '}{unsafe}"
    return f"{compared} ({sample.note})" if sample.note else compared


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%SZ}"


def _sample_as_dict(sample: Sample) -> dict[str, Any]:
    # JSON has no infinity, which is what Prometheus makes of 1/0.
    value = sample.value if sample.value is None or math.isfinite(sample.value) else str(sample.value)
    return {"at": iso(sample.at), "value": value, **({"note": sample.note} if sample.note else {})}


def combine(verdicts: Sequence[str], trigger: str = "any") -> str:
    """The verdict of the whole.

    ``any``: one unsafe criterion is enough, so ``safe`` needs all of them safe. ``all``: every criterion must
    be unsafe, so one safe criterion is enough for ``safe``. Otherwise one unknown makes the whole unknown.
    No criteria at all: unknown.
    """
    decisive, other = (UNSAFE, SAFE) if trigger == "any" else (SAFE, UNSAFE)
    if decisive in verdicts:
        return decisive
    return UNKNOWN if UNKNOWN in verdicts or not verdicts else other


# ---- measuring ------------------------------------------------------------------------------------


def longest(criteria: Sequence[Criterion]) -> float:
    """Seconds after which measuring these at once has ended."""
    lasting, rest = _parted(criteria)
    # In the worst case each that lasts is watched once more after another, and the rest measured before and after each.
    rounds = max(1, len(lasting))
    return sum(map(_patience, lasting)) + 2 * rounds * max(map(_patience, rest), default=0)


def _parted(criteria: Sequence[Criterion]) -> tuple[list[Criterion], list[Criterion]]:
    """Those that are sampled over their ``for``, and the rest, which answer at once."""
    lasting = [each for each in criteria if MEASUREMENTS[_kind(each)].lasts(each.hold)]
    return lasting, [each for each in criteria if each not in lasting]


def _kind(criterion: Criterion) -> str:
    return next(iter(criterion.measure))


def _patience(criterion: Criterion) -> float:
    kind, spec = next(iter(criterion.measure.items()))
    return MEASUREMENTS[kind].patience(spec, criterion.hold, criterion.limit)


def evaluate(
    criteria: Sequence[Criterion],
    context: Context | None = None,
    now: datetime | None = None,
    since: datetime | None = None,
    trigger: str = "any",
    cut: bool = False,
) -> Evaluation:
    """Measure all criteria at once and judge them.

    Each has its own limit: one that hangs is ``unknown`` and delays nobody beyond that. A criterion that has
    to be watched for a while (an HTTP probe with ``for``) is cut short when the others decide the whole, and it could
    add nothing to what the release has touched, which decides the remedy. While it is watched, the others are measured
    again each ``every``, and at its end.

    :param now: the end of the window; default the present.
    :param since: samples that are older do not count (the beginning of a watch).
    :param cut: nothing is watched for a while: one sample is enough.
    """
    look = _Look(criteria, context or {}, now, since, trigger)
    if cut:
        look.stop_all()
    lasting, rest = _parted(criteria)
    if now or not lasting:
        look.at(criteria)
        return look.evaluation()
    pause = min((each.every for each in rest), default=None)
    with ThreadPoolExecutor(1) as thread:
        try:
            while lasting:
                watched = thread.submit(look.at, lasting)
                last = False
                while not last:
                    last = watched.done()
                    look.at([each for each in rest if not look.is_decided_by(each)])
                    measured = time.monotonic()
                    if not last:
                        wait([watched], pause)
                        last = watched.done() and time.monotonic() - measured < _FRESH
                watched.result()
                # What was good at once while another was watched for long may have changed since.
                old = max(look.measured[each.name] for each in lasting) - _FRESH
                lasting = [each for each in lasting if look.measured[each.name] < old and not look.is_decided()]
        finally:
            look.stop_all()
    return look.evaluation()


class _Look:
    """One evaluation: what was found of each criterion so far. Shared by the thread that watches."""

    def __init__(
        self,
        criteria: Sequence[Criterion],
        context: Context,
        now: datetime | None,
        since: datetime | None,
        trigger: str,
    ) -> None:
        self.started = time.monotonic()
        self._criteria, self._context, self._now, self._since, self._trigger = criteria, context, now, since, trigger
        self._stops = {each.name: threading.Event() for each in criteria}
        self._statements: Sequence[Statement] | None = None
        self._found: dict[str, Verdict] = {}
        #: Criterion → when it was measured, by the monotonic clock.
        self.measured: dict[str, float] = {}
        self._moment = now or utc_now()

    def at(self, some: Sequence[Criterion]) -> None:
        """Measure these at once."""
        if any(_kind(each) == "statement" for each in some):
            self._listen()
        moment, began = self._now or utc_now(), time.monotonic()
        jobs = {each.name: (self._job(each, moment), _patience(each)) for each in some}
        by_name = {each.name: each for each in some}
        for name, answer in as_done(jobs):
            ended = time.monotonic()
            self._found[name] = _verdict(by_name[name], answer, moment, self._since, ended - began)
            self.measured[name] = ended
            self._moment = max(self._moment, moment)
            self._stop_what_is_not_needed()

    def _listen(self) -> None:
        """Read people's statements: in this thread, which may own the connection that they are read by.

        :raises BalikError: they cannot be read. If they could before, what was read then stays.
        """
        said = self._context.get("statements", ())
        try:
            self._statements = said() if callable(said) else said
        except BalikError:
            if self._statements is None:
                raise

    def _job(self, criterion: Criterion, moment: datetime) -> Callable[[], Measured]:
        kind, spec = next(iter(criterion.measure.items()))
        ask = Ask(
            criterion=criterion.name,
            unsafe=criterion.unsafe,
            hold=criterion.hold,
            every=criterion.every,
            limit=criterion.limit,
            now=moment,
            since=self._since,
            statements=self._statements or (),
            stop=self._stops[criterion.name],
        )
        return lambda: MEASUREMENTS[kind].measure(spec, ask)

    def _stop_what_is_not_needed(self) -> None:
        found = list(self._found.values())
        touched = {scope for each in found if each.verdict == UNSAFE for scope in each.touches}
        for each in self._criteria:
            if self.is_decided() and (self._trigger != "any" or touched.issuperset(each.touches)):
                self._stops[each.name].set()

    def stop_all(self) -> None:
        for stop in self._stops.values():
            stop.set()

    def is_decided(self) -> bool:
        """Whether one of them decides the whole."""
        return any(map(self.is_decided_by, self._criteria))

    def is_decided_by(self, criterion: Criterion) -> bool:
        found = self._found.get(criterion.name)
        return found is not None and found.verdict == (UNSAFE if self._trigger == "any" else SAFE)

    def evaluation(self) -> Evaluation:
        verdicts = tuple(self._found[each.name] for each in self._criteria)
        whole = combine([each.verdict for each in verdicts], self._trigger)
        took = time.monotonic() - self.started
        return Evaluation(whole, summary(verdicts, whole), verdicts, self._trigger, self._moment, took)


def _verdict(
    criterion: Criterion, answer: Measured | Exception, now: datetime, since: datetime | None, took: float
) -> Verdict:
    samples: tuple[Sample, ...] = ()
    kind, spec = next(iter(criterion.measure.items()))
    at = now
    if isinstance(answer, Measured):
        samples = tuple(sorted(answer.samples, key=lambda each: each.at))
        at = answer.now
        verdict, reason = judge(
            samples, criterion.unsafe, criterion.hold, answer.every or criterion.every, at, since, criterion.limit
        )
    elif isinstance(answer, (BalikError, Late)):
        verdict, reason = UNKNOWN, str(answer)
    else:
        # Not its text: an exception from a library may quote a header or a DSN.
        verdict, reason = UNKNOWN, f"the measurement broke with {type(answer).__name__}"
    return Verdict(
        criterion=criterion.name,
        says=criterion.says,
        verdict=verdict,
        reason=reason,
        samples=samples,
        query=MEASUREMENTS[kind].query(spec, criterion.name),
        at=at,
        took=took,
        touches=criterion.touches,
    )


def summary(verdicts: Sequence[Verdict], whole: str) -> str:
    """The verdict of the whole in a sentence: the reasons of those that made it."""
    if not verdicts:
        return "there are no criteria"
    telling = [each for each in verdicts if each.verdict == whole]
    if whole == SAFE and len(telling) == len(verdicts):
        return f"all {len(verdicts)} criteria are safe"
    return "; ".join(f"{each.criterion}: {each.reason}" for each in telling)
