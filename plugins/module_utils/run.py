"""What the entries of a record say about runs: how far one is, who has answered, what each step saved.

Everything here is a pure function over entries, so that what the next run believes is what was written down.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .kubernetes.client import name_of
from .plan import PHASES
from .record import Entry
from .units import format_duration, parse_time, utc_now

ROLLED_BACK = "rolled-back"
NOTHING_TO_DO = "nothing-to-do"
NOT_DECIDED = "not-decided"
FAILED = "failed"
ABANDONED = "abandoned"
#: Seconds; after that, the world and the people's minds have moved on.
RESUME_WITHIN = 24 * 3600
#: A run that ended so is over; one that failed, or has no outcome, is taken up again by the next call.
FINAL = (ROLLED_BACK, NOTHING_TO_DO, NOT_DECIDED, ABANDONED)
GOOD = (ROLLED_BACK, NOTHING_TO_DO)

GO = "go"
NO_GO = "no-go"
SIGN_OFF = "sign-off"
REFUSE = "refuse"
UNSAFE = "unsafe"
SAFE = "safe"
#: What a person may say, by what it is about.
ANSWERS = {"decision": (GO, NO_GO), "sign-off": (SIGN_OFF, REFUSE), "statement": (UNSAFE, SAFE)}
#: The stage at which a page is found gone that was up.
SEEN = "seen"
#: What the functions below look for in entries, beside the plan's names.
WORDS = (
    *(*FINAL, FAILED, *PHASES, *itertools.chain(*ANSWERS.values()), *ANSWERS),
    *("answer", "decided", "failures", "outcome", "procedure", "product", "reason", "release", "remedy", "started"),
    *("unknown", "verdict", "watched", "watching", "left", "gone", "stage", SEEN),
)

#: The step that holds autoscalers still, and the one that lets them go, which gives no visitor anything back.
FREEZE = "scale-freeze"
THAW = "scale-thaw"
#: The step that holds Argo CD and Flux off, and the one that lets them act again.
REVERT = "image-revert"
RESUME = "gitops-resume"
#: The step that puts the maintenance page up, and the one that takes it down.
PAGE_UP, PAGE_DOWN = "maintenance-page", "traffic-restore"
#: Where the page is; the last where nothing was written down that would say so.
ON, OFF, UNKNOWN = "on", "off", "unknown"
#: Steps of the restore phase that give no visitor anything back.
NO_TRAFFIC = (THAW, RESUME)


@dataclass
class StepState:
    """One step of a run: ``state`` is started, done or failed; ``began`` whether it ever went beyond its check;
    ``saved`` is what stood on each host before the first start; ``seconds`` is the time from the newest start to its
    end."""

    name: str
    phase: str
    state: str
    started_at: datetime
    saved: dict[str, dict] = field(default_factory=dict)
    seconds: float | None = None
    says: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    began: bool = False


@dataclass
class PageTime:
    """A time in which the maintenance page was up; ``until`` is None while it was not written down that it went."""

    since: datetime
    until: datetime | None = None


@dataclass
class Run:
    """One rollback from its opening to its outcome, over as many calls as it took. ``page`` is on, off or unknown; None
    where the run did not touch it. ``back_since`` is when visitors got the application back; None while that is not
    certain. ``first_back`` is when they got it back first, whatever came after it. ``called_at`` is when the newest
    call began."""

    id: str
    opened_at: datetime
    opened: dict[str, Any]
    last_at: datetime
    called_at: datetime
    decided: dict[str, Any] | None = None
    steps: dict[str, StepState] = field(default_factory=dict)
    outcome: str | None = None
    outcome_body: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    watched: str | None = None
    back_since: datetime | None = None
    first_back: datetime | None = None
    page: str | None = None
    page_times: list[PageTime] = field(default_factory=list)
    calls: int = 1

    @property
    def steps_in_order(self) -> list[StepState]:
        """By phase: a step of a later one may have been looked at first."""
        return sorted(self.steps.values(), key=lambda step: PHASES.index(step.phase))

    @property
    def is_over(self) -> bool:
        return self.outcome in FINAL

    @property
    def traffic_given_back(self) -> bool:
        """Whether visitors have the application again, so that no earlier step may take it from them: all before was
        proved then. A step that was only started may have given it back."""
        may_be = any(step.state == "started" and _gives_back(self, step) for step in self.steps.values())
        return self.traffic_is_back or (may_be and self.watched is None)

    @property
    def traffic_is_back(self) -> bool:
        """Whether visitors certainly have the application again. Only an unsafe watch takes it from them then: neither
        one that could not see nor what failed after it."""
        return self.back_since is not None

    @property
    def page_at_end(self) -> str | None:
        """Where the page is if this is the end: it is not known of a step whose end could not be written down."""
        return UNKNOWN if self.page and any(has_no_end(self, name) for name in (PAGE_UP, PAGE_DOWN)) else self.page


@dataclass(frozen=True)
class Answer:
    """A person's word: who, in which role, what, why, when."""

    kind: str
    role: str
    by: str
    answer: str
    reason: str
    at: datetime
    run: str
    item: str = ""
    remedy: str = ""


