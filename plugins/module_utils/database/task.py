"""What is asked of a restore, and the questions that every part of it asks the server first."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from . import backup
from .access import Access, first_line
from .catalog import Database, Names, find, names

try:
    import psycopg
    from psycopg import sql
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

_SYSTEM = ("postgres", "template0", "template1")
# Seconds that a session may take to end whose client was killed.
_ENDING = 5.0
# They fire whatever the session says.
_ALWAYS = "select evtname from pg_event_trigger where evtenabled = 'A'"
# Who else has the lock. It is one of the database of which it is asked: whoever works by another
# db_restore_maintenance_database has it there. When a session began is not everybody's to know.
_HOLDER = """
select a.pid, a.application_name, coalesce(to_char(a.backend_start, '" since "YYYY-MM-DD HH24:MI:SS TZ'), '')
from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.classid = %s and l.objid = hashtext(%s)::oid
and l.pid <> pg_backend_pid()
"""
_LOCK_SPACE = 0x62616C69  # "bali"

Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is to be restored, and how.

    :param source: the backup's path; ``backups`` knows which one is meant.
    :param folder: where the backup of now goes.
    :param jobs: how many at a time; 0: as many as this host has processors, 8 at most.
    :param limit: seconds for one call.
    :param checks: ``{name, query, expect}``: what must hold in the restored copy.
    :param settings: for the sessions that restore, nobody else's.
    :param inspect: read the whole backup in :func:`check`, not only its beginning and end.
    :param compare: compare every table's rows with the backup's.
    :param amcheck: ``indexes``, ``heapallindexed`` or ``never``.
    :param accept: differences from what is live that are wanted, as the messages name them.
    :param long_transaction: seconds from which a transaction on the live database is named.
    :param pgbouncer: connection strings of the admin consoles of the PgBouncers in front; they may hold passwords.
    :param pgbouncer_limit: seconds for open transactions to end by themselves while new ones wait.
    :param tables: put back to the backup's content, instead of the whole database; ``schema.name``.
    :param drop_tables: dropped: tables and views that the release brought.
    :param definitions: what is done where a table is defined otherwise than in the backup: ``refuse``, ``keep``
        (the rows come back, new columns get their defaults) or ``restore``.
    :param lock_limit: seconds to wait for the locks on the tables.
    :param fetched: the backup is here; :func:`check` looks at the server only where it is not yet.
    :param saved: what :func:`check` returned as ``before`` at the start of this run; may be empty.
    """

    access: Access
    database: str
    run: str
    source: str = ""
    checksum: str = ""
    folder: str = ""
    jobs: int = 0
    limit: float = 7200
    checks: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    maintenance: str = "postgres"
    programs: str = ""
    inspect: bool = True
    compare: bool = True
    amcheck: str = "indexes"
    accept: Sequence[str] = ()
    long_transaction: float = 300
    tables: Sequence[str] = ()
    drop_tables: Sequence[str] = ()
    definitions: str = "refuse"
    lock_limit: float = 10
    pgbouncer: Sequence[str] = field(default=(), repr=False)
    pgbouncer_limit: float = 10
    ignore_space: bool = False
    keep_failed: bool = False
    fetched: bool = True
    saved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """How many processes may restore at a time."""
        return self.jobs or min(os.cpu_count() or 1, 8)


def application(run: str, database: str) -> str:
    """How the sessions that restore one database of a run are called; a run may restore others at the same time.

    >>> application("20260110T130000Z-3f9a", "hub")
    'balik 20260110T130000Z-3f9a hub'
    """
    name = f"balik {run} {database}"
    if len(name) <= 63 and name.isascii() and name.isprintable():
        return name
    return f"balik {run} {hashlib.sha256(database.encode()).hexdigest()[:12]}"  # the server would cut or change it


