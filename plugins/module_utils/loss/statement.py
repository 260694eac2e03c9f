"""The loss statement: what a restore of a backup would take away, as exactly as it can be known within a limit.

What is not known is None and said to be so; it is never 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..backups.manifest import read_manifest
from ..database.access import Access, Deadline
from ..errors import BalikError
from ..units import counted, format_duration, iso, parse_time, utc_now
from . import scratch
from .compare import (
    LARGE_OBJECTS,
    Comparison,
    Difference,
    Pair,
    Times,
    counters,
    in_iso,
    named_times,
    own_zone,
    refuse_unknown_tables,
    sequences,
    tables,
    views,
)
from .psql import Psql, literal, name, reach

ALWAYS, AUTO, NEVER = "always", "auto", "never"
#: Seconds for what is known without a comparison; a table that takes longer than a third of it is left out.
_QUICK = 12.0
#: How many tables stand in a record's entry; the others are counted.
_MOST = 200

# Since when the counters count. A crash throws all of them away, which only those of the whole server tell (both of
# them, while somebody may have reset one). A replica that was promoted, as a later timeline tells, has not counted what
# it replayed.
_SINCE = """
SELECT to_char(greatest(d.stats_reset, least(b.stats_reset, a.stats_reset)), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS since,
  (SELECT timeline_id FROM pg_control_checkpoint()) > 1 AS promoted
FROM pg_stat_database d, pg_stat_bgwriter b, pg_stat_archiver a WHERE d.datname = current_database()
"""


@dataclass(frozen=True)
class Asked:
    """What would be restored from what.

    :param backup: path of the backup.
    :param times: the plan's columns: ``{"public.documents": {"created": …, "updated": …}}``.
    :param only: tables; all where it is empty.
    :param limit: seconds for the comparison.
    :param exact: ``always`` compares whatever the disk looks like, ``auto`` where there is room, ``never``.
    :param jobs: how many processes load an archive.
    :param notes: what is to be told with it.
    """

    access: Access
    database: str
    run: str
    backup: str
    limit: float = 120
    exact: str = AUTO
    times: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    only: Sequence[str] = ()
    maintenance: str = "postgres"
    programs: str = ""
    jobs: int = 2
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass
class Compared:
    """A comparison that was made, with the backup's copy still there."""

    comparison: Comparison
    scratch: Psql
    pairs: list[Pair]
    differences: list[Difference]
    sequences: list[dict[str, Any]]
    seconds: dict[str, float]
    at: datetime


def statement(asked: Asked, may_write: bool = True, unfit: str = "") -> dict[str, Any]:
    """What would be lost.

    :param may_write: whether a database may be made beside, for the comparison; a check run may not.
    :param unfit: why the backup cannot be compared with at all.
    :return: plain JSON: ``exact``, ``reason`` (why not), ``at``, ``taken`` (the backup's time), ``taken_by``,
        ``notes`` (those that were asked for, and what of the plan was not used),
        ``tables`` (:meth:`Difference.as_dict`), ``same`` (how many are as they were), ``sequences``, ``total``,
        ``says``.
    :raises BalikError: the server or the database cannot be reached at all, or a table is not there.
    """
    began = time.monotonic()
    taken, taken_by = taken_at(asked.backup)
    head = {
        "database": asked.database,
        "backup": asked.backup,
        "taken": iso(taken) if taken else None,
        "taken_by": taken_by,
    }
    if not asked.backup:
        return _told({**head, **_dropped(asked), "seconds": _seconds(began, {})})
    reason = unfit or _why_not(asked, may_write)
    if not reason:
        try:
            with compared(asked) as done:
                body = _body(done.differences, done.sequences, done.at)
                notes = [*asked.notes, *done.comparison.misnamed]
                return _told({**head, **body, "notes": notes, "seconds": _seconds(began, done.seconds)})
        except BalikError as error:
            if isinstance(error, Refused):
                raise
            reason = str(error)
    return _told({**head, **_estimate(asked, taken, reason), "seconds": _seconds(began, {})})


class Refused(BalikError):
    """What was asked for is not there."""


def _why_not(asked: Asked, may_write: bool) -> str:
    if not may_write:
        return "this is a check run, and a comparison would load the backup into a database of its own"
    if asked.exact == NEVER:
        return "the plan wants no comparison (rollback_loss: {exact: never})"
    return "" if asked.limit > 0 else "there was no time for a comparison"


def _seconds(began: float, parts: Mapping[str, float]) -> dict[str, float]:
    return {**parts, "all": round(time.monotonic() - began, 2)}


def taken_at(path: str) -> tuple[datetime | None, str]:
    """When the backup was taken, and who says so: its manifest, or else its file's time, which is that of its end."""
    place = Path(path)
    if not path:
        return None, ""
    if not place.exists():
        return None, f"{path} is not there"
    manifest = read_manifest(place)
    if manifest:
        return parse_time(manifest["taken"], f"taken of {place.name}'s manifest"), "manifest"
    file = place / "toc.dat" if place.is_dir() else place
    return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc), "the file's time"