def new_run_id(now: datetime | None = None) -> str:
    """A run's name that sorts by time: ``20260110T130000Z-3f9a``."""
    return (now or utc_now()).strftime("%Y%m%dT%H%M%SZ-") + secrets.token_hex(2)


def read_runs(entries: Iterable[Entry]) -> list[Run]:
    """All runs of a record, oldest first."""
    runs: dict[str, Run] = {}
    for entry in entries:
        at, body = parse_time(entry.at), entry.body
        if entry.kind == "run-opened":
            runs[entry.run] = Run(entry.run, at, body, at, at)
        run = runs.get(entry.run)
        if run:
            # That a run is left as it is may be written down long after it was heard of last.
            run.last_at = run.last_at if entry.body.get("outcome") == ABANDONED else at
            _take_in(run, entry.kind, at, body)
    return list(runs.values())


def _gives_back(run: Run, step: StepState) -> bool:
    """Whether a step gives visitors the application; while the page is up, only the one does that takes it down."""
    if step.phase != "restore" or step.name in NO_TRAFFIC:
        return False
    return step.name == PAGE_DOWN or run.page in (None, OFF)


def _take_in(run: Run, kind: str, at: datetime, body: dict[str, Any]) -> None:
    if kind == "run-resumed":
        run.calls, run.called_at = run.calls + 1, at
        run.outcome, run.outcome_body = None, {}
        if run.decided and run.decided["outcome"] != GO:
            # Killed before it was said that there is nothing to do: that may not be so any more.
            run.decided = None
    elif kind == "criteria":
        run.verdict = body
    elif kind == "decided":
        run.decided = body
    elif kind == "step-started":
        before = run.steps.get(body["step"])
        step = StepState(body["step"], body["phase"], "started", at)
        # The first time counts: a later look may see the step's own half-done work.
        kept = before.saved if before else {}
        step.saved = {host: _kept_first(kept.get(host), saved) for host, saved in {**kept, **body["saved"]}.items()}
        step.began = True
        run.steps[body["step"]] = step
    elif kind in ("step-done", "step-failed"):
        step = run.steps.setdefault(body["step"], StepState(body["step"], body["phase"], "failed", at))
        step.state = kind.removeprefix("step-")
        step.says, step.failures = body.get("says", {}), body.get("failures", {})
        # A look at the page in the middle of a run is no part of what it took to put it up.
        step.seconds = None if body.get("stage") == SEEN else (at - step.started_at).total_seconds()
    elif kind == "outcome":
        run.outcome, run.outcome_body = body["outcome"], body
    _follow_traffic(run, kind, at, body)
    _follow_page(run, kind, at, body)


def _kept_first(first: Any, later: Any) -> Any:
    """What a step saved on a host first, and what a later start has beside it: the plan may name more by then.

    One thing is kept as it stood first, whatever is known of it later; of two lists of texts both are kept.
    """
    if not (isinstance(first, dict) and isinstance(later, dict)):
        return later if first is None else first
    kept = {**later, **first}
    for name in first.keys() & later.keys():
        one, other = first[name], later[name]
        if isinstance(one, dict) and isinstance(other, dict):
            kept[name] = {**other, **one}
        elif isinstance(one, list) and isinstance(other, list) and all(isinstance(each, str) for each in one + other):
            kept[name] = list(dict.fromkeys(one + other))
    return kept


