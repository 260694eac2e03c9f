"""Which of many backups is meant: the newest that is older than go-live, and why each of the others is not.

A name carries a date, and says neither whose date that is nor at what hour of it the backup was taken. So

1. a backup's manifest decides, where it has one: it says the moment with its zone;
2. a time in the name is taken in go-live's own zone; if it may be after go-live in another, and the file's own time is
   after go-live, the two contradict each other, and it is not taken;
3. a date alone counts when that day was over everywhere on earth before go-live (no zone is behind UTC−12); else the
   file's own time must be before go-live, which of a copy may be that of the copying.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from ..errors import BalikError
from ..units import parse_time

ENDINGS = (".sql.gz", ".sql.zst", ".sql.zstd", ".sql", ".dump.gz", ".dump", ".custom", ".pgdump", ".dir")
_TOKENS = {
    "YYYYMMDD": r"(?P<date>\d{8})",
    "YYYY-MM-DD": r"(?P<date>\d{4}-\d{2}-\d{2})",
    "HHMMSS": r"(?P<time>\d{6})",
    "HHMM": r"(?P<time>\d{4})",
}
#: A day lasts from its first hour at UTC+14 to its last at UTC-12, and no clock is further behind than that.
_BEHIND = timedelta(hours=12)
_FIRST, _LAST = timedelta(hours=-14), timedelta(hours=24) + _BEHIND
_MOST = 12


@dataclass(frozen=True)
class Candidate:
    """A file of the place.

    :param written: its own time; of a bucket that of the upload.
    """

    name: str
    size: int = 0
    written: datetime | None = None


@dataclass(frozen=True)
class Choice:
    """The backup that is meant.

    :param by: who says so: ``manifest``, ``name`` or ``file``.
    :param refused: the other fitting names, each with the reason.
    """

    candidate: Candidate
    taken: datetime
    by: str
    manifest: Mapping[str, Any] | None
    refused: dict[str, str]

    @property
    def says(self) -> str:
        """For people."""
        others = f"; not {_listed(self.refused)}" if self.refused else ""
        by = {"manifest": "by its manifest", "name": "by its name", "file": "by its name and the file's time"}[self.by]
        return f"{self.candidate.name}, taken {self.taken:%Y-%m-%d %H:%M} UTC {by}{others}"


def is_pattern(name: str) -> bool:
    """Whether a name stands for backups of several days.

    >>> is_pattern("pre-golive-snapshot-YYYYMMDD.sql"), is_pattern("pre-golive-snapshot-20260110.sql")
    (True, False)
    """
    return any(token in name for token in _TOKENS)


def fill(pattern: str, now: datetime) -> str:
    """The name that a backup of this moment has.

    >>> fill("pre-golive-snapshot-YYYYMMDD-HHMM.sql", datetime(2026, 1, 10, 12, 5))
    'pre-golive-snapshot-20260110-1205.sql'
    """
    for token, form in (("YYYYMMDD", "%Y%m%d"), ("YYYY-MM-DD", "%Y-%m-%d"), ("HHMMSS", "%H%M%S"), ("HHMM", "%H%M")):
        pattern = pattern.replace(token, now.strftime(form))
    return pattern


def zone_of(golive: str) -> timezone:
    """Go-live's own zone, which dates in names are written in; UTC without one."""
    moment = datetime.fromisoformat(golive.strip().replace("Z", "+00:00")) if golive else None
    return timezone(moment.utcoffset() or timedelta()) if moment and moment.tzinfo else timezone.utc


def choose(
    pattern: str,
    candidates: Iterable[Candidate],
    golive: str,
    manifest_of: Callable[[Candidate], Mapping[str, Any] | None],
    what: str = "db_restore_backup",
) -> Choice:
    """The newest backup that is older than go-live.

    :param pattern: a name with ``YYYYMMDD`` or ``YYYY-MM-DD``, and ``HHMM`` or ``HHMMSS`` where it has a time; a file
        with another of the usual endings counts too.
    :param golive: ISO 8601 with its zone.
    :param manifest_of: reads a candidate's manifest; None where it has none.
    :raises BalikError: none is older, or two are equally good; with every fitting name and why it is not meant.
    """
    if not golive:
        raise BalikError(
            "db_restore_golive",
            f"not set, while {pattern} may be any of several days",
            "the time of go-live, such as 2026-01-10T20:00:00+07:00",
        )
    launch, zone = parse_time(golive, "db_restore_golive"), zone_of(golive)
    shape = shape_of(pattern)
    there = list(candidates)
    good: list[tuple[datetime, str, Candidate, str, Mapping[str, Any] | None]] = []
    refused: dict[str, str] = {}
    for candidate in there:
        match = shape.fullmatch(candidate.name)
        if not match:
            continue
        manifest = manifest_of(candidate)
        taken, by, why = _judged(match.groupdict(), candidate, manifest, launch, zone)
        if taken is None:
            refused[candidate.name] = why
        else:
            day = "".join(filter(None, match.groupdict().values())).replace("-", "") if manifest is None else ""
            good.append((taken, day, candidate, by, manifest))
    if not good:
        names = ", ".join(sorted(each.name for each in there)[:_MOST]) or "nothing"
        found = _listed(refused) if refused else f"no backup of this name; there is {names}"
        raise BalikError(what, f"{pattern}: {found}", f"one that was taken before go-live, {golive}")
    taken, day, candidate, by, manifest = max(good, key=lambda each: each[0])
    twins = [each[2].name for each in good if each[0] == taken or (day and each[1] == day)]
    if len(twins) > 1:
        raise BalikError(
            what,
            f"{pattern}: {len(twins)} backups of the same moment: {', '.join(sorted(twins))}",
            "one",
            f"Name one of them in {what}.",
        )
    older = {each[2].name: "it is older" for each in good if each[2] is not candidate}
    return Choice(candidate, taken, by, manifest, {**refused, **older})


