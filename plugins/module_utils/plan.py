"""The plan language: what the ``rollback_*`` variables of a product may say, checked and shaped.

:func:`read_plan` takes plain variables (a mapping of names to templated values) and returns a :class:`Plan`, or
raises :class:`PlanRefused` with *all* problems, each naming the key path, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from .criteria import SCOPES, Criterion, check_criterion, parse_criterion
from .errors import BalikError
from .messages import mail_server, names_for, names_in
from .record import is_dsn
from .units import format_duration, parse_duration, parse_time

PREFIX = "rollback_"
PHASES = ("hold", "revert", "verify", "restore")
LANGUAGES = ("id", "en")
MOMENTS = ("asked", "rolled-back", "failed", "not-decided")
#: When a checklist item is due: with a phase of the rollback, before it, or after it.
CHECKLIST_MOMENTS = ("before", *PHASES, "after")

#: Variables of one run, given with -e; a plan does not set them, and they are checked where they are used.
RUN_VARIABLES = (
    *("rollback_remedy", "rollback_procedure", "rollback_reason", "rollback_scope", "rollback_by", "rollback_role"),
    *("rollback_break_glass", "rollback_take_lock", "rollback_fresh", "rollback_traffic_back"),
)
#: The phase of each of this project's own steps: a database is not restored under visitors, and no page goes up when
#: all else is over. ``smoke-test`` may stand in any.
PHASE_OF = {
    **dict.fromkeys(("maintenance-page", "scale-freeze"), "hold"),
    **dict.fromkeys(("image-revert", "prisma-down", "db-restore"), "revert"),
    **dict.fromkeys(("scale-thaw", "traffic-restore", "gitops-resume"), "restore"),
}
#: Where the record and the reports stand.
PLACE_VARIABLES = ("rollback_state_dir", "rollback_record_dsn", "rollback_record_key")
#: Characters of a name: files and folders are called after it.
LONGEST_SLUG = 100
#: What the wrapper and the flow hand to steps.
INTERNAL_PREFIXES = ("rollback_step", "rollback_run_")


class PlanRefused(BalikError):
    """The plan cannot be used; ``problems`` has every reason, ``steps`` the steps that it names all the same."""

    def __init__(self, problems: Sequence[BalikError], steps: Iterable[str] = ()) -> None:
        self.problems = list(problems)
        self.steps = frozenset(steps)
        many = f"{len(problems)} problems" if len(problems) > 1 else "one problem"
        super().__init__("the plan is refused", f"{many}, and nothing was touched")

    def __str__(self) -> str:
        return "\n".join([f"{self.what}: {self.found}", *(f"  - {problem}" for problem in self.problems)])


@dataclass(frozen=True)
class Person:
    """A role in the rollback: who fills it and how to reach them. ``after`` is in seconds."""

    role: str
    title: str
    does: str
    names: tuple[str, ...]
    reach: dict[str, str]
    escalates_to: str | None
    after: float


@dataclass(frozen=True)
class Remedy:
    """One way back: the steps of its revert phase, what it covers, about how long it takes (seconds), and whose
    Go it needs beside the plan's."""

    name: str
    says: str
    covers: frozenset[str]
    takes: float
    revert: tuple[str, ...]
    go: tuple[str, ...]