def _follow_traffic(run: Run, kind: str, at: datetime, body: dict[str, Any]) -> None:
    """Since when visitors have the application again, and what a watch has seen since then."""
    if kind == "watching" or (kind == "step-done" and _gives_back(run, run.steps[body["step"]])):
        run.back_since = run.back_since or at
        run.first_back = run.first_back or at
    elif kind == "step-failed" and body["step"] == PAGE_DOWN and _page_left(body) == {OFF}:
        # Given back in this step, and the watch could not write it down: what was said since it began counts.
        run.back_since = run.back_since or at
        run.first_back = run.first_back or run.steps[body["step"]].started_at
    elif kind == "watched":
        run.watched = body["verdict"]
        if run.watched == UNSAFE:
            run.back_since = None  # the page goes up again
    elif kind == "step-started":
        if body["phase"] == "hold":
            run.back_since = None
        if run.back_since is None and _gives_back(run, run.steps[body["step"]]):
            run.watched = None  # a watch of its own is to come; what was seen before holds until then


def _follow_page(run: Run, kind: str, at: datetime, body: dict[str, Any]) -> None:
    """Where the page is after an entry. What is said here is what was read back on all load balancers."""
    if run.page and kind == "watching":
        _page_is(run, OFF, at)
    elif run.page and kind == "watched" and run.watched == UNSAFE:
        run.page = UNKNOWN  # it goes up again
    elif kind == "outcome":
        run.page = run.page_at_end
    elif kind.startswith("step-") and body.get("stage") != "check":
        if body["step"] == PAGE_UP:
            _follow_page_up(run, kind, at, body)
        elif body["step"] == PAGE_DOWN and run.page:
            _follow_page_down(run, kind, at, body)


def has_no_end(run: Run, name: str) -> bool:
    """Whether a step that the newest call began has neither done nor failed behind it."""
    step = run.steps.get(name)
    return step is not None and step.state == "started" and step.started_at >= run.called_at


def _follow_page_up(run: Run, kind: str, at: datetime, body: dict[str, Any]) -> None:
    if kind == "step-done":
        _page_is(run, ON, at)
    elif run.page != ON or body.get("stage") == SEEN:
        run.page = UNKNOWN


def _follow_page_down(run: Run, kind: str, at: datetime, body: dict[str, Any]) -> None:
    if kind == "step-done":
        _page_is(run, OFF, at)
        if body.get("gone"):
            run.page = UNKNOWN  # on a load balancer that nobody could ask
    elif kind == "step-started" and not run.traffic_is_back:
        run.page = UNKNOWN
    elif kind == "step-failed" and ON in (left := _page_left(body)):
        # Some of them show it only where somebody put it up there by hand.
        run.page = UNKNOWN
        if left == {ON}:
            _page_is(run, ON, at)
            run.back_since = run.watched = None
    elif kind == "step-failed" and left == {OFF}:
        _page_is(run, OFF, at)


def _page_is(run: Run, where: str, at: datetime) -> None:
    run.page = where
    newest = run.page_times[-1] if run.page_times else None
    if where == ON and (newest is None or newest.until):
        run.page_times.append(PageTime(at))
    elif where == OFF and newest and newest.until is None:
        newest.until = max(at, newest.since)


def _page_left(body: dict[str, Any]) -> set[str]:
    """Where a step that failed has left the page on its hosts; unknown on one of which it says nothing."""
    left = body.get("left")
    hosts = left.values() if isinstance(left, dict) else ()
    return {ON if each == {"page": ON} else OFF if each == {"page": OFF} else UNKNOWN for each in hosts}


@dataclass(frozen=True)
class Frozen:
    """Autoscalers that stand still: since when, by which run, and what the freeze said on each host (empty where it
    did not end, so that some may stand still)."""

    run: str
    since: datetime
    says: dict[str, str]


def still_frozen(entries: Iterable[Entry]) -> Frozen | None:
    """What the newest freeze of a record holds still, whichever run it was; None where a thaw came after it."""
    frozen = None
    for entry in entries:
        step = entry.body.get("step") if entry.kind.startswith("step-") else None
        if step == FREEZE and entry.kind == "step-started":
            # A second freeze finds what the first has left: the first is when it began.
            frozen = Frozen(entry.run, frozen.since if frozen else parse_time(entry.at), {})
        elif step == FREEZE and entry.kind == "step-done" and frozen:
            frozen = Frozen(entry.run, frozen.since, entry.body.get("says", {}))
        elif step == THAW and entry.kind == "step-done":
            frozen = None
    return frozen


