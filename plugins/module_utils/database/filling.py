"""A backup of any format poured into an empty database, as the superuser's programs do it, and no further."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BalikError
from . import backup
from .access import Access, Deadline, Programs, run
from .script import CHUNK, Contents, Reader
from .sessions import sessions

try:
    from psycopg import conninfo
except ImportError:  # said by `check`, on the host where it is missing
    conninfo = None  # type: ignore[assignment]


# The first minor versions whose psql can be kept from obeying a script's commands (CVE-2025-8714).
_RESTRICTS = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
# Another copy of such a dump has the same error: it is how it was made.
_NOT_THERE = re.compile(r"ERROR: (relation|schema|type|function|index|table|sequence) .* does not exist")
_MADE_OF_LESS = (
    "Nothing else was touched. The dump needs or drops what it does not create (made with pg_dump -t, -n, --section, or"
    " --clean without --if-exists?): take a backup of the whole database."
)


def fill(
    access: Access,
    database: str,
    path: Path,
    kind: str,
    programs: Programs,
    deadline: Deadline,
    jobs: int = 1,
    settings: Mapping[str, str] | None = None,
    sums: bool = False,
) -> Contents:
    """Restores a backup into the empty ``database``, and stops at the first error.

    :param kind: as :func:`backup.kind_of` says.
    :param jobs: how many processes, or sessions, take rows at the same time.
    :param settings: for the sessions that restore.
    :param sums: take the sum of each table's rows, too; an archive is read a second time for that.
    :returns: what was restored; of an archive without ``sums`` only what its table of contents says.
    :raises BalikError: the backup is spoiled, or the server refused some of it.
    """
    try:
        return _fill(access.environment(database, settings), database, path, kind, programs, deadline, jobs, sums)
    except BalikError as error:
        if _NOT_THERE.search(error.found):
            raise BalikError(error.what, error.found, error.expected, _MADE_OF_LESS) from None
        raise


def _fill(
    environment: Mapping[str, str],
    database: str,
    path: Path,
    kind: str,
    programs: Programs,
    deadline: Deadline,
    jobs: int,
    sums: bool,
) -> Contents:
    if kind not in backup.ARCHIVES:
        what, do = f"restoring {path} into {database}", f"Nothing else was touched. {backup.ANOTHER}"
        with sessions(programs, restricted(programs), environment, deadline, jobs, what, do) as dealer:
            reader = Reader(str(path), sums, dealer)
            with backup.opened(path, kind, programs, deadline) as stream:
                for chunk in iter(lambda: stream.read(CHUNK), b""):
                    reader.feed(chunk)
            contents = reader.finish()
            dealer.finish(contents)
        return contents
    target = conninfo.make_conninfo(dbname=database)
    command = [programs["pg_restore"], "-w", "--exit-on-error", "-j", str(jobs), "-d", target, str(path.absolute())]
    run(command, environment, deadline, f"restoring {path}")
    if sums:
        return backup.inspect(path, kind, programs, deadline, sums=True)
    return backup.listed(path, programs, deadline)


def restricted(programs: Programs) -> Sequence[str]:
    """What makes psql refuse every backslash command of the script; nothing where psql is too old to know it."""
    told = subprocess.run([programs["psql"], "--version"], capture_output=True, text=True, check=True, timeout=30)
    version = re.search(r"\) (\d+)\.(\d+)", told.stdout)
    major, minor = (int(version[1]), int(version[2])) if version else (programs.major, 0)
    if minor < _RESTRICTS.get(major, 0):
        return ()
    return "-c", f"\\restrict {secrets.token_hex(16)}"
