"""A backup of any format poured into an empty database, as the superuser's programs do it, and no further."""

from __future__ import annotations

import re
import secrets
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import BalikError
from . import backup
from .access import Access, Deadline, Programs, complaint, limited, run, too_long
from .script import CHUNK, Contents, Reader

try:
    from psycopg import conninfo
except ImportError:  # said by `check`, on the host where it is missing
    conninfo = None  # type: ignore[assignment]


# The first minor versions whose psql can be kept from obeying a script's commands (CVE-2025-8714).
_RESTRICTS = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}


def fill(
    access: Access,
    database: str,
    path: Path,
    kind: str,
    programs: Programs,
    deadline: Deadline,
    jobs: int = 1,
    settings: Mapping[str, str] | None = None,
    digests: bool = False,
) -> Contents:
    """Restores a backup into the empty ``database``, and stops at the first error.

    :param kind: as :func:`backup.kind_of` says.
    :param jobs: processes, where the format allows it.
    :param settings: for the sessions that restore.
    :param digests: take the SHA-256 of each table's rows, too; an archive is read a second time for that.
    :returns: what was restored; of an archive without ``digests`` only what its table of contents says.
    :raises BalikError: the backup is spoiled, or the server refused some of it.
    """
    environment = access.environment(database, settings)
    if kind not in backup.ARCHIVES:
        return _feed(database, path, kind, programs, deadline, environment, digests)
    target = conninfo.make_conninfo(dbname=database)
    command = [programs["pg_restore"], "-w", "--exit-on-error", "-j", str(jobs), "-d", target, str(path.absolute())]
    run(command, environment, deadline, f"restoring {path}")
    if digests:
        return backup.inspect(path, kind, programs, deadline, digests=True)
    return backup.listed(path, programs, deadline)


def _feed(
    database: str,
    path: Path,
    kind: str,
    programs: Programs,
    deadline: Deadline,
    environment: Mapping[str, str],
    digests: bool,
) -> Contents:
    """Through psql, each line judged before psql gets it; then psql's own count of rows against the dump's."""
    flags = ["-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse"]
    reader = Reader(str(path), digests)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        psql = subprocess.Popen(
            [programs["psql"], *flags, *restricted(programs), "-f", "-"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env=environment,
        )
        assert psql.stdin
        _widen(psql.stdin.fileno())
        contents = reader.contents
        with limited(psql, deadline) as over:
            try:
                with backup.opened(path, kind, programs, deadline) as stream:
                    for chunk in iter(lambda: stream.read(CHUNK), b""):
                        psql.stdin.write(reader.feed(chunk))
                psql.stdin.write(reader.last())
                contents = reader.finish()
                psql.stdin.close()
            except BrokenPipeError:  # psql ended before the dump did; it says why
                with suppress(BrokenPipeError):
                    psql.stdin.close()
            code = psql.wait()
        if over.is_set():
            raise too_long(f"restoring {path}", deadline)
        if code:
            raise BalikError(
                f"restoring {path} into {database}",
                f"psql ended with {code}: {complaint(err)}",
                do=f"Nothing else was touched. {backup.ANOTHER}",
            )
        out.seek(0)
        done = [int(found) for found in re.findall(rb"^COPY (\d+)$", out.read(), re.M)]
    if done != [block.rows for block in contents.blocks]:
        raise BalikError(
            f"restoring {path}", f"the server took {sum(done):,} rows", f"{contents.rows:,}, as in the backup"
        )
    return contents


def restricted(programs: Programs) -> Sequence[str]:
    """What makes psql refuse every backslash command of the script; nothing where psql is too old to know it."""
    told = subprocess.run([programs["psql"], "--version"], capture_output=True, text=True, check=True, timeout=30)
    version = re.search(r"\) (\d+)\.(\d+)", told.stdout)
    major, minor = (int(version[1]), int(version[2])) if version else (programs.major, 0)
    if minor < _RESTRICTS.get(major, 0):
        return ()
    return "-c", f"\\restrict {secrets.token_hex(16)}"


def _widen(pipe: int) -> None:
    """A pipe of 1 MB saves some thousand changes between the two processes."""
    import fcntl

    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, 1031, CHUNK)  # F_SETPIPE_SZ
