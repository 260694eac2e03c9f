"""A whole database restored beside the live one, proved, and swapped in by rename.

The live database is not touched before the swap, and the swap is one transaction: whatever fails, and wherever a
run is killed, the live database is the old one, whole and open, or the restored one, proved. What is made on the way
carries the run's name, so that the next start of the same run knows it for its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from ..units import format_duration
from . import backup, space
from .access import Access, Deadline, Programs, complaint, find_programs, first_line, limited, run, too_long
from .catalog import Database, Names, carry_over, create_like, find, marking, names
from .swap import swap

try:
    import psycopg
    from psycopg import conninfo, sql
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = conninfo = sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

OLDEST_SERVER = 13
_SYSTEM = ("postgres", "template0", "template1")
_LOCK_SPACE = 0x62616C69  # "bali"
_TABLES = """
select count(*) from pg_class c where relkind in ('r', 'p') and relpersistence <> 't'
and relnamespace not in (select oid from pg_namespace where nspname like 'pg\\_%' or nspname = 'information_schema')
and not exists (select from pg_depend d where d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype = 'e')
"""
_EXTENSIONS = """
select extname, nspname, extversion from pg_extension e join pg_namespace n on n.oid = e.extnamespace
"""
_IN_THE_WAY = """
select format('prepared transaction %%s', gid) from pg_prepared_xacts where database = %(name)s
union all select format('logical replication slot %%s', slot_name) from pg_replication_slots where database = %(name)s
"""


@dataclass(frozen=True)
class Task:
    """What is to be restored, and how.

    :param source: the backup: a path, or a pattern (:func:`backup.choose`).
    :param golive: ISO 8601; needed with a pattern.
    :param folder: where the backup of now goes.
    :param jobs: how many at a time; 0: as many as this host has processors, 8 at most.
    :param limit: seconds for one call.
    :param checks: ``{name, query, expect}``: what must hold in the restored copy.
    :param settings: for the sessions that restore, nobody else's.
    :param inspect: read the whole backup in :func:`check`, not only its beginning and end.
    :param saved: what :func:`check` returned as ``before`` at the start of this run; may be empty.
    """

    access: Access
    database: str
    run: str
    source: str = ""
    golive: str = ""
    checksum: str = ""
    folder: str = ""
    jobs: int = 0
    limit: float = 7200
    checks: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    maintenance: str = "postgres"
    programs: str = ""
    inspect: bool = True
    ignore_space: bool = False
    keep_failed: bool = False
    saved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """How many processes may restore at a time."""
        return self.jobs or min(os.cpu_count() or 1, 8)


Result = dict[str, Any]


@contextmanager
def _server(task: Task) -> Iterator[tuple[Connection[Any], Names]]:
    """A connection to the server itself, with PostgreSQL's errors told as ours."""
    if task.database in _SYSTEM:
        raise BalikError("db_restore_database", f"found {task.database!r}", "a database of your own, not the server's")
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


def check(task: Task) -> Result:
    """Whether the restore could be carried out; only reads.

    :returns: ``says``, ``before``, ``evidence``.
    :raises BalikError: it could not, and why.
    """
    deadline = Deadline(task.limit)
    with _server(task) as (admin, known):
        live = _live(admin, task)
        kept = find(admin, known.kept)
        if kept and _swapped(live, kept, task):
            return {
                "says": f"{live.name} is the restored one already; what was live is kept as {kept.name}",
                "before": dict(task.saved),
                "evidence": {"oid": live.oid, "kept": kept.name},
            }
        _same_as_before(live, task)
        major = _server_fits(admin, live, task)
        programs = find_programs(major, task.programs)
        path, kind = _chosen(task)
        checksum = backup.verify_checksum(path, task.checksum)
        look = backup.inspect if task.inspect else backup.glance
        contents = look(path, kind, programs, deadline)
        _contents_fit(admin, contents, path, major)
        room = space.check(admin, task.access.host, live, contents.size, path, task.folder, task.ignore_space)
        size = _scalar(admin, "select pg_database_size(%s::oid)", live.oid)
        sessions = _scalar(admin, "select count(*) from pg_stat_activity where datid = %s", live.oid)
    rows = f"{contents.rows:,} rows in " if contents.rows else ""
    return {
        "says": f"{live.name} ({space.human(size)}, {sessions} sessions) would be restored from {path} "
        f"({kind}, {space.human(backup.size_of(path))}, {rows}{contents.tables} tables, {checksum}); {room}",
        "before": {
            "database": live.name,
            "oid": live.oid,
            "backup": str(path),
            "backup_size": backup.size_of(path),
        },
        "evidence": {"kind": kind, "rows": contents.rows, "tables": contents.tables, "sessions": sessions},
    }


