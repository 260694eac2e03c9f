"""Going down from what is applied to the migration that is to stay the newest: check, do, verify, undo."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..database.access import Deadline
from ..errors import BalikError
from ..units import counted, format_duration
from . import database, loss, sql, watch, workload
from .address import Address
from .history import NONE_STAYS, History, Migration, Row, compare, read_folder
from .loss import Kept, Loss
from .restore import kept_before, kept_folders, put_back, see_kept
from .sql import Script, Statement
from .workload import Places

if TYPE_CHECKING:
    from psycopg import Connection

Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What the plan says; times are seconds. The names are those of the role's variables without its prefix.

    :param rehearsal: in check mode, or before the decision: the steps before this one have changed nothing either.
    """

    address: Address
    migrations: str
    to: str
    run: str
    keep_dir: str
    schemas: Sequence[str] = ()
    destroys: Sequence[str] = ()
    outside_transaction: Sequence[str] = ()
    leave_additive: bool = False
    order: str = "strict"
    lock_timeout: float = 5
    limit: float = 600
    count_limit: float = 30
    places: Places = field(default_factory=Places)
    saved: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: bool = False

    @property
    def target(self) -> str:
        return "no migration" if self.to == NONE_STAYS else self.to

    @property
    def kept(self) -> Path:
        return Path(self.keep_dir).expanduser() / self.run

    @property
    def named(self) -> list[str]:
        """The schemas that a down.sql may name."""
        return list(dict.fromkeys([self.address.schema, *self.schemas]))


@dataclass(frozen=True)
class Way:
    """The way down as it was found: every ``problem`` forbids it.

    :param losses: by migration; with ``rows`` where they were counted.
    :param left: what stays because it is purely additive.
    :param disturbs: by migration, why the old release could not live with it; of what only adds, nothing.
    """

    history: History
    down: list[Migration]
    left: list[Migration]
    disturbs: Mapping[str, list[str]]
    scripts: Mapping[str, Script]
    losses: Mapping[str, list[Loss]]
    problems: list[str]
    notes: list[str]


def check(task: Task) -> Json:
    """Every reason why it could not be done, at once; what stands there.

    :raises BalikError: with all of them.
    """
    with _connected(task) as connection:
        way = _explore(connection, task, counting=True)
    _refuse(way, task)
    return {
        "changed": False,
        "says": _would(way, task),
        "before": {
            "to": task.to,
            # By name: what a later start of the run finds is added to it.
            "migrations": {
                one.name: {
                    "name": one.name,
                    "lost": _would_lose(way, one),
                    "rows": [row.as_kept() for row in way.history.rows[one.name]],
                }
                for one in way.down
            },
        },
        "evidence": {"migrations": _found(way), "left": [one.name for one in way.left], "notes": way.notes},
        "diff": _diff(way),
    }


def main(task: Task, check_mode: bool) -> Json:
    """Goes down, newest first, each migration in one transaction with its row.

    :raises BalikError: what was refused, or went wrong at which statement; what is down by then stays down.
    """
    began, deadline = time.monotonic(), Deadline(task.limit)
    with _connected(task) as connection:
        way = _explore(connection, task, counting=check_mode)
        _refuse(way, task)
        if check_mode:
            return {
                "changed": bool(way.down),
                "says": _would(way, task),
                "evidence": _evidence(way),
                "diff": _diff(way),
            }
        # An earlier start of this run may have ended half-way: what it destroyed belongs to the run, too.
        earlier = kept_before(connection, task.kept, [one.name for one in (*way.down, *way.left)])
        done: list[Json] = []
        for one in way.down:
            done.append(_go_down(connection, task, way, one, [each["name"] for each in done], deadline))
    says = "; ".join(_told(each) for each in done) or f"{task.target} is the newest already"
    before = "".join(f"; {each['name']} went down before in this run{_lost(each)}" for each in earlier)
    return {
        "changed": bool(done),
        "says": says + before + _left(way),
        "evidence": {**_evidence(way), "migrations": [*done, *earlier], "seconds": database.since(began)},
        "diff": _diff(way),
    }


