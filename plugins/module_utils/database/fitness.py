"""Whether server, role and backup fit each other, before anything is begun."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from . import topology
from .access import first_line
from .catalog import Database
from .script import Contents
from .space import whole_path
from .task import Task, scalar

try:
    import psycopg
    from psycopg.errors import error_from_result
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = error_from_result = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

OLDEST_SERVER = 13
TABLES = """
select nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace
where relkind in ('r', 'p') and relpersistence <> 't' and nspname !~ '^pg_' and nspname <> 'information_schema'
and not exists (select from pg_depend d where d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype = 'e')
"""
ANOTHER_PRODUCT = "another product"
WITHOUT_INDEXES = "without indexes"
# Whose rows the role does not all see: a dump of such a table is refused.
_HIDDEN = f"""
select format('%I.%I', nspname, relname) from pg_class c join pg_namespace n on n.oid = relnamespace
where (nspname, relname) in ({TABLES}) and row_security_active(c.oid) order by 1
"""
_SEES_ALL = "select rolsuper or rolbypassrls from pg_roles where rolname = current_user"
_WRITES = re.compile(r'"Node Type": "(?:ModifyTable|LockRows)"')
_ACCEPTABLE = re.compile(rf"{ANOTHER_PRODUCT}|{WITHOUT_INDEXES}|(extension|encoding|schema|role|database) \S.*")


def server_fits(admin: Connection[Any], live: Database, task: Task, rename: bool = True) -> int:
    """The server's major version, if it and our role let us do the work.

    :param rename: the live database is to be renamed.
    """
    unknown = [each for each in task.accept if not _ACCEPTABLE.fullmatch(each)]
    if unknown:
        raise BalikError(
            "db_restore_accept",
            f"found {', '.join(unknown)}",
            f"NAME after extension, encoding, schema, role or database; {WITHOUT_INDEXES} or {ANOTHER_PRODUCT}",
            "Write it as the message about the difference names it, or take it out.",
        )
    if task.folder:
        whole_path(Path(task.folder))
    if task.settings:
        _taken(task)
    major = admin.info.server_version // 10000
    if major < OLDEST_SERVER:
        raise BalikError(task.access.where, f"version {major}", f"PostgreSQL {OLDEST_SERVER} or newer")
    if scalar(admin, "select pg_is_in_recovery()"):
        raise BalikError(task.access.where, "a standby", "the primary", "Set db_restore_login_host to the primary.")
    if not live.open:
        raise BalikError(f"database {live.name}", "accepts no connections", do=opening(live.name))
    rights = admin.execute(
        "select current_user, rolsuper, rolcreatedb, pg_has_role(%s, 'MEMBER'),"
        " pg_has_role('pg_signal_backend', 'MEMBER') from pg_roles where rolname = current_user",
        [live.owner],
    ).fetchone()
    assert rights
    user, superuser, *needed = rights
    wanted = ("CREATEDB", f"membership in {live.owner}, the owner", "membership in pg_signal_backend")
    lacking = [name for name, has in zip(wanted, needed) if not has]
    if lacking and not superuser:
        raise BalikError(
            f"role {user} on {task.access.where}", f"lacks {', '.join(lacking)}", "these, or a superuser", "Grant them."
        )
    limit, sessions = live.row["datconnlimit"], task.workers + 1
    if 0 <= limit < sessions and not superuser:
        raise BalikError(
            f"database {live.name}",
            f"CONNECTION LIMIT {limit}, which holds for role {user}",
            f"at least {sessions}, for {task.workers} jobs and one that leads them",
            f"Set db_restore_jobs to {limit - 1}." if limit > 1 else "Raise it, or restore as a superuser.",
        )
    if not scalar(admin, _SEES_ALL):
        with task.access.connect(live.name) as now:
            _sees_all(user, [row[0] for row in now.execute(_HIDDEN)], f"database {live.name}")
    if rename:
        topology.free_to_rename(admin, live.name)
    return major


def _sees_all(user: str, hidden: Sequence[str], where: str) -> None:
    if hidden:
        raise BalikError(
            f"role {user}",
            f"row-level security hides rows of {', '.join(hidden[:10])} in {where} from it",
            "a role that sees all rows, to dump and to compare them",
            f'For the rollback: ALTER ROLE "{user}" BYPASSRLS; and NOBYPASSRLS afterwards. Or restore as a superuser.',
        )


def _taken(task: Task) -> None:
    """Whether a session may have the plan's settings."""
    try:
        task.access.connect(task.maintenance, task.settings).close()
    except BalikError as error:
        raise BalikError(
            "db_restore_session_settings",
            error.found,
            "settings that a session of this server and role may have",
            "Correct them, or take them out.",
        ) from None