@contextmanager
def compared(asked: Asked, closed: bool = False) -> Iterator[Compared]:
    """The database compared with the backup, which is loaded beside meanwhile, and dropped at the end.

    :param closed: the database accepts no connections, and is opened for ours.
    :raises BalikError: it could not be done, and why.
    """
    deadline = Deadline(asked.limit, setting="rollback_loss: {limit: …}")
    server, major = reach(asked.access, asked.maintenance, deadline, asked.programs)
    if not server.rows(f"SELECT 1 AS one FROM pg_database WHERE datname = {literal(asked.database)}"):
        raise Refused(f"database {asked.database}", f"not on {asked.access.where}", do="Check its name.")
    if asked.exact != ALWAYS:
        scratch.check_space(server, asked.database)
    seconds: dict[str, float] = {}
    with _opened(server, asked.database) if closed else _as_it_is(), server.to(asked.database).steady() as now:
        at = utc_now()
        comparison = Comparison(now, major, asked.times, asked.only)
        # As if the backup had the same columns: most have, and so this side is read while the other is being loaded.
        guess = comparison.pairs(comparison.tables)
        with ThreadPoolExecutor(1) as reader:
            early = reader.submit(_timed, lambda: comparison.sums(now, guess, True), seconds, "read")
            began = time.monotonic()
            with scratch.loaded(server, asked.database, asked.run, Path(asked.backup), asked.jobs) as copy:
                seconds["load"] = round(time.monotonic() - began, 2)
                then = tables(copy, asked.only)
                _refuse(asked.only, comparison.tables, then, views(now))
                were = sequences(copy, asked.only)
                pairs = comparison.pairs(then)
                sums = _fitting(comparison, now, pairs, guess, early.result())
                found = _timed(lambda: comparison.differences(copy, then, pairs, sums), seconds, "compare")
                found += comparison.large_objects(copy) if not asked.only else []
                moved = _moved(comparison.sequences, were)
                yield Compared(comparison, copy, pairs, found, moved, seconds, at)


def _refuse(only: Sequence[str], *sides: Mapping[str, Any]) -> None:
    try:
        refuse_unknown_tables(only, *sides)
    except BalikError as error:
        raise Refused(error.what, error.found, error.expected, error.do) from None


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _opened(server: Psql, database: str) -> Iterator[None]:
    """A database that was closed when it was replaced: nobody else knows its name. Closed again at the end, also where
    a killed export has left it open."""
    writer = server.to(server.database, writes=True)
    writer.do(f"ALTER DATABASE {name(database)} WITH ALLOW_CONNECTIONS true")
    try:
        yield
    finally:
        writer.afterwards().do(f"ALTER DATABASE {name(database)} WITH ALLOW_CONNECTIONS false")


def _timed(work: Any, seconds: dict[str, float], what: str) -> Any:
    began = time.monotonic()
    result = work()
    seconds[what] = round(time.monotonic() - began, 2)
    return result