def restore(task: Task, check_mode: bool = False) -> Result:
    """Backs up what is live, restores beside, proves the copy and swaps; nothing if this run did so before.

    :returns: ``changed``, ``says``, ``evidence``, ``diff``.
    :raises BalikError: the live database is untouched, and open.
    """
    deadline = Deadline(task.limit)
    with _server(task) as (admin, known):
        live = _live(admin, task)
        kept = find(admin, known.kept)
        if kept and _swapped(live, kept, task):
            says = f"{live.name} is the restored one already; what was live is kept as {kept.name}"
            return {"changed": False, "says": says, "evidence": {"oid": live.oid, "kept": kept.name}}
        _same_as_before(live, task)
        path, kind = _chosen(task)
        diff = {
            "before": f"{live.name}: oid {live.oid}\n",
            "after": f"{live.name}: restored from {path}\n{known.kept}: oid {live.oid}\n",
        }
        if check_mode:
            says = f"would back up {live.name}, restore {path} beside it and swap; the old one kept as {known.kept}"
            return {"changed": True, "says": says, "evidence": {}, "diff": diff}
        programs = find_programs(_server_fits(admin, live, task), task.programs)
        _alone(admin, task)
        evidence = _Work(task, admin, known, live, programs, deadline).do(path, kind)
    seconds = evidence["seconds"]
    says = (
        f"{live.name} restored from {path} in {format_duration(sum(seconds.values()))}, swapped in "
        f"{evidence['swap_ms']} ms; the old one is kept as {known.kept}, its backup is {evidence['backup_of_now']}"
    )
    return {"changed": True, "says": says, "evidence": evidence, "diff": diff}


def verify(task: Task) -> Result:
    """Reads again: the live database is the one that this run restored, is open, and the plan's checks hold.

    :returns: ``says``, ``evidence``.
    """
    with _server(task) as (admin, known):
        live, kept = _live(admin, task), find(admin, known.kept)
        if not kept or not _swapped(live, kept, task):
            raise BalikError(
                f"database {live.name}", f"oid {live.oid}, with no {known.kept} beside it", "the one this run restored"
            )
        if not live.open:
            raise BalikError(f"database {live.name}", "accepts no connections", do=_opening(live.name))
        held = _hold(task, live.name)
    return {
        "says": f"{live.name} is the restored database (oid {live.oid}), open; {held}",
        "evidence": {"oid": live.oid, "kept": kept.name, "checks": len(task.checks)},
    }


