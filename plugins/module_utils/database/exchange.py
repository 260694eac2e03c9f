"""The one transaction in which tables get other rows, and everything around them stays as it is."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from ..units import counted
from . import backup
from .access import Access, Deadline, Programs, complaint, first_line, limited, too_long
from .definition import Table, after_rows, before_rows, describe, enabling, sequences
from .script import CHUNK, Block
from .verification import fingerprint

try:
    import psycopg
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

# Both sides of a comparison write values alike, and catalogs name everything with its schema.
ALIKE = {"search_path": "", "timezone": "UTC", "datestyle": "ISO", "intervalstyle": "postgres", "bytea_output": "hex"}
# The last column compares as the key itself does, whatever the search_path: with its own operators, types, collation.
_FOREIGN_KEYS = """
select k.conname, k.conrelid::regclass::text, k.confrelid::regclass::text, r.oid, f.oid, k.confmatchtype,
       array(select quote_ident(attname) from unnest(k.conkey) with ordinality u(n, o)
             join pg_attribute on attrelid = k.conrelid and attnum = n order by o),
       array(select quote_ident(attname) from unnest(k.confkey) with ordinality u(n, o)
             join pg_attribute on attrelid = k.confrelid and attnum = n order by o),
       array(select format('f.%%I::%%s OPERATOR(%%I.%%s) r.%%I::%%s', p.attname, oprleft::regtype, n.nspname, oprname,
                           a.attname, oprright::regtype) || coalesce(' COLLATE ' || l.oid::regcollation, '')
             from unnest(k.conkey, k.confkey, k.conpfeqop) with ordinality u(c, f, op, o)
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.c
             join pg_attribute p on p.attrelid = k.confrelid and p.attnum = u.f
             join pg_operator q on q.oid = u.op join pg_namespace n on n.oid = oprnamespace
             left join pg_collation l on l.oid = p.attcollation and p.attcollation <> a.attcollation order by o)
from pg_constraint k join pg_class r on r.oid = k.conrelid join pg_class f on f.oid = k.confrelid
where k.contype = 'f' and (k.convalidated or not %(valid)s) and k.conparentid = 0
and (k.conrelid = any(%(oids)s) or k.confrelid = any(%(oids)s))
order by 2, 1
"""
# What goes with a relation by itself (its columns, indexes, keys, row type, sequences, partitions), and then everything
# else that needs any of this: views, foreign keys, columns of its row type, functions, policies, defaults.
_DEPENDENTS = """
with recursive going(classid, objid) as (
  select 'pg_class'::regclass::oid, unnest(%(oids)s::oid[])
  union
  select d.classid, d.objid from pg_depend d join going g on d.refclassid = g.classid and d.refobjid = g.objid
  where d.deptype in ('a', 'i', 'P', 'S') and d.objsubid = 0)
select distinct case
    when r.rulename = '_RETURN' then pg_describe_object('pg_class'::regclass, r.ev_class, 0)
    when k.contype = 'f' then format('foreign key %%s of %%s', k.conname, k.conrelid::regclass)
    else pg_describe_object(d.classid, d.objid, d.objsubid) end
from pg_depend d join going g on d.refclassid = g.classid and d.refobjid = g.objid
left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
left join pg_constraint k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
where d.deptype = 'n' and not exists (select from going o where o.classid = d.classid and o.objid = d.objid)
and (k.contype is distinct from 'f' or k.conrelid <> all(%(spared)s::oid[]))
order by 1
"""
_STANDING_ON = """
with recursive standing(oid) as (
  select unnest(%s::oid[])
  union
  select r.ev_class from standing s join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = s.oid
  join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid)
select nspname, relname from standing join pg_class c using (oid) join pg_namespace n on n.oid = relnamespace
where relkind = 'm' order by 1, 2
"""
_FAMILY = """
with recursive family as (select %s::regclass::oid as oid union all
  select inhrelid from pg_inherits join family on inhparent = family.oid join pg_class k on k.oid = inhrelid
  where k.relispartition)
