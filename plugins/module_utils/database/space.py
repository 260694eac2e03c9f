"""Whether a restored copy and a backup of now fit on the disks, as far as that can be known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError

try:
    import psycopg
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

    from .catalog import Database

_EMPTY = 8 * 1024**2  # what CREATE DATABASE takes
_LOCAL = ("", "localhost", "127.0.0.1", "::1")


def human(size: float) -> str:
    """``1.1 GB`` of 1,181,116,006."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GB" if size < 1024 else f"{size / 1024:.1f} TB"


def estimate(live: int, script: int) -> int:
    """Bytes that a restored copy will take, judged by the live database and the size of the dump's SQL.

    The live one is the best measure, but may have grown, been emptied or be bloated since the backup. A table takes
    between 0.8 and 2 times the space of the SQL that makes it, with its indexes.

    :param script: 0 when not known.
    """
    return _EMPTY + min(max(live, int(script * 0.8)), script * 2) if script else live


def whole_path(folder: Path) -> None:
    """Refuses a folder that each process would take for another.

    :raises BalikError: it is a relative path.
    """
    if not folder.is_absolute():
        raise BalikError(
            "db_restore_backup_dir", f"found {str(folder)!r}, a relative path", "/folder", "Write the whole path."
        )


def check(admin: Connection[Any], host: str, live: Database, script: int, path: Path, folder: str, ignore: bool) -> str:
    """Says what is needed and what is free.

    :param script: bytes of the dump's SQL; 0 when not known.
    :param folder: where the backup of now goes; it may not be there yet.
    :param ignore: only say, do not refuse.
    :raises BalikError: something does not fit, or nothing can be written into ``folder``.
    """
    size = admin.execute("select pg_database_size(%s::oid)", [live.oid]).fetchone()[0]  # type: ignore[index]
    parent = Path(folder)
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if not folder or not os.access(parent, os.W_OK | os.X_OK):
        raise BalikError(
            "db_restore_backup_dir", f"{folder!r} cannot be written by this user", "a folder for the backup of now"
        )
    # Compressed, and without its indexes, a database is rarely more than half of itself.
    needs = [(parent, f"the backup of now in {folder}", size // 2)]
    copy = estimate(size, script)
    data = _data_folder(admin, host, live)
    if data:
        needs.append((data, "the restored copy", copy))
    for place, _, _ in needs:
        disk = os.statvfs(place)
        together = [need for need in needs if need[0].stat().st_dev == place.stat().st_dev]
        wanted, free = sum(need for _, _, need in together), disk.f_bavail * disk.f_frsize
        if wanted > free and not ignore:
            raise BalikError(
                f"the disk of {place}",
                f"{human(free)} free",
                f"about {human(wanted)}, for " + " and ".join(f"{what} ({human(need)})" for _, what, need in together),
                "Make room, or set db_restore_ignore_space if the estimate is wrong.",
            )
    if data:
        return f"about {human(copy)} needed on the server's disk, there is room"
    return f"about {human(copy)} needed on the server's disk, whose free space cannot be seen from here"


def _data_folder(admin: Connection[Any], host: str, live: Database) -> Path | None:
    """Where the server would put the copy, if that is on this host and proves to be this very server's."""
    if host not in _LOCAL and not host.startswith("/"):
        return None
    try:
        row = admin.execute(
            "select current_setting('data_directory'), pg_tablespace_location(%s::oid),"
            " extract(epoch from (pg_stat_file('postmaster.pid')).modification)::bigint",
            [live.row["dattablespace"]],
        ).fetchone()
        assert row
        data, tablespace, started = row
        if int(Path(data, "postmaster.pid").stat().st_mtime) != started:
            return None
    except (psycopg.Error, OSError):
        return None
    return Path(tablespace or data)