@dataclass(frozen=True)
class SignOff:
    """A person's word that a phase needs before it ends; ``wait`` is in seconds."""

    name: str
    role: str
    phase: str
    says: str
    wait: float
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class Procedure:
    """How a rollback is done at a release's age (seconds since its launch; ``until`` may be infinite)."""

    name: str
    says: str
    since: float
    until: float
    watch: float
    every: float
    go: tuple[str, ...]
    gather: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A product's rollback plan. Durations are seconds, already divided by ``speed``."""

    product: str
    environment: str
    language: str
    speed: float
    reviewed: date
    review_every: float
    release: str
    launched: datetime
    stable: str
    people: dict[str, Person]
    criteria: tuple[Criterion, ...]
    trigger: str
    go: tuple[str, ...]
    wait: float
    valid: float
    break_glass: tuple[str, ...]
    procedures: tuple[Procedure, ...]
    hold: tuple[str, ...]
    remedies: dict[str, Remedy]
    verify: tuple[str, ...]
    restore: tuple[str, ...]
    sign_offs: tuple[SignOff, ...]
    checklist: tuple[dict[str, str], ...]
    messages: dict[str, dict[str, Any]]
    loss: dict[str, Any]
    smtp: str = field(default="", repr=False)
    mail_from: str = "balik@localhost"
    record_dsn: str = ""
    record_key: str = field(default="", repr=False)

    def steps(self, remedy: str) -> list[tuple[str, str]]:
        """All steps of a rollback by this remedy, as (phase, step), in order."""
        phases = zip(PHASES, (self.hold, self.remedies[remedy].revert, self.verify, self.restore))
        return [(phase, step) for phase, steps in phases for step in steps]

    def procedure(self, now: datetime, name: str | None = None) -> Procedure:
        """The procedure of that name, or the one for the release's age.

        :raises BalikError: there is none.
        """
        if name:
            for procedure in self.procedures:
                if procedure.name == name:
                    return procedure
            raise BalikError("rollback_procedure", f"found {name!r}", _one_of(p.name for p in self.procedures))
        age = (now - self.launched).total_seconds()
        for procedure in self.procedures:
            if procedure.since <= age < procedure.until:
                return procedure
        when = format_duration(abs(age) * self.speed)
        raise BalikError(
            "rollback_procedures",
            f"none is for a release {f'launched {when} ago' if age >= 0 else f'that is launched only in {when}'}",
            do=f"Choose one with -e rollback_procedure= ({', '.join(p.name for p in self.procedures)}).",
        )

    def remedy(self, scope: Iterable[str], name: str | None = None) -> Remedy:
        """The remedy of that name, or the fastest that covers the scope.

        :raises BalikError: there is none, or the scope has an unknown part.
        """
        if name:
            if name in self.remedies:
                return self.remedies[name]
            raise BalikError("rollback_remedy", f"found {name!r}", _one_of(self.remedies))
        wanted = frozenset(scope)
        if unknown := wanted - set(SCOPES):
            raise BalikError("rollback_scope", f"found {sorted(unknown)}", _one_of(SCOPES))
        fitting = [remedy for remedy in self.remedies.values() if wanted <= remedy.covers]
        if not fitting:
            raise BalikError("rollback_remedies", f"none covers {', '.join(sorted(wanted))}", do="Add one to the plan.")
        return min(fitting, key=lambda remedy: remedy.takes)


def read_plan(variables: Mapping[str, Any], known_steps: Iterable[str]) -> Plan:
    """Check and shape a product's plan.

    :param variables: all variables whose names begin with ``rollback_``, templated.
    :param known_steps: the names of the step roles that exist.
    :raises PlanRefused: with every problem found.
    """
    return _Reader(variables, set(known_steps)).plan()


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


_REQUIRED = object()
Check = Callable[[Any, str], Any]