@dataclass(frozen=True)
class HeldOff:
    """GitOps objects (Argo CD's Applications, Flux' Kustomizations and HelmReleases) that do not act by themselves:
    since when, by which run, and their names (``applications hub in namespace argocd``) by host and cluster (its uid;
    empty where that is not known)."""

    run: str
    since: datetime
    by_place: dict[tuple[str, str], tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(itertools.chain(*self.by_place.values())))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those that hold something off."""
        return tuple(dict.fromkeys(host for (host, _cluster), names in self.by_place.items() if names))

    def on(self, host: str, cluster: str) -> tuple[str, ...]:
        """Those that a host has held off in what may be this cluster."""
        there = [
            names for place, names in self.by_place.items() if place[0] == host and same_cluster(place[1], cluster)
        ]
        return tuple(dict.fromkeys(itertools.chain(*there)))


def cluster_uid(saved: Any) -> str:
    """That of the cluster in which a step kept this; empty where it is not known."""
    return str(saved.get("cluster_uid") or "") if isinstance(saved, dict) else ""


def same_cluster(one: str, other: str) -> bool:
    """Whether it may be, by the uids of both."""
    return not one or not other or one == other


def still_held_off(entries: Iterable[Entry]) -> HeldOff | None:
    """What the reverts of a record have held off and no resume has let go, whichever run it was; None where nothing."""
    found = None
    asked: dict[str, str] = {}
    for entry in entries:
        step = entry.body.get("step") if entry.kind.startswith("step-") else None
        if step == REVERT and entry.kind == "step-started":
            every: dict[tuple[str, str], tuple[str, ...]] = dict(found.by_place) if found else {}
            for host, paths in _listed_by_host(entry.body["saved"], "held").items():
                place = (host, cluster_uid(entry.body["saved"][host]))
                every[place] = tuple(dict.fromkeys([*every.get(place, ()), *map(name_of, paths)]))
            if any(every.values()):
                found = HeldOff(entry.run, found.since if found else parse_time(entry.at), every)
        elif step == RESUME and entry.kind == "step-started":
            asked = {host: cluster_uid(saved) for host, saved in _mapping(entry.body.get("saved")).items()}
        elif step == RESUME and entry.kind == "step-done" and found:
            # It says nothing of hosts on which it did not run, and of other clusters.
            every = dict(found.by_place)
            for host, left in _listed_by_host(entry.body.get("evidence"), "verify", "left").items():
                cluster = asked.get(host, "")
                every = {
                    place: every[place] for place in every if place[0] != host or not same_cluster(place[1], cluster)
                }
                every[host, cluster] = left
            found = HeldOff(found.run, found.since, every) if any(every.values()) else None
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed_by_host(hosts: Any, *keys: str) -> dict[str, tuple[str, ...]]:
    """The texts of a list below these keys, of each host; none where it is no list."""
    listed = {}
    for host, found in _mapping(hosts).items():
        below = found
        for key in keys:
            below = below.get(key) if isinstance(below, dict) else None
        listed[host] = tuple(each for each in (below if isinstance(below, list) else ()) if isinstance(each, str))
    return listed


def unfinished_run(entries: Iterable[Entry]) -> Run | None:
    """The newest run, if it is not over."""
    runs = read_runs(entries)
    return runs[-1] if runs and not runs[-1].is_over else None


def still_held(entries: Sequence[Entry]) -> str | None:
    """The newest run that has kept the traffic from the application and has not given it back; None where the traffic
    is back, or somebody has said so."""
    said = max((parse_time(entry.at) for entry in entries if entry.kind == "traffic-back"), default=None)
    held = None
    for run in read_runs(entries):
        if run.outcome == ROLLED_BACK or run.traffic_is_back:
            held = None
        elif any(step.phase == "hold" and step.began for step in run.steps.values()):
            held = run.id if said is None or run.last_at > said else None
    return held


def why_not_resumed(run: Run, release: str, now: datetime) -> str:
    """Why a run that is not over is not taken up again; empty where it is. An old decision must not roll back what it
    was never about."""
    if run.opened.get("release") != release:
        return f"it was about release {run.opened.get('release')}, not {release}"
    age = (now - run.last_at).total_seconds()
    return f"it was last heard of {format_duration(age)} ago" if age > RESUME_WITHIN else ""


def read_answers(entries: Iterable[Entry]) -> list[Answer]:
    """All that people have said, oldest first."""
    return [
        Answer(
            *(entry.kind, entry.body["role"], entry.body["by"], entry.body["answer"], entry.body["reason"]),
            *(parse_time(entry.at), entry.run, entry.body.get("item", ""), entry.body.get("remedy", "")),
        )
        for entry in entries
        if entry.kind in ANSWERS
    ]


def read_statements(
    entries: Sequence[Entry], launched: datetime, first_back: datetime | None = None
) -> list[dict[str, Any]]:
    """What people have stated on the plan's criteria, oldest first, as measurements take it.

    A statement is about the release that it was made about: ``before`` says what has come since, so that it no longer
    counts (the launch, or the last rollback, from when visitors first got the stable release); empty where it counts.

    :param first_back: when a run has given the traffic back first, to which only what was stated after it matters.
    """
    ends = [(launched, "the launch")]
    if first_back:
        ends.append((first_back, "the traffic was given back"))
    given_back = {run.id: run.first_back for run in read_runs(entries)}
    for entry in entries:
        if entry.kind == "outcome" and entry.body["outcome"] == ROLLED_BACK:
            ends.append((given_back.get(entry.run) or parse_time(entry.at), "the last rollback"))
    since, what = max(ends, key=lambda end: end[0])
    return [
        {
            **{"criterion": a.item, "verdict": a.answer, "by": a.by, "role": a.role, "reason": a.reason, "at": a.at},
            "before": what if a.at < since else "",
        }
        for a in read_answers(entries)
        if a.kind == "statement"
    ]


def answers_for_run(entries: Sequence[Entry], run: Run, valid: float) -> list[Answer]:
    """The answers that count for a run: given in it, or up to ``valid`` seconds before it was opened, but never
    before the end of the run before it: each rollback is decided anew."""
    earlier = list(itertools.takewhile(lambda other: other.id != run.id, read_runs(entries)))
    oldest = run.opened_at - timedelta(seconds=valid)
    if earlier:
        oldest = max(oldest, earlier[-1].last_at)
    return [a for a in read_answers(entries) if a.run == run.id or (not a.run and oldest < a.at)]


@dataclass(frozen=True)
class Standing:
    """Where a decision stands: ``waiting`` for these roles, or refused by ``refused``, or neither: it is made."""

    answers: dict[str, Answer]
    waiting: tuple[str, ...]
    refused: Answer | None

    @property
    def made(self) -> bool:
        return not self.waiting and self.refused is None


def standing(answers: Iterable[Answer], needed: Sequence[str], remedy: str) -> Standing:
    """Who has said what about rolling back by this remedy: the Go of the needed roles, and the No-Go of any. A role's
    newest answer counts; an answer that names another remedy does not count for this one."""
    newest = {a.role: a for a in answers if a.kind == "decision" and a.remedy in ("", remedy)}
    refused = next((a for a in newest.values() if a.answer == NO_GO), None)
    counting = {role: a for role, a in newest.items() if role in needed or a.answer == NO_GO}
    return Standing(counting, tuple(role for role in needed if role not in newest), refused)


def taken_back(entries: Iterable[Entry], run_id: str, remedy: str) -> Answer | None:
    """Somebody's No-Go to a run's remedy since it was decided, unless they have said Go again; None where nobody
    has."""
    newest: dict[str, Answer] = {}
    since = 0
    for entry in entries:
        if entry.run == run_id and entry.kind in ("decided", "glass-broken"):
            newest, since = {}, entry.seq
        elif since and entry.run == run_id and entry.kind == "decision":
            (answer,) = read_answers([entry])
            if answer.remedy in ("", remedy):
                newest[answer.role] = answer
    return next((answer for answer in newest.values() if answer.answer == NO_GO), None)


def sign_off_of(answers: Iterable[Answer], item: str, role: str) -> Answer | None:
    """The newest answer to a sign-off by its role, or None."""
    fitting = [a for a in answers if a.kind == "sign-off" and a.item == item and a.role == role]
    return fitting[-1] if fitting else None


def answers_since_last_step(entries: Sequence[Entry]) -> list[Answer]:
    """The answers given after anything was done last: whoever looked before has not seen what it left."""
    moved = max((number for number, entry in enumerate(entries) if entry.kind.startswith("step-")), default=-1)
    return read_answers(entries[moved + 1 :])
