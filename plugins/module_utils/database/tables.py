"""A feature's tables put back to what a backup holds, or dropped where they are new; the rest of the database goes on.

The backup is restored into a scratch database first, so that nothing live waits while it can still fail. Then, in one
transaction on the live database: writers are held, the tables are dumped as they are now, get the backup's rows, are
compared, and the transaction ends. Its number is written to a file before that, and so the next start of the same run
asks the server what became of it: committed, or as if it had never been.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BalikError, SchemaUnfit
from ..units import format_duration
from . import backup, scratch, space, topology, verification
from .access import Deadline, Programs, find_programs
from .catalog import Database, Names, find
from .definition import Table, again, describe, differences, sequences, table, unchangeable
from .exchange import (
    Rows,
    alike,
    columns_of,
    dependents,
    emptied,
    family,
    lock,
    materialized_on,
    pour,
    refuse_orphans,
    replay,
    set_sequences,
    transaction,
)
from .filling import fill
from .fitness import contents_fit, server_fits, unasked
from .keeping import claim, keep, own, place, read, write
from .script import Contents
from .task import Result, Task, alone, chosen, live_database, same_as_before, scalar, server

try:
    import psycopg
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

_ENDING_LIMIT = 10.0  # seconds for an ended session to be gone
_KINDS_DROPPED = {"v": "VIEW", "m": "MATERIALIZED VIEW", "rp": "TABLE"}
_KINDS = """
select relkind, relispartition, (select extname from pg_depend d join pg_extension e on e.oid = refobjid
  where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'), c.oid
from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = %s and relname = %s
"""
_ALIKE_NAMES = """
select nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace
where lower(relname) = lower(%s) and relkind in ('r', 'p', 'v', 'm') limit 5
"""


class _Backup(NamedTuple):
    """The chosen backup, and what reads it."""

    path: Path
    kind: str
    programs: Programs
    deadline: Deadline


class _State:
    """What a run wrote down before its transaction ended, and what the server says became of that.

    :ivar known: ``xid`` of the restore, ``undone`` of the undo, ``before``: each table's description.
    """

    def __init__(self, admin: Connection[Any], task: Task) -> None:
        own(admin, task)
        self.path = place(task, "-tables.json")
        self._kept = [place(task, f"-{name}.dump") for name in ("tables", "dropped")]
        text = read(self.path)
        self.there = bool(text)
        try:
            self.known: dict[str, Any] = dict(json.loads(text or "{}"))
        except (TypeError, ValueError):
            do = "Look at the tables, and compare them with what is kept beside it; then start a new run."
            raise BalikError(str(self.path), "cannot be read", "what a restore of this run wrote down", do) from None

    def write(self, **more: Any) -> None:
        self.known.update(more)
        write(self.path, json.dumps(self.known, ensure_ascii=False))

    def start(self) -> None:
        """A restore starts: a file that is missing from now on was taken away.

        :raises BalikError: it was, and what an earlier start has kept may be all that is left of the tables.
        """
        kept = [str(path) for path in self._kept if path.exists()]
        if not self.there and kept:
            raise self.unknown(
                f"Put it back. If the tables are not restored yet, move {' and '.join(kept)} elsewhere and run again."
            )
        if not self.there:
            self.write()

    def unknown(self, do: str) -> BalikError:
        return BalikError(
            str(self.path),
            "not there, so it is not known whether this run restored the tables",
            "what a restore of this run wrote down",
            do,
        )

    def begin(self, **known: Any) -> None:
        """A restore is about to be committed; what was known of an earlier one is over."""
        self.known = {}
        self.write(**known)

    def became(self, admin: Connection[Any], key: str) -> bool:
        """Whether the transaction under ``key`` was committed.

        :raises BalikError: it has not ended, or is too long ago for the server to know.
        """
        if key not in self.known:
            return False
        end = time.monotonic() + _ENDING_LIMIT
        while True:
            try:
                status = scalar(admin, "select pg_xact_status(%s::xid8)", self.known[key])
            except psycopg.errors.InvalidParameterValue:
                status = "not come to yet by this server, which is another one, or older than this run: a copy of it"
            if status != "in progress" or time.monotonic() > end:
                break
            time.sleep(0.1)
        if status not in ("committed", "aborted"):
            raise BalikError(
                f"transaction {self.known[key]} of this run",
                str(status or "too long ago for the server to say what became of it"),
                "committed or aborted",
                f"Look at the tables, and compare them with {self.path.parent}; then start a new run.",
            )
        return bool(status == "committed")

    def done(self, admin: Connection[Any]) -> bool:
        """The tables were restored, and not undone."""
        return self.became(admin, "xid") and not self.became(admin, "undone")

    def did(self, admin: Connection[Any], asked: Mapping[str, list[str]]) -> bool:
        """Whether this run did what is asked.

        :raises BalikError: it did something else, since the plan was edited between two starts of the run.
        """
        if not self.done(admin):
            return False
        for what, found in self.known["asked"].items():
            if sorted(asked[what]) != sorted(found):
                raise BalikError(
                    what,
                    f"{', '.join(asked[what]) or 'empty'}, while this run began with {', '.join(found) or 'none'}",
                    "the same as when this run restored the tables",
                    "Put the plan back as it was, or start a new run.",
                )
        return True


def check(task: Task) -> Result:
    """Whether the tables could be put back or dropped; only reads.

    :returns: ``says``, ``before``, ``evidence``.
    :raises BalikError: they could not, and why.
    """
    deadline = Deadline(task.limit)
    wanted, dropped = _named(task)
    with server(task) as (admin, known):
        live = live_database(admin, task)
        state = _State(admin, task)
        if state.did(admin, _asked(wanted, dropped)):
            says = (
                f"{_listed(wanted, dropped)} of {live.name} are restored already; kept: {place(task, '-tables.dump')}"
            )
            return {"says": says, "before": dict(task.saved), "evidence": {}}
        same_as_before(live, task)
        major = server_fits(admin, live, task, rename=False)
        programs = find_programs(major, task.programs)
        before: dict[str, Any] = {"database": live.name, "oid": live.oid}
        parts, evidence = [], {}
        with task.access.connect(live.name) as connection:
            alike(connection)
            there = _fits(connection, task, wanted, dropped)
            if dropped:
                parts.append(f"would drop {_said([each for each in dropped if each in there]) or 'nothing more'}")
            if wanted and not task.fetched:
                parts += [f"would put {_said(wanted)} back", *_stale(connection, wanted, dropped)]
                parts += _subscribed(connection, wanted)
            elif wanted:
                source = _Backup(*chosen(task), programs, deadline)
                path, kind = source.path, source.kind
                checksum = backup.verify_checksum(path, task.checksum)
                contents, rows, keys = _looked(connection, task, wanted, source)
                contents_fit(admin, contents, path, major, live, task.accept)
                room = space.check(admin, task.access.host, live, contents.size, path, task.folder, task.ignore_space)
                before |= {"backup": str(path), "backup_size": backup.size_of(path)}
                evidence = {"kind": kind, "rows": rows, "foreign_keys": keys}
                counted = ", ".join(
                    f"{each} ({now:,} rows, {'uncounted' if then is None else f'{then:,}'} in it)"
                    for each, (now, then) in rows.items()
                )
                parts.append(f"would put {counted or _said(wanted)} back from {path} ({kind}, {checksum}); {room}")
                parts += [f"foreign keys that hold with its rows: {', '.join(keys)}"] if keys else []
                uncounted = [each for each, (_, then) in rows.items() if then is None]
                parts += verification.not_compared(uncounted, compare=True)
                parts += _lacking(connection, wanted, contents)
                parts += _redefined(connection, task, wanted, source)
                parts += _stale(connection, wanted, dropped)
                parts += _subscribed(connection, wanted)
        parts += unasked(task)
        left = find(admin, known.beside)
    parts += [f"{left.name} is what an interrupted start of this run left, and will be dropped"] if left else []
    return {"says": f"{live.name}: {'; '.join(parts)}", "before": before, "evidence": evidence}


def restore(task: Task, check_mode: bool = False) -> Result:
    """Keeps the tables as they are now, and puts them back or drops them; nothing if this run did so before.

    :returns: ``changed``, ``says``, ``evidence``, ``diff``.
    :raises BalikError: everything is as it was.
    """
    deadline = Deadline(task.limit)
    wanted, dropped = _named(task)
    with server(task) as (admin, known):
        if not check_mode:
            alone(admin, task)
        live = live_database(admin, task)
        same_as_before(live, task)
        listed = _listed(wanted, dropped)
        state = _State(admin, task)
        diff = {"before": f"{listed}\n", "after": f"put back: {_said(wanted)}; dropped: {_said(dropped)}\n"}
        if check_mode:
            done = state.did(admin, _asked(wanted, dropped))
            says = f"{listed} are restored already" if done else f"would put back or drop {listed}"
            return {"changed": not done, "says": says, "evidence": {}, "diff": {} if done else diff}
        major = server_fits(admin, live, task, rename=False)
        programs = find_programs(major, task.programs)
        claim(admin, task)
        state.start()
        if state.did(admin, _asked(wanted, dropped)):
            _drop_scratch(admin, task, known)
            says = f"{listed} of {live.name} are restored already"
            return {"changed": False, "says": says, "evidence": {}}
        began = time.monotonic()
        with task.access.connect(live.name) as connection:
            alike(connection)
            _fits(connection, task, wanted, dropped)
        leftover = scratch.drop_leftover(admin, task, known.beside)
        left: list[str] = []
        with ExitStack() as stack:
            if wanted:
                source = _Backup(*chosen(task), programs, deadline)
                backup.verify_checksum(source.path, task.checksum)
                contents_fit(admin, backup.glance(*source), source.path, major, live, task.accept)
                proof = _restored_beside(admin, task, live, known, source)
                left = stack.enter_context(proof)["tables_not_compared"]
            evidence = _exchange(task, state, known, wanted, dropped, programs, deadline, left)
        _drop_scratch(admin, task, known)
    took = format_duration(time.monotonic() - began)
    says = (
        f"{live.name}: {listed} put back or dropped in {took}, writers held for {evidence['held_ms']} ms; "
        f"{'; '.join(['what stood there is kept in ' + ', '.join(evidence['kept']), *evidence['stale']])}"
    )
    says = "; ".join([says, *verification.not_compared(evidence["tables_not_compared"], task.compare)])
    evidence |= {"leftover_dropped": leftover}
    return {"changed": True, "says": says, "evidence": evidence, "diff": diff}


def verify(task: Task) -> Result:
    """Reads again: this run's transaction holds, the tables are defined as it left them, and the plan's checks hold.

    What was written since is no failure: the tables are in use again.

    :returns: ``says``, ``evidence``.
    """
    wanted, dropped = _named(task)
    with server(task) as (admin, _):
        live = live_database(admin, task)
        state = _State(admin, task)
        if not state.did(admin, _asked(wanted, dropped)):
            raise BalikError(f"{_listed(wanted, dropped)} of {live.name}", "not restored by this run", "restored")
        with task.access.connect(live.name) as connection:
            alike(connection)
            there = [each.said for each in dropped if describe(connection, each)]
            if there:
                raise BalikError(f"database {live.name}", f"{', '.join(there)} are there again", "dropped")
            written = []
            for name, after in state.known["after"].items():
                found = describe(connection, table(name))
                if not found or differences(found["structure"], after["structure"]):
                    how = ", ".join(differences(found["structure"], after["structure"])) if found else "it is gone"
                    raise BalikError(f"table {name}", how, "as this run left it")
                rows = Rows(table(name), after["columns"], after["around"]["kind"] == "p")
                if list(rows.fingerprint(connection)) != after["rows"]:
                    written.append(name)
        held = verification.hold(task, live.name)
    since = f"written to since: {', '.join(written)}" if written else "no row changed since"
    return {
        "says": f"{live.name}: {_listed(wanted, dropped)} are restored; {since}; {held}",
        "evidence": {"written_since": written, "checks": len(task.checks)},
    }


def undo(task: Task, check_mode: bool = False) -> Result:
    """The tables come back as they were kept; what they hold now is kept, too.

    :returns: ``changed``, ``says``, ``evidence``, ``diff``.
    :raises BalikError: everything is as it was.
    """
    deadline = Deadline(task.limit)
    with server(task) as (admin, _):
        if not check_mode:
            alone(admin, task)
        live = live_database(admin, task)
        state = _State(admin, task)
        if not state.there:
            raise state.unknown(
                "Put it back, or set db_restore_backup_dir as it was then. If no restore of this run began, there is "
                "nothing to undo."
            )
        if not state.done(admin):
            says = f"{_listed(*_named(task))} of {live.name} are as they were"
            return {"changed": False, "says": says, "evidence": {}}
        # What this run did, whatever the plan names by now.
        listed = ", ".join(name for names in state.known["asked"].values() for name in names)
        diff = {"before": f"{listed}: as restored\n", "after": f"{listed}: as kept\n"}
        if check_mode:
            return {"changed": True, "says": f"would bring {listed} back as kept", "evidence": {}, "diff": diff}
        programs = find_programs(admin.info.server_version // 10000, task.programs)
        evidence = _take_back(task, state, programs, deadline)
    says = f"{live.name}: {listed} are as they were before; what was restored is kept in {', '.join(evidence['kept'])}"
    return {"changed": True, "says": says, "evidence": evidence, "diff": diff}


def _named(task: Task) -> tuple[list[Table], list[Table]]:
    wanted = [table(text) for text in task.tables]
    dropped = [table(text, "db_restore_drop_tables") for text in task.drop_tables]
    both = [*wanted, *dropped]
    twice = sorted({each.said for each in both if both.count(each) > 1})
    if twice or not both:
        raise BalikError(
            "db_restore_tables and db_restore_drop_tables",
            f"{', '.join(twice)} twice" if twice else "both empty",
            "each of the feature's tables once",
        )
    return wanted, dropped


def _said(tables: list[Table]) -> str:
    return ", ".join(each.said for each in tables)


def _listed(wanted: list[Table], dropped: list[Table]) -> str:
    return _said([*wanted, *dropped])


def _asked(wanted: list[Table], dropped: list[Table]) -> dict[str, list[str]]:
    return {
        "db_restore_tables": [each.said for each in wanted],
        "db_restore_drop_tables": [each.said for each in dropped],
    }


def _fits(connection: Connection[Any], task: Task, wanted: list[Table], dropped: list[Table]) -> set[Table]:
    """Those that are there, if everything may be done with them that is wanted."""
    try:
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        raise BalikError(
            f"role {connection.info.user} on {task.access.where}",
            "may not set session_replication_role, without which triggers would write what is not in the backup",
            "a superuser, or from PostgreSQL 15 on: GRANT SET ON PARAMETER session_replication_role",
        ) from None
    oids, there = [], set()
    for each in [*wanted, *dropped]:
        row = connection.execute(_KINDS, each).fetchone()
        if row is None:
            if each in dropped:
                continue
            similar = [Table(*found).said for found in connection.execute(_ALIKE_NAMES, [each.name])]
            raise SchemaUnfit(
                f"table {each.said} in {task.database}",
                f"not there; there is {' and '.join(similar) or 'nothing like it'}",
                "a table of the live database",
                "Capitals count. A table that the release dropped comes back only with the whole database.",
            )
        kind, partition, extension, _ = row
        allowed = "rpvm" if each in dropped else "rp"
        if kind not in allowed or partition or extension:
            found = f"a part of extension {extension}" if extension else "a partition" if partition else "no table"
            raise SchemaUnfit(
                f"{each.said} in {task.database}",
                found,
                "a table",
                "Name the partitioned table itself." if partition else "Take it out of the list.",
            )
        members = family(connection, each)
        foreign = [member for _, member, kind in members if kind == "f"]
        if foreign and each in wanted:  # to empty the table would empty it there
            raise SchemaUnfit(
                f"{each.said} in {task.database}",
                f"has partitions on another server: {_said(foreign)}",
                "rows of this database, which alone are in its backup",
                "For the rollback: ALTER TABLE … DETACH PARTITION; ATTACH it again afterwards.",
            )
        there.add(each)
        if each in dropped:
            oids += [oid for oid, _, _ in members]
    # What `restore` takes off the tables that stay is gone before these are dropped.
    changing = wanted if task.definitions == "restore" else []
    spared = [scalar(connection, "select %s::regclass::oid", each.sql) for each in changing]
    hanging = dependents(connection, oids, spared) if oids else []
    if hanging:
        raise SchemaUnfit(
            f"{_said(dropped)} in {task.database}",
            f"cannot be dropped: there hang on it {', '.join(hanging[:10])}",
            "nothing that stays",
            "List them in db_restore_drop_tables too if the release brought them, or drop them first.",
        )
    return there


def _looked(
    connection: Connection[Any], task: Task, wanted: list[Table], source: _Backup
) -> tuple[Contents, dict[str, tuple[int, int | None]], list[str]]:
    """The backup, each table's rows now and in it, and the foreign keys that hold; what was read is thrown away.

    Nobody knows how many are in it where it has them otherwise than by COPY as ``pg_dump`` writes it.
    """
    if not task.inspect:
        return backup.glance(*source), {}, []
    rows: dict[str, tuple[int, int | None]] = {}
    with connection.transaction(force_rollback=True):
        staged = verification.Staged(connection, lambda name: table(name) in wanted)
        try:
            contents = backup.inspect(*source, sink=staged)
        except psycopg.errors.UndefinedColumn as error:
            raise BalikError(
                f"the tables in {task.database}",
                f"lack a column that the backup has: {error.diag.message_primary}",
                "all of its columns",
                "Restore the whole database instead.",
            ) from None
        stages = {table(name): stage for name, stage in staged.stages.items()}
        missing = [each for each in wanted if each not in stages and not _empty_in(contents, each)]
        if missing:
            raise BalikError(
                str(source.path),
                f"it does not hold {_said(missing)}",
                "all of db_restore_tables",
                "Are they new? Drop them.",
            )
        sources: dict[int, tuple[str, set[str]]] = {}
        for each in wanted:
            now = Rows(each, ["tableoid"], describe(connection, each)["around"]["kind"] == "p")
            stage = stages.get(each)
            members = family(connection, each)
            mine = {*(of for _, of, _ in members), *_partitions_in(contents, each)}
            blocks = [block for block in contents.blocks if table(block.table) in mine]
            then = sum(block.rows for block in blocks) if blocks else None
            rows[each.said] = (scalar(connection, f"select count(*) from {now.source}"), then)
            if stage:
                sources[members[0][0]] = (stage[0], columns_of(connection, stage[0]))
        keys = refuse_orphans(connection, list(sources), sources)
    return contents, rows, keys


def _redefined(connection: Connection[Any], task: Task, wanted: list[Table], source: _Backup) -> list[str]:
    """What people must hear of the tables' definitions, of which a backup that is not loaded tells the columns.

    Defaults and identities are taken for the same: most stand elsewhere in a backup.

    :raises SchemaUnfit: the columns of one differ, and that is not wanted or not possible.
    """
    before, then = {}, {}
    for name, text in backup.definitions(*source):
        with suppress(BalikError, psycopg.Error), connection.transaction(force_rollback=True):
            each = table(name)
            if each not in wanted or each in then:
                continue
            statement = f"CREATE TEMP TABLE balik_then ({text}\n)"
            connection.execute(statement, prepare=True)  # type: ignore[arg-type]  # a server prepares only one
            schema = scalar(connection, "select pg_my_temp_schema()::regnamespace::text")
            found = describe(connection, Table(schema, "balik_then"))["structure"]["columns"]
            now = describe(connection, each)["structure"]
            same = {one["name"]: {key: one[key] for key in ("default", "identity")} for one in now["columns"]}
            # What is generated has its expression there.
            columns = [one if one["generated"] else {**one, **same.get(one["name"], {})} for one in found]
            before[each.said] = {"structure": now}
            then[each] = {
                "structure": {**now, "columns": columns},
                "columns": [one["name"] for one in columns if not one["generated"]],
            }
    _changes(task, before, then)
    left = [] if task.definitions == "keep" else ["indexes, constraints and triggers"]
    unread = [each for each in wanted if each not in then]
    left += [f"columns of {_said(unread)}"] if unread else []
    return [f"compared only when the backup is loaded: {', '.join(left)}"] if left else []


def _partitions_in(contents: Contents, each: Table) -> set[Table]:
    """The partitions that a table has in the backup; the live one may lack some of them."""
    found = {table(partition) for partition, parent in contents.partitions.items() if table(parent) == each}
    return found.union(*(_partitions_in(contents, partition) for partition in found))


def _empty_in(contents: Contents, each: Table) -> bool:
    """A partitioned table has no rows of its own in a dump."""
    return (each.schema, each.name) in contents.names


@contextmanager
def _restored_beside(
    admin: Connection[Any], task: Task, live: Database, known: Names, source: _Backup
) -> Iterator[dict[str, Any]]:
    """The whole backup in a scratch database, proved; what the proof found."""
    with scratch.beside(admin, task, live, known.beside, task.keep_failed):
        contents = fill(task.access, known.beside, *source, task.workers, task.settings, task.compare)
        yield verification.prove(task, known.beside, contents, *source)


def _drop_scratch(admin: Connection[Any], task: Task, known: Names) -> None:
    scratch.drop_leftover(admin, task, known.beside)


def _exchange(
    task: Task,
    state: _State,
    known: Names,
    wanted: list[Table],
    dropped: list[Table],
    programs: Programs,
    deadline: Deadline,
    left: list[str],
) -> dict[str, Any]:
    """The transaction of :func:`restore`.

    :param left: tables of the scratch database whose rows were not compared with the backup.
    """
    access, database = task.access, task.database
    with transaction(access, database, task.lock_limit, deadline) as live, ExitStack() as stack:
        began = time.monotonic()
        _fits(live, task, wanted, dropped)
        asked = _asked(wanted, dropped)
        dropped = [each for each in dropped if describe(live, each)]
        lock(live, access, database, [*wanted, *_lockable(live, dropped)], "EXCLUSIVE")
        kept = _keep(task, live, wanted, dropped, programs, deadline, "")
        before = {each.said: _state_of(live, each) for each in [*wanted, *dropped]}
        there = stack.enter_context(access.connect(known.beside)) if wanted else None
        then = {}
        if there:
            alike(there)
            then = {each: _then(there, each) for each in wanted}
            mine = {member for each in wanted for _, member, _ in family(there, each)}
            left = [name for name in left if table(name) in mine]
        changes = _changes(task, before, then)
        xid = scalar(live, "select pg_current_xact_id()::text")
        after: dict[str, Any] = {}
        lock(live, access, database, [*wanted, *_lockable(live, dropped)], "ACCESS EXCLUSIVE")
        with emptied(live, wanted, changes):
            for each, found in then.items():
                pour(
                    live,
                    access,
                    known.beside,
                    Rows(each, found["columns"], found["around"]["kind"] == "p"),
                    programs,
                    deadline,
                )
        for each, found in then.items():
            set_sequences(live, each, found["sequences"])
            after[each.said] = _same(live, each, found, before[each.said], each in changes)
        oids = [oid for each in wanted for oid, _, _ in family(live, each)]
        keys = refuse_orphans(live, oids) if oids else []
        _drop(live, dropped)
        stale = _stale(live, wanted, [])
        gone = [each.said for each in dropped]
        state.begin(xid=xid, asked=asked, before=before, after=after, dropped=gone, kept=kept)
    held = round((time.monotonic() - began) * 1000)
    _tidy(task, wanted)
    return {
        "restored": {name: after[name]["rows"][0] for name in after},
        "dropped": gone,
        "tables_not_compared": left,
        "definitions_changed": {each.said: differences(*each_change) for each, each_change in changes.items()},
        "foreign_keys": keys,
        "stale": stale,
        "kept": kept,
        "held_ms": held,
    }


def _stale(connection: Connection[Any], wanted: list[Table], dropped: list[Table]) -> list[str]:
    """What people must hear of materialized views: nobody but them knows when these may be refreshed."""
    oids = [oid for each in wanted for oid, _, _ in family(connection, each)]
    left = [each for each in materialized_on(connection, oids) if each not in dropped]
    return [f"materialized views that keep their rows until REFRESH MATERIALIZED VIEW: {_said(left)}"] if left else []


def _subscribed(connection: Connection[Any], wanted: list[Table]) -> list[str]:
    """What people must hear of tables that a publisher writes into: it knows nothing of the backup's rows."""
    oids = {oid: each for each in wanted for oid, _, _ in family(connection, each)}
    return [
        f"{oids[oid].said} goes on receiving rows by subscription {name}, which may not fit the backup's: ALTER"
        f" SUBSCRIPTION … DISABLE, and copy it anew"
        for name, oid in topology.subscribed(connection, list(oids))
    ]


def _lacking(connection: Connection[Any], wanted: list[Table], contents: Contents) -> list[str]:
    """What people must hear of partitions that are only in the backup: no others may take their rows."""
    found: set[Table] = set()
    for each in wanted:
        found |= _partitions_in(contents, each) - {of for _, of, _ in family(connection, each)}
    return [f"partitions that only the backup has: {_said(sorted(found))}; create them first"] if found else []


def _lockable(live: Connection[Any], tables: list[Table]) -> list[Table]:
    return [each for each in tables if describe(live, each)["around"]["kind"] in "rp"]


def _keep(
    task: Task,
    live: Connection[Any],
    wanted: list[Table],
    dropped: list[Table],
    programs: Programs,
    deadline: Deadline,
    part: str,
) -> list[str]:
    """Dumps the tables as they are under our lock, one archive for each kind, each with its checksum."""
    kept = []
    wait = f"--lock-wait-timeout={round(task.lock_limit * 1000)}"
    for name, tables in (("tables", wanted), ("dropped", dropped)):
        if not tables:
            continue
        members = [member for each in tables for _, member, _ in family(live, each)]
        final = place(task, f"-{name}{part}.dump")
        keep(task, programs, deadline, final, [wait, *(f"--table={member.sql}" for member in members)], renew=True)
        backup.write_checksum(final)
        kept.append(str(final))
    return kept


def _state_of(connection: Connection[Any], each: Table) -> dict[str, Any]:
    """All that must be there again after an undo."""
    found = describe(connection, each)
    if found["around"]["kind"] in "rp":
        columns = [column["name"] for column in found["structure"]["columns"] if not column["generated"]]
        rows = Rows(each, columns, found["around"]["kind"] == "p")
        found |= {"columns": columns, "rows": list(rows.fingerprint(connection))}
        found["sequences"] = {key: list(value) for key, value in sequences(connection, each).items()}
    return found


def _then(there: Connection[Any], each: Table) -> dict[str, Any]:
    if not describe(there, each):
        raise BalikError(
            f"table {each.said}", "not in the backup", "in it", "Is it new? Then list it in db_restore_drop_tables."
        )
    return _state_of(there, each)


def _changes(
    task: Task, before: Mapping[str, Any], then: Mapping[Table, Any]
) -> dict[Table, tuple[dict[str, Any], dict[str, Any]]]:
    """Structure found and wanted of the tables whose structure goes back, too.

    :raises BalikError: it differs, and that is not wanted or not possible.
    """
    changes = {}
    for each, found in then.items():
        now, wanted = before[each.said]["structure"], found["structure"]
        differing = differences(now, wanted)
        if not differing:
            continue
        names = [column["name"] for column in now["columns"]]
        stuck = unchangeable(now, wanted)
        if task.definitions == "keep":
            stuck = [f"column {name}: missing" for name in found["columns"] if name not in names]
        if task.definitions == "refuse" or stuck:
            raise SchemaUnfit(
                f"table {each.said}",
                f"defined otherwise than in the backup: {', '.join(stuck or differing)}",
                "the same definition",
                "Restore the whole database, or bring it back by a down migration."
                if stuck
                else "Set db_restore_definitions to 'keep' (only the rows go back) or to 'restore' (both do).",
            )
        if task.definitions == "restore":
            changes[each] = (now, wanted)
    return changes


def _same(
    live: Connection[Any], each: Table, then: dict[str, Any], before: dict[str, Any], changed: bool
) -> dict[str, Any]:
    """The table as it is now, if its rows are the backup's and everything else is as it was, or as it is in the backup.

    :raises BalikError: it is not.
    """
    found = _state_of(live, each)
    rows = Rows(each, then["columns"], found["around"]["kind"] == "p").fingerprint(live)
    if list(rows) != then["rows"]:
        raise BalikError(
            f"table {each.said}", f"{rows[0]:,} rows, not the backup's {then['rows'][0]:,}", "the same rows"
        )
    _proved(each, found, before, then["structure"] if changed else before["structure"], exact=not changed)
    return found


def _proved(
    each: Table, found: dict[str, Any], before: dict[str, Any], structure: dict[str, Any], exact: bool = True
) -> None:
    wrong = differences(found["structure"], structure)
    if exact and found["structure"] != structure and not wrong:
        wrong = ["comments of columns"]
    wrong += [what for what in found["around"] if found["around"][what] != before["around"][what]]
    if wrong:
        raise BalikError(
            f"table {each.said}", f"after the exchange other than before: {', '.join(wrong)}", "everything as it was"
        )


def _drop(live: Connection[Any], dropped: list[Table]) -> None:
    """Drops what is named, and nothing else: PostgreSQL refuses where something else hangs on it."""
    kinds = {each: describe(live, each)["around"]["kind"] for each in dropped}
    left = list(dropped)
    while left:
        free = [each for each in left if not dependents(live, [oid for oid, _, _ in family(live, each)])]
        going = free or left  # tables that refer to each other go together
        for kind, what in _KINDS_DROPPED.items():
            names = [each.sql for each in going if kinds[each] in kind]
            if names:
                live.execute(f"DROP {what} {', '.join(names)}")  # type: ignore[arg-type]
        left = [each for each in left if each not in going]


def _tidy(task: Task, wanted: list[Table]) -> None:
    """Dead rows and old statistics go; where that fails, the server does it by itself."""
    if not wanted:
        return
    with task.access.connect(task.database) as connection:
        try:
            connection.execute(f"VACUUM (ANALYZE) {', '.join(each.sql for each in wanted)}")  # type: ignore[arg-type]
        except psycopg.Error as error:
            if isinstance(error, psycopg.OperationalError) and connection.broken:
                raise


def _take_back(task: Task, state: _State, programs: Programs, deadline: Deadline) -> dict[str, Any]:
    """The transaction of :func:`undo`."""
    before = state.known["before"]
    dropped = [table(name) for name in state.known["dropped"]]
    wanted = [table(name) for name in before if table(name) not in dropped]
    archives = [Path(path) for path in state.known["kept"]]
    for path in archives:
        if not path.exists():
            raise BalikError(str(path), "not there any more", "what this run kept", "There is nothing to bring back.")
        backup.verify_checksum(path)
    with transaction(task.access, task.database, task.lock_limit, deadline) as live:
        there = [each.said for each in dropped if describe(live, each)]
        if there:
            raise BalikError(
                f"{', '.join(there)} in {task.database}", "there again", "not there", "Rename it, then run again."
            )
        lock(live, task.access, task.database, wanted, "EXCLUSIVE")
        kept = _keep(task, live, wanted, [], programs, deadline, _free(task))
        changes = _changes_back(live, wanted, before)
        lock(live, task.access, task.database, wanted, "ACCESS EXCLUSIVE")
        xid = scalar(live, "select pg_current_xact_id()::text")
        with emptied(live, wanted, changes):
            for path in archives:
                if path.name.endswith("-tables.dump"):
                    replay(live, path, programs, deadline, rows_only=True)
            for path in archives:  # between rows and foreign keys: each kind may refer to the other
                if path.name.endswith("-dropped.dump"):
                    replay(live, path, programs, deadline, rows_only=False)
                    alike(live)  # the archive sets its own
        for each in [*wanted, *dropped]:
            _as_kept(live, each, before[each.said], each in dropped)
        refuse_orphans(live, [oid for each in [*wanted, *dropped] for oid, _, _ in family(live, each)])
        state.write(undone=xid)
    _tidy(task, wanted)
    return {"kept": kept, "restored": {name: found["rows"][0] for name, found in before.items() if "rows" in found}}


def _free(task: Task) -> str:
    """The part of a name that no earlier undo of this run has its archive under."""
    parts = ("-restored" if count == 1 else f"-restored-{count}" for count in itertools.count(1))
    return next(part for part in parts if not place(task, f"-tables{part}.dump").exists())


def _changes_back(
    live: Connection[Any], wanted: list[Table], before: Mapping[str, Any]
) -> dict[Table, tuple[dict[str, Any], dict[str, Any]]]:
    changes = {}
    for each in wanted:
        now, then = describe(live, each), before[each.said]["structure"]
        stuck = unchangeable(now["structure"], then) if now else ["it is gone"]
        if stuck:
            raise BalikError(f"table {each.said}", ", ".join(stuck), "as this run left it", "Bring that back first.")
        if differences(now["structure"], then):
            changes[each] = (now["structure"], then)
    return changes


def _as_kept(live: Connection[Any], each: Table, before: dict[str, Any], anew: bool) -> None:
    """Gives a table what no archive of it holds, and proves that it is what it was."""
    for statement in again(each, describe(live, each)["around"], before["around"]) if anew else ():
        live.execute(statement)  # type: ignore[arg-type]
    set_sequences(live, each, before.get("sequences", {}))
    found = _state_of(live, each)
    _proved(each, found, before, before["structure"])
    if found.get("rows") != before.get("rows"):
        raise BalikError(f"table {each.said}", "not the rows that were kept", "the same rows")
