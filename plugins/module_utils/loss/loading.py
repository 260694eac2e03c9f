"""The rows of a backup poured into an empty database by several sessions at once, without indexes and constraints.

A plain dump is one stream, which ``psql`` loads with one processor. Here each line is judged as it is read
(:class:`~..database.script.Reader`), SQL goes to one session, and the rows of a table are dealt out among all of them.
In which order they lie does not matter to a copy that is only compared with.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue
from typing import IO

from ..database import backup
from ..database.access import Deadline, Programs, complaint, limited, too_long
from ..database.filling import restricted
from ..database.script import CHUNK, Block, Reader
from ..errors import BalikError
from .psql import Psql

# What pg_dump writes after the last row: all of it would only cost time.
_POST_DATA = (
    b"CONSTRAINT|FK CONSTRAINT|CHECK CONSTRAINT|INDEX|INDEX ATTACH|STATISTICS|TRIGGER|RULE|POLICY|ROW SECURITY"
    b"|PUBLICATION|PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|SUBSCRIPTION|EVENT TRIGGER"
)
_AFTER_ROWS = re.compile(rb"^-- (?:Data for )?Name: [^\n]*; Type: (?:" + _POST_DATA + rb")(?:;|$)", re.M)
_ONLY_ROWS = ("--section=pre-data", "--section=data", "--no-owner", "--no-privileges")
_RESTRICT = re.compile(rb"^\\(?:un)?restrict ", re.M)
_STATEMENT = re.compile(rb"^(?!--|$)", re.M)
# What a dump sets for itself stands before its first entry; its rows are read with the same.
_HEAD = re.compile(rb"\A.*?(?=^-- Name: |\Z)", re.M | re.S)
_SETTING = re.compile(rb"^(?:SET |SELECT pg_catalog\.set_config\()[^\n]*;\n", re.M)
#: Bytes of a table's rows that one session gets before others help it.
_SHARED_FROM = 8 * CHUNK
#: Pieces of rows that wait for a session.
_WAITING = 4
_READY = b"balik: ready"


def load(scratch: Psql, path: Path, jobs: int, before_rows: Sequence[str] = ()) -> None:
    """Pours tables and rows of a backup into the empty database ``scratch``.

    :param jobs: sessions that take rows at the same time.
    :param before_rows: SQL for the moment when all tables are there and none has a row.
    :raises BalikError: the backup is spoiled or would do more than fill a database, the server refused some of it, or
        the deadline is over.
    """
    kind, programs = backup.kind_of(path), Programs(Path(scratch.programs), 0)
    # A dump names its own types without their schema only where it sets its own path; and nothing here must last.
    environment = scratch.access.environment(scratch.database, {"synchronous_commit": "off", **scratch.settings})
    command = [*scratch.command[:-2], "-v", "ON_ERROR_STOP=1", *restricted(programs), "-f", "-"]
    what = f"loading {path} to compare with"
    with ExitStack() as stack:
        sessions = []
        for _ in range(1 + max(1, jobs)):
            err = stack.enter_context(tempfile.TemporaryFile())
            sessions.append(_Session(stack, command, environment, err, scratch.deadline, what))
        dealer = _Dealer(sessions[0], sessions[1:], "".join(f"{each};\n" for each in before_rows).encode())
        reader = Reader(str(path), sink=dealer)
        with backup.opened(path, kind, programs, scratch.deadline, _ONLY_ROWS) as stream:
            for chunk in iter(lambda: stream.read(CHUNK), b""):
                reader.feed(chunk)
        reader.finish()
        for session in sessions:
            session.finish()


class _Session:
    """One ``psql`` that is written to by a thread of its own, so that nobody waits for the slowest.

    :param stack: ends it, whatever happens.
    :param what: what is being done, for messages.
    """

    def __init__(
        self,
        stack: ExitStack,
        command: Sequence[str],
        environment: Mapping[str, str],
        err: IO[bytes],
        deadline: Deadline,
        what: str,
    ) -> None:
        self._err, self._deadline, self._what = err, deadline, what
        self._psql = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=environment
        )
        self._queue: Queue[bytes | None] = Queue(_WAITING)
        self._answers: Queue[bool] = Queue()
        self._broken = False
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._write, self._read)]
        stack.callback(self._end_threads)
        self._over = stack.enter_context(limited(self._psql, deadline))
        for thread in self._threads:
            thread.start()

    def give(self, text: bytes) -> None:
        """SQL or rows, to be written when it is ready for them."""
        if self._broken:
            self.finish()
        self._queue.put(text)

    @property
    def waiting(self) -> int:
        """How many pieces it has not got yet."""
        return self._queue.qsize()

    def settle(self) -> None:
        """Waits until all that was given is done."""
        self.give(b"SELECT '" + _READY + b"';\n")
        if not self._answers.get():
            self.finish()

    def finish(self) -> None:
        """Waits for its end.

        :raises BalikError: the server refused something, or the deadline is over.
        """
        self._end_threads()
        code = self._psql.wait()
        if self._over.is_set():
            raise too_long(self._what, self._deadline)
        if code or self._broken:
            raise BalikError(self._what, f"psql ended with {code}: {complaint(self._err)}")

    def _end_threads(self) -> None:
        if self._threads[0].is_alive():
            self._queue.put(None)
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _write(self) -> None:
        assert self._psql.stdin
        for text in iter(self._queue.get, None):
            try:
                if not self._broken:  # else psql has ended, and says why; what was given must not be waited for
                    self._psql.stdin.write(text)
                    self._psql.stdin.flush()
            except BrokenPipeError:
                self._broken = True
        with suppress(BrokenPipeError):
            self._psql.stdin.close()

    def _read(self) -> None:
        assert self._psql.stdout
        for line in self._psql.stdout:
            if line.rstrip() == _READY:
                self._answers.put(True)
        self._psql.stdout.close()
        self._answers.put(False)


class _Dealer:
    """Takes a script apart: SQL for one session, rows for those that have the least to do.

    :param before_rows: SQL for the first session, before the first row.
    """

    def __init__(self, first: _Session, others: Sequence[_Session], before_rows: bytes) -> None:
        self._first, self._others, self._before_rows = first, others, before_rows
        self._begun = self._over = False
        self._busy: set[_Session] = set()  # with what the others must not overtake
        self._taking: list[_Session] = []  # rows of the block that is open
        self._dealt = 0

    def sql(self, text: bytes) -> None:
        after = _AFTER_ROWS.search(text)
        text = b"" if self._over else text[: after.start()] if after else text
        self._over = self._over or bool(after)
        if not _STATEMENT.search(text):
            return
        if not self._begun:
            self._begun = True
            head = _HEAD.match(text)
            for each in self._others:
                each.give(b"".join(_SETTING.findall(head[0] if head else b"")))
        self._wait_for(self._others)  # a statement may count on rows that stand before it
        # The key is the dump's own, and so nobody's secret: psql has one of ours.
        self._give(self._first, _RESTRICT.sub(b"-- ", text))

    def rows(self, block: Block, text: bytes) -> None:
        if not self._taking:
            self._begin(block)
        if self._dealt > _SHARED_FROM:
            for each in self._others:
                if each not in self._taking:
                    self._take(each, block)
        if text:
            session = min(self._taking, key=lambda each: each.waiting)
            session.give(text)
            self._taking.remove(session)  # of those that have as little to do, the next one
            self._taking.append(session)
            self._dealt += len(text)

    def end(self, block: Block) -> None:
        for each in self._taking:
            each.give(b"\\.\n")
        self._taking = []

    def _begin(self, block: Block) -> None:
        if self._before_rows:
            self._give(self._first, self._before_rows)
            self._before_rows = b""
        self._wait_for([self._first])
        self._dealt = 0
        self._take(min(self._others, key=lambda each: each.waiting), block)

    def _take(self, session: _Session, block: Block) -> None:
        self._give(session, block.statement)
        self._taking.append(session)

    def _give(self, session: _Session, text: bytes) -> None:
        session.give(text)
        self._busy.add(session)

    def _wait_for(self, sessions: Sequence[_Session]) -> None:
        for each in sessions:
            if each in self._busy:
                each.settle()
                self._busy.remove(each)