def undo(task: Task, check_mode: bool = False) -> Result:
    """The database that was live before comes back; the restored one is kept under another name.

    :returns: ``changed``, ``says``, ``evidence``, ``diff``.
    :raises BalikError: what was kept is gone, and where its backup is.
    """
    with _server(task) as (admin, known):
        live, kept, aside = _live(admin, task), find(admin, known.kept), find(admin, known.aside)
        was = task.saved.get("oid") or (kept.mark.get("oid") if kept else None)
        if not kept and (aside or was == live.oid):
            says = f"{live.name} is what was live before (oid {live.oid})"
            return {"changed": False, "says": says, "evidence": {"oid": live.oid}}
        if not kept or kept.mark.get("oid") != kept.oid:
            raise BalikError(
                known.kept,
                "not there any more" if not kept else "not marked as the one that this run replaced",
                f"the database that was {live.name} before",
                f"Restore the backup of that moment by hand: {_final(task)}",
            )
        _alone(admin, task)
        diff = {
            "before": f"{live.name}: oid {live.oid}\n",
            "after": f"{live.name}: oid {kept.oid}\n{known.aside}: oid {live.oid}\n",
        }
        says = f"{live.name} is what was live before (oid {kept.oid}); the restored one is kept as {known.aside}"
        if check_mode:
            return {"changed": True, "says": f"would: {says}", "evidence": {}, "diff": diff}
        mark = marking(task.run, live.name, oid=live.oid, comment=live.comment)
        took = swap(task.access, task.maintenance, live.name, known.aside, mark, kept.name, kept.mark.get("comment"))
        found = _live(admin, task)
        if found.oid != kept.oid or not found.open:
            raise BalikError(f"database {live.name}", f"oid {found.oid} after the swap", f"oid {kept.oid}, open")
    evidence = {"oid": found.oid, "kept": known.aside, "swap_ms": round(took * 1000)}
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
        self._drop_leftover()
        saved = self._timed("backup", self._back_up)
        with self._beside():
            contents = self._timed("restore", lambda: self._fill(path, kind))
            added = self._extensions()
            carry_over(admin, live, known.beside)
            self._timed("analyze", self._analyze)
            self._timed("verify", lambda: self._prove(contents, path))
            self._timed("flush", self._flush)
            copy = find(admin, known.beside)
            assert copy
            mark = marking(task.run, live.name, oid=live.oid, replaced_by=copy.oid, comment=live.comment)
            took = swap(task.access, task.maintenance, live.name, known.kept, mark, known.beside, live.comment)
        now, kept = find(admin, live.name), find(admin, known.kept)
        if not now or now.oid != copy.oid or not now.open or not kept or kept.oid != live.oid:
            raise BalikError(f"database {live.name}", f"is {now and now.oid} after the swap", f"oid {copy.oid}, open")
        return {
            "oid": copy.oid,
            "kept": known.kept,
            "backup": str(path),
            "backup_of_now": str(saved),
            "rows": contents.rows,
            "tables": contents.tables,
            "extensions_added": added,
            "seconds": self.seconds,
            "swap_ms": round(took * 1000),
        }

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - began, 2)
        return result

    def _drop_leftover(self) -> None:
        """What an earlier start of this run left half-done, and nothing else."""
        left = find(self.admin, self.known.beside)
        if left and left.comment is not None and left.mark.get("run") != self.task.run:
            raise BalikError(left.name, "exists, and is not this run's", "no database of this name", "Rename it.")
        if left:
            self._drop()

    def _drop(self) -> None:
        name = sql.Identifier(self.known.beside)
        if find(self.admin, self.known.beside):
            self.admin.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
            self.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """The empty copy; dropped again if what is done with it fails."""
        create_like(self.admin, self.live, self.known.beside, marking(self.task.run, self.live.name))
        try:
            yield
        except BaseException:
            if not self.task.keep_failed:
                with suppress(psycopg.Error):  # the error that brought us here is the one to tell
                    self._drop()
            raise

    def _back_up(self) -> Path:
        task, final = self.task, _final(self.task)
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in final.parent.glob(f"{final.name}.part-*"):
            _remove(stale)
        if not final.exists():
            part = final.with_name(f"{final.name}.part-{os.getpid()}")
            form = ["-Fd", "-j", str(task.workers)] if final.suffix == ".dir" else ["-Fc"]
            command = [self.programs["pg_dump"], "-w", *form, "-Z", "1", "-f", str(part)]
            environment = task.access.environment(self.live.name)
            try:
                run(command, environment, self.deadline, f"the backup of {self.live.name} as it is now")
                backup.listed(part, self.programs, self.deadline)
                part.rename(final)
            except BaseException:
                _remove(part)
                raise
            folder = os.open(final.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        backup.listed(final, self.programs, self.deadline)
        return final

    def _fill(self, path: Path, kind: str) -> backup.Contents:
        if kind in backup.ARCHIVES:
            target = conninfo.make_conninfo(dbname=self.known.beside)
            jobs = ["-j", str(self.task.workers)]
            command = [self.programs["pg_restore"], "-w", "--exit-on-error", *jobs, "-d", target, str(path.absolute())]
            environment = self.task.access.environment(self.known.beside, self.task.settings)
            run(command, environment, self.deadline, f"restoring {path}")
            return backup.listed(path, self.programs, self.deadline)
        return self._feed(path, kind)

    def _feed(self, path: Path, kind: str) -> backup.Contents:
        """Through psql, each line judged before psql gets it; then psql's own count of rows against the dump's."""
        environment = self.task.access.environment(self.known.beside, self.task.settings)
        flags = ["-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse", "-f", "-"]
        reader = backup.Reader(str(path))
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            psql = subprocess.Popen(
                [self.programs["psql"], *flags], stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment
            )
            assert psql.stdin
            _widen(psql.stdin.fileno())
            with limited(psql, self.deadline) as over:
                try:
                    with backup.opened(path, kind, self.programs, self.deadline) as stream:
                        for chunk in iter(lambda: stream.read(backup.CHUNK), b""):
                            reader.feed(chunk)
                            psql.stdin.write(chunk)
                    contents = reader.finish()
                    psql.stdin.close()
                except BrokenPipeError:  # psql ended before the dump did; it says why
                    with suppress(BrokenPipeError):
                        psql.stdin.close()
                code = psql.wait()
            if over.is_set():
                raise too_long(f"restoring {path}", self.deadline)
            if code:
                raise BalikError(
                    f"restoring {path}",
                    f"psql ended with {code}: {complaint(err)}",
                    do=f"{self.live.name} is untouched. {backup.ANOTHER}",
                )
            out.seek(0)
            done = [int(found) for found in re.findall(rb"^COPY (\d+)$", out.read(), re.M)]
        if done != [rows for _, rows in contents.copies]:
            raise BalikError(
                f"restoring {path}", f"the server took {sum(done):,} rows", f"{contents.rows:,}, as in the backup"
            )
        return contents

    def _extensions(self) -> list[str]:
        """Creates what the live database has and the backup does not bring; their names."""
        with self.task.access.connect(self.live.name) as now, self.task.access.connect(self.known.beside) as copy:
            there = {row[0] for row in copy.execute(_EXTENSIONS)}
            missing = [row for row in now.execute(_EXTENSIONS) if row[0] not in there]
            for name, schema, version in missing:
                copy.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
                copy.execute(
                    sql.SQL("CREATE EXTENSION {} WITH SCHEMA {} VERSION {}").format(
                        sql.Identifier(name), sql.Identifier(schema), sql.Identifier(version)
                    )
                )
        return sorted(row[0] for row in missing)

    def _analyze(self) -> None:
        # All at once, not in stages: nobody uses the copy before it has its statistics.
        command = [self.programs["vacuumdb"], "-w", "-q", "--analyze-only", "-j", str(self.task.workers)]
        environment = self.task.access.environment(self.known.beside, self.task.settings)
        run(command, environment, self.deadline, f"statistics of {self.known.beside}")

    def _flush(self) -> None:
        """What PostgreSQL has only in memory may find a full disk later; better now, while the copy can be dropped."""
        try:
            self.admin.execute("CHECKPOINT")
        except psycopg.errors.InsufficientPrivilege:
            pass  # the server does it by itself within minutes
        except psycopg.Error as error:
            raise BalikError(
                f"the disk of {self.task.access.where}",
                f"what was restored could not be written: {first_line(error)}",
                do=f"{self.live.name} is untouched. Read the server's log, make room, and run the rollback again.",
            ) from None

    def _prove(self, contents: backup.Contents, path: Path) -> None:
        with self.task.access.connect(self.known.beside) as copy:
            found = _scalar(copy, _TABLES)
        if found != contents.tables:
            raise BalikError(
                f"the copy restored from {path}", f"{found} tables", f"{contents.tables}, as in the backup"
            )
        if not found:
            raise BalikError(str(path), "it holds no table at all", "a dump of the whole database", backup.ANOTHER)
        _hold(self.task, self.known.beside)


def _live(admin: Connection[Any], task: Task) -> Database:
    live = find(admin, task.database)
    if live is None:
        raise BalikError(
            f"database {task.database}", f"not on {task.access.where}", do="Check db_restore_database, and the server."
        )
    return live


def _swapped(live: Database, kept: Database, task: Task) -> bool:
    return kept.mark.get("run") == task.run and kept.mark.get("replaced_by") == live.oid


def _same_as_before(live: Database, task: Task) -> None:
    was = task.saved.get("oid", live.oid)
    if was != live.oid:
        raise BalikError(
            f"database {live.name}",
            f"oid {live.oid}: somebody else replaced it since this run began",
            f"oid {was}",
            "Find out what it is. Restoring again would throw away what was written since; start a new run for that.",
        )


def _chosen(task: Task) -> tuple[Path, str]:
    path = Path(task.saved["backup"]) if task.saved.get("backup") else backup.choose(task.source, task.golive)
    kind = backup.kind_of(path) if path.exists() else ""
    size = backup.size_of(path) if kind else 0
    if not kind or size != task.saved.get("backup_size", size):
        raise BalikError(
            str(path),
            f"{size} bytes" if kind else "no such file or directory",
            f"the {task.saved.get('backup_size')} bytes that were checked at the start of this run",
            "Put it back as it was, or start a new run.",
        )
    return path, kind


def _server_fits(admin: Connection[Any], live: Database, task: Task) -> int:
    """The server's major version, if it and our role let us do the work."""
    major = admin.info.server_version // 10000
    if major < OLDEST_SERVER:
        raise BalikError(task.access.where, f"version {major}", f"PostgreSQL {OLDEST_SERVER} or newer")
    if _scalar(admin, "select pg_is_in_recovery()"):
        raise BalikError(task.access.where, "a standby", "the primary", "Set db_restore_login_host to the primary.")
    if not live.open:
        raise BalikError(f"database {live.name}", "accepts no connections", do=_opening(live.name))
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
    blocking = [row[0] for row in admin.execute(_IN_THE_WAY, {"name": live.name})]
    if blocking:
        raise BalikError(
            f"database {live.name}",
            f"cannot be renamed while it has {', '.join(blocking[:10])}",
            "none",
            "Finish the prepared transactions and drop the slots (their subscribers need a new start), then run again.",
        )
    return major


def _opening(name: str) -> str:
    return f'If nobody closed it on purpose: ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'


def _contents_fit(admin: Connection[Any], contents: backup.Contents, path: Path, major: int) -> None:
    if contents.dumped_from > major:
        raise BalikError(
            str(path),
            f"taken from PostgreSQL {contents.dumped_from}",
            f"{major} or older, as the server",
            "A dump of a newer server cannot be restored into an older one: take an earlier backup.",
        )
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


def _alone(admin: Connection[Any], task: Task) -> None:
    """One restore of a database at a time; what an earlier start of this run left running is ended."""
    if not _scalar(admin, "select pg_try_advisory_lock(%s, hashtext(%s))", _LOCK_SPACE, task.database):
        holder = admin.execute(
            "select a.pid, a.application_name, a.backend_start from pg_locks l join pg_stat_activity a using (pid)"
            " where l.locktype = 'advisory' and l.granted and l.classid = %s and l.objid = hashtext(%s)::oid",
            [_LOCK_SPACE, task.database],
        ).fetchone()
        who = "somebody" if not holder else f"{holder[1]} (pid {holder[0]}) since {holder[2]:%Y-%m-%d %H:%M:%S %Z}"
        raise BalikError(f"database {task.database}", f"{who} is restoring it", "nobody else", "Wait for them.")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = %s and pid <> pg_backend_pid() and usename = current_user",
        [task.access.application[:63]],
    )


