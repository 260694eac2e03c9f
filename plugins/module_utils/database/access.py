"""How a server is reached, and how PostgreSQL's own programs are run on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import BalikError, NotAdmitted, Unreachable
from ..units import format_duration

try:
    import psycopg
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "client_encoding": "PGCLIENTENCODING",
}
# What a role or the server sets for everybody must not end, or forbid, hours of work.
_OURS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",
}
# From a server's major version on; an older one lets nobody in who asks for it.
_OURS_SINCE = {14: "idle_session_timeout", 17: "transaction_timeout"}
# A server that is busy, starting or down says other things; in other languages each is taken for that.
_NOT_ADMITTED = re.compile(
    r"authentication failed|no password supplied|(role|database) .*does not exist|no pg_hba\.conf entry"
    r"|permission denied for database"
)
_PROGRAMS = ("psql", "pg_dump", "pg_restore", "vacuumdb")
_HOMES = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin")


class Deadline:
    """The moment at which the whole work has to be done.

    :param limit: seconds from now.
    :param setting: what the plan calls it.
    """

    def __init__(
        self, limit: float, clock: Callable[[], float] = time.monotonic, setting: str = "db_restore_limit"
    ) -> None:
        self.limit, self.setting, self._clock, self._end = limit, setting, clock, clock() + limit

    def left(self) -> float:
        """Seconds that are left, never below zero."""
        return max(0.0, self._end - self._clock())


@dataclass(frozen=True)
class Access:
    """Where the server is and as whom: libpq's keywords, and libpq's conventions for what is left out.

    The password reaches the programs by their environment, never by their arguments.
    """

    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    sslmode: str = ""
    sslrootcert: str = ""
    application: str = "balik"
    #: The server's major version, once somebody has asked it.
    major: list[int] = field(default_factory=list, repr=False, compare=False)

    def _keywords(self) -> dict[str, Any]:
        given = {
            "host": self.host,
            "port": str(self.port or ""),
            "user": self.user,
            "password": self.password,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "application_name": self.application[:63],
            "connect_timeout": "10",
            "client_encoding": "UTF8",
        }
        return {key: value for key, value in given.items() if value}

    @property
    def where(self) -> str:
        """The server as a person calls it."""
        host = self.host or os.environ.get("PGHOST") or "the local socket"
        return f"PostgreSQL at {host}:{self.port}" if self.port else f"PostgreSQL at {host}"

    def connect(self, database: str, settings: Mapping[str, str] | None = None) -> psycopg.Connection[Any]:
        """A connection in autocommit mode.

        :param settings: for this session only.
        :raises Unreachable: the server did not answer; how it was tried.
        :raises NotAdmitted: it answered, and let nobody in.
        """
        if psycopg is None:
            raise BalikError(
                "Python's psycopg 3", "not installed on this host", do="Run: apt-get install python3-psycopg"
            )
        try:
            connection = psycopg.connect(
                dbname=database,
                autocommit=True,
                options=_options({**self._ours(), **(settings or {})}),
                **self._keywords(),
            )
            if not self.major:
                self.major.append(connection.info.server_version // 10000)
                for setting, value in self._ours().items():
                    connection.execute("select set_config(%s, %s, false)", [setting, value])
            return connection
        except psycopg.OperationalError as error:
            raise refusal(error)(
                self.where,
                f"no connection to database {database!r} as {self.user or 'the current user'}: {first_line(error)}",
                do="Check that the server runs, and db_restore_login_*.",
            ) from None

    def _ours(self) -> dict[str, str]:
        return own_settings(self.major[0] if self.major else 0)

    def environment(self, database: str, settings: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment for one of PostgreSQL's programs; ``settings`` hold for its sessions only."""
        given = {_VARIABLES[key]: value for key, value in self._keywords().items()}
        environment = {**os.environ, **given, "PGDATABASE": database, "LC_ALL": "C.UTF-8"}
        options = _options({**self._ours(), **(settings or {})})
        return {**environment, "PGOPTIONS": f"{os.environ.get('PGOPTIONS', '')} {options}".strip()}


def own_settings(major: int) -> dict[str, str]:
    """What a session of this project sets against everybody's time-outs and defaults.

    :param major: the server's major version; 0 while it is not known.
    """
    return {**_OURS, **{name: "0" for since, name in _OURS_SINCE.items() if major >= since}}


def _options(settings: Mapping[str, str]) -> str:
    escaped = {name: re.sub(r"([\\\s])", r"\\\1", str(value)) for name, value in settings.items()}
    return " ".join(f"-c {name}={value}" for name, value in escaped.items())