class _Reader:
    """Reads keys by key path and collects problems instead of stopping at the first."""

    def __init__(self, variables: Mapping[str, Any], known_steps: set[str]) -> None:
        self.variables = variables
        self.steps = known_steps
        self.problems: list[BalikError] = []
        self.speed = 1.0
        self.seen: set[str] = {*RUN_VARIABLES, *PLACE_VARIABLES}
        self.named_steps: set[str] = set()

    def plan(self) -> Plan:
        self.speed = self.top("rollback_speed", _speed, 1.0) or 1.0
        people = self.people()
        self.roles = tuple(people)
        remedies = self.remedies()
        decision = self.table(
            self.raw("rollback_decision"),
            "rollback_decision",
            {
                "trigger": (_choice(("any", "all")), "any"),
                "go": (self.role_names, _REQUIRED),
                "wait": (self.duration, _REQUIRED),
                "valid": (self.duration, 3600 / self.speed),
                "break_glass": (self.role_names, ()),
            },
        )
        release = self.table(
            self.raw("rollback_release"),
            "rollback_release",
            {"name": (_text, _REQUIRED), "launched": (parse_time, _REQUIRED), "stable": (_text, _REQUIRED)},
        )
        values: dict[str, Any] = {
            "product": self.top("rollback_product", _slug),
            "environment": self.top("rollback_environment", _text, "production"),
            "language": self.top("rollback_language", _choice(LANGUAGES), "en"),
            "speed": self.speed,
            "reviewed": self.top("rollback_plan_reviewed", _date),
            # A review is due by the calendar, however fast the sandbox's clock runs.
            "review_every": self.top("rollback_plan_review_every", _duration, parse_duration("90d")),
            "release": release["name"],
            "launched": release["launched"],
            "stable": release["stable"],
            "people": people,
            "criteria": self.criteria(),
            **decision,
            "procedures": self.procedures(),
            "hold": self.top("rollback_hold", self.step_names),
            "remedies": remedies,
            # Traffic is not given back unproved.
            "verify": self.top("rollback_verify", self.some_step_names),
            "restore": self.top("rollback_restore", self.step_names),
            "sign_offs": self.sign_offs(remedies),
            "checklist": self.checklist(),
            "messages": self.messages(),
            "loss": self.loss(),
            "smtp": self.top("rollback_smtp", _mail_server, ""),
            "mail_from": self.top("rollback_mail_from", _text, "balik@localhost"),
            "record_dsn": self.top("rollback_record_dsn", _dsn, ""),
            "record_key": self.top("rollback_record_key", _secret, ""),
        }
        self.refuse_unknown()
        self.refuse_unsafe_order(values)
        self.refuse_uncovered(values)
        if not values["smtp"]:
            for person in people.values():
                if set(person.reach or {}) == {"email"}:
                    expected = f"a mail server: {person.title} ({person.role}) is to be reached by email only"
                    self.problems.append(BalikError("rollback_smtp", "it is not set", expected))
        if self.problems:
            raise PlanRefused(self.problems, self.named_steps)
        return Plan(**values)

    # The parts of a plan

    def people(self) -> dict[str, Person]:
        people = {}
        for role, data, where in self.named("rollback_people"):
            self.checked(_slug, role, where)
            row = self.table(
                data,
                where,
                {
                    "title": (_text, _REQUIRED),
                    "does": (_text, ""),
                    "names": (_texts, ()),
                    "reach": (_reach, _REQUIRED),
                    "escalates_to": (_text, None),
                    "after": (self.duration, parse_duration("10m") / self.speed),
                },
            )
            people[role] = Person(role=role, **row)
        for person in people.values():
            if person.escalates_to is not None and person.escalates_to not in set(people) - {person.role}:
                others = [role for role in people if role != person.role]
                self.problem(f"rollback_people.{person.role}.escalates_to", person.escalates_to, _one_of(others))
        return people

    def criteria(self) -> tuple[Criterion, ...]:
        found, names = [], set()
        for data, where in self.listed("rollback_criteria"):
            problems = check_criterion(data, where)
            self.problems += problems
            if not problems:
                criterion = parse_criterion(data, where, self.speed)
                if criterion.name in names:
                    self.problem(f"{where}.name", criterion.name, "a name that no other criterion has")
                if "statement" in criterion.measure:
                    by = criterion.measure["statement"]["by"]
                    self.checked(self.role_names, by, f"{where}.measure.statement.by")
                self.checked(_slug, criterion.name, f"{where}.name")
                names.add(criterion.name)
                found.append(criterion)
        return tuple(found)

    def procedures(self) -> tuple[Procedure, ...]:
        keys = {
            "name": (_slug, _REQUIRED),
            "says": (_text, ""),
            "since": (self.duration, 0.0),
            "until": (self.duration, float("inf")),
            "watch": (self.some_time, _REQUIRED),
            "every": (self.some_time, 60 / self.speed),
            "go": (self.role_names, ()),
            "gather": (_texts, ()),
        }
        found = [Procedure(**self.table(data, where, keys)) for data, where in self.listed("rollback_procedures")]
        self.refuse_twins("rollback_procedures", [procedure.name for procedure in found])
        self.refuse_gaps(found)
        return tuple(found)

    def remedies(self) -> dict[str, Remedy]:
        keys = {
            "says": (_text, ""),
            "covers": (_some_choices(SCOPES), _REQUIRED),
            "takes": (_duration, _REQUIRED),
            "revert": (self.some_step_names, _REQUIRED),
            "go": (self.role_names, ()),
        }
        found = {}
        for name, data, where in self.named("rollback_remedies"):
            self.checked(_slug, name, where)
            row = self.table(data, where, keys)
            found[name] = Remedy(name=name, **{**row, "covers": frozenset(row["covers"] or ())})
        return found

    def sign_offs(self, remedies: Mapping[str, Remedy]) -> tuple[SignOff, ...]:
        keys = {
            "name": (_slug, _REQUIRED),
            "role": (self.role_name, _REQUIRED),
            "phase": (_choice(PHASES), "verify"),
            "says": (_text, _REQUIRED),
            "wait": (self.duration, parse_duration("15m") / self.speed),
            "remedies": (_choices(tuple(remedies)), tuple(remedies)),
        }
        found = [SignOff(**self.table(d, w, keys)) for d, w in self.listed("rollback_sign_offs", ())]
        self.refuse_twins("rollback_sign_offs", [item.name for item in found])
        return tuple(found)

    def checklist(self) -> tuple[dict[str, str], ...]:
        keys = {
            "when": (_choice(CHECKLIST_MOMENTS), _REQUIRED),
            "role": (self.role_name, _REQUIRED),
            "says": (_text, _REQUIRED),
        }
        return tuple(self.table(data, where, keys) for data, where in self.listed("rollback_checklist", ()))

    def messages(self) -> dict[str, dict[str, Any]]:
        found = {}
        for moment, data, where in self.named("rollback_messages", {}):
            if moment not in MOMENTS:
                self.problem(where, moment, _one_of(MOMENTS))
            text = _text_with(names_for(moment if moment in MOMENTS else "asked"))
            keys = {"to": (self.role_names, _REQUIRED), "subject": (text, _REQUIRED), "says": (text, _REQUIRED)}
            found[moment] = self.table(data, where, keys)
        return found

    def loss(self) -> dict[str, Any]:
        """How what a restore loses is found out. Its limits are of programs: no sandbox's clock divides them."""
        keys = {
            "limit": (_duration, parse_duration("2m")),
            "export_limit": (_duration, parse_duration("30m")),
            "exact": (_choice(("auto", "always", "never")), "auto"),
            "export": (_flag, True),
            "times": (_times, {}),
        }
        return self.table(self.raw("rollback_loss", {}), "rollback_loss", keys)

    # Rules that span keys

    def refuse_gaps(self, procedures: Sequence[Procedure]) -> None:
        """A release's age for which there is no procedure is found out when it is too late to write one. After the last
        one's end there may be none: so old a release is not rolled back."""
        reached = 0.0
        for one in sorted(procedures, key=lambda each: each.since or 0.0):
            if one.since is None or one.until is None:
                return
            if one.since >= one.until:
                found = f"{one.name} ends before it begins"
                self.problems.append(BalikError("rollback_procedures", found, "until later than since"))
            elif one.since > reached:
                since, end = (format_duration(seconds * self.speed) for seconds in (one.since, reached))
                ages = f"{end} to {since} ago" if reached else f"less than {since} ago"
                found = f"none is for a release launched {ages}"
                self.problems.append(BalikError("rollback_procedures", found, "one for each age, without a gap"))
            reached = max(reached, one.until)

    def refuse_uncovered(self, values: Mapping[str, Any]) -> None:
        """All criteria may be unsafe at once."""
        touched = {part for criterion in values["criteria"] for part in criterion.touches}
        covers = [each.covers for each in values["remedies"].values()]
        if all(covers) and not any(touched <= each for each in covers):
            parts = ", ".join(sorted(touched))
            found = f"none covers {parts} together, which rollback_criteria touch"
            self.problems.append(BalikError("rollback_remedies", found, f"one with covers: [{parts}]"))

    def refuse_unknown(self) -> None:
        known = {name.removeprefix(PREFIX): name for name in self.seen}
        for name in self.variables:
            if name not in self.seen:
                near = difflib.get_close_matches(name.removeprefix(PREFIX), known, 1)
                self.unknown(name, known[near[0]] if near else "")

    def refuse_unsafe_order(self, values: Mapping[str, Any]) -> None:
        phases = {f"rollback_{phase}": values[phase] or () for phase in ("hold", "verify", "restore")}
        reverts = {f"rollback_remedies.{each.name}.revert": each.revert or () for each in values["remedies"].values()}
        told = set()
        for where, steps in {**phases, **reverts}.items():
            phase = where.rpartition("_" if where in phases else ".")[2]
            for name in dict.fromkeys(steps):
                if phase != PHASE_OF.get(name, phase):
                    told.add(name)
                    right = "revert of a remedy" if PHASE_OF[name] == "revert" else f"rollback_{PHASE_OF[name]}"
                    self.problems.append(BalikError(where, f"found {name}, in the wrong phase", f"it in {right} only"))
            if "scale-freeze" in steps and "scale-thaw" not in phases["rollback_restore"]:
                found = "found scale-freeze, and nothing would let the autoscalers go again"
                self.problems.append(BalikError(where, found, "scale-thaw in rollback_restore"))
        # Those of the phases that all remedies share are told once.
        for revert in (None, *reverts):
            lists = {**phases, **({revert: reverts[revert]} if revert else {})}
            names = [name for steps in lists.values() for name in steps]
            for name in sorted({name for name in names if names.count(name) > 1} - told):
                told.update(() if revert else (name,))
                where = [where for where, steps in lists.items() if name in steps][-1]
                self.problems.append(BalikError(where, f"found {name}, which stands in one rollback twice", "it once"))
        if "maintenance-page" in phases["rollback_hold"] and "traffic-restore" not in phases["rollback_restore"]:
            expected = (
                "traffic-restore in it, for rollback_hold has maintenance-page and nothing else takes the page down"
            )
            self.problem("rollback_restore", list(phases["rollback_restore"]), expected)

    def refuse_twins(self, where: str, names: Sequence[str]) -> None:
        for name in sorted({name for name in names if name is not None and names.count(name) > 1}):
            self.problem(where, f"{name} stands there twice", "each name once")

    # Reading

    def raw(self, name: str, default: Any = _REQUIRED) -> Any:
        self.seen.add(name)
        value = self.variables.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            self.problems.append(BalikError(name, "it is missing", do="Set it in the product's plan.yml."))
            return None
        return default

    def top(self, name: str, check: Check, default: Any = _REQUIRED) -> Any:
        value = self.raw(name, default)
        return value if value is None or value is default else self.checked(check, value, name)

    def checked(self, check: Check, value: Any, where: str) -> Any:
        try:
            return check(value, where)
        except BalikError as problem:
            self.problems.append(problem)
            return None

    def table(self, data: Any, where: str, keys: Mapping[str, tuple[Check, Any]]) -> dict[str, Any]:
        """The values of a mapping's keys; None for each that is missing or wrong, which is a problem by then."""
        if not isinstance(data, Mapping):
            if where not in (problem.what for problem in self.problems):
                self.problem(where, data, f"a mapping with {', '.join(keys)}")
            return dict.fromkeys(keys)
        for key in data:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1)
                self.unknown(f"{where}.{key}", near[0] if near else "")
        values = {}
        for key, (check, default) in keys.items():
            if data.get(key) is not None:
                values[key] = self.checked(check, data[key], f"{where}.{key}")
            else:
                values[key] = None if default is _REQUIRED else default
                if default is _REQUIRED:
                    self.problems.append(BalikError(f"{where}.{key}", "it is missing", _expected(check, key)))
        return values

    def listed(self, name: str, default: Any = _REQUIRED) -> list[tuple[Any, str]]:
        value = self.raw(name, default)
        if value is None:
            return []
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or (not value and default is _REQUIRED):
            self.problem(name, value, "a list with at least one entry" if default is _REQUIRED else "a list")
            return []
        return [(data, f"{name}[{number}]") for number, data in enumerate(value)]

    def named(self, name: str, default: Any = _REQUIRED) -> list[tuple[str, Any, str]]:
        value = self.raw(name, default)
        if value is None:
            return []
        if not isinstance(value, Mapping) or (not value and default is _REQUIRED):
            self.problem(name, value, "a mapping with at least one name")
            return []
        return [(str(key), data, f"{name}.{key}") for key, data in value.items()]

    def problem(self, where: str, found: Any, expected: str) -> None:
        self.problems.append(BalikError(where, f"found {found!r}", expected))

    def unknown(self, where: str, near: str) -> None:
        do = f"Did you mean {near}?" if near else "Remove it."
        self.problems.append(BalikError(where, "it is no key of a plan", do=do))

    def duration(self, value: Any, where: str) -> float:
        return _duration(value, where) / self.speed

    def some_time(self, value: Any, where: str) -> float:
        seconds = self.duration(value, where)
        if seconds <= 0:
            raise BalikError(where, f"found {value!r}", "a duration longer than nothing, such as 1m")
        return seconds

    def role_name(self, value: Any, where: str) -> str:
        return self.role_names([value], where)[0]

    def role_names(self, value: Any, where: str) -> tuple[str, ...]:
        names = _texts(value, where)
        for name in names:
            if self.roles and name not in self.roles:
                raise BalikError(where, f"found {name!r}", f"a role of rollback_people ({', '.join(self.roles)})")
        return names

    def step_names(self, value: Any, where: str) -> tuple[str, ...]:
        names = _texts(value, where)
        for name in names:
            if name not in self.steps:
                near = difflib.get_close_matches(name, self.steps, 1)
                raise BalikError(
                    where,
                    f"found {name!r}, which is no step",
                    _one_of(sorted(self.steps)),
                    f"Did you mean {near[0]}?" if near else "",
                )
            self.named_steps.add(name)
        return names

    def some_step_names(self, value: Any, where: str) -> tuple[str, ...]:
        names = self.step_names(value, where)
        if not names:
            raise BalikError(where, f"found {value!r}", "at least one step")
        return names