def verify(task: Task) -> Json:
    """Reads Prisma's bookkeeping again.

    :raises BalikError: something newer than the target is applied, or failed.
    """
    with _connected(task) as connection:
        history = compare(
            read_folder(task.migrations), database.read_rows(connection, task.address.schema), task.to, task.order
        )
        down, left = _leave(history, task, _disturbing(connection, history))
    if down or history.problems:
        names = ", ".join(one.name for one in reversed(down))
        found = [f"applied (again): {names}; something may have run `migrate deploy`"] if down else []
        raise BalikError(
            f"database {task.address.where}",
            "\n".join([*found, *history.problems]),
            f"{task.target} as the newest migration",
            "Find out what started with the new release's migrations, and run again.",
        )
    says = f"{task.target} is the newest migration" + _left_words(left)
    return {"changed": False, "says": says, "evidence": {"newest": task.to, "left": [one.name for one in left]}}


def undo(task: Task, check_mode: bool) -> Json:
    """Applies again what went down in this run, oldest first, each in one transaction, with the rows that were kept.

    :raises BalikError: its migration.sql has changed, or the server refuses; what is not told as done is as it was.
    """
    if "migrations" not in task.saved:
        raise BalikError(
            "rollback_step_saved",
            "not handed in, so it is not known what this run took down",
            "what check gave back as `before`, which stands in the record",
            "docs/prisma.md says how undo is started.",
        )
    saved = _went_down(task)
    folder = {one.name: one for one in read_folder(task.migrations)}
    deadline = Deadline(task.limit)
    done: list[Json] = []
    with _connected(task) as connection:
        rows = [row for row in database.read_rows(connection, task.address.schema) if row.applied]
        todo = [each for each in saved if each["name"] not in {row.migration_name for row in rows}]
        notes = _by_others(task, saved, rows)
        for each in todo:
            _undoable(each, folder.get(each["name"]))
            see_kept(connection, each, task.kept)
        names = ", ".join(each["name"] for each in todo)
        if check_mode:
            says = "; ".join([f"would apply again: {names}" if todo else "nothing to put back", *notes])
            return {"changed": bool(todo), "says": says, "evidence": {}}
        for each in todo:
            name = each["name"]
            state = f"{name} stays down; applied again: {', '.join(one['name'] for one in done) or 'none'}."
            with (
                database.telling(connection, [f"applying {name} again"], state, task.lock_timeout),
                _transaction(connection, task, deadline),
            ):
                done.append(put_back(connection, task.address.schema, folder[name].up, each, task.kept))
    says = "; ".join([*(one["says"] for one in done), *notes] if done else ["nothing to put back", *notes])
    return {"changed": bool(done), "says": says, "evidence": {"migrations": done}}


def _went_down(task: Task) -> list[Json]:
    """What the record has of the migrations that this run was to take down, in the order in which they were applied."""
    found = task.saved.get("migrations", {})
    # Records of the first versions have a list.
    every = list(found.values()) if isinstance(found, dict) else list(found)
    if task.order == "applied":
        return sorted(every, key=_applied_at)
    return sorted(every, key=lambda each: str(each["name"]))


def _applied_at(saved: Mapping[str, Any]) -> datetime:
    good = [row for row in saved["rows"] if row["finished_at"] and not row["rolled_back_at"]]
    return min(datetime.fromisoformat(row["started_at"]) for row in good)


