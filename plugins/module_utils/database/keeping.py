"""The backup of what is live now, made before anything changes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from ..files import sync_folder, write_whole
from ..units import iso
from . import backup
from .access import Deadline, Programs, run
from .task import scalar

if TYPE_CHECKING:
    from psycopg import Connection

    from .task import Task


def place(task: Task, ending: str = "") -> Path:
    """Where the backup of now goes: ``<folder>/<database>-<run>…``; it tells of its format by its ending."""
    name = re.sub(r"[^\w.-]", "_", task.database)
    return Path(task.folder) / f"{name}-{task.run}{ending or ('.dir' if task.workers > 1 else '.dump')}"


def made_at(path: Path) -> str:
    """When a backup of now was made; empty where it is not there."""
    return iso(datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)) if path.exists() else ""


def own(admin: Connection[Any], task: Task) -> None:
    """Refuses names in the folder that a restore of another database has, on another server or with a like name.

    :raises BalikError: whose they are.
    """
    path = place(task, ".of")
    found = read(path)
    if found and found != _whose(admin, task):
        raise BalikError(
            str(path),
            f"it belongs to database {found.partition(' ')[2]} of another server, or of another name, in this run",
            "a folder of its own for each",
            "Set another db_restore_backup_dir for one of them.",
        )


def claim(admin: Connection[Any], task: Task) -> None:
    """From now on these names in the folder are this database's.

    :raises BalikError: they are another's, or nothing can be written there.
    """
    own(admin, task)
    if not read(place(task, ".of")):
        write(place(task, ".of"), _whose(admin, task))


def _whose(admin: Connection[Any], task: Task) -> str:
    return f"{scalar(admin, 'select system_identifier from pg_control_system()')} {task.database}"


def read(path: Path) -> str:
    """What :func:`write` wrote; empty where there is no such file.

    :raises BalikError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BalikError(
            str(path),
            f"cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}",
            "what this run wrote, or no such file",
            "Give db_restore_backup_dir and its files to the user who restores (db_restore_become_user).",
        ) from None


def write(path: Path, text: str) -> None:
    """A file of the run, for its owner only, whole or not at all.

    :raises BalikError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, text, mode=0o600)
    except OSError as error:
        raise BalikError(str(path), f"cannot be written: {error.strerror}", do="Nothing was changed.") from None


def keep(
    task: Task, programs: Programs, deadline: Deadline, final: Path, options: Sequence[str] = (), renew: bool = False
) -> Path:
    """Dumps the live database, or what ``options`` choose of it, into ``final``, whole or not at all.

    :param renew: make it again where it is there already.
    :raises BalikError: ``pg_dump`` failed, or ``pg_restore`` cannot read what it wrote.
    """
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for stale in final.parent.glob(f"{final.name}.part-*"):
        remove(stale)
    if renew or not final.exists():
        part = final.with_name(f"{final.name}.part-{os.getpid()}")
        form = ["-Fd", "-j", str(task.workers)] if final.suffix == ".dir" else ["-Fc"]
        command = [programs["pg_dump"], "-w", *form, "-Z", "1", *options, "-f", str(part)]
        environment = task.access.environment(task.database)
        environment.pop("PGCLIENTENCODING")  # in the database's own: not all of SQL_ASCII is UTF-8
        try:
            run(command, environment, deadline, f"the backup of {task.database} as it is now")
            backup.listed(part, programs, deadline)
            part.replace(final)
        except BaseException:
            remove(part)
            raise
        sync_folder(final.parent)
    backup.listed(final, programs, deadline)
    return final


def remove(path: Path) -> None:
    """Takes a file or a folder away, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
