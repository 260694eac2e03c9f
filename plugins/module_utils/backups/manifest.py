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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BalikError
from ..units import parse_time

FORMAT = 1
ENDING = ".manifest.json"
_CHUNK = 1024 * 1024
_NEEDED = {"format": int, "file": str, "kind": str, "database": str, "size": int, "taken": str, "server_version": str}


def manifest_of(path: Path) -> Path:
    """Where a backup's manifest stands."""
    return path.with_name(path.name + ENDING)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest beside a backup; None where there is none.

    :raises BalikError: there is one, and it cannot be read as such.
    """
    place = manifest_of(path)
    if not place.is_file():
        return None
    try:
        text = place.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BalikError(str(place), f"cannot be read: {error}", "a manifest") from None
    return parse_manifest(text, str(place))


def parse_manifest(text: str, what: str) -> dict[str, Any]:
    """A manifest's text, with what every manifest has.

    :raises BalikError: it is none.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BalikError(what, "is no JSON object", "a manifest as balik writes it", "Write it anew, or take it away.")
    wrong = [key for key, kind in _NEEDED.items() if not isinstance(found.get(key), kind)]
    if wrong or found["format"] != FORMAT:
        said = f"without {', '.join(wrong)}" if wrong else f"of format {found['format']}"
        raise BalikError(what, f"a manifest {said}", f"format {FORMAT}", "Write it anew, or take it away.")
    parse_time(found["taken"], f"taken in {what}")
    return found


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


def verify(path: Path, kind: str, database: str = "") -> tuple[dict[str, Any] | None, str]:
    """A backup compared with its manifest; the manifest, and a sentence.

    :raises BalikError: they differ, and in what.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return None, "it has no manifest"
    return manifest, agree(path, manifest, kind, database)


def agree(path: Path, manifest: Mapping[str, Any], kind: str, database: str = "") -> str:
    """A sentence for a backup that is as a manifest says.

    :raises BalikError: it is not, and in what.
    """
    wrong = differences(manifest, kind=kind, database=database or None, **sums(path))
    if wrong:
        raise BalikError(
            str(path),
            "; ".join(wrong),
            f"as {manifest['file']}{ENDING} says",
            "Take another copy, or an earlier backup.",
        )
    rows = sum(each.get("rows") or 0 for each in (manifest.get("tables") or {}).values())
    return f"as its manifest says: taken {manifest['taken']}, {rows:,} rows"


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Writes it so that a reader finds all of it or nothing, for its owner only."""
    place = manifest_of(path)
    part = place.with_name(place.name + f".part-{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(manifest, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(place)