def refusal(error: object) -> type[BalikError]:
    """The class of our error for one of ``psycopg.connect``."""
    return NotAdmitted if _NOT_ADMITTED.search(str(error)) else Unreachable


def first_line(error: object) -> str:
    """The first line of an error, bounded: what follows (DETAIL, CONTEXT) may quote a row of somebody's data."""
    diagnostic = getattr(error, "diag", None)
    text = (getattr(diagnostic, "message_primary", None) or str(error)).strip()
    return without_values(text.splitlines()[0] if text else type(error).__name__)


def without_values(message: str) -> str:
    """An error message without the value that it complains about.

    >>> without_values('ERROR:  invalid input syntax for type integer: "Budi, born 1990"')
    'ERROR: invalid input syntax for type integer: (value left out)'
    """
    return re.sub(r': ".*$', ": (value left out)", re.sub(r"\s+", " ", message))[:300]


@dataclass(frozen=True)
class Programs:
    """Paths of PostgreSQL's client programs, all of one major version."""

    folder: Path
    major: int

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def find_programs(server_major: int, folder: str = "") -> Programs:
    """The client programs of the server's own major version, or else those on the path.

    :param folder: where to look instead.
    :raises BalikError: a program is missing, or they are older than the server (``pg_dump`` refuses then).
    """
    homes = [folder] if folder else [home.format(server_major) for home in _HOMES]
    on_path = shutil.which("pg_dump")
    if on_path and not folder:
        homes.append(str(Path(on_path).parent))
    found = next((Path(home) for home in homes if (Path(home) / "pg_dump").exists()), None)
    missing = [name for name in _PROGRAMS if not found or not (found / name).exists()]
    if not found or missing:
        raise BalikError(
            "PostgreSQL's client programs",
            f"{', '.join(missing)} not found in {', '.join(homes)}",
            do=f"Run: apt-get install postgresql-client-{server_major}, or set db_restore_bin_dir.",
        )
    told = subprocess.run([found / "pg_dump", "--version"], capture_output=True, text=True, check=True, timeout=30)
    major = int(re.search(r"\) (\d+)", told.stdout)[1])  # type: ignore[index]
    if major < server_major:
        raise BalikError(
            f"pg_dump in {found}",
            f"version {major}",
            f"version {server_major} or newer, as the server",
            f"Run: apt-get install postgresql-client-{server_major}",
        )
    return Programs(found, major)


def complaint(stderr: IO[bytes]) -> str:
    """The first error in what a program wrote, with its line number in the script where there is one.

    DETAIL, CONTEXT and the failed command are left out: they may quote rows.
    """
    stderr.seek(0)
    lines = stderr.read(1_000_000).decode("utf-8", "replace").splitlines()
    named = [line for line in lines if re.search(r"(ERROR|FATAL|PANIC|[Ee]rror):|: (fatal|error)", line)]
    line = (named or [line for line in lines if line.strip()] or ["it said nothing"])[0]
    at = re.match(r"psql:<stdin>:(\d+): (.*)", line)
    return f"line {at[1]}: {without_values(at[2])}" if at else without_values(line)


@contextmanager
def limited(process: subprocess.Popen[bytes], deadline: Deadline) -> Iterator[threading.Event]:
    """Kills ``process`` when the deadline is over, and in any case if it still runs at the end.

    Yields an event that tells whether the deadline did it.
    """
    over = threading.Event()

    def end() -> None:
        over.set()
        process.kill()

    timer = threading.Timer(deadline.left(), end)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()


def run(command: Sequence[str], environment: Mapping[str, str], deadline: Deadline, what: str) -> str:
    """Runs a program to its end; its output as text. Files that it makes are for their owner only.

    :param what: what it was to do, for the message.
    :raises BalikError: it failed, or the deadline is over.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, umask=0o077
        )
        with limited(process, deadline) as over:
            code = process.wait()
        if over.is_set():
            raise too_long(what, deadline)
        if code:
            said = err if err.seek(0, os.SEEK_END) else out  # pg_amcheck says what it found as its output
            raise BalikError(what, f"{Path(command[0]).name} ended with {code}: {complaint(said)}")
        out.seek(0)
        return out.read().decode("utf-8", "replace")


def too_long(what: str, deadline: Deadline) -> BalikError:
    """The error for a deadline that is over."""
    return BalikError(
        what, f"not done within {format_duration(deadline.limit)}", do=f"Raise {deadline.setting} if that is too short."
    )