@contextmanager
def server(task: Task) -> Iterator[tuple[Connection[Any], Names]]:
    """A connection to the server itself, with PostgreSQL's errors told as ours."""
    if task.database in _SYSTEM:
        raise BalikError("db_restore_database", f"found {task.database!r}", "a database of your own, not the server's")
    if "\0" in task.database:
        raise BalikError("db_restore_database", f"found {task.database!r}", "a name without a NUL character")
    known = names(task.database, task.run)
    with task.access.connect(task.maintenance) as admin:
        try:
            yield admin, known
        except psycopg.Error as error:
            raise BalikError(
                f"database {task.database} on {task.access.where}",
                f"{first_line(error)} ({error.sqlstate or type(error).__name__})",
                do="Run the rollback again when that is put right.",
            ) from None


def scalar(connection: Connection[Any], query: str, *values: object) -> Any:
    """The first column of the first row, or ``None``."""
    row = connection.execute(query, values or None).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


@contextmanager
def unwatched(connection: Connection[Any]) -> Iterator[None]:
    """No event trigger of a copy sees what we create in it: it would write what the backup has not, or forbid it."""
    always = []
    with suppress(psycopg.errors.InsufficientPrivilege):  # who may not is no superuser, and restores no such trigger
        connection.execute("SET session_replication_role = replica")
        always = [sql.Identifier(row[0]) for row in connection.execute(_ALWAYS)]
        for each in always:  # which none of them sees
            connection.execute(sql.SQL("ALTER EVENT TRIGGER {} DISABLE").format(each))
    yield
    for each in always:  # a copy with which something failed is dropped
        connection.execute(sql.SQL("ALTER EVENT TRIGGER {} ENABLE ALWAYS").format(each))


def live_database(admin: Connection[Any], task: Task) -> Database:
    """The database of the task.

    :raises BalikError: it is not there.
    """
    live = find(admin, task.database)
    if live is None:
        raise BalikError(
            f"database {task.database}", f"not on {task.access.where}", do="Check db_restore_database, and the server."
        )
    return live


def same_as_before(live: Database, task: Task) -> None:
    """Refuses a database that somebody else put in the place of the one that this run began with."""
    was = task.saved.get("oid", live.oid)
    if was != live.oid:
        raise BalikError(
            f"database {live.name}",
            f"oid {live.oid}: somebody else replaced it since this run began",
            f"oid {was}",
            "Find out what it is. Restoring again would throw away what was written since; start a new run for that.",
        )


def chosen(task: Task) -> tuple[Path, str]:
    """The backup and its kind: the one that was checked at the start of this run, unchanged.

    :raises BalikError: it is not there, or another.
    """
    path = Path(task.saved.get("backup") or task.source)
    if not path.name:
        raise BalikError("db_restore_backup", "not set", "the backup's path on the database host", "Set it.")
    if not path.exists():
        raise BalikError(str(path), "no such file or directory", "the backup", "Put it there, or name another.")
    kind, size = backup.kind_of(path), backup.size_of(path)
    if size != task.saved.get("backup_size", size):
        raise BalikError(
            str(path),
            f"{size} bytes",
            f"the {task.saved['backup_size']} bytes that were checked at the start of this run",
            "Put it back as it was, or start a new run.",
        )
    return path, kind


def alone(admin: Connection[Any], task: Task) -> None:
    """One restore of a database at a time; what an earlier start of this run left running is ended.

    Before anything else is read: that earlier start may come to its end while we wait for it.
    """
    until = time.monotonic() + _ENDING
    which = [_LOCK_SPACE, task.database]
    while True:
        got = scalar(admin, "select pg_try_advisory_lock(%s, hashtext(%s))", *which)
        holder = admin.execute(_HOLDER, which).fetchone()
        if got and not holder:
            break
        if time.monotonic() >= until:
            who = f"{holder[1]} (pid {holder[0]}){holder[2]}" if holder else "somebody"
            raise BalikError(f"database {task.database}", f"{who} is restoring it", "nobody else", "Wait for them.")
        if got:
            scalar(admin, "select pg_advisory_unlock(%s, hashtext(%s))", *which)
        time.sleep(0.1)
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = %s and pid <> pg_backend_pid() and usename = current_user",
        [task.access.application[:63]],
    )
