"""The rows of a backup poured into an empty database, without indexes and constraints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..database import backup
from ..database.access import Programs
from ..database.filling import restricted
from ..database.script import CHUNK, Block, Reader
from ..database.sessions import Dealer, sessions
from ..errors import BalikError
from .psql import Psql

# What pg_dump writes after the last row: all of it would only cost time.
_POST_DATA = (
    b"CONSTRAINT|FK CONSTRAINT|CHECK CONSTRAINT|INDEX|INDEX ATTACH|STATISTICS|TRIGGER|RULE|POLICY|ROW SECURITY"
    b"|PUBLICATION|PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|SUBSCRIPTION|EVENT TRIGGER"
)
_AFTER_ROWS = re.compile(rb"^--\n-- Name: [^\n]*; Type: (?:" + _POST_DATA + rb"); Schema: [^\n]*\n--\n", re.M)
_INSERT = re.compile(rb"^INSERT INTO ", re.M)
_OF_ARCHIVES = ("--section=pre-data", "--section=data", "--no-owner", "--no-privileges")


def load(scratch: Psql, path: Path, jobs: int, before_rows: Sequence[str] = ()) -> None:
    """Pours tables and rows of a backup into the empty database ``scratch``. Each line is judged before psql gets it.

    :param jobs: sessions that take rows at the same time.
    :param before_rows: SQL for the moment when all tables are there and none has a row.
    :raises BalikError: the backup is spoiled or would do more than fill a database, the server refused some of it, or
        the deadline is over.
    """
    kind, programs = backup.kind_of(path), Programs(Path(scratch.programs), 0)
    # A dump names its own types without their schema only where it sets its own path; and nothing here must last.
    environment = scratch.access.environment(scratch.database, {"synchronous_commit": "off", **scratch.settings})
    what = f"loading {path} to compare with"
    with sessions(programs, restricted(programs), environment, scratch.deadline, jobs, what) as dealer:
        dealer.before_rows("".join(f"{each};\n" for each in before_rows).encode())
        reader = Reader(str(path), sink=_UntilRowsEnd(dealer))
        with backup.opened(path, kind, programs, scratch.deadline, _OF_ARCHIVES) as stream:
            for chunk in iter(lambda: stream.read(CHUNK), b""):
                reader.feed(chunk)
        dealer.finish(reader.finish())


class _UntilRowsEnd:
    """Lets a dump pass up to where its indexes and constraints begin."""

    def __init__(self, dealer: Dealer) -> None:
        self._dealer = dealer
        self._over = False
        self.end = dealer.end

    def sql(self, text: bytes) -> None:
        after = None if self._over else _AFTER_ROWS.search(text)
        if not self._over:
            self._dealer.sql(text[: after.start()] if after else text)
        self._over = self._over or bool(after)
        if self._over and _INSERT.search(text, after.end() if after else 0):
            raise self._no_end()

    def rows(self, block: Block, text: bytes) -> None:
        if self._over:
            raise self._no_end()
        self._dealer.rows(block, text)

    @staticmethod
    def _no_end() -> BalikError:
        return BalikError("the backup", "has rows behind the first index or constraint", "all rows before them")
