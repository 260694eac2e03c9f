"""The manifest beside a backup: what it was when it was made, so that what is read later can be told from it.

``pre-golive-snapshot-20260110.sql.manifest.json`` is one JSON object:

====================  ==============================================================================================
``format``            1
``file``, ``kind``    the backup's name; ``plain``, ``gz``, ``zst``, ``custom`` or ``directory``
``database``          its name on the server
``size``, ``sha256``  bytes and SHA-256 in hex; of a directory, ``files`` has them of each file
``server_version``    ``15.8``; ``tool`` and ``pg_dump`` are what made it
``taken``             the moment that the rows are of, in ISO 8601 with a zone; ``finished`` the moment it was whole
``tables``            ``{"public.documents": {"rows": …, "inserted": …, "changed": …, "deleted": …}}``: rows counted at
                      that very moment, and the server's counters of writes since ``statistics_since``
====================  ==============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BalikError
from ..units import parse_time
from .choosing import shape_of

FORMAT = 1
ENDING = ".manifest.json"
#: Beside a backup that was made here for another place, and has not been stored there yet.
UNSTORED = ".unstored"
_CHUNK = 1024 * 1024
_NEEDED = {
    "format": int,
    "file": str,
    "kind": str,
    "database": str,
    "size": int,
    "sha256": str,
    "taken": str,
    "server_version": str,
}
_OF_A_FILE = {"size": int, "sha256": str}
_OF_A_TABLE = {"rows": int, "inserted": int, "changed": int, "deleted": int}
_TYPES = {int: "number", str: "text"}
_ANEW = "Write it anew, or take it away."


def manifest_of(path: Path) -> Path:
    """Where a backup's manifest stands."""
    return path.with_name(path.name + ENDING)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest beside a backup; None where there is none.

    :raises BalikError: there is one, and it cannot be read as such.
    """
    place = manifest_of(path)
    if not os.path.lexists(place):
        return None
    return parse_manifest(read_text(place), str(place), path.name)


def read_text(path: Path) -> str:
    """A small text file beside a backup.

    :raises BalikError: it cannot be read.
    """
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise BalikError(str(path), f"cannot be read: {error.strerror}", "a file", _ANEW) from None


def decoded(data: bytes, what: str) -> str:
    """The text of such a file.

    :raises BalikError: it is none.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BalikError(what, "is no text in UTF-8", "one as balik writes it", _ANEW) from None


def parse_manifest(text: str, what: str, name: str) -> dict[str, Any]:
    """A manifest's text, with what every manifest has.

    :param what: the manifest, for messages.
    :param name: of the backup that it stands beside.
    :raises BalikError: it is none, or another backup's.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BalikError(what, "is no JSON object", "a manifest as balik writes it", _ANEW)
    wrong = [*_wrong(found, _NEEDED)]
    for group, shape, needed in (("files", _OF_A_FILE, True), ("tables", _OF_A_TABLE, False)):
        each = found.get(group) or {}
        if isinstance(each, dict):
            wrong += [said for key, value in each.items() for said in _wrong(value, shape, f"{group}.{key}", needed)]
        else:
            wrong.append(f"{group} is {_shown(each)}, no object")
    if wrong:
        raise BalikError(what, "; ".join(wrong[:5]), "a manifest as balik writes it", _ANEW)
    if found["format"] != FORMAT:
        raise BalikError(what, f"a manifest of format {found['format']}", f"format {FORMAT}", _ANEW)
    if found["file"] != name:
        raise BalikError(what, f"the manifest of {found['file']}", name, _ANEW)
    parse_time(found["taken"], f"taken in {what}")
    return found


def _wrong(found: object, shape: Mapping[str, type], at: str = "", needed: bool = True) -> Iterator[str]:
    """Each key that is missing, or of another type, as a sentence."""
    if not isinstance(found, dict):
        yield f"{at} is {_shown(found)}, no object"
        return
    for key, kind in shape.items():
        value, where = found.get(key), f"{at}.{key}" if at else key
        if value is None:
            if needed:
                yield f"{where} is missing"
        elif type(value) is not kind:  # true is an int to Python
            yield f"{where} is {_shown(value)}, no {_TYPES[kind]}"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:40]


def sums(path: Path) -> dict[str, Any]:
    """``size`` and ``sha256`` of a backup; of a directory also ``files``, and the sum is that of their list."""
    if not path.is_dir():
        return {"size": path.stat().st_size, "sha256": digest(path)}
    files = {each.name: {"size": each.stat().st_size, "sha256": digest(each)} for each in sorted(path.iterdir())}
    listed = json.dumps(files, sort_keys=True).encode()
    return {
        "size": sum(each["size"] for each in files.values()),
        "sha256": hashlib.sha256(listed).hexdigest(),
        "files": files,
    }


def digest(path: Path) -> str:
    """SHA-256 of a file in hex."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            found.update(chunk)
    return found.hexdigest()


