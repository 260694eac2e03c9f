"""The backup that is meant, brought to this host and compared with its manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..database.access import Deadline
from ..database.backup import kind_of, listed_sum, verify_checksum
from ..database.space import human, whole_path
from ..errors import BalikError
from .choosing import Candidate, Choice, choose, is_pattern, judge_named
from .manifest import ENDING, UNSTORED, agree, never_stored, parse_manifest, verify
from .places import Local, Place, private

_SUM = ".sha256"


@dataclass(frozen=True)
class Found:
    """A backup on this host.

    :param warning: why it may be of after go-live; it stands in ``says``, too.
    """

    path: Path
    manifest: Mapping[str, Any] | None
    says: str
    warning: str = ""
    changed: bool = False


def look(place: Place, pattern: str, golive: str) -> tuple[Candidate, str, str]:
    """Which backup of a place is meant, a sentence, and within it a warning where it may be of after go-live.

    :raises BalikError: none is, it is not there, or its manifest says that it was taken after go-live.
    """
    there = place.list()
    known = {each.name for each in there}
    if not is_pattern(pattern):
        named = [each for each in there if each.name == pattern]
        if not named:
            names = ", ".join(sorted(each.name for each in there)[:12]) or "nothing"
            raise BalikError(f"{pattern} in {place.title}", "not there", "the backup", f"There is {names}.")
        manifest = _manifest(place, pattern, known)
        warning = judge_named(f"{pattern} in {place.title}", named[0], manifest, golive)
        written = f", its file of {named[0].written:%Y-%m-%d %H:%M} UTC" if named[0].written and not manifest else ""
        return named[0], f"{pattern} in {place.title}{f'; {warning}' if warning else written}", warning
    choice: Choice = choose(pattern, there, golive, lambda each: _manifest(place, each.name, known))
    return choice.candidate, f"{choice.says} in {place.title}", ""


def _manifest(place: Place, name: str, known: set[str]) -> dict[str, Any] | None:
    text = place.read(name + ENDING) if name + ENDING in known else None
    return None if text is None else parse_manifest(text, f"{name}{ENDING} in {place.title}", name)


def folder_of(place: Place, folder: Path) -> Path:
    """Where in ``folder`` the files of a place stand: those of another place, of the same name, are others.

    :raises BalikError: ``folder`` is a relative path.
    """
    if isinstance(place, Local):
        return place.folder
    whole_path(folder)
    return folder / f"from-{hashlib.sha256(place.identity.encode()).hexdigest()[:16]}"


def fetch(
    place: Place,
    pattern: str,
    golive: str,
    folder: Path,
    deadline: Deadline,
    database: str = "",
    dry: bool = False,
    accept: Sequence[str] = (),
) -> Found:
    """The backup that is meant, in the place's own folder below ``folder``, or where it lies if that is on this host.

    What was fetched before, and is what the place has now, is not fetched again: by its manifest, its ``.sha256``, or
    size and time. What broke off is gone on with where one of the first two can prove the whole.

    :param database: of which its manifest must say it is.
    :param dry: only say what would be fetched.
    :param accept: ``database NAME``: it may be of that one, too.
    :raises BalikError: it is not what its manifest says, does not fit on the disk, or does not come in time.
    """
    found = _fetched(place, pattern, golive, folder, deadline, database, dry, accept)
    beware = "" if isinstance(place, Local) or not is_pattern(pattern) else never_stored(found.path, pattern)
    return replace(found, says=found.says + beware)


def _fetched(
    place: Place,
    pattern: str,
    golive: str,
    folder: Path,
    deadline: Deadline,
    database: str,
    dry: bool,
    accept: Sequence[str],
) -> Found:
    candidate, says, warning = look(place, pattern, golive)
    folder = folder_of(place, folder)
    final = folder / candidate.name
    if isinstance(place, Local):
        manifest, said = verify(final, kind_of(final), database, accept)
        return Found(final, manifest, f"{says}; {said}", warning)
    beside = {ending: place.read(candidate.name + ending) for ending in (ENDING, _SUM)}
    beside[UNSTORED] = None  # the place has all of it
    unstored = (folder / f"{candidate.name}{UNSTORED}").exists()
    provable = beside[ENDING] is not None or bool(listed_sum(beside[_SUM] or "", candidate.name))
    if final.exists():
        try:
            manifest, said = _proved(final, candidate, beside, database, accept)
            _of_the_time(final, candidate, provable)
        except BalikError as error:
            if unstored:
                raise BalikError(
                    str(final),
                    f"made here and never stored, and other than what {place.title} has ({error.found})",
                    do="It would be replaced. Move it and what stands beside it away, and run again.",
                ) from None
            says = f"{says}, other than what was fetched before ({error.found})"
        else:
            # What is half stored keeps its manifest here, and the mark by which the rest is stored.
            half = unstored and beside[ENDING] is None
            _lay(folder, candidate.name, {} if dry or half else beside)
            return Found(final, manifest, f"{says}, fetched before; {said}", warning)
    if dry:
        return Found(final, None, f"would fetch {says} ({human(candidate.size)}) to {folder}", warning, True)
    private(folder)
    part = folder / f"{candidate.name}.part"
    if not provable:  # two halves of two files would be taken for one
        part.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free + (part.stat().st_size if part.exists() else 0)
    if candidate.size > free:
        raise BalikError(
            f"the disk of {folder}", f"{human(free)} free", f"{human(candidate.size)} for {candidate.name}"
        )
    resumed = part.exists()
    while True:
        place.fetch(candidate.name, part, deadline)
        try:
            manifest, said = _proved(part, candidate, beside, database, accept)
            break
        except BalikError:
            part.unlink()
            if not resumed:
                raise
            resumed = False  # what had been fetched before was of another file
    if candidate.written:
        os.utime(part, (candidate.written.timestamp(),) * 2)
    final.unlink(missing_ok=True)  # else a kill would leave the old one with what is said of the new one
    _lay(folder, candidate.name, beside)
    part.replace(final)
    return Found(final, manifest, f"{says}, fetched to {folder}; {said}", warning, True)


def _proved(
    path: Path, candidate: Candidate, beside: Mapping[str, str | None], database: str, accept: Sequence[str]
) -> tuple[dict[str, Any] | None, str]:
    """A file on this host compared with what the place has and says of it now; the manifest, and a sentence.

    :raises BalikError: it is another.
    """
    size = path.stat().st_size
    if size != candidate.size:
        raise BalikError(candidate.name, f"{size} bytes", f"{candidate.size}", "Run it again.")
    text = beside[ENDING]
    if text is not None:
        manifest = parse_manifest(text, candidate.name + ENDING, candidate.name)
        return manifest, agree(path, manifest, kind_of(path), database, accept)
    checksum = listed_sum(beside[_SUM] or "", candidate.name)
    return None, f"it has no manifest; {verify_checksum(path, checksum)}" if checksum else "it has no manifest"


def _of_the_time(path: Path, candidate: Candidate, provable: bool) -> None:
    """Of a file that nothing proves, the time must be the one that the place gives now, to a fraction.

    :raises BalikError: it is another.
    """
    written = candidate.written
    if not provable and (written is None or abs(path.stat().st_mtime - written.timestamp()) > 0.001):
        raise BalikError(str(path), "it has another time", "the time of the file in the place")


def _lay(folder: Path, name: str, beside: Mapping[str, str | None]) -> None:
    for ending, text in beside.items():
        if text is None:
            (folder / (name + ending)).unlink(missing_ok=True)
        else:
            _write(folder / (name + ending), text)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