select f.oid, nspname, relname, relkind from family f join pg_class c on c.oid = f.oid
join pg_namespace n on n.oid = relnamespace order by f.oid
"""


#: What stands for a table while its new rows are not in it yet: oid → (SQL, its columns as SQL).
Sources = Mapping[int, tuple[str, set[str]]]


class Rows:
    """Where the rows of one table come from, and how many there must be."""

    def __init__(self, of: Table, columns: Sequence[str], partitioned: bool) -> None:
        self.of, self.columns = of, columns
        self.listed = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
        self.source = of.sql if partitioned else f"ONLY {of.sql}"

    def fingerprint(self, connection: Connection[Any]) -> tuple[int, str]:
        """Of the rows that are there; partitions count, tables that inherit do not."""
        return fingerprint(connection, self.source, self.listed)


def family(connection: Connection[Any], of: Table) -> list[tuple[int, Table, str]]:
    """The table and its partitions: oid, name, kind as in ``pg_class``."""
    return [(row[0], Table(row[1], row[2]), row[3]) for row in connection.execute(_FAMILY, [of.sql]).fetchall()]


def alike(connection: Connection[Any]) -> None:
    """Sets what must be the same on both sides of a comparison."""
    for name, value in ALIKE.items():
        connection.execute("select set_config(%s, %s, false)", [name, value])


@contextmanager
def transaction(access: Access, database: str, lock_limit: float, deadline: Deadline) -> Iterator[Connection[Any]]:
    """One transaction: committed when the block ends well, taken back by the server in every other case.

    :raises BalikError: PostgreSQL's errors as ours; what could not be locked, and who holds it.
    """
    with access.connect(database) as connection:
        alike(connection)
        try:
            with connection.transaction():
                connection.execute("select set_config('lock_timeout', %s, true)", [f"{round(lock_limit * 1000)}ms"])
                connection.execute("select set_config('statement_timeout', %s, true)", [f"{int(deadline.left()) + 1}s"])
                yield connection
        except psycopg.Error as error:
            where = "" if not error.diag.constraint_name else f" (constraint {error.diag.constraint_name})"
            raise BalikError(
                f"the tables in {database}",
                f"{first_line(error)}{where} ({error.sqlstate or type(error).__name__})",
                do="Everything is as it was. Put that right, and run the rollback again.",
            ) from None


def lock(connection: Connection[Any], access: Access, database: str, tables: Sequence[Table], mode: str) -> None:
    """Locks the tables, their partitions too.

    :raises BalikError: not within the limit; with the sessions that hold them.
    """
    if not tables:
        return
    try:
        connection.execute(f"LOCK TABLE {', '.join(each.sql for each in tables)} IN {mode} MODE")  # type: ignore[arg-type]
    except psycopg.errors.LockNotAvailable:
        with access.connect(database) as other:
            holders = [
                row[0]
                for row in other.execute(
                    "select distinct format('pid %%s (%%s, %%s, %%s) since %%s', a.pid, usename, application_name,"
                    " state, to_char(xact_start, 'HH24:MI:SS TZ')) from pg_locks l join pg_stat_activity a using (pid)"
                    " where l.granted and l.locktype = 'relation' and l.relation = any(%s::regclass[])",
                    [[each.sql for each in tables]],
                )
            ]
        raise BalikError(
            f"the tables {', '.join(each.said for each in tables)} in {database}",
            f"no lock within the limit; held by {', '.join(holders[:10]) or 'somebody who is gone by now'}",
            do="Everything is as it was. End these sessions (pg_terminate_backend), or raise db_restore_lock_limit.",
        ) from None


def dependents(connection: Connection[Any], oids: Sequence[int], spared: Sequence[int] = ()) -> list[str]:
    """What outside of these relations hangs on them, and so forbids to drop them.

    :param spared: relations whose foreign keys do not count.
    """
    given = {"oids": list(oids), "spared": list(spared)}
    return [row[0] for row in connection.execute(_DEPENDENTS, given)]


def materialized_on(connection: Connection[Any], oids: Sequence[int]) -> list[Table]:
    """Materialized views that stand on these relations, or on views on them: they keep their rows of before."""
    return [Table(*row) for row in connection.execute(_STANDING_ON, [list(oids)])]


def columns_of(connection: Connection[Any], source: str) -> set[str]:
    """A relation's columns, as SQL."""
    query = "select quote_ident(attname) from pg_attribute where attrelid = %s::regclass and attnum > 0"
    return {row[0] for row in connection.execute(query, [source])}


