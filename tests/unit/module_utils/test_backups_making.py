"""One process makes a backup of a name; what a killed one left does not stand in the next one's way."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.backups.making import _part_of, _publish
from ansible_collections.balik.rollback.plugins.module_utils.backups.places import give_name
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError


def test_what_a_killed_start_left_is_removed(tmp_path: Path) -> None:
    final = tmp_path / "before.sql"
    (tmp_path / "before.sql.part-1").write_text("half")
    (tmp_path / "another.sql.part-1").write_text("half")
    with _part_of(final) as part:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "another.sql.part-1", part])


def test_who_is_at_it_is_left_alone_and_told(tmp_path: Path) -> None:
    final, theirs = tmp_path / "before.sql", tmp_path / "before.sql.part-1"
    theirs.write_text("half")
    handle = os.open(theirs, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(BalikError, match="another process is making it"), _part_of(final):
            pass
    finally:
        os.close(handle)
    assert theirs.read_text() == "half"
    assert list(tmp_path.iterdir()) == [theirs]


def test_one_that_is_finished_in_that_moment_stops_nobody(tmp_path: Path) -> None:
    # To open it fails as it does for a file that was there when the folder was listed, and is not any more.
    (tmp_path / "before.sql.part-1").symlink_to(tmp_path / "finished")
    with _part_of(tmp_path / "before.sql") as part:
        assert part.exists()


def test_what_nobody_may_look_at_is_named(tmp_path: Path) -> None:
    # As another user's file would be; root may open any.
    (tmp_path / "before.sql.part-1").symlink_to(tmp_path / "before.sql.part-1")
    told = r"before\.sql\.part-1: an unfinished backup that cannot be looked at: Too many"
    with pytest.raises(BalikError, match=told), _part_of(tmp_path / "before.sql"):
        pass
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["before.sql", "before.dir"])
def test_a_file_is_locked_by_who_may_write_to_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As flock(2) says of NFS, which gives an exclusive lock on a file only to who has opened it for writing."""
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        writing = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if not writing and not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with _part_of(tmp_path / name) as part:
        assert part.exists()


@pytest.mark.parametrize("folders", [True, False])
def test_a_folder_without_locks_is_named(tmp_path: Path, folders: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS is without its lock daemon."""
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        if folders or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    told = f"{tmp_path}: nothing can be locked there"
    with pytest.raises(BalikError, match=told), _part_of(tmp_path / "before.sql"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_folder_without_hard_links_gets_it_too(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CIFS, exFAT and FUSE have none; a name that is taken is refused before that is found."""
    real = os.link

    def link(source: Path, target: Path) -> None:
        if target.exists():
            real(source, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    part, final = tmp_path / "part", tmp_path / "before.sql"
    part.write_text("whole")
    _publish(part, final, {"sha256": "0"})
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "before.sql", "before.sql.manifest.json", "before.sql.sha256",
    ]  # fmt: skip
    part.write_text("another")
    with pytest.raises(BalikError, match=r"before\.sql in .*: exists already"):
        give_name(part, final)
    assert (part.read_text(), final.read_text()) == ("another", "whole")