def _by_others(task: Task, saved: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """Where somebody else has applied again what went down, the rows that were kept are not in it. What ``undo`` put
    back, or what never went, has Prisma's line of before."""
    found = []
    for each in saved:
        now = {row.id for row in rows if row.migration_name == each["name"]}
        folders = kept_folders(task.kept, each["name"])
        if now and folders and not now & {row["id"] for row in each["rows"]}:
            found.append(
                f"{each['name']} was applied again by somebody else, without what it held: that is kept in "
                f"{', '.join(folders)}, with a {loss.SCRIPT} that puts it back"
            )
    return found


# Looking


@contextmanager
def _connected(task: Task) -> Iterator[Connection[Any]]:
    sql.require()
    connection = database.connect(task.address, task.run)
    try:
        yield connection
    finally:
        connection.close()


def _explore(connection: Connection[Any], task: Task, counting: bool) -> Way:
    """Reads everything that matters, and finds all that forbids going down."""
    schema = task.address.schema
    at = [f"database {task.address.where}"]
    with database.telling(connection, at, "Nothing was touched.", task.lock_timeout):
        rows = database.read_rows(connection, schema)
        history = compare(read_folder(task.migrations), rows, task.to, task.order)
        disturbs = _disturbing(connection, history)
        down, left = _leave(history, task, disturbs)
        problems, notes = list(history.problems), list(history.notes)
        major = connection.info.server_version // 10000
        scripts = {one.name: sql.read(one.down, task.named, major) for one in down}
        problems += [f"{one.name}: {problem}" for one in down for problem in scripts[one.name].problems]
        problems += _server(connection, schema, bool(down))
        problems += _announced(task, history, scripts)
        losses = {one.name: _losses(connection, task, scripts[one.name], counting) for one in down}
        problems += _owned(connection, task, losses, scripts)
        problems += [f"{name}: {one.says}" for name, found in losses.items() for one in found if one.kind == "view"]
        problems += _unsure_outside(connection, task, scripts)
        notes += _renamed(scripts, losses)
        if counting:
            problems += [words for one in down if (words := _unwilling(task, one, losses[one.name], down, disturbs))]
        elsewhere, keeps = database.others(connection), _keeps(connection, task, losses)
    if down:
        seen = workload.look(task.places)
        if task.rehearsal:
            notes += [f"{one}: so it would be refused now" for one in seen.problems]
        else:
            problems += seen.problems
        notes += seen.notes
        if elsewhere:
            notes.append(f"also connected: {', '.join(elsewhere)}")
    if down and keeps:
        problems += _writable(task.kept)
    elif task.run:
        loss.listed(task.kept)  # what an earlier start has kept is looked for there
    return Way(history, down, left, disturbs, scripts, losses, problems, notes)


def _disturbing(connection: Connection[Any], history: History) -> dict[str, list[str]]:
    # A type that goes back to what it was says nothing of how long a value may be afterwards.
    retyped = {each for one in history.down for each in sql.retyped(one.up)}
    sizes = {each: size for each, size in database.sizes(connection).items() if each not in retyped}
    return {one.name: sql.additive(one.up, sizes) for one in history.down}


def _leave(history: History, task: Task, disturbs: Mapping[str, list[str]]) -> tuple[list[Migration], list[Migration]]:
    """What goes down, and what may stay on top of the target because it only adds; both newest first."""
    down = list(history.down)
    left: list[Migration] = []
    while task.leave_additive and down and not disturbs[down[-1].name]:
        left.insert(0, down.pop())
    return down, left


def _server(connection: Connection[Any], schema: str, work: bool) -> Iterator[str]:
    row = connection.execute(
        "SELECT pg_is_in_recovery(), has_table_privilege(%(t)s, 'DELETE'), current_user",
        {"t": database.quote_bookkeeping(schema)},
    ).fetchone()
    recovering, may_delete, user = row or (False, False, "")
    if work and not watch.counts(connection):
        yield "track_counts is off, so nobody can see which rows a statement takes; switch it on for this role"
    if recovering:
        yield "the server is a replica, which nobody can write to; name the primary in prisma_down_url"
    if work and not may_delete:
        table = database.quote_bookkeeping(schema)
        yield f"the role {user} may not delete from {table}; grant it, or name the tables' owner"
    for one in database.holders(connection, only_prisma=True) if work else ():
        yield f"a `prisma migrate` is at work now: {one}"


def _announced(task: Task, history: History, scripts: Mapping[str, Script]) -> Iterator[str]:
    for name, script in scripts.items():
        if script.outside and name not in task.outside_transaction:
            lines = ", ".join(f"line {one.line}: {one.short}" for one in script.outside)
            yield (
                f"{name} has statements that no transaction can hold ({lines}): they run one by one before the "
                f"others, and stay done when those fail. If that is right: prisma_down_outside_transaction: [{name}]"
            )
    known = {*history.rows, *(one.name for one in history.down)}
    for variable in ("destroys", "outside_transaction"):
        for name in getattr(task, variable):
            if name not in known and not (Path(task.migrations) / name).is_dir():
                yield f"prisma_down_{variable}: there is no migration {name}"


def _losses(connection: Connection[Any], task: Task, script: Script, counting: bool) -> list[Loss]:
    found = []
    # To count the script's own conditions are asked, with all that they call: nothing of that may stay.
    with connection.transaction(force_rollback=True):
        connection.execute("SET TRANSACTION READ ONLY")
        _search_path(connection, task)
        for statement in script.statements:
            for one in loss.of(connection, statement):
                # Whether rows can be found again by a column whose type changes, `main` has to know, too.
                asked = counting or one.kind == "values"
                found.append(loss.count(connection, one, task.count_limit) if asked else one)
    return found


def _owned(
    connection: Connection[Any], task: Task, losses: Mapping[str, list[Loss]], scripts: Mapping[str, Script]
) -> Iterator[str]:
    """Only its owner can alter or drop a table or sequence; and what goes is kept only by who sees all of its rows."""
    every = (one for found in losses.values() for one in found)
    relations = sorted({one.relation for one in every if one.select or one.kind == "sequence"})
    shown = {sql.quoted(name) for script in scripts.values() for name in sql.shown(script)}
    with connection.transaction():
        database.as_owner(connection, task.address.schema, "SET LOCAL")
        for relation in relations:
            row = connection.execute(
                "SELECT relowner::regrole::text, pg_has_role(relowner, 'USAGE'), row_security_active(oid), current_user"
                " FROM pg_class WHERE oid = to_regclass(%s)",
                [relation],
            ).fetchone()
            if row and not row[1]:
                yield f"{relation} belongs to {row[0]}, whose rights {row[3]}, who would go down, does not have"
            elif row and row[2] and not relation.endswith(tuple(f".{name}" for name in shown)):
                yield (
                    f"the row security of {relation} hides rows from {row[3]}, who would go down, so they could not be "
                    "kept; write ALTER TABLE … NO FORCE ROW LEVEL SECURITY into the down.sql before, or "
                    f"give {row[3]} BYPASSRLS"
                )


def _unsure_outside(connection: Connection[Any], task: Task, scripts: Mapping[str, Script]) -> Iterator[str]:
    """What runs without a transaction cannot be taken back, so it must be known."""
    with connection.transaction():
        _search_path(connection, task)
        for name, script in scripts.items():
            for statement in script.outside:
                for one in loss.of(connection, statement):
                    yield f"{name}: down.sql, line {statement.line}: {one.says}: no transaction can take it back"


def _renamed(scripts: Mapping[str, Script], losses: Mapping[str, list[Loss]]) -> Iterator[str]:
    """What is kept under names that ``migration.sql`` does not make again is not found by ``undo``."""
    for name, script in scripts.items():
        for one, table, column, later in sql.renamed(script):
            kept = {each for loss in losses[name] if loss.relation.endswith(f".{table}") for each in _found_by(loss)}
            hit = not column or column in kept or any(each.column == one.node.newname for each in later)
            if hit and any(each.kind in ("table", "column") for each in later):
                yield (
                    f"{name}: down.sql, line {one.line}: {one.short}: what goes of {table} after this is kept by names "
                    "that migration.sql does not make again, so undo will fail; put the DROP before it, by the names "
                    "of before"
                )


def _found_by(loss: Loss) -> tuple[str, ...]:
    """The columns without which nothing is put back. Values of rows that no key finds are put back by hand."""
    return loss.columns if loss.kind == "table" else (*loss.keys, *loss.columns[-1:])


def _unwilling(
    task: Task,
    migration: Migration,
    losses: Sequence[Loss],
    down: Sequence[Migration],
    disturbs: Mapping[str, list[str]],
) -> str:
    """Why a migration that destroys something is not taken down without a yes; empty where it may be.

    :param down: all that go, newest first: what only adds can be left only where nothing below it must go.
    """
    lost = [one.sentence for one in losses if not one.harmless]
    if not lost or migration.name in task.destroys:
        return ""
    reasons = disturbs[migration.name]
    words = (
        f"{migration.name} would destroy {'; '.join(lost)}. If it shall: prisma_down_destroys: [{migration.name}]; "
        f"it is kept in {task.kept} first."
    )
    older = down[down.index(migration) + 1 :]
    below = next((one.name for one in reversed(older) if disturbs[one.name]), "")
    if not reasons and below:
        return f"{words} It only adds, but cannot be left: {below} below it goes, which does not only add"
    if not reasons:
        return f"{words} It only adds: leaving it is safe for the old release (prisma_down_leave_additive: true)"
    return f"{words} Leaving it is not known to be safe for the old release ({reasons[0]})"


def _keeps(connection: Connection[Any], task: Task, losses: Mapping[str, list[Loss]]) -> bool:
    """Whether there is something to write into the folder of what is kept."""
    found = [one for losses_of in losses.values() for one in losses_of]
    with connection.transaction():
        database.as_owner(connection, task.address.schema, "SET LOCAL")
        sequences = [one.relation for one in found if one.kind == "sequence"]
        return any(one.filled or not one.harmless for one in found) or any(
            _is_used(connection, one) for one in sequences
        )


def _is_used(connection: Connection[Any], sequence: str) -> bool:
    """Whether a sequence has given a number; one that may not be read is not known to be unused."""
    may = connection.execute("SELECT has_sequence_privilege(%s, 'SELECT')", [sequence]).fetchone()
    return may != (True,) or bool(loss.position(connection, sequence))


def _writable(folder: Path) -> Iterator[str]:
    # What stands in a folder that may not be entered does not seem to be there.
    there = next((one for one in (folder, *folder.parents) if os.access(one, os.F_OK)), Path("/"))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield f"prisma_down_keep_dir: {folder} cannot be made, because {there} may not be written by {loss.user()}"


# Doing


@contextmanager
def _transaction(connection: Connection[Any], task: Task, deadline: Deadline) -> Iterator[None]:
    """A transaction with the limits, Prisma's schema, the rights of who migrates, and Prisma's lock."""
    with connection.transaction():
        database.limits(connection, task.lock_timeout, deadline)
        _search_path(connection, task)
        database.as_owner(connection, task.address.schema, "SET LOCAL")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [database.PRISMA_LOCK])
        yield