def opening(name: str) -> str:
    """How a closed database is opened."""
    return f'If nobody closed it on purpose: ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'


def contents_fit(
    admin: Connection[Any], contents: Contents, path: Path, major: int, live: Database, accept: Sequence[str]
) -> None:
    """Refuses a backup of a newer server, in another encoding, that needs roles or extensions that are missing, or
    whose rows our role would not see."""
    if contents.dumped_from > major:
        raise BalikError(
            str(path),
            f"taken from PostgreSQL {contents.dumped_from}",
            f"{major} or older, as the server",
            "A dump of a newer server cannot be restored into an older one: take an earlier backup.",
        )
    if contents.holds_data and not contents.tables:
        raise BalikError(
            str(path),
            "it holds data and creates no table (pg_dump --data-only?)",
            "a dump of the whole database",
            "Name a backup that was made without -a, or --section=data.",
        )
    encoding = f"encoding {contents.encoding}"
    if contents.encoding and contents.encoding != live.encoding and encoding not in accept:
        raise BalikError(
            str(path),
            f"written in {contents.encoding}",
            f"{live.encoding}, as the live database",
            f"If it was dumped so on purpose (pg_dump -E), list '{encoding}' in db_restore_accept.",
        )
    if contents.forced and not scalar(admin, _SEES_ALL):
        _sees_all(admin.info.user, sorted(contents.forced), str(path))
    there = {row[0] for row in admin.execute("select rolname from pg_roles")}
    missing = sorted(contents.roles - there)
    if missing:
        raise BalikError(
            str(path), f"it needs roles that the server lacks: {', '.join(missing)}", do="Create them: CREATE ROLE ..."
        )
    available = {row[0] for row in admin.execute("select name from pg_available_extensions")}
    missing = sorted(contents.extensions - available)
    if missing:
        raise BalikError(
            str(path),
            f"it needs extensions that the server lacks: {', '.join(missing)}",
            do="Install their packages on the database host.",
        )


def same_product(names: set[tuple[str, str]], live: set[tuple[str, str]], what: str, accept: Sequence[str]) -> None:
    """Refuses tables of which fewer than half are in the live database: that is somebody else's dump.

    :param names: schema and name of the backup's tables; nothing is said of none.
    :param live: those of the live database; one without tables may have lost them, and is no reason to refuse.
    """
    common = names & live
    if not names or not live or len(common) * 2 >= len(names) or ANOTHER_PRODUCT in accept:
        return
    strange = ", ".join(".".join(name) for name in sorted(names - live)[:5])
    raise BalikError(
        what,
        f"{len(names) - len(common)} of its {len(names)} tables are not in the live database: {strange}",
        "a backup of this database",
        f"If it is the right one all the same, list '{ANOTHER_PRODUCT}' in db_restore_accept.",
    )


def unasked(task: Task) -> list[str]:
    """Which of the plan's own questions the live database cannot be asked; the backup may have what it lacks.

    They are parsed only: their answers say nothing of the backup, and may take long.

    :raises BalikError: one is no SQL, or would write.
    """
    said = []
    with task.access.connect(task.database) as connection:
        connection.execute("select set_config('lock_timeout', '5s', false)")
        for number, asked in enumerate(task.checks, 1):
            result = connection.pgconn.prepare(b"", asked["query"].encode())
            what = f"check {asked.get('name') or number}"
            if result.status == psycopg.pq.ExecStatus.COMMAND_OK:
                _only_reads(connection, asked["query"], what)
                continue
            error = error_from_result(result)
            if isinstance(error, psycopg.errors.SyntaxError):
                raise BalikError(what, first_line(error), "one query", "Correct it in db_restore_checks.")
            said.append(f"{what} cannot be asked of the live database ({first_line(error)}), only of the restored one")
    return said


def _only_reads(connection: Connection[Any], query: str, what: str) -> None:
    """Refuses a question that answers nothing or would write, as far as its plan tells; functions are not looked into.

    :param query: one statement, parsed last in this session.
    """
    found = "" if connection.pgconn.describe_prepared(b"").nfields else "it answers nothing"
    with suppress(psycopg.Error), connection.transaction():  # SHOW has no plan
        connection.execute("SET TRANSACTION READ ONLY")
        plan = json.dumps(scalar(connection, f"EXPLAIN (FORMAT JSON) {query}"))
        found = "it would write, or lock rows" if _WRITES.search(plan) else found
    if found:
        raise BalikError(what, found, "one query that only reads", "Correct it in db_restore_checks.")
