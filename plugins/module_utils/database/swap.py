"""Two databases change places by rename, in one transaction.

The transaction's first rename takes the lock on the live database that every new session needs to get in, and then
waits for those who are in; meanwhile a second session ends these. Nobody can come back between, and there is no
moment at which a killed run would leave the live database closed: PostgreSQL takes the whole transaction back.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from .access import Access, first_line
from .catalog import comment_on

try:
    import psycopg
    from psycopg import sql
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

ATTEMPTS = 2  # of five seconds each, in which new sessions wait
_WAKES = 10
_END_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = any(%s) and pid <> pg_backend_pid()
and (backend_type <> 'autovacuum worker' or current_setting('is_superuser')::bool)
"""
_LEFT = """
select format('%%s (%%s, %%s)', pid, coalesce(nullif(application_name, ''), backend_type), coalesce(state, 'no state'))
from pg_stat_activity where datname = %s
union all select format('prepared transaction %%s', gid) from pg_prepared_xacts where database = %s
"""


def swap(
    access: Access, maintenance: str, live: str, becomes: str, mark: str, successor: str, comment: str | None
) -> float:
    """``live`` is renamed ``becomes``, marked and closed; ``successor`` is renamed ``live`` and opened.

    :param comment: what ``live`` has for a comment afterwards.
    :returns: seconds from the first ended session to the end of the transaction.
    :raises BalikError: sessions or prepared transactions did not go away; everything is as it was.
    """
    statements = [
        sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(live), sql.Identifier(becomes)),
        sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(successor), sql.Identifier(live)),
        sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(sql.Identifier(live)),
        comment_on(live, comment),
        sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(sql.Identifier(becomes)),
        comment_on(becomes, mark),
    ]
    with access.connect(maintenance) as renamer, access.connect(maintenance) as ender:
        for attempt in range(1, ATTEMPTS + 1):
            error = _attempt(renamer, ender, statements, [live, successor])
            if isinstance(error, float):
                return error
            in_the_way = isinstance(error, (psycopg.errors.ObjectInUse, psycopg.errors.LockNotAvailable))
            if not in_the_way or attempt == ATTEMPTS:
                left = [row[0] for row in ender.execute(_LEFT, [live, live]).fetchall()]
                raise BalikError(
                    f"the swap of {live} and {successor}",
                    f"{first_line(error)} (attempt {attempt}); still there: {', '.join(left[:10]) or 'nobody'}",
                    do=f"{live} is as it was, and open. End what is in the way, then run the rollback again.",
                )
    raise AssertionError("unreachable")


def _attempt(
    renamer: Connection[Any], ender: Connection[Any], statements: list[Any], both: list[str]
) -> float | Exception:
    outcome: list[Exception] = []

    def rename() -> None:
        try:
            with renamer.transaction():
                renamer.execute("SET LOCAL lock_timeout = '5s'")
                for statement in statements:
                    renamer.execute(statement)
        except psycopg.Error as error:
            outcome.append(error)

    renamer.execute("LISTEN balik_gone")
    thread = threading.Thread(target=rename, daemon=True)
    ender.execute(_END_SESSIONS, [both[1:]])  # a worker of autovacuum there would cost the others 0.1 s
    began = time.monotonic()
    ender.execute(_END_SESSIONS, [both])
    thread.start()
    try:
        woken = 0
        while thread.is_alive():
            if ender.execute(_END_SESSIONS, [both]).rowcount == 0 and woken < _WAKES:
                # The rename looks every 0.1 s whether all are gone, 50 times; being notified ends its sleep.
                ender.execute("NOTIFY balik_gone")
                woken += 1
            thread.join(0.005)
    except psycopg.Error as error:
        renamer.cancel()
        thread.join()
        return error
    return outcome[0] if outcome else time.monotonic() - began