def judge_named(
    name: str, candidate: Candidate, manifest: Mapping[str, Any] | None, golive: str, what: str = "db_restore_backup"
) -> str:
    """A warning where a backup that is named itself may be of after go-live; empty where nothing says so.

    :param name: for messages.
    :param golive: empty where nobody said when it was.
    :raises BalikError: its manifest says that it was not taken before go-live.
    """
    if not golive:
        return ""
    launch = parse_time(golive, "db_restore_golive")
    if manifest is not None:
        if parse_time(manifest["taken"], f"taken in the manifest of {candidate.name}") >= launch:
            raise BalikError(
                what,
                f"{name} was taken {manifest['taken']} by its manifest, after go-live",
                f"one that was taken before go-live, {golive}",
                "Name an older one.",
            )
    elif candidate.written and candidate.written >= launch:
        return (
            f"WARNING: {candidate.name} has no manifest that says when it was taken, and its file is of"
            f" {candidate.written:%Y-%m-%d %H:%M} UTC, after go-live ({golive})"
        )
    return ""


def _judged(
    parts: Mapping[str, str | None],
    candidate: Candidate,
    manifest: Mapping[str, Any] | None,
    launch: datetime,
    zone: timezone,
) -> tuple[datetime | None, str, str]:
    """When a backup was taken and who says so; or None and why it is not to be taken."""
    if manifest is not None:
        taken = parse_time(manifest["taken"], f"taken in the manifest of {candidate.name}")
        if taken < launch:
            return taken, "manifest", ""
        return None, "", f"taken {manifest['taken']} by its manifest, after go-live"
    text = (parts["date"] or "").replace("-", "") + (parts.get("time") or "").ljust(6, "0")
    try:
        named = datetime.strptime(text, "%Y%m%d%H%M%S")
    except ValueError:
        return None, "", "its name holds no date of the calendar"
    if parts.get("time"):
        return _judged_by_time(named, zone, candidate, launch)
    return _judged_by_day(named.replace(tzinfo=timezone.utc), candidate, launch)


def _judged_by_time(
    named: datetime, zone: timezone, candidate: Candidate, launch: datetime
) -> tuple[datetime | None, str, str]:
    taken = named.replace(tzinfo=zone).astimezone(timezone.utc)
    if taken >= launch:
        return None, "", "named after go-live"
    written = candidate.written
    if written and written >= launch and named.replace(tzinfo=timezone.utc) + _BEHIND >= launch:
        said = f"written {written:%Y-%m-%d %H:%M} UTC, after go-live, which its name may be too in another zone"
        return None, "", f"{said}; it has no manifest (only copied then? name it)"
    return taken, "name", ""


def _judged_by_day(day: datetime, candidate: Candidate, launch: datetime) -> tuple[datetime | None, str, str]:
    begins, ends, written = day + _FIRST, day + _LAST, candidate.written
    likely = written if written and begins <= written <= ends else day + timedelta(hours=12)
    if ends <= launch:
        return likely, "name", ""
    if begins >= launch:
        return None, "", "named after go-live"
    if written and written < launch:
        return written, "file", ""
    said = f"written {written:%Y-%m-%d %H:%M} UTC, after go-live" if written else "of an unknown time"
    return None, "", f"its day may reach beyond go-live; it has no manifest and is {said} (only copied then? name it)"


def shape_of(pattern: str) -> re.Pattern[str]:
    """What the names of a pattern's backups look like."""
    ending = next((each for each in ENDINGS if pattern.endswith(each)), "")
    expression = re.escape(pattern[: len(pattern) - len(ending)]).replace(r"\-", "-")
    for token, part in _TOKENS.items():
        if f"?P<{part[4:8]}" not in expression:
            expression = expression.replace(token, part, 1)
    return re.compile(f"{expression}(?:{'|'.join(map(re.escape, ENDINGS))})?")


def _listed(refused: Mapping[str, str]) -> str:
    named = [f"{name} ({why})" for name, why in sorted(refused.items(), reverse=True)]
    more = f", and {len(named) - _MOST} more" if len(named) > _MOST else ""
    return ", ".join(named[:_MOST]) + more
