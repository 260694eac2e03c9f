"""Files that are whole at every moment."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def write_whole(path: Path, content: str, mode: int = 0o644, group: int = -1) -> None:
    """Replace a file in one step and make it last: a reader, or a crash, finds the old one or the new one.

    :param group: its group's id; -1 leaves that of the process.
    :raises OSError: as the operating system says; the old one is still there.
    """
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names that were made or removed in ``folder`` last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