def _search_path(connection: Connection[Any], task: Task) -> None:
    connection.execute("SELECT set_config('search_path', %s, true)", [sql.quoted(task.address.schema)])


def _go_down(
    connection: Connection[Any], task: Task, way: Way, one: Migration, done: Sequence[str], deadline: Deadline
) -> Json:
    began, script = time.monotonic(), way.scripts[one.name]
    state = f"{one.name} is as it was; down already: {', '.join(done) or 'none'}."
    at = [f"{one.name}"]
    with database.telling(connection, at, state, task.lock_timeout):
        _run_outside(connection, task, one, script.outside, at, deadline)
    if script.outside:
        state = f"What stands outside of its transaction may be done, the rest of {one.name} is as it was."
    kept = Kept.begin(task.kept, one.name)
    gone: list[Loss] = []
    passing = loss.changing(each for found in way.losses.values() for each in found)
    try:
        with database.telling(connection, at, state, task.lock_timeout), _transaction(connection, task, deadline):
            _unchanged(connection, task, way, done)
            for statement in script.inside:
                at[:] = [f"{one.name}, down.sql line {statement.line}: {statement.short}"]
                database.limits(connection, task.lock_timeout, deadline)
                gone += _carry_out(connection, task, one, statement, passing, kept, state)
            at[:] = [one.name]
            rows = way.history.rows[one.name]
            _end(connection, task.address.schema, one, rows, state)
            number = connection.execute("SELECT txid_current()").fetchone()
            told = [each for each in _went_down(task) if each["name"] == one.name and each.get("lost")]
            lines = [{**row.as_kept(), "logs": row.logs} for row in rows]
            folder = kept.close(lines, one.name, number[0] if number else 0, expected=bool(told))
    except BalikError as error:
        # After a lost connection nobody knows yet whether it was carried out: what is kept stays.
        if not connection.closed:
            kept.discard()
        raise error
    return {
        "name": one.name,
        "seconds": database.since(began),
        "statements": len(script.statements),
        # Of what was unknown before, the server's counters have shown since that it took nothing but what is kept.
        "lost": {each.says: each.rows for each in gone if each.rows},
        "kept": folder,
    }