def _hold(task: Task, database: str) -> str:
    """Asks the plan's own questions, in a transaction that cannot write."""
    with task.access.connect(database) as connection:
        connection.read_only = True
        for number, asked in enumerate(task.checks, 1):
            what = f"check {asked.get('name') or number} in {database}"
            try:
                with connection.transaction():
                    connection.execute("SET LOCAL statement_timeout = '60s'")
                    row = connection.execute(asked["query"]).fetchone()
            except psycopg.Error as error:
                raise BalikError(what, first_line(error), do="Correct its query in db_restore_checks.") from None
            found = row[0] if row else None
            if not _equal(found, asked["expect"]):
                raise BalikError(what, f"found {str(found)[:80]}", str(asked["expect"]))
    return f"{len(task.checks)} checks hold"


def _equal(found: object, expected: object) -> bool:
    if isinstance(found, bool) or isinstance(expected, bool):
        return str(found).lower() == str(expected).lower()
    with suppress(ValueError, TypeError):
        return float(found) == float(expected)  # type: ignore[arg-type]
    return str(found) == str(expected)


def _scalar(connection: Connection[Any], query: str, *values: object) -> Any:
    row = connection.execute(query, values or None).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


def _final(task: Task) -> Path:
    name = re.sub(r"[^\w.-]", "_", task.database)
    ending = ".dir" if task.workers > 1 else ".dump"
    return Path(task.folder) / f"{name}-{task.run}{ending}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _widen(pipe: int) -> None:
    """A pipe of 1 MB saves some thousand changes between the two processes."""
    import fcntl

    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, 1031, backup.CHUNK)  # F_SETPIPE_SZ