def foreign_keys(connection: Connection[Any], oids: Sequence[int], valid: bool = True) -> list[tuple[Any, ...]]:
    """Foreign keys from and to these tables, as rows for :func:`orphans`.

    :param valid: only those that are validated, and so must hold.
    """
    return connection.execute(_FOREIGN_KEYS, {"oids": list(oids), "valid": valid}).fetchall()


def named(key: tuple[Any, ...]) -> str:
    """A foreign key as a person reads it."""
    return f"{key[0]} from {key[1]} to {key[2]}"


def orphans(connection: Connection[Any], key: tuple[Any, ...], sources: Sources | None = None) -> int:
    """How many rows violate a foreign key; a column that ``sources`` do not have holds nothing that could."""
    _, referring, referred, referring_oid, referred_oid, match, columns, keys, equal = key
    stands = sources or {}
    referring, here = stands.get(referring_oid, (referring, set(columns)))
    referred, there = stands.get(referred_oid, (referred, set(keys)))
    if not here.issuperset(columns) or not there.issuperset(keys):
        return 0
    some = (" or " if match == "f" else " and ").join(f"r.{column} is not null" for column in columns)
    row = connection.execute(
        f"select count(*) from {referring} r left join {referred} f on {' and '.join(equal)}"  # type: ignore[arg-type]
        f" where f.{keys[0]} is null and ({some})"
    ).fetchone()
    assert row
    return int(row[0])


def refuse_orphans(connection: Connection[Any], oids: Sequence[int], sources: Sources | None = None) -> list[str]:
    """The foreign keys from and to these tables that hold.

    :param sources: see :data:`Sources`.
    :raises BalikError: some would not; which, and how many rows.
    """
    keys = foreign_keys(connection, oids)
    broken = [f"{named(key)} ({counted(count, 'row')})" for key in keys if (count := orphans(connection, key, sources))]
    if broken:
        raise BalikError(
            "the tables with the backup's rows",
            f"would violate {', '.join(broken)}",
            "rows that refer to rows that are there",
            "Add the other table to db_restore_tables too, mend those rows, or restore the whole database.",
        )
    return [named(key) for key in keys]


def _untruncatable(connection: Connection[Any], families: Sequence[Sequence[tuple[int, Table, str]]]) -> set[int]:
    """Those tables, by their first oid, that something refers to which is not truncated: PostgreSQL refuses them.

    What they refer to in turn is one of them, too.
    """
    first = {oid: members[0][0] for members in families for oid, _, _ in members}
    keys = [(first.get(key[3]), first.get(key[4])) for key in foreign_keys(connection, list(first), valid=False)]
    found: set[int] = set()
    while True:
        more = {to for of, to in keys if to is not None and of != to and (of is None or of in found)} - found
        if not more:
            return found
        found |= more


