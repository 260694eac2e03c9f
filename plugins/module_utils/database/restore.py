"""A whole database restored beside the live one, proved, and swapped in by rename.

The live database is not touched before the swap, and the swap is one transaction: whatever fails, and wherever a
run is killed, the live database is the old one, whole and open, or the restored one, proved. What is made on the way
carries the run's name, so that the next start of the same run knows it for its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from ..units import format_duration
from . import backup, pgbouncer, scratch, space, topology, verification
from .access import Deadline, Programs, find_programs
from .catalog import Database, Names, carry_over, find, marking
from .filling import fill
from .fitness import TABLES, contents_fit, opening, same_product, server_fits, unasked
from .keeping import claim, keep, made_at, own, place
from .likeness import foreseen
from .swap import swap
from .task import Result, Task, alone, chosen, live_database, same_as_before, scalar, server

try:
    from psycopg import sql
except ImportError:  # said by `check`, on the host where it is missing
    sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["Task", "check", "restore", "undo", "verify"]


def check(task: Task) -> Result:
    """Whether the restore could be carried out; only reads.

    :returns: ``says``, ``before``, ``evidence``.
    :raises BalikError: it could not, and why.
    """
    _names_no_tables(task)
    deadline = Deadline(task.limit)
    with server(task) as (admin, known):
        live = live_database(admin, task)
        own(admin, task)
        kept = find(admin, known.kept)
        if kept and _swapped(live, kept, task):
            return {
                "says": f"{live.name} is the restored one already; what was live is kept as {kept.name}",
                "before": dict(task.saved),
                "evidence": {"oid": live.oid, "kept": kept.name},
            }
        same_as_before(live, task)
        _free(admin, known.kept, "what is live gets with the swap")
        major = server_fits(admin, live, task)
        programs = find_programs(major, task.programs)
        if not task.fetched:
            pooler = pgbouncer.ready(task.pgbouncer, live.name, programs)
            around = topology.look(admin, task)
            said = [f"{what}: {', '.join(lines)}" for what, lines in around.items()]
            said += [each for each in [pooler, *unasked(task)] if each]
            says = "; ".join([f"{live.name} on {task.access.where} can be swapped", *said])
            return {"says": says, "before": {}, "evidence": {"around": around}}
        path, kind = chosen(task)
        checksum = backup.verify_checksum(path, task.checksum)
        look = backup.inspect if task.inspect else backup.glance
        contents = look(path, kind, programs, deadline)
        contents_fit(admin, contents, path, major, live, task.accept)
        lacks = []
        if task.inspect:
            with task.access.connect(live.name) as now:
                tables = {tuple(row) for row in now.execute(TABLES)}
                same_product(contents.names, tables, str(path), task.accept)
                lacks = foreseen(task, contents, now, tables, str(path))
        room = space.check(admin, task.access.host, live, contents.size, path, task.folder, task.ignore_space)
        size = scalar(admin, "select pg_database_size(%s::oid)", live.oid)
        sessions = scalar(admin, "select count(*) from pg_stat_activity where datid = %s", live.oid)
        around = topology.look(admin, task)
        questions = unasked(task)
        pooler = pgbouncer.ready(task.pgbouncer, live.name, programs)
        begun = find(admin, known.beside)
    rows = f"{contents.rows:,} rows in " if contents.rows else ""
    also = "".join(f"; {kind}: {', '.join(lines)}" for kind, lines in around.items())
    left = verification.not_compared(verification.uncopied(contents) if task.compare else [], task.compare)
    also += "".join(f"; {each}" for each in [pooler, *questions, *lacks, *left] if each)
    stale = f"; {begun.name} is what an interrupted start of this run left, and will be dropped" if begun else ""
    return {
        "says": f"{live.name} ({space.human(size)}, {sessions} sessions) would be restored from {path} "
        f"({kind}, {space.human(backup.size_of(path))}, {rows}{contents.tables} tables, {checksum}); "
        f"{room}{also}{stale}",
        "before": {
            "database": live.name,
            "oid": live.oid,
            "backup": str(path),
            "backup_size": backup.size_of(path),
        },
        "evidence": {
            "kind": kind,
            "rows": contents.rows,
            "tables": contents.tables,
            "sessions": sessions,
            "around": around,
        },
    }


def restore(task: Task, check_mode: bool = False) -> Result:
    """Backs up what is live, restores beside, proves the copy and swaps; nothing if this run did so before.

    :returns: ``changed``, ``says``, ``evidence``, ``diff``.
    :raises BalikError: the live database is untouched, and open.
    """
    _names_no_tables(task)
    deadline = Deadline(task.limit)
    with server(task) as (admin, known):
        if not check_mode:
            alone(admin, task)
        live = live_database(admin, task)
        kept = find(admin, known.kept)
        if kept and _swapped(live, kept, task):
            says = f"{live.name} is the restored one already; what was live is kept as {kept.name}"
            return {"changed": False, "says": says, "evidence": {"oid": live.oid, "kept": kept.name}}
        same_as_before(live, task)
        _free(admin, known.kept, "what is live gets with the swap")
        if task.fetched:
            path, kind = chosen(task)
        else:  # which only happens in check mode
            path, kind = Path(task.source), ""
        diff = {
            "before": f"{live.name}: oid {live.oid}\n",
            "after": f"{live.name}: restored from {path}\n{known.kept}: oid {live.oid}\n",
        }
        if check_mode:
            says = f"would back up {live.name}, restore {path} beside it and swap; the old one kept as {known.kept}"
            return {"changed": True, "says": says, "evidence": {}, "diff": diff}
        major = server_fits(admin, live, task)
        programs = find_programs(major, task.programs)
        pgbouncer.ready(task.pgbouncer, live.name, programs)
        claim(admin, task)
        backup.verify_checksum(path, task.checksum)
        contents_fit(admin, backup.glance(path, kind, programs, deadline), path, major, live, task.accept)
        evidence = _Work(task, admin, known, live, programs, deadline).do(path, kind)
    seconds = evidence["seconds"]
    saved = f"its backup is {evidence['backup_of_now']}"
    if evidence["backup_of_now_from"]:
        saved = (
            f"which alone has what was written after {evidence['backup_of_now_from']}, when an earlier start of this "
            f"run made its backup {evidence['backup_of_now']}"
        )
    stale = "; a half-done copy of an interrupted start was dropped first" if evidence["leftover_dropped"] else ""
    says = (
        f"{live.name} restored from {path} in {format_duration(sum(seconds.values()))}, swapped in "
        f"{evidence['swap_ms']} ms; the old one is kept as {known.kept}, {saved}{stale}"
    )
    left = verification.not_compared(evidence["tables_not_compared"], task.compare)
    says = "; ".join([says, *evidence["lacks"], *left])
    return {"changed": True, "says": says, "evidence": evidence, "diff": diff}


def verify(task: Task) -> Result:
    """Reads again: the live database is the one that this run restored, is open, and the plan's checks hold.

    :returns: ``says``, ``evidence``.
    """
    with server(task) as (admin, known):
        live, kept = live_database(admin, task), find(admin, known.kept)
        if not kept or not _swapped(live, kept, task):
            raise BalikError(
                f"database {live.name}", f"oid {live.oid}, with no {known.kept} beside it", "the one this run restored"
            )
        if not live.open:
            raise BalikError(f"database {live.name}", "accepts no connections", do=opening(live.name))
        held = verification.hold(task, live.name)
    return {
        "says": f"{live.name} is the restored database (oid {live.oid}), open; {held}",
        "evidence": {"oid": live.oid, "kept": kept.name, "checks": len(task.checks)},
    }


def undo(task: Task, check_mode: bool = False) -> Result:
    """The database that was live before comes back; the restored one is kept under another name.

    :returns: ``changed``, ``says``, ``evidence``, ``diff``.
    :raises BalikError: what was kept is gone, and where its backup is.
    """
    with server(task) as (admin, known):
        if not check_mode:
            alone(admin, task)
        live, kept, aside = live_database(admin, task), find(admin, known.kept), find(admin, known.aside)
        was = task.saved.get("oid") or (kept.mark.get("oid") if kept else None)
        if not kept and (aside or was == live.oid):
            says = f"{live.name} is what was live before (oid {live.oid})"
            return {"changed": False, "says": says, "evidence": {"oid": live.oid}}
        if not kept or kept.mark.get("oid") != kept.oid:
            raise BalikError(
                known.kept,
                "not there any more" if not kept else "not marked as the one that this run replaced",
                f"the database that was {live.name} before",
                f"Restore its backup of {made_at(place(task)) or 'before, if there is one,'} by hand: {place(task)}",
            )
        _free(admin, known.aside, "the restored one gets with the undo")
        diff = {
            "before": f"{live.name}: oid {live.oid}\n",
            "after": f"{live.name}: oid {kept.oid}\n{known.aside}: oid {live.oid}\n",
        }
        says = f"{live.name} is what was live before (oid {kept.oid}); the restored one is kept as {known.aside}"
        if check_mode:
            return {"changed": True, "says": f"would: {says}", "evidence": {}, "diff": diff}
        mark = marking(task.run, live.name, oid=live.oid, comment=live.comment)
        programs = find_programs(admin.info.server_version // 10000, task.programs)
        pgbouncer.ready(task.pgbouncer, live.name, programs)
        comment = kept.mark.get("comment")
        with pgbouncer.paused(task.pgbouncer, live.name, programs, task.pgbouncer_limit) as pooler:
            took = swap(task.access, task.maintenance, live.name, known.aside, mark, kept.name, comment)
        found = live_database(admin, task)
        if found.oid != kept.oid or not found.open:
            raise BalikError(f"database {live.name}", f"oid {found.oid} after the swap", f"oid {kept.oid}, open")
    evidence = {"oid": found.oid, "kept": known.aside, "swap_ms": round(took * 1000), "pgbouncer": pooler}
    return {"changed": True, "says": says, "evidence": evidence, "diff": diff}


class _Work:
    """The work of one :func:`restore`, from the backup of now to the swap."""

    def __init__(
        self, task: Task, admin: Connection[Any], known: Names, live: Database, programs: Programs, deadline: Deadline
    ) -> None:
        self.task, self.admin, self.known, self.live = task, admin, known, live
        self.programs, self.deadline = programs, deadline
        self.seconds: dict[str, float] = {}

    def do(self, path: Path, kind: str) -> dict[str, Any]:
        task, admin, known, live = self.task, self.admin, self.known, self.live
        programs, deadline, timed = self.programs, self.deadline, self._timed
        leftover = scratch.drop_leftover(admin, task, known.beside)
        earlier = made_at(place(task))
        saved = timed("backup", self._keep)
        with scratch.beside(admin, task, live, known.beside, task.keep_failed):
            contents = timed("restore", lambda: self._fill(path, kind))
            added = scratch.same_extensions(task, live.name, known.beside)
            carry_over(admin, live, known.beside)
            timed("analyze", lambda: scratch.analyze(task, programs, deadline, known.beside))
            proof = timed("verify", lambda: self._prove(path, kind, contents))
            timed("flush", lambda: scratch.flush(admin, task))
            copy = find(admin, known.beside)
            assert copy
            mark = marking(task.run, live.name, oid=live.oid, replaced_by=copy.oid, comment=live.comment)
            with pgbouncer.paused(task.pgbouncer, live.name, programs, task.pgbouncer_limit) as pooler:
                took = swap(task.access, task.maintenance, live.name, known.kept, mark, known.beside, live.comment)
        now, kept = find(admin, live.name), find(admin, known.kept)
        if not now or now.oid != copy.oid or not now.open or not kept or kept.oid != live.oid:
            raise BalikError(f"database {live.name}", f"is {now and now.oid} after the swap", f"oid {copy.oid}, open")
        return {
            "oid": copy.oid,
            "kept": known.kept,
            "backup": str(path),
            "backup_of_now": str(saved),
            "backup_of_now_from": earlier,
            **proof,
            "extensions_added": added,
            "leftover_dropped": leftover,
            "seconds": self.seconds,
            "swap_ms": round(took * 1000),
            "pgbouncer": pooler,
        }

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - began, 2)
        return result

    def _keep(self) -> Path:
        task, wait = self.task, [topology.lock_wait(self.task.lock_limit)]
        with topology.lockers_named(task.database, lambda: self.admin.execute(topology.LOCKERS)):
            return keep(task, self.programs, self.deadline, place(task), wait)

    def _fill(self, path: Path, kind: str) -> Any:
        task = self.task
        # An archive's rows are read a second time for their checksums: that belongs to the proof, and its time too.
        sums = task.compare and kind not in backup.ARCHIVES
        return fill(
            task.access,
            self.known.beside,
            path,
            kind,
            self.programs,
            self.deadline,
            task.workers,
            task.settings,
            sums,
        )

    def _prove(self, path: Path, kind: str, contents: Any) -> dict[str, Any]:
        if self.task.compare and kind in backup.ARCHIVES:
            contents = backup.inspect(path, kind, self.programs, self.deadline, sums=True)
        return verification.prove(self.task, self.known.beside, contents, path, kind, self.programs, self.deadline)


def _names_no_tables(task: Task) -> None:
    """Whoever names tables means them, and not the whole database."""
    given = {"db_restore_tables": task.tables, "db_restore_drop_tables": task.drop_tables}
    named = [f"{setting} ({', '.join(tables)})" for setting, tables in given.items() if tables]
    if named:
        raise BalikError(
            "db_restore_scope",
            f"database, all of which would be restored, and {' and '.join(named)} set",
            "db_restore_scope: tables, or no tables named",
            "Set db_restore_scope to tables if only these are meant, else take them out of the plan.",
        )


def _free(admin: Connection[Any], name: str, who: str) -> None:
    """Refuses a name that is taken before anybody waits for the swap, which could not give it."""
    if find(admin, name):
        raise BalikError(
            f"database {name}",
            "there already",
            f"no database of this name, which {who}",
            f"If nobody needs it: DROP DATABASE {sql.Identifier(name).as_string(admin)}; else rename it. Run again.",
        )


def _swapped(live: Database, kept: Database, task: Task) -> bool:
    return kept.mark.get("run") == task.run and kept.mark.get("replaced_by") == live.oid