def _unchanged(connection: Connection[Any], task: Task, way: Way, done: Sequence[str]) -> None:
    """Under Prisma's lock nobody writes the bookkeeping: what was read before must stand there still."""
    now = {(row.id, row.migration_name) for row in database.read_rows(connection, task.address.schema)}
    before = {(row.id, name) for name, rows in way.history.rows.items() if name not in done for row in rows}
    if now != before:
        names = ", ".join(sorted({name for _, name in now ^ before}))
        raise BalikError(
            database.quote_bookkeeping(task.address.schema),
            f"was changed by somebody else since it was read ({names})",
            do="Find out who migrates this database now, and run again.",
        )


def _carry_out(
    connection: Connection[Any],
    task: Task,
    one: Migration,
    statement: Statement,
    passing: set[tuple[str, str]],
    kept: Kept,
    state: str,
) -> list[Loss]:
    """Runs a statement, and keeps what it destroys. Where the server counted more than that, it is taken back."""
    before = watch.look(connection)
    lost = _keep(connection, task, one, statement, passing, kept, state)
    covered = watch.covered(connection, statement, lost)
    if not any(each.takes for each in lost):
        connection.execute(statement.text)  # type: ignore[arg-type]
    _compare(connection, before, covered, f"{one.name}, down.sql line {statement.line}: {statement.short}", state)
    return lost