def differences(manifest: Mapping[str, Any], **found: Any) -> list[str]:
    """Each thing in which what was found differs from the manifest, as a sentence.

    :param found: what was read: ``size``, ``sha256``, ``files``, ``kind``, ``database``; what is None is not compared.
    """
    said = []
    files = found.pop("files", None)
    wanted = manifest.get("files")
    if files is not None and wanted is not None:
        said += [f"{name} is missing" for name in sorted(set(wanted) - set(files))]
        said += [f"{name} is not in the manifest" for name in sorted(set(files) - set(wanted))]
        said += [
            f"{name} has other content" for name in sorted(set(files) & set(wanted)) if files[name] != wanted[name]
        ]
    for key, value in found.items():
        if value is not None and manifest.get(key) is not None and manifest[key] != value:
            said.append(f"{key} is {value}, {manifest[key]} in the manifest")
    return said


def verify(path: Path, kind: str, database: str = "", accept: Sequence[str] = ()) -> tuple[dict[str, Any] | None, str]:
    """A backup compared with its manifest; the manifest, and a sentence.

    :raises BalikError: they differ, and in what.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return None, "it has no manifest"
    return manifest, agree(path, manifest, kind, database, accept)


def agree(path: Path, manifest: Mapping[str, Any], kind: str, database: str = "", accept: Sequence[str] = ()) -> str:
    """A sentence for a backup that is as a manifest says.

    :param accept: ``database NAME``: it may be of that one, too.
    :raises BalikError: it is not, and in what.
    """
    was = f"database {manifest['database']}"
    wanted = None if was in accept else database or None
    wrong = differences(manifest, kind=kind, database=wanted, **sums(path))
    if wrong:
        do = "Take another copy, or an earlier backup."
        if wanted and wanted != manifest["database"]:
            do += f" If {wanted} was called so then, list '{was}' in db_restore_accept."
        raise BalikError(str(path), "; ".join(wrong), f"as {manifest['file']}{ENDING} says", do)
    rows = sum(each.get("rows") or 0 for each in (manifest.get("tables") or {}).values())
    return f"as its manifest says: taken {manifest['taken']}, {rows:,} rows"


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Writes it so that a reader finds all of it or nothing, for its owner only."""
    place = manifest_of(path)
    part = place.with_name(place.name + f".part-{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(manifest, file, ensure_ascii=False, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def never_stored(path: Path, pattern: str) -> str:
    """A sentence about others of a pattern that were made in a backup's folder for another place, and never stored."""
    names = sorted(each.name.removesuffix(UNSTORED) for each in path.parent.glob(f"*{UNSTORED}"))
    others = [
        name
        for name in names
        if shape_of(pattern).fullmatch(name) and name != path.name and path.with_name(name).exists()
    ]
    if not others:
        return ""
    return (
        f". BEWARE: {', '.join(others)} was made in {path.parent}, too, and never stored: remove it, or store it with "
        "its name as db_restore_backup"
    )
