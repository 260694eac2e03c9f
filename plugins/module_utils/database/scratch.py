"""An empty database beside the live one: made like it, filled, made whole, and dropped again if anything fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from . import topology
from .access import Deadline, Programs, first_line, run
from .catalog import IS_EMPTY, Database, create_like, find, marking
from .task import unwatched

try:
    import psycopg
    from psycopg import conninfo, sql
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = conninfo = sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

    from .task import Task

_EXTENSIONS = """
select extname, nspname, extversion from pg_extension e join pg_namespace n on n.oid = e.extnamespace
"""


def drop_leftover(admin: Connection[Any], task: Task, name: str) -> bool:
    """What an earlier start of this run left half-done, and nothing else; whether there was something.

    :raises BalikError: a database of this name is somebody else's.
    """
    left = find(admin, name)
    if left and left.comment is None:  # killed between creating and marking it, or somebody else's
        with task.access.connect(name) as copy:
            theirs = not copy.execute(IS_EMPTY).fetchone()[0]  # type: ignore[index]
    else:
        theirs = left is not None and left.mark.get("run") != task.run
    if left and theirs:
        raise BalikError(left.name, "exists, and is not this run's", "no database of this name", "Rename it.")
    if left:
        _drop(admin, task, name)
    return bool(left)


def _drop(admin: Connection[Any], task: Task, name: str) -> None:
    """Drops the database ``name``, if it is there, whoever uses it; publishers keep the slots of its subscriptions."""
    if find(admin, name):
        if subscriptions := [each for each, _ in topology.subscriptions(admin, name)]:
            with task.access.connect(name) as copy, unwatched(copy):
                for each in map(sql.Identifier, subscriptions):  # the slot is the live database's
                    copy.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(each))
                    copy.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(each))
                    copy.execute(sql.SQL("DROP SUBSCRIPTION {}").format(each))
        admin.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def beside(admin: Connection[Any], task: Task, live: Database, name: str, keep: bool = False) -> Iterator[None]:
    """An empty database like ``live``, marked as this run's; dropped again if what is done with it fails.

    :param keep: leave it there all the same, for a look at it.
    """
    create_like(admin, live, name, marking(task.run, live.name))
    try:
        yield
    except BaseException as error:
        left = keep or not _dropped(task, name)
        if left and isinstance(error, BalikError):
            error.do = f"{error.do} The copy {name} is still there; the next start of this run drops it.".strip()
        raise


def _dropped(task: Task, name: str) -> bool:
    try:
        with task.access.connect(task.maintenance) as admin:  # the session before may have died with the server
            _drop(admin, task, name)
    except (psycopg.Error, BalikError):
        return False  # the error that brought us here is the one to tell
    return True


def same_extensions(task: Task, live: str, name: str) -> list[str]:
    """Creates what the live database has and the backup does not bring, in the live one's versions; their names.

    :raises BalikError: a version differs, and the server has no way from one to the other.
    """
    with task.access.connect(live) as now, task.access.connect(name) as copy, unwatched(copy):
        there = {row[0]: row[2] for row in copy.execute(_EXTENSIONS)}
        added = []
        for extension, schema, version in now.execute(_EXTENSIONS).fetchall():
            if extension not in there:
                copy.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
                copy.execute(
                    sql.SQL("CREATE EXTENSION {} WITH SCHEMA {} VERSION {}").format(
                        sql.Identifier(extension), sql.Identifier(schema), sql.Identifier(version)
                    )
                )
                added.append(extension)
            elif there[extension] != version and f"extension {extension}" not in task.accept:
                _same_version(copy, extension, there[extension], version)
    return sorted(added)


def _same_version(copy: Connection[Any], extension: str, found: str, wanted: str) -> None:
    try:
        copy.execute(
            sql.SQL("ALTER EXTENSION {} UPDATE TO {}").format(sql.Identifier(extension), sql.Identifier(wanted))
        )
    except psycopg.Error as error:
        raise BalikError(
            f"extension {extension} of the restored copy",
            f"version {found} ({first_line(error)})",
            f"{wanted}, as in the live database",
            f"Update it in the live database (ALTER EXTENSION), or list 'extension {extension}' in db_restore_accept.",
        ) from None


def analyze(task: Task, programs: Programs, deadline: Deadline, name: str) -> None:
    """Statistics: all at once, not in stages, since nobody uses the copy before it has them."""
    # A bare name would be read as a connection string where it looks like one.
    target = conninfo.make_conninfo(dbname=name)
    command = [programs["vacuumdb"], "-w", "-q", "--analyze-only", "-j", str(task.workers), "-d", target]
    environment = task.access.environment(name, task.settings)
    run(command, environment, deadline, f"statistics of {name}")


def flush(admin: Connection[Any], task: Task) -> None:
    """What PostgreSQL has only in memory may find a full disk later; better now, while the copy can be dropped."""
    try:
        admin.execute("CHECKPOINT")
    except psycopg.errors.InsufficientPrivilege:
        pass  # the server does it by itself within minutes
    except psycopg.Error as error:
        raise BalikError(
            f"the disk of {task.access.where}",
            f"what was restored could not be written: {first_line(error)}",
            do=f"{task.database} is untouched. Read the server's log, make room, and run the rollback again.",
        ) from None