def _compare(
    connection: Connection[Any], before: Mapping[int, watch.Table], covered: watch.Covered, what: str, state: str
) -> None:
    """:raises BalikError: more went since ``before`` than is kept, or nobody can see that."""
    uncounted = [] if watch.counts(connection) else ["track_counts is off, so nobody can see what it took"]
    if wrong := watch.compare(before, watch.look(connection), covered) + uncounted:
        raise BalikError(
            what,
            f"did more than was kept: {', '.join(wrong)}",
            "nothing that is lost but what was kept first",
            f"{state} A trigger, a rule, a view or a function did it: switch it off in the down.sql (ALTER TABLE … "
            "DISABLE TRIGGER …), and write what it does as statements.",
        )


def _keep(
    connection: Connection[Any],
    task: Task,
    one: Migration,
    statement: Statement,
    passing: set[tuple[str, str]],
    kept: Kept,
    state: str,
) -> list[Loss]:
    """Writes what a statement is about to destroy, with the tables and sequences locked so that nothing is added
    meanwhile. A DELETE or UPDATE whose rows only it knows is carried out by that, and comes last; a sequence comes
    after its table."""
    lost = []
    order = sorted(
        loss.of(connection, statement, passing), key=lambda each: (bool(each.takes), each.kind == "sequence")
    )
    loss.hold_above(connection, order)
    # At once what the statement takes: a lock that grows waits for who has read, and who then writes for this one.
    shared = not isinstance(statement.node, sql.ast.TruncateStmt)
    for found in order:
        if found.select:
            mode = "SHARE ROW EXCLUSIVE" if shared and found.kind == "rows" else "ACCESS EXCLUSIVE"
            connection.execute(f"LOCK TABLE {found.relation} IN {mode} MODE")  # type: ignore[arg-type]
        elif found.kind == "sequence":
            loss.hold(connection, found.relation)
        lost.append(kept.write(connection, found))
    lost = [each for each in lost if each.kind != "absent"]  # the statement itself will say so
    if views := [each.says for each in lost if each.kind == "view"]:
        raise BalikError(f"{one.name}, down.sql line {statement.line}: {statement.short}", views[0], do=state)
    harmful = [each.sentence for each in lost if not each.harmless]
    if harmful and one.name not in task.destroys:
        raise BalikError(
            f"{one.name}, down.sql line {statement.line}: {statement.short}",
            f"would destroy {'; '.join(harmful)}",
            f"nothing that is lost, or prisma_down_destroys: [{one.name}]",
            state,
        )
    return lost


def _run_outside(
    connection: Connection[Any],
    task: Task,
    one: Migration,
    statements: Sequence[Statement],
    at: list[str],
    deadline: Deadline,
) -> None:
    """The announced statements that no transaction can hold, one by one; each can be run again."""
    if not statements:
        return
    for name, value in (("lock_timeout", task.lock_timeout), ("statement_timeout", max(0.001, deadline.left()))):
        connection.execute("SELECT set_config(%s, %s, false)", [name, f"{max(1, round(value * 1000))}ms"])
    connection.execute("SELECT set_config('search_path', %s, false)", [sql.quoted(task.address.schema)])
    connection.execute("SELECT pg_advisory_lock(%s)", [database.PRISMA_LOCK])
    database.as_owner(connection, task.address.schema, "SET")
    try:
        for statement in statements:
            at[:] = [f"{one.name}, down.sql line {statement.line}: {statement.short}"]
            node = statement.node
            if isinstance(node, sql.ast.IndexStmt):
                _drop_invalid(connection, node)
            connection.execute(statement.text)  # type: ignore[arg-type]
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", [database.PRISMA_LOCK])
            for name in ("role", "lock_timeout", "statement_timeout"):
                connection.execute(f"RESET {name}")  # type: ignore[arg-type]


def _drop_invalid(connection: Connection[Any], node: Any) -> None:
    """An index whose concurrent creation was interrupted is there, and is none: IF NOT EXISTS would take it for one."""
    schema = node.relation.schemaname
    name = sql.quoted(*([schema] if schema else []), node.idxname)
    row = connection.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [name]).fetchone()
    if row and not row[0]:
        connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # type: ignore[arg-type]


