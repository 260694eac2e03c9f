"""The record of a product's rollbacks: appended to, chained by hash, locked by one owner at a time.

Two places hold it, by the same code over DB-API: a SQLite file, or PostgreSQL for control nodes that are
thrown away after a job. Each entry holds the hash of the one before; triggers refuse updates and deletions, and
whoever goes round the triggers is found out by :meth:`Record.verify`. A chain alone cannot show that its end was cut
off, or that somebody with the file computed it anew: against the first, keep the head (it stands in the outcome
and in the report) and pass it to ``verify``; against the second, give the record a key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from .errors import BalikError, Unreachable
from .units import format_duration, iso, parse_time, utc_now

GENESIS = "0" * 64
CONNECT_SECONDS = 5
BUSY_SECONDS = 10
#: How long a server that has cut the connection, since it restarts, is waited for.
RETURN_SECONDS = 30

#: How libpq's two forms of a connection string begin.
_DSN = re.compile(r"\s*(postgres(ql)?://|\w+\s*=)")
_TABLES = (
    """CREATE TABLE balik_entries (
      product TEXT NOT NULL, seq INTEGER NOT NULL, at TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
      body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (product, seq))""",
    """CREATE TABLE balik_locks (
      product TEXT PRIMARY KEY, holder TEXT NOT NULL, since TEXT NOT NULL, until TEXT NOT NULL)""",
)
_SQLITE_TRIGGERS = tuple(
    f"""CREATE TRIGGER balik_no_{change} BEFORE {change} ON balik_entries
      BEGIN SELECT RAISE(ABORT, 'the record is only appended to'); END"""
    for change in ("update", "delete")
)
_POSTGRESQL_TRIGGERS = (
    """CREATE FUNCTION balik_refuse() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'the record is only appended to'; END $$""",
    """CREATE TRIGGER balik_only_appended BEFORE UPDATE OR DELETE OR TRUNCATE ON balik_entries
      FOR EACH STATEMENT EXECUTE FUNCTION balik_refuse()""",
)


@dataclass(frozen=True)
class Entry:
    """One line of the record. ``at`` is UTC in ISO 8601, ``hash`` 64 hex digits over all else."""

    product: str
    seq: int
    at: str
    run: str
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process on a machine. A machine is one boot of one kernel and one PID namespace, so
    two containers that share a host name are two machines."""

    who: str
    host: str
    machine: str
    pid: int
    born: int

    @classmethod
    def of_process(cls, who: str, pid: int) -> Holder:
        """The holder that process ``pid`` of this machine is."""
        return cls(who, socket.gethostname(), _this_machine(), pid, _born(pid))

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False where that cannot be known from here."""
        return self.machine == _this_machine() and _born(self.pid) != self.born and not _may_be_hidden(self.pid)

    def is_alive(self) -> bool:
        """Whether the process certainly lives; False where that cannot be known from here."""
        return self.machine == _this_machine() and 0 != self.born == _born(self.pid)

    def same_process(self, other: Holder) -> bool:
        return (self.machine, self.pid, self.born) == (other.machine, other.pid, other.born)

    def __str__(self) -> str:
        return f"{self.who} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class Lock:
    """A product's lock: while its holder lives, and where that cannot be known until ``until``, nobody else may work on
    it. Times are aware, in UTC."""

    product: str
    holder: Holder
    since: datetime
    until: datetime

    def is_held(self) -> bool:
        """Whether its holder lives, or may live and has a lease."""
        return self.holder.is_alive() or (self.until > utc_now() and not self.holder.is_gone())


@dataclass(frozen=True)
class Verification:
    """What :meth:`Record.verify` found. ``broken_at`` is the first entry that does not fit, or None."""

    entries: int
    head: str
    broken_at: int | None = None
    reason: str = ""

    @property
    def whole(self) -> bool:
        return self.broken_at is None


class RecordUnavailable(Unreachable):
    """A record that cannot be opened, read or written now."""


class Record:
    """One product's record at one place. Use as a context manager.

    :param place: a path of a SQLite file (made when missing, readable by its owner only), or a PostgreSQL DSN
        (``postgresql://…`` or ``host=… dbname=…``).
    :param product: whose record; one place may hold many products.
    :param key: a secret that makes each hash an HMAC, so that only who knows it can compute a chain.
    :raises RecordUnavailable: the place cannot be opened.
    """

    def __init__(self, place: str, product: str, key: str = "") -> None:
        self.product = product
        self._key = key.encode()
        self._within = False
        self._postgresql = is_dsn(place)
        self.place = _without_password(place) if self._postgresql else str(Path(place).expanduser())
        self._errors = _psycopg(self.place).Error if self._postgresql else sqlite3.Error
        try:
            if self._postgresql:
                self._open_postgresql(place)
            else:
                self._open_sqlite()
        except (OSError, self._errors) as error:
            raise _not_opened(self.place, _first_line(error)) from error

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # Writing

    def append(self, kind: str, body: dict[str, Any], run: str = "") -> Entry:
        """Append one entry and return it. When this returns, the entry is on the disk.

        :param kind: what it is about, such as ``step-started``.
        :param body: what JSON can hold; anything else in it is written as its text.
        :param run: the run that it belongs to; empty for what stands outside of runs.
        """
        text = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
        # A program's output may hold bytes that are no UTF-8; neither database takes them.
        text = text.encode("utf-8", "replace").decode()
        with self._transaction("be written"):
            seq, previous = self._head()
            at = iso(utc_now())
            entry_hash = self._hash(seq + 1, at, run, kind, text, previous)
            self._execute(
                "INSERT INTO balik_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(self.product, seq + 1, at, run, kind, text, previous, entry_hash),
            )
        return Entry(self.product, seq + 1, at, run, kind, json.loads(text), previous, entry_hash)

    # Reading

    def entries(self, run: str | None = None) -> Iterator[Entry]:
        """All entries, oldest first; of one run only when ``run`` is given.

        :raises BalikError: a body is not what was written.
        """
        query = "SELECT product, seq, at, run, kind, body, previous, hash FROM balik_entries WHERE product = ?"
        values = [self.product]
        if run is not None:
            query, values = query + " AND run = ?", [*values, run]
        for row in self._rows(query + " ORDER BY seq", *values):
            product, seq, at, run_id, kind, text, previous, entry_hash = row
            try:
                body = json.loads(text)
                if not isinstance(body, dict):
                    raise ValueError(f"it holds {text[:40]}")
            except ValueError as error:
                raise BalikError(
                    f"record {self.place}",
                    f"entry {seq} cannot be read: {error}",
                    do="Somebody changed it. `ansible-playbook playbooks/record.yml -e verify=true` says how much of "
                    "the record is whole.",
                ) from error
            yield Entry(product, seq, at, run_id, kind, body, previous, entry_hash)

    def head(self) -> str:
        """The newest entry's hash; 64 zeros for an empty record."""
        return self._head()[1]

    def verify(self, head: str = "") -> Verification:
        """Compute the whole chain anew.

        :param head: a hash that was kept elsewhere (from an outcome or a report); the record must contain it, or
            its end was cut off.
        """
        previous, seq, seen = GENESIS, 0, not head
        query = "SELECT seq, at, run, kind, body, previous, hash FROM balik_entries WHERE product = ? ORDER BY seq"
        for found_seq, at, run, kind, text, found_previous, found_hash in self._rows(query, self.product):
            seq += 1
            if found_seq != seq:
                return Verification(seq - 1, previous, seq, f"entry {seq} is missing; entry {found_seq} follows")
            if found_previous != previous:
                return Verification(seq - 1, previous, seq, f"entry {seq} does not continue entry {seq - 1}")
            if self._hash(seq, at, run, kind, text, previous) != found_hash:
                reason = f"entry {seq} ({kind}, {at}) was changed, or was written with another record key"
                return Verification(seq - 1, previous, seq, reason)
            previous = found_hash
            seen = seen or found_hash == head
        if not seen:
            reason = f"the entry with hash {head} is gone: the end of the record was cut off or written anew"
            return Verification(seq, previous, seq + 1, reason)
        return Verification(seq, previous)

    # The lock

    def lock(self) -> Lock | None:
        """The product's lock as it stands, expired or not; None where nobody holds it.

        :raises BalikError: what stands there is no lock.
        """
        rows = list(self._rows("SELECT holder, since, until FROM balik_locks WHERE product = ?", self.product))
        if not rows:
            return None
        holder, since, until = rows[0]
        try:
            return Lock(self.product, Holder(**json.loads(holder)), parse_time(since), parse_time(until))
        except (BalikError, TypeError, ValueError):
            raise BalikError(
                f"record {self.place}",
                f"the lock of {self.product} cannot be read: {str(holder)[:80]!r}",
                do="Somebody changed it. If nobody rolls back now, take it: -e rollback_take_lock=true.",
            ) from None

    def acquire(self, holder: Holder, lease: float, take_over: bool = False) -> Lock | None:
        """Take the lock, or renew it, for ``lease`` seconds.

        A lock whose process has ended is taken over; so is one whose lease is over, unless its process surely lives.

        :param take_over: take it whoever holds it: for a person who knows that the holder is no more.
        :return: the lock that was taken over from somebody else, or None.
        :raises BalikError: somebody else holds it, or what stands there is no lock.
        """
        now = utc_now()
        with self._transaction("be locked"):
            try:
                held = self.lock()
            except BalikError:
                if not take_over:
                    raise
                held = None
            own = held is not None and held.holder.same_process(holder)
            if held and not own and not take_over and held.is_held():
                until = f"The lease ends at {iso(held.until)[:19]}Z unless renewed. If that process is certainly dead,"
                if held.holder.is_alive():
                    until = "That process lives, and keeps it until it ends. To take it all the same,"
                raise BalikError(
                    self.product,
                    f"{held.holder} has held the lock since {iso(held.since)[:19]}Z "
                    f"({format_duration((now - held.since).total_seconds())} ago)",
                    do=f"Talk to them; `ansible-playbook playbooks/status.yml` shows how far they are. {until} run "
                    "again with -e rollback_take_lock=true.",
                )
            since = held.since if held and own else now
            self._execute("DELETE FROM balik_locks WHERE product = ?", self.product)
            self._execute(
                "INSERT INTO balik_locks VALUES (?, ?, ?, ?)",
                *(self.product, json.dumps(vars(holder)), iso(since), iso(now + timedelta(seconds=lease))),
            )
        return held if held and not own else None

    def release(self, holder: Holder) -> None:
        """Give the lock back; nothing happens where it is somebody else's."""
        with self._transaction("be unlocked"):
            held = self.lock()
            if held and held.holder.same_process(holder):
                self._execute("DELETE FROM balik_locks WHERE product = ?", self.product)

    # What the two places share, and where they differ

    def _open_sqlite(self) -> None:
        path = Path(self.place)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Only a file that is not there yet: closing one gives up the locks that this process has on it in SQLite, and
        # the next process that closes the record would take the log away under an open one.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        self._connection: Any = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self._write_ahead()
        # FULL: an entry that was appended is on the disk even if the machine loses power.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._make_tables(_TABLES + _SQLITE_TRIGGERS)

    def _write_ahead(self) -> None:
        # A new record that another opens at the same moment: SQLite's own timeout does not hold for this change.
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                    raise
            time.sleep(0.02)

    def _open_postgresql(self, dsn: str) -> None:
        # Not conninfo's own default, which waits for ever on a host that swallows packets.
        limits = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": BUSY_SECONDS * 1000}
        # A pooler gives one session to several clients, whose prepared statements would have the same names.
        pooled = {"prepare_threshold": None}
        self._dsn = dsn
        self._connection = _psycopg(self.place).connect(_readable(dsn, self.place), autocommit=True, **limits, **pooled)
        self._make_tables(_TABLES + _POSTGRESQL_TRIGGERS)

    def _make_tables(self, statements: Iterable[str]) -> None:
        if not self._has_tables():
            with self._transaction("be made"):
                if self._postgresql:  # the tables are not one product's
                    self._execute("SELECT pg_advisory_xact_lock(hashtext('balik tables'))")
                if not self._has_tables():  # somebody else may have been quicker
                    for statement in statements:
                        self._connection.execute(statement)

    def _has_tables(self) -> bool:
        # Not to_regclass(), which within a transaction remembers that there was none.
        tables = "pg_class WHERE relname =" if self._postgresql else "sqlite_master WHERE name ="
        visible = " AND pg_table_is_visible(oid)" if self._postgresql else ""
        return bool(self._connection.execute(f"SELECT count(*) FROM {tables} 'balik_locks'{visible}").fetchone()[0])

    def _execute(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query.replace("?", "%s") if self._postgresql else query, values)

    def _begin(self, query: str, *values: Any) -> Any:
        """Run what comes first of something; where the server has cut the connection, on a new one. Not within a
        transaction, which is over then, and its lock somebody else's."""
        if self._within:
            return self._execute(query, *values)
        until = time.monotonic() + RETURN_SECONDS
        while True:
            try:
                if self._is_cut():
                    self._open_postgresql(self._dsn)
                return self._execute(query, *values)
            except self._errors:
                if not self._is_cut() or time.monotonic() >= until:
                    raise
            time.sleep(0.2)

    def _is_cut(self) -> bool:
        return self._postgresql and self._connection.closed

    def _rows(self, query: str, *values: Any) -> Iterator[tuple]:
        try:
            cursor = self._begin(query, *values)
            while rows := cursor.fetchmany(5000):
                yield from rows
        except self._errors as error:
            raise self._broken("be read", error) from error

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        """All or nothing, and one writer of a product after the other, so that two never continue the same entry."""
        try:
            if self._postgresql:
                # Read committed: the lock is waited for first, and what the one before wrote is seen after it.
                self._begin(f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
            else:
                self._begin("BEGIN IMMEDIATE")
            self._within = True
            try:
                if self._postgresql:
                    self._execute("SELECT pg_advisory_xact_lock(hashtext(?))", "balik " + self.product)
                yield
            except BaseException:
                with suppress(self._errors):  # the database may have done it itself; the first error is the one to tell
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._within = False
            self._connection.execute("COMMIT")
        except self._errors as error:
            raise self._broken(doing, error) from error

    def _broken(self, doing: str, error: Exception) -> BalikError:
        return RecordUnavailable(
            f"record {self.place}",
            f"cannot {doing}: {_first_line(error)}",
            do="No step is done without its record: mend that (space on the disk? rights? the server?) and run again.",
        )

    def _head(self) -> tuple[int, str]:
        query = "SELECT seq, hash FROM balik_entries WHERE product = ? ORDER BY seq DESC LIMIT 1"
        return next(self._rows(query, self.product), (0, GENESIS))

    def _hash(self, seq: int, at: str, run: str, kind: str, body: str, previous: str) -> str:
        message = json.dumps([self.product, seq, at, run, kind, body, previous], ensure_ascii=False).encode()
        if self._key:
            return hmac.new(self._key, message, hashlib.sha256).hexdigest()
        return hashlib.sha256(message).hexdigest()


def is_there(place: Path) -> bool:
    """Whether there is a record in a file.

    :raises RecordUnavailable: its folder may not be looked into.
    """
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _not_opened(str(place), str(error.strerror)) from None
    return True


def see_that_it_can_be_made(place: Path) -> None:
    """See, and make nothing, that a record can be made in a file where there is none yet.

    :raises RecordUnavailable: its folder cannot be made or written to.
    """
    above = next(each for each in place.parents if os.access(each, os.F_OK))
    if not above.is_dir():
        raise _not_opened(str(place), f"{above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _not_opened(str(place), f"{above} may not be written to")


def _not_opened(place: str, why: str) -> RecordUnavailable:
    return RecordUnavailable(
        f"record {place}",
        f"cannot be opened: {why}",
        do="Mend that, or name another place with rollback_record_dsn or rollback_state_dir.",
    )


def _psycopg(place: str) -> Any:
    try:
        import psycopg  # only where it is asked for: SQLite needs nothing installed
    except ImportError as error:
        raise BalikError(
            f"record {place}",
            "the Python package psycopg is missing on the control node",
            do="pip install 'psycopg[binary]'",
        ) from error
    return psycopg


def _readable(dsn: str, place: str) -> str:
    psycopg = _psycopg(place)
    try:
        psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # Its message shows the part that it could not read, which may be the password's.
        raise Unreachable(
            "rollback_record_dsn",
            "it cannot be read (and is not shown: it may hold a password)",
            "postgresql://user:password@host/database with %40 for an @ in the password (and so on), or "
            "host=… dbname=… password='…'",
            "Nothing was touched.",
        ) from None
    return dsn


def is_dsn(text: str) -> bool:
    """Whether a text is a connection string of PostgreSQL, as far as its beginning tells."""
    return bool(_DSN.match(text))


def _without_password(dsn: str) -> str:
    """The DSN for messages. What is cut off may be more than the password, and is never less."""
    if "://" in dsn:
        return re.sub(r"(://[^:/@]*):.*@", r"\1:…@", re.sub(r"password=[^&]*", "password=…", dsn))
    return re.sub(r"password\s*=\s*('(\\.|[^'\\])*'?|\S+)", "password=…", dsn, flags=re.IGNORECASE)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _this_machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return (
        f"{boot.read_text().strip()} {namespace.readlink()}"
        if boot.exists() and namespace.exists()
        else socket.getfqdn()
    )


def _born(pid: int) -> int:
    """When the process began, in the kernel's ticks; 0 where there is none, none that can be seen, or one that has
    ended and that its parent has not noticed yet."""
    try:
        # The name in parentheses may hold anything; the state is the first field after it, and the start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def _may_be_hidden(pid: int) -> bool:
    """Whether it may be another user's, whom /proc does not show (``hidepid``)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.access(f"/proc/{pid}/stat", os.R_OK)
    except OSError:
        return False
    return False
