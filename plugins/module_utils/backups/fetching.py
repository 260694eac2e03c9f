"""The backup that is meant, brought to this host and compared with its manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..database.access import Deadline
from ..database.backup import kind_of
from ..database.space import human
from ..errors import BalikError
from .choosing import Candidate, Choice, choose, is_pattern
from .manifest import ENDING, manifest_of, parse_manifest, verify
from .places import Local, Place

_SUM = ".sha256"


@dataclass(frozen=True)
class Found:
    """A backup on this host."""

    path: Path
    manifest: Mapping[str, Any] | None
    says: str
    changed: bool = False


def look(place: Place, pattern: str, golive: str) -> tuple[Candidate, str]:
    """Which backup of a place is meant, and a sentence.

    :raises BalikError: none is, or it is not there.
    """
    there = place.list()
    if not is_pattern(pattern):
        named = [each for each in there if each.name == pattern]
        if not named:
            names = ", ".join(sorted(each.name for each in there)[:12]) or "nothing"
            raise BalikError(f"{pattern} in {place.title}", "not there", "the backup", f"There is {names}.")
        return named[0], f"{pattern} in {place.title}"
    known = {each.name for each in there}
    choice: Choice = choose(pattern, there, golive, lambda each: _manifest(place, each.name, known))
    return choice.candidate, f"{choice.says} in {place.title}"


def _manifest(place: Place, name: str, known: set[str]) -> dict[str, Any] | None:
    text = place.read(name + ENDING) if name + ENDING in known else None
    return None if text is None else parse_manifest(text, f"{name}{ENDING} in {place.title}")


def fetch(
    place: Place, pattern: str, golive: str, folder: Path, deadline: Deadline, database: str = "", dry: bool = False
) -> Found:
    """The backup that is meant, in ``folder``, or where it lies if that is on this host already.

    What was fetched before and is as its manifest says is not fetched again; what broke off is gone on with, and
    fetched anew if the whole is not what the manifest says.

    :param dry: only say what would be fetched.
    :raises BalikError: it is not what its manifest says, does not fit on the disk, or does not come in time.
    """
    candidate, says = look(place, pattern, golive)
    if isinstance(place, Local):
        return _verified(place.folder / candidate.name, says, database, False)
    final = folder / candidate.name
    if final.exists():
        return _verified(final, f"{says}, fetched before", database, False)
    if dry:
        return Found(final, None, f"would fetch {says} ({human(candidate.size)}) to {folder}", True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f"{candidate.name}.part"
    free = shutil.disk_usage(folder).free + (part.stat().st_size if part.exists() else 0)
    if candidate.size > free:
        raise BalikError(
            f"the disk of {folder}", f"{human(free)} free", f"{human(candidate.size)} for {candidate.name}"
        )
    for ending in (ENDING, _SUM):
        text = place.read(candidate.name + ending)
        if text is not None:
            _write(folder / (candidate.name + ending), text)
    resumed = part.exists()
    while True:
        place.fetch(candidate.name, part, deadline)
        try:
            _whole(part, final, candidate, database)
            break
        except BalikError:
            part.unlink()
            if not resumed:
                raise
            resumed = False  # what had been fetched before was of another file
    if candidate.written:
        os.utime(part, (candidate.written.timestamp(),) * 2)
    part.replace(final)
    return _verified(final, f"{says}, fetched to {folder}", database, True)


def _whole(part: Path, final: Path, candidate: Candidate, database: str) -> None:
    size = part.stat().st_size
    if size != candidate.size:
        raise BalikError(candidate.name, f"{size} bytes came", f"{candidate.size}", "Run it again.")
    beside = manifest_of(final)
    if beside.exists():
        manifest_of(part).unlink(missing_ok=True)
        os.link(beside, manifest_of(part))
        try:
            verify(part, kind_of(part), database)
        finally:
            manifest_of(part).unlink()


def _verified(path: Path, says: str, database: str, changed: bool) -> Found:
    manifest, said = verify(path, kind_of(path), database)
    return Found(path, manifest, f"{says}; {said}", changed)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