# Checks of single values: each returns the shaped value or raises BalikError


def _expected(check: Check, where: str) -> str:
    """What a check wants of a value that is not there."""
    try:
        check(None, where)
    except BalikError as problem:
        return problem.expected
    return ""


def _text(value: Any, where: str) -> str:
    if isinstance(value, float):
        raise BalikError(where, f"found {value!r}", f'a text in quotes, "{value}": YAML would read 2.10 as 2.1')
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise BalikError(where, f"found {value!r}", "a text")
    return str(value)


def _duration(value: Any, where: str) -> float:
    seconds = parse_duration(value, where)
    number = str(value).strip()
    if seconds and not number[-1].isalpha():
        raise BalikError(where, f"found {value!r}, which has no unit", f"{number}s or {number}m, say")
    return seconds


def _secret(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BalikError(where, "found no text (it is not shown: it may be a secret)", "a text")
    return str(value)


def _dsn(value: Any, where: str) -> str:
    dsn = _secret(value, where)
    if dsn and not is_dsn(dsn):
        raise BalikError(
            where,
            "it cannot be read (and is not shown: it may hold a password)",
            "postgresql://user:password@host/database, or host=… dbname=…",
            "For a record in a file leave it away, and name the file's folder with rollback_state_dir.",
        )
    return dsn


def _mail_server(value: Any, where: str) -> str:
    address = _secret(value, where)  # may name a user and a password
    if address:
        mail_server(address, where)
    return address


def _text_with(names: Sequence[str]) -> Check:
    """A text in which no other ``<name>`` stands, nor what looks like a misspelt one: it would go out as it is."""

    def check(value: Any, where: str) -> str:
        text = _text(value, where)
        for name in names_in(text):
            near = difflib.get_close_matches(name, names, 1)
            if name not in names and (near or re.fullmatch(r"\w+", name)):
                do = f"Did you mean <{near[0]}>?" if near else ""
                raise BalikError(where, f"found <{name}>", _one_of(f"<{each}>" for each in names), do)
        return text

    return check


def is_slug(value: str) -> bool:
    """Whether a text is good as a name of files and folders."""
    return len(value) <= LONGEST_SLUG and bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value))


