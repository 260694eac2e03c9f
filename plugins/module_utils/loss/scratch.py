"""A backup loaded into a database of its own, without its indexes and constraints, to be compared with and dropped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..database import backup
from ..database.access import Programs, complaint, limited, run, too_long
from ..database.filling import restricted
from ..database.script import CHUNK, Reader
from ..database.space import estimate, human
from ..errors import BalikError
from .psql import Psql, literal, name

_LONGEST_NAME = 63
_MARK = "balik: "
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
# What pg_dump writes after the last row: all of it would only cost time.
_POST_DATA = (
    b"CONSTRAINT|FK CONSTRAINT|CHECK CONSTRAINT|INDEX|INDEX ATTACH|STATISTICS|TRIGGER|RULE|POLICY|ROW SECURITY"
    b"|PUBLICATION|PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|SUBSCRIPTION|EVENT TRIGGER"
)
_AFTER_ROWS = re.compile(rb"^-- (?:Data for )?Name: [^\n]*; Type: (?:" + _POST_DATA + rb")(?:;|$)", re.M)
_ROWS = re.compile(rb"^COPY [^\n]* FROM stdin;\n", re.M)
# The copy need not survive a crash: without a log of its writes, a large table loads in two thirds of the time. Each
# costs a file that is synced, so small ones stay as they are; and so do those that our role may not alter.
_LARGE_BYTES = 8 * 1024**2
_LARGE = """
SELECT format('%I.%I', n.nspname, c.relname) AS title FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND c.relpages * current_setting('block_size')::int8 >= {bytes}
"""
_UNLOGGED = "DO $balik$ BEGIN ALTER TABLE {} SET UNLOGGED; EXCEPTION WHEN OTHERS THEN NULL; END $balik$"


class UntilPostData:
    """Lets a plain dump pass up to where its indexes and constraints begin.

    :param before_rows: SQL for the moment when all tables are there, and none has a row.

    >>> rows = UntilPostData()
    >>> rows.take(b"COPY a FROM stdin;\\n-- Name: x; Type: INDEX;\\n\\\\.\\n-- Name: y; Type: INDEX; ...\\nCREATE")
    b'COPY a FROM stdin;\\n-- Name: x; Type: INDEX;\\n\\\\.\\n'
    """

    def __init__(self, before_rows: bytes = b"") -> None:
        self._before_rows, self._rest = before_rows, b""
        self._in_rows = self._over = False

    def take(self, chunk: bytes) -> bytes:
        """What may pass of the next piece; of its last line only when the line is whole."""
        if self._over:
            return b""
        text = self._rest + chunk
        cut = text.rfind(b"\n") + 1
        self._rest, lines = text[cut:], text[:cut]
        at = 0
        while at < len(lines) and not self._over:
            at = self._rows_end(lines, at) if self._in_rows else self._sql_end(lines, at)
        passing = lines[:at]
        rows = _ROWS.search(passing) if self._before_rows else None
        if rows:
            passing = passing[: rows.start()] + self._before_rows + passing[rows.start() :]
            self._before_rows = b""
        return passing

    def _rows_end(self, lines: bytes, at: int) -> int:
        if lines.startswith(b"\\.\n", at):
            end = at
        else:
            found = lines.find(b"\n\\.\n", at)
            if found < 0:
                return len(lines)
            end = found + 1
        self._in_rows = False
        return end + 3

    def _sql_end(self, lines: bytes, at: int) -> int:
        rows = lines.find(b" FROM stdin;\n", at)
        end = lines.index(b"\n", rows) + 1 if rows >= 0 else len(lines)
        after = _AFTER_ROWS.search(lines[at:end])
        if after:
            self._over = True
            return at + after.start()
        self._in_rows = rows >= 0
        return end


def scratch_name(database: str, run_id: str) -> str:
    """``lawyers_hub__loss_20260110T130000Z-3f9a``, within PostgreSQL's 63 bytes."""
    ending = f"__loss_{run_id}"
    return database.encode()[: _LONGEST_NAME - len(ending)].decode("utf-8", "ignore") + ending


def check_space(server: Psql, database: str) -> str:
    """Says what the copy needs and that it is there.

    :raises BalikError: the disk is too small, or cannot be seen from here: filling it would stop the live database.
    """
    found = server.one(
        "SELECT pg_database_size(oid) AS size, current_setting('data_directory', true) AS data,"
        " pg_tablespace_location(dattablespace) AS place, pg_size_bytes(current_setting('max_wal_size')) AS wal"
        f" FROM pg_database WHERE datname = {literal(database)}"
    )
    wanted = estimate(found["size"], 0) + found["wal"]
    place = Path(found["place"] or found["data"] or "/nonexistent")
    host = server.access.host
    if not (host in _LOCAL or host.startswith("/")) or not os.access(place, os.X_OK):
        raise BalikError(
            f"the disk of {server.access.where}",
            "its free space cannot be seen from here",
            f"about {human(wanted)} free for a copy of {database}",
            "If there is room: rollback_loss: {exact: always}",
        )
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if wanted > free:
        raise BalikError(
            f"the disk of {place}",
            f"{human(free)} free",
            f"about {human(wanted)} for a copy of {database} to compare with",
            "Make room, or if the estimate is wrong: rollback_loss: {exact: always}",
        )
    return f"about {human(wanted)} needed, {human(free)} free"