@contextmanager
def emptied(
    connection: Connection[Any],
    tables: Sequence[Table],
    definitions: Mapping[Table, tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> Iterator[None]:
    """The tables without their rows and with their triggers asleep; afterwards the triggers are as they were.

    :param definitions: structure that is there and that is wanted, of tables whose structure changes, too.
    """
    connection.execute("SET LOCAL session_replication_role = replica")
    members = [each for of in tables for each in family(connection, of)]
    untruncatable = _untruncatable(connection, [family(connection, of) for of in tables])
    awake = [
        (of, trigger, state)
        for _, of, _ in members
        for trigger, (_, state) in describe(connection, of)["structure"]["triggers"].items()
        if state in "AR"  # they would fire even so
    ]
    for of, trigger, _ in awake:
        connection.execute(enabling(of, trigger, "D"))  # type: ignore[arg-type]
    empty = []
    for of in tables:
        mine = family(connection, of)
        if mine[0][0] in untruncatable:
            connection.execute(f"DELETE FROM {of.sql if mine[0][2] == 'p' else f'ONLY {of.sql}'}")  # type: ignore[arg-type]
        else:
            empty.append(of.sql if mine[0][2] == "p" else f"ONLY {of.sql}")
    if empty:
        connection.execute(f"TRUNCATE {', '.join(empty)}")  # type: ignore[arg-type]
    for of, (found, wanted) in definitions.items():
        for statement in before_rows(of, dict(found), dict(wanted)):
            connection.execute(statement)  # type: ignore[arg-type]
    yield
    for of, (found, wanted) in definitions.items():
        for statement in after_rows(of, dict(found), dict(wanted)):
            connection.execute(statement)  # type: ignore[arg-type]
    for of, trigger, state in awake:
        if trigger in describe(connection, of)["structure"]["triggers"]:
            connection.execute(enabling(of, trigger, state))  # type: ignore[arg-type]


def pour(
    connection: Connection[Any], access: Access, scratch: str, rows: Rows, programs: Programs, deadline: Deadline
) -> None:
    """Copies a table's rows from the database ``scratch`` into the one of the connection."""
    what = f"copying {rows.of.said}"
    command = [programs["psql"], "-X", "-w", "-q", "-v", "ON_ERROR_STOP=1"]
    command += ["-c", f"COPY (SELECT {rows.listed} FROM {rows.source}) TO STDOUT"]
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            env=access.environment(scratch, {"row_security": "off"}),
        )
        assert process.stdout
        columns = f"({rows.listed})" if rows.listed else ""  # a table may have none
        into = f"COPY {rows.of.sql} {columns} FROM STDIN"
        with limited(process, deadline) as over, process.stdout, connection.cursor().copy(into) as copy:  # type: ignore[arg-type]
            for chunk in iter(lambda: process.stdout.read(CHUNK), b""):  # type: ignore[union-attr]
                copy.write(chunk)
            if process.wait():
                raise too_long(what, deadline) if over.is_set() else BalikError(what, complaint(err))


class Replay:
    """Runs a dump of ours within a transaction: its SQL and its rows, in order. For :func:`backup.inspect`.

    :param rows_only: leave the SQL out.
    """

    def __init__(self, connection: Connection[Any], rows_only: bool) -> None:
        self._connection, self._rows_only = connection, rows_only
        self._text: list[bytes] = []
        self._manager: Any = None
        self._copy: Any = None

    def sql(self, text: bytes) -> None:
        if not self._rows_only:
            self._text.append(text)

    def rows(self, block: Block, text: bytes) -> None:
        if self._copy is None:
            self.run()
            statement = f"COPY {block.table} {block.columns} FROM STDIN"
            self._manager = self._connection.cursor().copy(statement)  # type: ignore[arg-type]
            self._copy = self._manager.__enter__()
        self._copy.write(text)

    def end(self, block: Block) -> None:
        self._manager.__exit__(None, None, None)
        self._manager = self._copy = None

    def run(self) -> None:
        """Runs the SQL that has come together: whole statements, since a COPY or the end follows."""
        text = b"".join(self._text)
        self._text = []
        if text.strip():
            self._connection.execute(text)


def replay(connection: Connection[Any], path: Path, programs: Programs, deadline: Deadline, rows_only: bool) -> None:
    """Runs a kept archive within the transaction of the connection."""
    sink = Replay(connection, rows_only)
    try:
        backup.inspect(path, "custom", programs, deadline, sink=sink)
    except BaseException as error:
        if sink._manager:  # the server must not take half a table for a whole one
            with suppress(psycopg.Error):
                sink._manager.__exit__(type(error), error, error.__traceback__)
        raise
    sink.run()


def set_sequences(connection: Connection[Any], of: Table, wanted: Mapping[str, Sequence[Any]]) -> None:
    """Gives the table's own sequences these values, within the transaction.

    ``setval`` alone would outlive a rollback; after RESTART it works on a file of this transaction's own.
    """
    mine = sequences(connection, of)
    for column, (_, value, given) in wanted.items():
        if column in mine:
            name = mine[column][0]
            connection.execute(f"ALTER SEQUENCE {name} RESTART")  # type: ignore[arg-type]
            connection.execute("select setval(%s::regclass, %s, %s)", [name, value, given])