def _slug(value: Any, where: str) -> str:
    if not isinstance(value, str) or not is_slug(value):
        expected = f"small letters, digits and hyphens, at most {LONGEST_SLUG}, such as lawyers-hub"
        raise BalikError(where, f"found {value!r}", expected)
    return str(value)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BalikError(where, f"found {value!r}", "a list of texts")
    return tuple(_text(item, f"{where}[{number}]") for number, item in enumerate(value))


def _choice(options: Sequence[str]) -> Check:
    def check(value: Any, where: str) -> str:
        if value not in options:
            raise BalikError(where, f"found {value!r}", _one_of(options))
        return str(value)

    return check


def _choices(options: Sequence[str]) -> Check:
    def check(value: Any, where: str) -> tuple[str, ...]:
        return tuple(_choice(options)(item, where) for item in _texts(value, where))

    return check


def _some_choices(options: Sequence[str]) -> Check:
    def check(value: Any, where: str) -> tuple[str, ...]:
        if found := _choices(options)(value, where):
            return found
        raise BalikError(where, f"found {value!r}", f"at least one of {', '.join(options)}")

    return check


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise BalikError(where, f"found {value!r}", "true or false")
    return value


def _times(value: Any, where: str) -> dict[str, dict[str, str]]:
    """The columns that say when a row of a table was written."""
    if not isinstance(value, Mapping):
        raise BalikError(where, f"found {value!r}", "tables with their columns: {public.documents: {created: …}}")
    for table, columns in value.items():
        known = isinstance(columns, Mapping) and columns and set(columns) <= {"created", "updated", "zone"}
        if not known or not all(isinstance(column, str) and column for column in columns.values()):
            expected = "created and updated, or one of them: columns; zone: of those that have none themselves"
            raise BalikError(f"{where}.{table}", f"found {columns!r}", expected)
    return {
        str(table) if "." in str(table) else f"public.{table}": {key: str(column) for key, column in columns.items()}
        for table, columns in value.items()
    }