def _end(connection: Connection[Any], schema: str, one: Migration, rows: Sequence[Row], state: str) -> None:
    """Takes the migration out of Prisma's bookkeeping, and lets all run now that was put off to the COMMIT: for that
    nothing was kept, and after the COMMIT it could not be taken back."""
    before = watch.look(connection)
    bookkeeping = loss.tree(connection, database.quote_bookkeeping(schema))
    _forget(connection, schema, one.name, rows)
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    covered = watch.Covered([(bookkeeping, len(rows))], set(), set(), set())
    _compare(connection, before, covered, f"{one.name}: a trigger that was put off to the end of its down.sql", state)


def _forget(connection: Connection[Any], schema: str, name: str, rows: Sequence[Row]) -> None:
    """Deletes all of a migration's rows. One that is left as rolled back makes `migrate status` 6 say "up to date"."""
    table = database.quote_bookkeeping(schema)
    gone = connection.execute(f"DELETE FROM {table} WHERE migration_name = %s", [name]).rowcount  # type: ignore[arg-type]
    if gone != len(rows):
        raise BalikError(
            f"{table}: rows of {name}", f"{gone} were deleted", f"{len(rows)}", "Nothing was changed. Run again."
        )


# Telling


def _refuse(way: Way, task: Task) -> None:
    if way.problems:
        lines = "\n".join(f"- {one}" for one in way.problems)
        raise BalikError(f"cannot go down to {task.target} in {task.address.where}", f"\n{lines}\nNothing was touched")


def _would(way: Way, task: Task) -> str:
    if not way.down:
        return f"{task.target} is the newest already{_left(way)}"
    parts = []
    for one in way.down:
        lost = [each.sentence for each in way.losses[one.name] if not each.harmless]
        parts.append(f"{one.name} (destroys {', '.join(lost)})" if lost else f"{one.name} (destroys nothing)")
    notes = f"; {'; '.join(way.notes)}" if way.notes else ""
    return f"down: {', '.join(parts)}; then {task.target} is the newest{_left(way)}{notes}"


def _left(way: Way) -> str:
    return _left_words(way.left)


def _left_words(left: Sequence[Migration]) -> str:
    if not left:
        return ""
    names = ", ".join(one.name for one in reversed(left))
    return f"; left in place, because it only adds and the old release can live with it: {names}"


def _told(one: Json) -> str:
    return f"{one['name']} is down in {format_duration(one['seconds'])}{_lost(one)}"


def _lost(one: Json) -> str:
    lost = ", ".join(f"{says}: {counted(rows, 'row')}" for says, rows in one["lost"].items())
    if not lost:
        return f" (nothing is lost; what undo needs is kept in {one['kept']})" if one["kept"] else ""
    return f" (lost, and kept in {one['kept']}: {lost})"


def _found(way: Way) -> list[Json]:
    return [
        {
            "name": one.name,
            "lost": _would_lose(way, one),
            "additive": not way.disturbs[one.name],
        }
        for one in way.down
    ]


def _would_lose(way: Way, one: Migration) -> dict[str, int | None]:
    return {each.says: each.rows for each in way.losses[one.name] if not each.harmless}


def _evidence(way: Way) -> Json:
    return {"migrations": _found(way), "left": [one.name for one in way.left], "notes": way.notes}


def _diff(way: Way) -> Json:
    """The SQL that is run, in its order."""
    text = "".join(f"-- {one.name}\n{(one.down or '').rstrip()}\n\n" for one in way.down)
    return {"before": "", "after": text, "before_header": "nothing", "after_header": "SQL that goes down"}


def _undoable(saved: Mapping[str, Any], migration: Migration | None) -> None:
    name = saved["name"]
    by_prisma = "Apply it with the new release's `prisma migrate deploy`; what was kept has a restore.sql beside it."
    good = [row for row in saved["rows"] if row["finished_at"] and not row["rolled_back_at"]]
    if migration is None or not good or not migration.is_the_one(good[-1]["checksum"]):
        raise BalikError(f"{name}: migration.sql", "is not the one that was applied before", do=by_prisma)
    script = sql.read(migration.up, ())
    kinds = (sql.ast.TransactionStmt,)
    if script.outside or any(isinstance(one.node, kinds) for one in script.statements):
        raise BalikError(f"{name}: migration.sql", "has statements that no transaction can hold", do=by_prisma)
