"""The connection, Prisma's bookkeeping in it, and errors of the server as sentences."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..database.access import Deadline, first_line, own_settings, refusal
from ..errors import BalikError
from ..units import format_duration
from .address import Address
from .history import Row
from .sql import BOOKKEEPING, quoted

try:
    import psycopg
except ImportError:  # said by `connect`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

#: What Prisma's own `migrate deploy` holds while it works.
PRISMA_LOCK = 72707369
_COLUMNS = "id, checksum, finished_at, migration_name, logs, rolled_back_at, started_at, applied_steps_count"
_LOCKED = """
SELECT a.pid, a.application_name, a.usename, a.state,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.backend_start))
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.pid IN (
    SELECT l.pid FROM pg_locks l
    WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND ((l.locktype = 'advisory' AND l.objid = %(key)s)
           OR (NOT %(only)s AND l.locktype = 'relation' AND l.relation >= 16384)))
ORDER BY 5 DESC LIMIT 5
"""
# No session has these, and none ends them but by their name.
_PREPARED = """
SELECT gid, owner, extract(epoch FROM clock_timestamp() - prepared) FROM pg_prepared_xacts
WHERE database = current_database() ORDER BY prepared LIMIT 5
"""


# What a value takes at most: by a type of fixed length, or by the length that the column gives it. What a name means in
# two schemas must be so in both.
_SIZES = """
SELECT relname, attname, max(size) FROM (
    SELECT c.relname, a.attname, CASE
        WHEN t.typlen > 0 THEN t.typlen
        WHEN t.oid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4 THEN a.atttypmod * 4
        WHEN t.oid = 'numeric'::regtype AND a.atttypmod > 4 THEN ((a.atttypmod - 4) >> 16) / 2 + 12
        WHEN t.oid IN ('inet'::regtype, 'cidr'::regtype) THEN 24 END AS size
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
) found
GROUP BY relname, attname HAVING bool_and(size IS NOT NULL)
"""


def connect(address: Address, run: str, setting: str = "prisma_down_url") -> Connection[Any]:
    """A connection in autocommit mode, with its own settings.

    :param setting: the variable that holds the URL, for the message.

    :raises Unreachable: no answer; how it was tried.
    :raises NotAdmitted: the server answered, and let nobody in.
    """
    if psycopg is None:
        raise BalikError(
            "Python's psycopg 3", "is not installed for the Python that runs the step", do="Install psycopg[binary]."
        )
    # A role's or the database's own time-outs must not end, nor a read-only default forbid, what is limited here.
    ours = " ".join(f"-c {name}={value}" for name, value in {**own_settings(0), "row_security": "off"}.items())
    keywords = {**address.keywords, "options": f"{address.keywords.get('options', '')} {ours}".strip()}
    try:
        connection = psycopg.connect(
            **keywords,  # type: ignore[arg-type]
            autocommit=True,
            connect_timeout=10,
            application_name=f"balik {run}"[:63],
            client_encoding="UTF8",
        )
    except psycopg.Error as error:
        words = first_line(error)
        pooled = "unsupported startup parameter" in words
        raise refusal(error)(
            f"database {address.where}",
            "a pooler stands before it" if pooled else f"no connection: {words}",
            do=f"Name the server itself in {setting}, as in Prisma's directUrl."
            if pooled
            else f"Check that the server runs, and {setting}.",
        ) from None
    for name, value in own_settings(connection.info.server_version // 10000).items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    # Each statement sees what others have committed by then: what is copied under a lock is all that stands there.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def quote_bookkeeping(schema: str) -> str:
    return quoted(schema, BOOKKEEPING)


def read_rows(connection: Connection[Any], schema: str) -> list[Row]:
    """All of Prisma's bookkeeping.

    :raises BalikError: there is none in this schema; where there is one.
    """
    table = quote_bookkeeping(schema)
    found = connection.execute("SELECT to_regclass(%s)", [table]).fetchone()
    if not found or found[0] is None:
        others = connection.execute(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = %s ORDER BY 1",
            [BOOKKEEPING],
        ).fetchall()
        elsewhere = ", ".join(name for (name,) in others)
        raise BalikError(
            f"table {table}",
            "is not there" + (f", but in the schema {elsewhere}" if elsewhere else ", nor in another schema"),
            "the table in which Prisma writes what it has applied",
            "Write ?schema=… into prisma_down_url as the product does." if elsewhere else "",
        )
    rows = connection.execute(f"SELECT {_COLUMNS} FROM {table} ORDER BY started_at").fetchall()  # type: ignore[arg-type]
    return [Row(*row) for row in rows]


def sizes(connection: Connection[Any]) -> dict[tuple[str, str], int]:
    """How many bytes a value takes at most, by table and column, of those that have such a limit."""
    return {(table, column): size for table, column, size in connection.execute(_SIZES).fetchall()}


def holders(connection: Connection[Any], only_prisma: bool = False) -> list[str]:
    """Who holds a lock on Prisma's bookkeeping, or (unless ``only_prisma``) on tables, in words: sessions, and
    transactions that were prepared."""
    rows = connection.execute(_LOCKED, {"key": PRISMA_LOCK, "only": only_prisma}).fetchall()
    prepared = [] if only_prisma else connection.execute(_PREPARED).fetchall()
    return [
        f"a prepared transaction (pg_prepared_xacts): {gid} ({_doing('prepared', since)}, as {owner}), which only "
        "COMMIT PREPARED or ROLLBACK PREPARED ends"
        for gid, owner, since in prepared
    ] + [
        f"process {pid} ({application or 'no application name'}, as {user}, {_doing(state, since)})"
        for pid, application, user, state, since in rows
    ]


def _doing(state: str | None, since: object) -> str:
    if since is None:
        return "what it does and since when is not shown to this role"
    return f"{state or 'unknown'}, for {format_duration(max(0.0, float(str(since))))}"


@contextmanager
def telling(connection: Connection[Any], at: Sequence[str], state: str, lock_timeout: float) -> Iterator[None]:
    """Turn what the server raises into a sentence. To stand around the transaction, which is over by then.

    :param at: one sentence, what is being done; whoever works within may change it.
    :param state: what is so after the transaction was taken back.
    """
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        held = holders(connection)
        raise BalikError(
            at[0],
            f"another session held a lock for longer than prisma_down_lock_timeout ({format_duration(lock_timeout)})"
            + (f": {'; '.join(held)}" if held else ", and has gone since"),
            do=f"{state} End that session, or wait for it, and run again.",
        ) from None
    except psycopg.errors.DeadlockDetected:
        raise BalikError(
            at[0],
            "another session and this one waited for each other (a deadlock); the server ended this one",
            do=f"{state} Run again.",
        ) from None
    except psycopg.errors.QueryCanceled:
        raise BalikError(
            at[0], "was not done within prisma_down_limit", do=f"{state} Raise the limit if it is too short."
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise BalikError(
            at[0], f"the server refused: {first_line(error)}", do=f"{state} Grant that, and run again."
        ) from None
    except psycopg.Error as error:
        if connection.broken:
            raise BalikError(
                at[0],
                f"the connection was lost: {first_line(error)}",
                do="The server takes back what was not committed. Run again: it reads what is applied, and goes on.",
            ) from None
        if isinstance(error, psycopg.errors.ObjectInUse):
            state += (
                " If a check was put off to the COMMIT: write SET CONSTRAINTS ALL IMMEDIATE; before this statement."
            )
        raise BalikError(at[0], f"the server refused: {first_line(error)}", do=state) from None


def as_owner(connection: Connection[Any], schema: str, how: str) -> None:
    """Works with the rights of the bookkeeping's owner, who ran the migrations: what a script makes shall be his, and
    not a superuser's. Where this role may not, it stays itself.

    :param how: ``SET LOCAL`` for a transaction, ``SET`` for the session.
    """
    row = connection.execute(
        "SELECT relowner::regrole::text FROM pg_class"
        " WHERE oid = to_regclass(%s) AND relowner::regrole::text <> current_user AND pg_has_role(relowner, 'MEMBER')",
        [quote_bookkeeping(schema)],
    ).fetchone()
    if row:
        connection.execute(f"{how} ROLE {row[0]}")  # type: ignore[arg-type]


def limits(connection: Connection[Any], lock_timeout: float, deadline: Deadline) -> None:
    """Sets both limits for the transaction that is open."""
    left = deadline.left()
    if not left:
        raise psycopg.errors.QueryCanceled("the limit is over")
    connection.execute(
        "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
        [f"{max(1, round(lock_timeout * 1000))}ms", f"{max(1, round(left * 1000))}ms"],
    )


def others(connection: Connection[Any]) -> Sequence[str]:
    """Who else is connected to this database: application and how many sessions."""
    rows = connection.execute(
        "SELECT coalesce(nullif(application_name, ''), 'no application name'), count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND client_port IS NOT NULL"
        " GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return [f"{name} ({number})" for name, number in rows]


def since(began: float) -> float:
    """Seconds since a monotonic moment, to the millisecond."""
    return round(time.monotonic() - began, 3)
