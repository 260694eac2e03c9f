"""PostgreSQL through its own ``psql``: answers as JSON, rows as streams from one database into another.

No Python driver is needed on the host, and rows never pass through this process's memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ..database.access import Access, Deadline, complaint, find_programs, limited, too_long, without_values
from ..errors import BalikError

# The same text for the same value in both databases, whatever a role or a database has set for itself.
_SAME = {
    "search_path": "pg_catalog",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    # A role that sees only some rows must fail here, and not count too few.
    "row_security": "off",
    # Somebody who holds a table for ever must not hold up a decision for ever.
    "lock_timeout": "5s",
    "work_mem": "64MB",
    "client_min_messages": "warning",
}
_FLAGS = ("-X", "-w", "-q", "-A", "-t", "-v", "VERBOSITY=terse", "-f", "-")
_MARK = "@balik "
#: Seconds for clearing up.
_AFTERWARDS = 30.0


def literal(text: str) -> str:
    """An SQL literal (``standard_conforming_strings`` is on everywhere since 9.1)."""
    return "'" + text.replace("'", "''") + "'"


def name(*parts: str) -> str:
    """An SQL name: ``"public"."Documents"``."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


@dataclass(frozen=True)
class Psql:
    """One database, as a person at ``psql`` has it.

    :param programs: folder of PostgreSQL's client programs; empty: where they are found.
    :param snapshot: of :func:`steady`: all that is asked is answered as of that moment.
    :param settings: for these sessions only; an empty one leaves the server's own.
    """

    access: Access
    database: str
    deadline: Deadline
    programs: str = ""
    snapshot: str = ""
    writes: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    def to(self, database: str, writes: bool = False) -> Psql:
        """The same server's other database."""
        return replace(self, database=database, snapshot="", writes=writes)

    def afterwards(self) -> Psql:
        """With time of its own, for what has to be put right however late it is."""
        return replace(self, deadline=Deadline(_AFTERWARDS))

    @property
    def command(self) -> list[str]:
        return [str(Path(self.programs) / "psql") if self.programs else "psql", *_FLAGS]

    @property
    def environment(self) -> dict[str, str]:
        timeout = {"statement_timeout": f"{max(1, int(self.deadline.left() * 1000))}ms"}
        only = {} if self.writes else {"default_transaction_read_only": "on"}
        given = {**_SAME, **timeout, **only, **self.settings}
        return self.access.environment(self.database, {key: value for key, value in given.items() if value})

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What a query answers, a dictionary for each row.

        :raises BalikError: the server refused it, or the deadline is over.
        """
        return list(self.each([query])[0])

    def one(self, query: str) -> dict[str, Any]:
        """The only row of a query."""
        return self.rows(query)[0]

    def each(self, queries: Sequence[str], tolerant: bool = False) -> list[list[dict[str, Any]]]:
        """What each query answers, all in one session.

        :param tolerant: an answer that the server refuses is a list of one ``{"error": …}``.
        """
        lines = [
            f"\\echo {_MARK}{n}\n\\warn {_MARK}{n}\nSELECT to_json(x) FROM ({q}) x;" for n, q in enumerate(queries)
        ]
        # Only from here on: the savepoints that psql makes then would keep the session from taking the snapshot.
        forgiving = ["\\set ON_ERROR_STOP 0", "\\set ON_ERROR_ROLLBACK on"] if tolerant else []
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            self.run(
                "\n".join(["\\set ON_ERROR_STOP 1", *self.begin, *forgiving, *lines, "COMMIT;"]), out, err, tolerant
            )
            out.seek(0)
            answers = _sorted_by_mark(out, len(queries))
            err.seek(0)
            complaints = _sorted_by_mark(err, len(queries))
        return [
            [{"error": without_values(wrong[0].decode("utf-8", "replace").partition("ERROR:")[2].strip())}]
            if wrong
            else [json.loads(line) for line in found]
            for found, wrong in zip(answers, complaints)
        ]

    @property
    def begin(self) -> list[str]:
        """The statements that a session begins with."""
        if not self.snapshot:
            return ["BEGIN;"]
        return [
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;",
            f"SET TRANSACTION SNAPSHOT {literal(self.snapshot)};",
        ]

    def do(self, *statements: str) -> None:
        """Carry out statements, each for itself (``CREATE DATABASE`` suffers no transaction around it)."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            self.run("\n".join(["\\set ON_ERROR_STOP 1", *(f"{each};" for each in statements)]), out, err)

    def run(self, script: str, out: IO[bytes], err: IO[bytes], tolerant: bool = False) -> None:
        """One script, its output into ``out``.

        :raises BalikError: psql failed, and with what.
        """
        with tempfile.TemporaryFile() as given:
            given.write(script.encode())
            given.seek(0)
            process = subprocess.Popen(
                self.command, stdin=given, stdout=out, stderr=err, env=self.environment, start_new_session=True
            )
            with limited(process, self.deadline) as over:
                code = process.wait()
        self.judge(code, over.is_set(), err, tolerant)

    def judge(self, code: int, over: bool, err: IO[bytes], tolerant: bool = False) -> None:
        """Says what was wrong, if anything was."""
        if over or self.deadline.left() <= 0:
            raise too_long(f"reading database {self.database}", self.deadline)
        # 3: a statement failed; a tolerant caller reads which.
        if code and not (tolerant and code == 3):
            raise BalikError(f"database {self.database} on {self.access.where}", complaint(err))

    def copy_to(self, other: Psql, query: str, table: str) -> None:
        """Rows of a query, straight into a table of another database of the server."""
        reading = f"\\set ON_ERROR_STOP 1\n{chr(10).join(self.begin)}\nCOPY ({query}) TO STDOUT;\n"
        writing = f"COPY {table} FROM STDIN"
        with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as err2:
            script.write(reading.encode())
            script.seek(0)
            source = subprocess.Popen(
                self.command, stdin=script, stdout=subprocess.PIPE, stderr=err, env=self.environment
            )
            target = subprocess.Popen(
                [*other.command[:-2], "-v", "ON_ERROR_STOP=1", "-c", writing],
                stdin=source.stdout,
                stdout=subprocess.DEVNULL,
                stderr=err2,
                env=other.environment,
            )
            assert source.stdout
            source.stdout.close()  # theirs only, so that the one notices when the other ends
            with limited(source, self.deadline) as over, limited(target, other.deadline):
                codes = (source.wait(), target.wait())
            other.judge(codes[1], over.is_set(), err2)
            self.judge(codes[0], over.is_set(), err)

    @contextmanager
    def steady(self) -> Iterator[Psql]:
        """The database as it is at this moment, for several sessions at once.

        :raises BalikError: no snapshot could be taken.
        """
        script = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\nSELECT pg_export_snapshot();\n"
        with tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=self.environment
            )
            assert process.stdin and process.stdout
            with limited(process, self.deadline) as over, process.stdout, process.stdin:
                process.stdin.write(script.encode())
                process.stdin.flush()
                snapshot = process.stdout.readline().decode().strip()
                if not snapshot:
                    process.stdin.close()
                    self.judge(process.wait() or 1, over.is_set(), err)
                yield replace(self, snapshot=snapshot)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """One idle session, by which others see that the database is in use."""
        process = subprocess.Popen(
            [*self.command[:-2], "-f", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )
        assert process.stdin and process.stdout
        with limited(process, self.deadline), process.stdout, process.stdin:
            process.stdin.write(b"SELECT 1;\n")
            process.stdin.flush()
            process.stdout.readline()
            yield


def _sorted_by_mark(lines: IO[bytes], count: int) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in range(count)]
    number = -1
    for line in lines:
        if line.startswith(_MARK.encode()):
            number = int(line[len(_MARK) :])
        elif number >= 0 and line.strip():
            found[number].append(line)
    return found


def reach(access: Access, maintenance: str, deadline: Deadline, folder: str = "") -> tuple[Psql, int]:
    """The server, by programs of its own version; and its major version.

    :raises BalikError: it does not answer, or a program is missing.
    """
    first = Psql(access, maintenance, deadline, folder or _any_programs())
    major = int(first.one("SELECT current_setting('server_version_num')::int / 10000 AS major")["major"])
    access.major[:] = [major]
    return replace(first, programs=str(find_programs(major, folder).folder)), major


def _any_programs() -> str:
    """Any psql will do to ask for the version: the newest where Debian and Red Hat put them, or the one on the path."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/psql"), *Path("/usr").glob("pgsql-*/bin/psql")]
    if not found or os.access("/usr/bin/psql", os.X_OK):
        return ""
    return str(max(found, key=lambda path: path.parts).parent)
