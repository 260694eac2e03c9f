"""What hangs on a database from outside of it: replicas, slots, subscribers, long transactions, other databases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BalikError, NotAdmitted, Unreachable
from ..units import format_duration
from .catalog import is_compared
from .space import human

try:
    import psycopg
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

    from .task import Task

# A rename waits for these for ever, or they would go on reading and writing the database that was put aside.
_IN_THE_WAY = """
select format('prepared transaction %%s', gid) from pg_prepared_xacts where database = %(name)s
union all select format('logical replication slot %%s', slot_name) from pg_replication_slots where database = %(name)s
"""
_REPLICAS = """
select coalesce(nullif(application_name, ''), 'walreceiver'), coalesce(host(client_addr), 'local'), state,
       greatest(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0), 0)::bigint,
       coalesce(extract(epoch from replay_lag), 0)::float
from pg_stat_replication where pid not in (select active_pid from pg_replication_slots
                                           where slot_type = 'logical' and active_pid is not null) order by 1, 2
"""
_LONG = """
select pid, coalesce(usename, backend_type), coalesce(nullif(application_name, ''), 'no name'), state,
       extract(epoch from now() - xact_start)::float, to_char(xact_start, 'YYYY-MM-DD HH24:MI:SS TZ')
from pg_stat_activity where datname = %s and xact_start < now() - make_interval(secs => %s) and pid <> pg_backend_pid()
order by xact_start limit 20
"""
#: Who holds locks that even a reader waits for; database by database.
LOCKERS = """
select d.datname, concat('pid ', a.pid, ' (', usename, ', ', application_name, ', ', state, ') since ',
                         to_char(xact_start, 'YYYY-MM-DD HH24:MI:SS TZ')) as who
from pg_locks l join pg_stat_activity a using (pid) join pg_database d on d.oid = l.database
where l.granted and l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' group by 1, 2
"""
_PUBLICATIONS = "select pubname from pg_publication order by 1"
_SUBSCRIPTIONS = """
select subname, subenabled from pg_subscription s join pg_database d on d.oid = subdbid where datname = %s order by 1
"""
_SUBSCRIBED = """
select subname, srrelid from pg_subscription_rel join pg_subscription s on s.oid = srsubid
where subenabled and srrelid = any(%s::oid[]) order by 1, 2
"""
_OTHERS = "select datname from pg_database where datallowconn and not datistemplate and datname <> %s order by 1"
_COPIES = """
select d.datname, shobj_description(d.oid, 'pg_database') from pg_database d
where not exists (select from pg_stat_activity a where a.datid = d.oid) order by 1
"""
_SERVERS = """
select srvname from pg_foreign_server, pg_options_to_table(srvoptions)
where option_name = 'dbname' and option_value = %s order by 1
"""


def free_to_rename(admin: Connection[Any], name: str) -> None:
    """Refuses a database that something holds on to.

    :raises BalikError: prepared transactions, logical replication slots or enabled subscriptions, by name.
    """
    blocking = [row[0] for row in admin.execute(_IN_THE_WAY, {"name": name})]
    if blocking:
        raise BalikError(
            f"database {name}",
            f"cannot be renamed while it has {', '.join(blocking[:10])}",
            "none",
            "Finish the prepared transactions and drop the slots (their subscribers need a new start), then run again.",
        )
    enabled = [row[0] for row in subscriptions(admin, name) if row[1]]
    if enabled:
        raise BalikError(
            f"database {name}",
            f"receives rows by subscription {', '.join(enabled[:10])}, which would go on in the database put aside",
            "none that is enabled",
            "ALTER SUBSCRIPTION … DISABLE, and decide what its publisher has to send again.",
        )


def lock_wait(limit: float) -> str:
    """pg_dump's option for waiting no longer than ``limit`` seconds for its locks."""
    return f"--lock-wait-timeout={round(limit * 1000)}"


@contextmanager
def lockers_named(database: str, look: Callable[[], Iterable[Sequence[Any]]]) -> Iterator[None]:
    """A dump that waited too long for its locks says who has them.

    :param look: asks the server for :data:`LOCKERS`.
    """
    try:
        yield
    except BalikError as error:
        if "timeout" in error.found:  # pg_dump waits for locks with one on its statements
            who = ", ".join([who for of, who in look() if of == database][:10]) or "somebody who is gone by now"
            error.found += f"; tables are locked by {who}"
            error.do = "End these sessions (pg_terminate_backend), or raise db_restore_lock_limit."
        raise


def subscriptions(admin: Connection[Any], name: str) -> list[tuple[str, bool]]:
    """Those of the database ``name``, and whether each is enabled."""
    try:
        return [(row[0], row[1]) for row in admin.execute(_SUBSCRIPTIONS, [name])]
    except psycopg.errors.InsufficientPrivilege:  # its columns are the superuser's before PostgreSQL 16
        return []


def subscribed(connection: Connection[Any], oids: Sequence[int]) -> list[tuple[str, int]]:
    """The enabled subscriptions by which these tables receive rows, and the oid of each table."""
    try:
        return [(row[0], row[1]) for row in connection.execute(_SUBSCRIBED, [list(oids)])]
    except psycopg.errors.InsufficientPrivilege:  # before PostgreSQL 14 its number is the superuser's
        return []


def look(admin: Connection[Any], task: Task) -> dict[str, list[str]]:
    """What a swap does not need to wait for, and the operator must know: one sentence each, by kind."""
    found = {
        "replicas": [
            f"{name} at {where} ({state}, {human(behind)} and {format_duration(round(lag))} behind): its readers stay "
            "on the old database until they connect anew"
            for name, where, state, behind, lag in admin.execute(_REPLICAS)
        ],
        "long transactions": [
            f"pid {pid} ({user}, {application}, {state}) since {since}, {format_duration(round(age))}: the swap ends it"
            for pid, user, application, state, age, since in admin.execute(
                _LONG, [task.database, task.long_transaction]
            )
        ],
        "subscriptions": [
            f"{name}: disabled; so it is in the restored database, if the backup has it, and what came since the "
            "backup is not sent again"
            for name, on in subscriptions(admin, task.database)
            if not on
        ],
        "copies": [
            f"{name}: left by a comparison that was killed; the next one drops it"
            for name, comment in admin.execute(_COPIES)
            if is_compared(comment, task.database)
        ],
        "publications": [],
        "foreign servers": [],
        "not looked at": [],
    }
    with task.access.connect(task.database) as live:
        found["publications"] = [f"{name}: comes from the backup" for (name,) in live.execute(_PUBLICATIONS)]
    for (other,) in admin.execute(_OTHERS, [task.database]).fetchall():
        try:
            with task.access.connect(other) as there:
                found["foreign servers"] += [
                    f"{server} in database {other}: reads this one by its name, and so the restored one after the swap"
                    for (server,) in there.execute(_SERVERS, [task.database])
                ]
        except (Unreachable, NotAdmitted, psycopg.Error):
            found["not looked at"].append(f"database {other}: no connection to it, so its foreign servers are unknown")
    return {kind: lines for kind, lines in found.items() if lines}