@contextmanager
def loaded(server: Psql, database: str, run_id: str, path: Path, jobs: int) -> Iterator[Psql]:
    """The backup as a database, dropped at the end whatever happens.

    :param server: a session that may create databases.
    :raises BalikError: it cannot be created or loaded.
    """
    drop_leftovers(server, database)
    beside = scratch_name(database, run_id)
    like = server.one(
        "SELECT pg_encoding_to_char(encoding) AS encoding, datcollate, datctype"
        f" FROM pg_database WHERE datname = {literal(database)}"
    )
    mark = _MARK + json.dumps({"of": database, "for": "loss", "run": run_id}, ensure_ascii=False)
    creating = (
        f"CREATE DATABASE {name(beside)} TEMPLATE template0 ENCODING {literal(like['encoding'])}"
        f" LC_COLLATE {literal(like['datcollate'])} LC_CTYPE {literal(like['datctype'])}"
    )
    server = server.to(server.database, writes=True)
    try:
        server.do(
            creating,
            f"COMMENT ON DATABASE {name(beside)} IS {literal(mark)}",
            f"REVOKE ALL ON DATABASE {name(beside)} FROM PUBLIC",
        )
        scratch = server.to(beside, writes=True)
        with scratch.kept_open():
            large = [row["title"] for row in server.to(database).rows(_LARGE.format(bytes=_LARGE_BYTES))]
            _load(scratch, path, jobs, [_UNLOGGED.format(title) for title in large])
            yield scratch
    finally:
        with suppress(BalikError):  # the error that brought us here is the one to tell; the next start drops it
            _drop(server.afterwards(), beside)


def drop_leftovers(server: Psql, database: str) -> list[str]:
    """Drops what a killed run has left, and nobody is using; the names."""
    found = server.rows(
        "SELECT datname, shobj_description(d.oid, 'pg_database') AS comment FROM pg_database d WHERE datname LIKE"
        " '%\\_\\_loss\\_%' AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)"
    )
    left = [row["datname"] for row in found if _mark(row["comment"]) == {"of": database, "for": "loss"}]
    for each in left:
        _drop(server.to(server.database, writes=True), each)
    return left


def _mark(comment: str | None) -> dict[str, Any]:
    if not (comment or "").startswith(_MARK):
        return {}
    try:
        found = json.loads((comment or "")[len(_MARK) :])
    except ValueError:
        return {}
    return {key: found.get(key) for key in ("of", "for")} if isinstance(found, dict) else {}


def _drop(server: Psql, database: str) -> None:
    server.do(f"DROP DATABASE IF EXISTS {name(database)} WITH (FORCE)")


def _load(scratch: Psql, path: Path, jobs: int, before_rows: Sequence[str]) -> None:
    kind = backup.kind_of(path)
    programs = Programs(Path(scratch.programs), 0)
    what = f"loading {path} to compare with"
    # A dump names its own types without their schema only where it sets its own path; and nothing here must last.
    settings = {"synchronous_commit": "off", **scratch.settings}
    environment = scratch.access.environment(scratch.database, settings)
    if kind in backup.ARCHIVES:
        # A superuser's programs get nothing that was not judged: an archive may hold any SQL, as a script may.
        backup.inspect(path, kind, programs, scratch.deadline)
        # Indexes and constraints are left out, and so are owners and privileges: only rows are looked at.
        command = [programs["pg_restore"], "-w", "--no-owner", "--no-privileges", "--exit-on-error"]
        command += ["-d", _dsn(scratch.database), str(path.absolute())]
        run([*command, "--section=pre-data"], environment, scratch.deadline, what)
        scratch.do(*before_rows)
        run([*command, "--section=data", "-j", str(jobs)], environment, scratch.deadline, what)
        return
    reader, passing = Reader(str(path)), UntilPostData("".join(f"{each};\n" for each in before_rows).encode())
    with tempfile.TemporaryFile() as err:
        psql = subprocess.Popen(
            [*scratch.command[:-2], "-v", "ON_ERROR_STOP=1", *restricted(programs), "-f", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=err,
            env=environment,
        )
        assert psql.stdin
        with limited(psql, scratch.deadline) as over:
            with suppress(BrokenPipeError):  # psql ended before the dump did; it says why
                with backup.opened(path, kind, programs, scratch.deadline) as stream:
                    for chunk in iter(lambda: stream.read(CHUNK), b""):
                        psql.stdin.write(passing.take(reader.feed(chunk)))
                psql.stdin.write(passing.take(reader.last()))
                reader.finish()
                psql.stdin.close()
            with suppress(BrokenPipeError):
                psql.stdin.close()
            code = psql.wait()
        if over.is_set():
            raise too_long(what, scratch.deadline)
        if code:
            raise BalikError(what, f"psql ended with {code}: {complaint(err)}")


def _dsn(database: str) -> str:
    """The database as libpq reads it where a name might be taken for a whole connection string."""
    return "dbname='" + database.replace("\\", "\\\\").replace("'", "\\'") + "'"
