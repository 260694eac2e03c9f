"""A dump carried out by several sessions of ``psql`` at once.

``psql`` loads a plain dump with one processor. Here its SQL goes to a first session in the dump's own order, and the
rows of a large table are dealt out among the others; whatever may count on what stands before it waits for that: SQL,
and each table, since a generated column may ask for the rows of another. The rows of a table may then lie in another
order than in the dump, a megabyte here before a megabyte there. Within a transaction of the script, the first session
takes the rows, too: nobody else sees what it has made.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from queue import Queue
from typing import IO

from ..errors import BalikError
from .access import Deadline, Programs, complaint, limited, too_long
from .script import CHUNK, Block, Contents

_FLAGS = ("-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse")
_STATEMENT = re.compile(rb"^(?!--|$)", re.M)
#: Bytes of a table's rows that one session gets before others help it.
_SHARED_FROM = 8 * CHUNK
#: Pieces of rows that wait for a session.
_WAITING = 4
_READY = b"balik: ready "
_ASK = b"SELECT '" + _READY + b"';\n"
# Whether a transaction began before this very statement, and what the script has set by now, as statements; the
# encoding first, since the others are written in it.
_APART = b"\x1f"
_ASK_SETTINGS = (
    b"SELECT '" + _READY + b"' || (pg_catalog.now() < pg_catalog.statement_timestamp()) || E'\\x1f'"
    b" || coalesce(string_agg(pg_catalog.format('SELECT pg_catalog.set_config(%L, %L, false);',"
    b" name, pg_catalog.translate(setting, E'\\n', ' ')), E'\\x1f' ORDER BY name <> 'client_encoding', name), '')"
    b" FROM pg_catalog.pg_settings WHERE source = 'session';\n"
)


@contextmanager
def sessions(
    programs: Programs,
    restricted: Sequence[str],
    environment: Mapping[str, str],
    deadline: Deadline,
    count: int,
    what: str,
    do: str = "",
) -> Iterator[Dealer]:
    """A taker of scripts for :class:`~.script.Reader`; its sessions are ended at the end, whatever happens.

    :param restricted: arguments that keep ``psql`` from obeying commands of the script.
    :param count: sessions that take rows at the same time, beside the one for SQL.
    :param what: what is being done, and ``do`` what to do when it fails; for messages.
    """
    command = [programs["psql"], *_FLAGS, *restricted, "-f", "-"]
    with ExitStack() as stack:
        started = []
        for _ in range(1 + max(1, count)):
            err = stack.enter_context(tempfile.TemporaryFile())
            started.append(_Session(stack, command, environment, err, deadline))
        yield Dealer(started[0], started[1:], what, do)


class _Session:
    """One ``psql`` that is written to by a thread of its own, so that nobody waits for the slowest.

    :param stack: ends it, whatever happens.
    """

    def __init__(
        self,
        stack: ExitStack,
        command: Sequence[str],
        environment: Mapping[str, str],
        err: IO[bytes],
        deadline: Deadline,
    ) -> None:
        self.blocks: list[Block] = []  # that it took rows of
        self.counts: list[int] = []  # that the server says it took, of each that is done
        self.deadline, self._err = deadline, err
        self._psql = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=environment
        )
        assert self._psql.stdin
        _widen(self._psql.stdin.fileno())
        self._queue: Queue[bytes | None] = Queue(_WAITING)
        self._answers: Queue[bytes | None] = Queue()
        self.broken = False
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._write, self._read)]
        stack.callback(self._end_threads)
        self._over = stack.enter_context(limited(self._psql, deadline))
        for thread in self._threads:
            thread.start()

    def give(self, text: bytes) -> None:
        """SQL or rows, to be written when it is ready for them."""
        self._queue.put(text)

    @property
    def waiting(self) -> int:
        """How many pieces it has not got yet."""
        return self._queue.qsize()

    def settle(self, ask: bytes = _ASK) -> bytes | None:
        """Waits until all that was given is done, and for an answer; None where psql ended instead."""
        self.give(ask)
        return self._answers.get()

    def finish(self) -> tuple[int, bool, str]:
        """Waits for its end: its exit code, whether the deadline ended it, and its complaint."""
        self._end_threads()
        code = self._psql.wait()
        return code, self._over.is_set(), complaint(self._err) if code or self.broken else ""

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
                if not self.broken:  # else psql has ended, and says why; whoever gives more must not wait for it
                    self._psql.stdin.write(text)
                    self._psql.stdin.flush()
            except BrokenPipeError:
                self.broken = True
        with suppress(BrokenPipeError):
            self._psql.stdin.close()

    def _read(self) -> None:
        assert self._psql.stdout
        for line in self._psql.stdout:
            if line.startswith(_READY):
                self._answers.put(line[len(_READY) :].strip())
            elif re.fullmatch(rb"COPY \d+\n", line):
                self.counts.append(int(line[5:]))
        self._psql.stdout.close()
        self._answers.put(None)


class Dealer:
    """Takes a script apart (:class:`~.script.Sink`): SQL for one session, rows for those that have the least to do."""

    def __init__(self, first: _Session, others: Sequence[_Session], what: str, do: str) -> None:
        self._first, self._others, self._what, self._do = first, others, what, do
        self._before_rows = b""
        self._settings = b""
        self._busy: set[_Session] = set()  # with what the others must not overtake
        self._taking: list[_Session] = []  # rows of the block that is open
        self._dealt = 0
        # Where the first session's lines stand in the dump: most rows are not among them.
        self._line, self._theirs = 1, 1
        self._places: list[tuple[int, int]] = []

    def before_rows(self, text: bytes) -> None:
        """SQL for the moment when all tables are there, and none has a row."""
        self._before_rows = text

    def sql(self, text: bytes) -> None:
        """Whole lines of SQL between two COPY blocks."""
        lines = text.count(b"\n")
        self._places.append((self._theirs, self._line))
        self._theirs += lines
        self._line += lines
        if not _STATEMENT.search(text):
            self._first.give(text)  # comments, if they are not within a statement: nobody waits for them
            return
        for each in self._others:
            self._wait_for(each)  # a statement may count on rows that stand before it
        self._give(self._first, text)

    def rows(self, block: Block, text: bytes) -> None:
        """Whole lines of a block; at least once for each block, perhaps with nothing."""
        if not self._taking:
            self._begin(block)
        if self._dealt > _SHARED_FROM and self._first not in self._taking:
            for each in self._others:
                if each not in self._taking:
                    self._take(each, block)
        if text:
            session = min(self._taking, key=lambda each: each.waiting)
            self._give(session, text)
            self._taking.remove(session)  # of those that have as little to do, the next one
            self._taking.append(session)
            self._dealt += len(text)

    def end(self, block: Block) -> None:
        """The block is complete."""
        for each in self._taking:
            self._give(each, b"\\.\n")
        if self._first in self._taking:
            self._theirs += 2 + block.rows
        self._taking = []
        self._line += 2 + block.rows

    def finish(self, contents: Contents) -> None:
        """Waits for the end of all.

        :raises BalikError: the server refused something, took another number of rows than the dump has, or the deadline
            is over.
        """
        everyone = [*self._others, self._first]
        for each in everyone:
            self._end(each)
        taken: Counter[int] = Counter()
        for each in everyone:
            for block, count in zip(each.blocks, each.counts):
                taken[id(block)] += count
        if [taken[id(block)] for block in contents.blocks] != [block.rows for block in contents.blocks]:
            raise BalikError(
                self._what,
                f"the server took {sum(taken.values()):,} rows",
                f"{contents.rows:,}, as in the backup",
                self._do,
            )

    def _begin(self, block: Block) -> None:
        if self._before_rows:
            self._give(self._first, self._before_rows)
            self._theirs += self._before_rows.count(b"\n")
            self._before_rows = b""
        for each in self._others:
            self._wait_for(each)
        answer = self._wait_for(self._first, _ASK_SETTINGS)
        within, _, settings = (answer or b"false" + _APART + self._settings).partition(_APART)
        if settings != self._settings:
            self._settings = settings
            for each in self._others:  # rows are read with what the script has set before them
                each.give(settings.replace(_APART, b"\n") + b"\n")
        self._dealt = 0
        self._take(self._first if within == b"true" else self._others[0], block)

    def _take(self, session: _Session, block: Block) -> None:
        session.blocks.append(block)
        self._give(session, block.statement)
        self._taking.append(session)

    def _give(self, session: _Session, text: bytes) -> None:
        if session.broken:
            self._end(session)
        session.give(text)
        self._busy.add(session)

    def _wait_for(self, session: _Session, ask: bytes = _ASK) -> bytes | None:
        """The answer; None where it has nothing to do."""
        if session not in self._busy:
            return None
        answer = session.settle(ask)
        if answer is None:
            self._end(session)
        self._busy.remove(session)
        self._theirs += session is self._first  # the line that asks for its answer
        return answer

    def _end(self, session: _Session) -> None:
        code, over, said = session.finish()
        if over:
            raise too_long(self._what, session.deadline)
        if said:
            raise BalikError(self._what, f"psql ended with {code}: {self._place(session, said)}", do=self._do)

    def _place(self, session: _Session, said: str) -> str:
        """A complaint with its line in the dump, or the table whose rows were refused."""
        found = re.match(r"line (\d+): (.*)", said, re.S)
        if session is not self._first:
            done = len(session.counts)
            table = session.blocks[done].table if done < len(session.blocks) else ""
            return f"in the rows of {table}: {found[2] if found else said}" if table else said
        if not found:
            return said
        at = int(found[1])
        index = bisect_right(self._places, (at, self._line)) - 1
        theirs, ours = self._places[index] if index >= 0 else (at, at)
        return f"line {ours + at - theirs}: {found[2]}"


def _widen(pipe: int) -> None:
    """A pipe of 1 MB saves some thousand changes between the two processes."""
    import fcntl

    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, 1031, CHUNK)  # F_SETPIPE_SZ