def _fitting(
    comparison: Comparison, now: Psql, pairs: list[Pair], guess: list[Pair], sums: list[dict[Any, Any]]
) -> list[dict[Any, Any]]:
    """The sums of ``pairs``: those that were read before, and anew those that were read with columns that the backup
    does not have."""
    before = {pair.now.title: (pair.hash, pair.keys, each) for pair, each in zip(guess, sums)}
    known = [before[pair.now.title] for pair in pairs]
    again = [pair for pair, (hashed, keys, _) in zip(pairs, known) if (pair.hash, pair.keys) != (hashed, keys)]
    anew = dict(zip((pair.number for pair in again), comparison.sums(now, again, True)))
    return [anew.get(pair.number, each) for pair, (_, _, each) in zip(pairs, known)]


def _moved(now: Mapping[str, int | None], then: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Sequences that would go back: their numbers would be given out a second time."""
    return [
        {"sequence": title, "now": value, "then": then[title]}
        for title, value in now.items()
        if title in then and value != then[title]
    ]


def _body(differences: Sequence[Difference], moved: list[dict[str, Any]], at: datetime) -> dict[str, Any]:
    changed = sorted((each for each in differences if not each.none), key=_weight)
    unknown = [each.table for each in changed if each.lost is None]
    known = [each for each in changed if each.lost is not None]
    lost = sum(each.lost or 0 for each in known)
    at_least = any(each.least for each in changed)
    return {
        "exact": not any(each.how in ("unknown", "times", "statistics") for each in changed),
        "reason": "",
        "at": iso(at),
        "tables": [each.as_dict() for each in changed[:_MOST]],
        "more": max(0, len(changed) - _MOST),
        "same": len(differences) - len(changed),
        "sequences": moved[:_MOST],
        "total": {
            "lost": lost if lost or not (unknown or at_least) else None,
            "at_least": at_least,
            "inserted": sum(each.inserted or 0 for each in known),
            "changed": sum(each.changed or 0 for each in known),
            "deleted": sum(each.deleted or 0 for each in changed),
            "columns": sum(bool(each.columns) for each in changed),
            "unknown": unknown,
            "deleted_unknown": [each.table for each in changed if each.deleted is None],
            "oldest": min((each.oldest for each in changed if each.oldest), default=None),
            "newest": max((each.newest for each in changed if each.newest), default=None),
        },
    }


def _weight(found: Difference) -> tuple[bool, int, int, str]:
    """The greatest loss first; and before it, what is not known."""
    return found.lost is not None, -(found.lost or 0), -(found.deleted or 0), found.table


# Without a comparison


def _dropped(asked: Asked) -> dict[str, Any]:
    """Tables that go without any backup being restored: all their rows."""
    server, major = reach(asked.access, asked.maintenance, Deadline(max(asked.limit, _QUICK)), asked.programs)
    with server.to(asked.database).steady() as now:
        at = utc_now()
        comparison = Comparison(now, major, asked.times, asked.only)
        _refuse(asked.only, comparison.tables, views(now))
        return _body(comparison.whole(list(comparison.tables)), [], at)


def _estimate(asked: Asked, taken: datetime | None, reason: str) -> dict[str, Any]:
    """What columns of times and the server's own counters say."""
    deadline = Deadline(_QUICK)
    server, _major = reach(asked.access, asked.maintenance, deadline, asked.programs)
    now = server.to(asked.database)
    there = tables(now, asked.only)
    _refuse(asked.only, there, views(now))
    manifest = read_manifest(Path(asked.backup)) if Path(asked.backup).exists() else None
    written = counters(now)
    since = _counters_since(now)
    found = {title: _by_statistics(title, written.get(title), since, manifest, taken) for title in there}
    named, notes = named_times(there, asked.times, asked.only)
    found.update(_by_times(replace(asked, times=named), now, taken))
    objects = 0 if asked.only else now.one("SELECT count(*) AS n FROM pg_largeobject_metadata")["n"]
    if objects:
        note = f"{objects:,} are there, and nothing says which were written since the backup"
        found[LARGE_OBJECTS] = Difference(LARGE_OBJECTS, "unknown", note=note)
    body = _body(list(found.values()), [], utc_now())
    return {**body, "exact": False, "reason": reason, "notes": [*asked.notes, *notes]}


def _counters_since(now: Psql) -> datetime | None:
    """Since when the server has counted every write; None where that is not known."""
    row = now.one(_SINCE)
    return parse_time(row["since"], "stats_reset") if row["since"] and not row["promoted"] else None


def _by_statistics(
    title: str,
    row: Mapping[str, Any] | None,
    since: datetime | None,
    manifest: Mapping[str, Any] | None,
    taken: datetime | None,
) -> Difference:
    kinds = ("inserted", "changed", "deleted")
    if not row or taken is None:
        return Difference(title, "unknown", note="nothing says how many rows were written since the backup")
    counts = {kind: row[kind] for kind in kinds}
    if since is None or since > taken:
        begin = f"begin only at {_short(iso(since))}" if since else "may begin after the backup"
        note = f"the server's counters {begin}"
        if not any(counts.values()):
            return Difference(title, "unknown", note=f"{note}, and say nothing")
        return Difference(title, "statistics", **counts, note=f"an estimate, {note}: at least", least=True)
    then = ((manifest or {}).get("tables") or {}).get(title)
    if then and all(row[kind] >= then.get(kind, 0) for kind in kinds):
        counts = {kind: row[kind] - then.get(kind, 0) for kind in kinds}
        return Difference(title, "statistics", **counts, note="an estimate, by the server's counters at the backup")
    note = "an estimate, by the server's counters, which begin before the backup: at most"
    return Difference(title, "statistics", **counts, note=note)


def _by_times(asked: Asked, now: Psql, taken: datetime | None) -> dict[str, Difference]:
    """Rows that were inserted or changed since the backup, by the columns that say so; deleted ones leave no trace."""
    if taken is None:
        return {}
    queries, asked_of, zone = [], [], own_zone(now)
    moment = f"{literal(iso(taken))}::timestamptz"
    oldest = in_iso(f"min(CASE WHEN c > {moment} THEN c WHEN u > {moment} THEN u END)")
    newest = in_iso(f"max(CASE WHEN c > {moment} OR u > {moment} THEN greatest(c, u) END)")
    for title, table in tables(now, asked.only).items():
        times = Times.of(table.columns, asked.times.get(title), zone)
        if not times.created or not times.updated or not {times.created, times.updated} <= set(table.columns):
            continue
        pair = Pair(0, table, table, times, 0)
        created, updated = pair.time(times.created), pair.time(times.updated)
        queries.append(
            f"SELECT count(*) FILTER (WHERE c > {moment}) AS inserted, count(*) FILTER (WHERE u > {moment} AND"
            f" NOT c > {moment}) AS changed, count(*) FILTER (WHERE c IS NULL) AS blank,"
            f" {oldest} AS oldest, {newest} AS newest"
            f" FROM (SELECT {created} AS c, {updated} AS u FROM {table.source}) x"
        )
        asked_of.append(pair)
    quick = Psql(now.access, now.database, now.deadline, now.programs, settings={"statement_timeout": "4s"})
    found = {}
    for pair, (row, *_) in zip(asked_of, quick.each(queries, tolerant=True) if queries else []):
        if "error" in row:
            continue
        title, blank = pair.now.title, row.pop("blank")
        named = {"created", "updated"} & set(asked.times.get(title, ()))
        notes = [] if named else [f"an estimate: {pair.by} were found by their names"]
        if named and pair.zone_note and not row["newest"]:
            notes.append(f"by {pair.by}")
        if blank:
            notes.append(f"of {counted(blank, 'row')} nothing says when it was written")
        found[title] = Difference(title, "times", **row, by=pair.by, note="; ".join(notes))
    return found


# For people


def _told(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "says": list(lines(found))}


def lines(found: Mapping[str, Any], alone: bool = False) -> Iterator[str]:
    """The statement as people read it: a sentence, and a line for each table, the greatest loss first.

    :param found: what :func:`statement` returns.
    :param alone: there is no report with the tables that are not named here, and so all are.
    """
    most, most_sequences = (_MOST, _MOST) if alone else (10, 3)
    total = found["total"]
    taken = f", {found['taken_by']} {_short(found['taken'])}" if found["taken"] else ""
    what = f"restoring {found['database']} from {Path(found['backup']).name}{taken}"
    if not found["backup"]:
        what = f"dropping tables of {found['database']}"
    if found["exact"]:
        how = "exactly, by comparing every row with the backup" if found["backup"] else "exactly: all rows"
    else:
        how = f"not exactly known: {found['reason']}" if found["reason"] else "not exactly known for every table"
    if not found["tables"] and found["exact"]:
        yield f"{what} would lose nothing ({how})"
        yield from (f"  {note}" for note in found.get("notes", ()))
        return
    about = "" if found["exact"] else "at least " if total["at_least"] else "about "
    rows = f"{about}{counted(total['lost'], 'row')}" if total["lost"] is not None else "an UNKNOWN number of rows"
    span = f", written from {_short(total['oldest'])} to {_short(total['newest'])}" if total["newest"] else ""
    were = f"{counted(total['deleted'], 'row')} that {'was' if total['deleted'] == 1 else 'were'}"
    deleted = f"; {were} deleted since would come back" if total["deleted"] else ""
    unknown = f"; UNKNOWN for {counted(len(total['unknown']), 'table')}" if total["unknown"] else ""
    yield (
        f"{what} would lose {rows}"
        f" ({total['inserted']:,} inserted, {total['changed']:,} changed){span}{deleted}{unknown} ({how})"
    )
    for each in found["tables"][:most]:
        yield f"  {each['table']}: {_of_table(each)}"
    left = len(found["tables"][most:])
    if left:
        yield f"  and {counted(left, 'more table')}; the report names {'it' if left == 1 else 'them'}"
    if found["more"]:
        yield f"  and {counted(found['more'], 'more table')} with less to lose; {_MOST} are named at most"
    for each in found["sequences"][:most_sequences]:
        yield f"  sequence {each['sequence']} would go back from {each['now']} to {each['then'] or 'unused'}"
    if found["sequences"][most_sequences:]:
        yield f"  and {counted(len(found['sequences'][most_sequences:]), 'more sequence')} would go back"
    yield from (f"  {note}" for note in found.get("notes", ()))


def _of_table(each: Mapping[str, Any]) -> str:
    if each["how"] == "unknown":
        return f"UNKNOWN: {each['note']}"
    if each["how"] == "new":
        rows = "its only row" if each["inserted"] == 1 else f"all its {each['inserted']:,} rows"
        parts = [f"new since, {rows}"]
    elif each["how"] == "dropped":
        parts = [f"dropped since, its {counted(each['deleted'], 'row')} would come back"]
    else:
        changed = "changes told as deleted and inserted (no key)" if each["how"] == "rows" else _count(each, "changed")
        parts = [_count(each, "inserted"), changed, _count(each, "deleted")]
    parts += [f"{counted(values, 'value')} of the new column {column}" for column, values in each["columns"].items()]
    if each["newest"]:
        parts.append(f"from {_short(each['oldest'])} to {_short(each['newest'])} by {each['by']}")
    return ", ".join([*parts, *([each["note"]] if each["note"] else [])])


def _count(each: Mapping[str, Any], kind: str) -> str:
    return f"{kind} unknown" if each[kind] is None else f"{each[kind]:,} {kind}"


def _short(moment: str | None) -> str:
    return f"{parse_time(moment):%Y-%m-%d %H:%M:%S} UTC" if moment else "unknown"


def took(found: Mapping[str, Any]) -> str:
    """For people: how long it took."""
    return format_duration(found["seconds"]["all"])