def _date(value: Any, where: str) -> date:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).date() if value.tzinfo else value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise BalikError(where, f"found {value!r}", "a date such as 2026-01-10") from None


#: A week of the plan in less than a second: faster than that there is nothing left to see.
_FASTEST = 1_000_000


def _speed(value: Any, where: str) -> float:
    try:
        speed = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        speed = 0.0
    if not 1 <= speed <= _FASTEST:
        raise BalikError(where, f"found {value!r}", "1, or more in a sandbox (60: a minute of the plan lasts a second)")
    return speed


_REACH = {
    "email": (re.compile(r"[^@\s]+@[^@\s]+"), "an address such as rina@example.com"),
    "webhook": (re.compile(r"https?://\S+"), "a URL such as https://chat.example.com/hooks/rollback"),
    "phone": (re.compile(r"\+?[\d ()-]{5,}"), "a number such as +62 812 0000 0000"),
}


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is no number
        return False


def _reach(value: Any, where: str) -> dict[str, str]:
    ways = ", ".join(_REACH)
    if not isinstance(value, Mapping) or not value:
        raise BalikError(where, f"found {value!r}", f"at least one way to reach them ({ways})")
    for way, address in value.items():
        if way not in _REACH:
            raise BalikError(f"{where}.{way}", "it is no way to reach a person", _one_of(_REACH))
        pattern, example = _REACH[way]
        right = isinstance(address, str) and pattern.fullmatch(address.strip())
        if not right or (way == "webhook" and not _is_url(address.strip())):
            raise BalikError(f"{where}.{way}", f"found {address!r}", example)
    return {way: address.strip() for way, address in value.items()}
