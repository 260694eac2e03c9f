"""A backup as it lies there: of what kind, whole or not, and what it will create.

Every format is read as the SQL that it stands for: a plain file as it is, a compressed one through its program,
an archive through ``pg_restore -f -``. One reader therefore judges all of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import BalikError
from .access import Deadline, Programs, complaint, limited, run, too_long
from .script import ANOTHER, CHUNK, Contents, Reader, Sink, codec_of
from .statements import LONGEST, Statements

ARCHIVES = ("custom", "directory")
_TABLE = re.compile(r"CREATE (?:UNLOGGED )?TABLE (.+) \($")
_ENCODING = re.compile(rb"SET client_encoding = '([\w-]+)';\n")
_FIRST_ROWS = re.compile(rb"-- Data for Name: |COPY .* FROM stdin;\n|INSERT INTO ")
_CONVERT = "Turn it into SQL: pg_restore -f x.sql x.tar; do that now, and a truncated one will be noticed."


def kind_of(path: Path) -> str:
    """``plain``, ``gz``, ``zst``, ``custom`` or ``directory``, judged by content, not by name.

    :raises BalikError: it cannot be read, is empty or is nothing of these.
    """
    try:
        if path.is_dir():
            if (path / "toc.dat").is_file():
                return "directory"
            raise BalikError(str(path), "a directory without toc.dat", "a dump made with pg_dump -Fd")
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise BalikError(
            str(path), f"cannot be read: {error.strerror}", do="Check the path and who reads it."
        ) from None
    if not start:
        raise BalikError(str(path), "empty", "a dump", ANOTHER)
    if start.startswith(b"\x1f\x8b"):
        return "gz"
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return "zst"
    if start.startswith(b"PGDMP"):
        return "custom"
    if start.startswith(b"toc.dat\0"):  # pg_restore reads a truncated one for ever
        raise BalikError(str(path), "pg_dump's tar format", "plain, .gz, .zst, custom or directory format", _CONVERT)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BalikError(
            str(path),
            "text in UTF-16, as a redirection in PowerShell writes",
            "the bytes that pg_dump wrote",
            "Convert it: iconv -f UTF-16 -t UTF-8. Let pg_dump write the file itself next time (-f).",
        )
    if b"\0" in start:
        raise BalikError(str(path), "binary, of no known kind", "a dump: plain, .gz, .zst, custom or directory format")
    return "plain"


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a directory."""
    return sum(entry.stat().st_size for entry in path.iterdir()) if path.is_dir() else path.stat().st_size


def verify_checksum(path: Path, given: str = "") -> str:
    """Compares the backup with ``given``, or with ``<path>.sha256`` beside it; says what was done.

    :param given: a SHA-256 in hex, with or without ``sha256:`` before it.
    :raises BalikError: they differ, or the sum cannot be read.
    """
    beside = path.with_name(path.name + ".sha256")
    if given:
        sums = {path.name: given}
    elif beside.is_file():
        sums = _sums(beside.read_text(errors="replace"), path.name, path.is_dir())
    else:
        return "no checksum beside it"
    files = {entry.name: entry for entry in path.iterdir()} if path.is_dir() else {path.name: path}
    if set(files) != set(sums):
        raise BalikError(
            str(path),
            f"without a checksum: {', '.join(sorted(set(files) - set(sums))) or 'none'}; "
            f"missing: {', '.join(sorted(set(sums) - set(files))) or 'none'}",
            f"the files that {beside.name} names",
            ANOTHER,
        )
    for name, expected in sums.items():
        wanted = expected.lower().removeprefix("sha256:")
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise BalikError("the checksum", f"found {expected[:80]!r}", "64 hexadecimal digits of a SHA-256")
        found = _digest(files[name])
        if found != wanted:
            raise BalikError(
                str(files[name]),
                f"its SHA-256 is {found}",
                wanted,
                ANOTHER,
            )
    return "its checksum holds"


def write_checksum(path: Path) -> None:
    """Writes ``<path>.sha256`` beside a file, as ``sha256sum`` does."""
    path.with_name(path.name + ".sha256").write_text(f"{_digest(path)}  {path.name}\n")


def listed_sum(text: str, name: str) -> str:
    """What a list of checksums, as ``sha256sum`` writes it, has for a file; empty where it has nothing."""
    return _sums(text, name).get(name, "")


def _sums(text: str, name: str, directory: bool = False) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and not directory:
        return {name: lines[0][0]}
    return {Path(line[-1].lstrip("*")).name: line[0] for line in lines}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _unpacking(path: Path, kind: str, programs: Programs, options: Sequence[str] = ()) -> list[str]:
    unpack = {"plain": ["cat"], "gz": ["gzip", "-dc"], "zst": ["zstd", "-dcq"]}
    command = unpack.get(kind) or [programs["pg_restore"], "-f", "-", *options]
    if not shutil.which(command[0]):
        raise BalikError(command[0], "not installed on this host", do=f"Run: apt-get install {command[0]}")
    return [*command, str(path.absolute())]


@contextmanager
def opened(
    path: Path, kind: str, programs: Programs, deadline: Deadline, options: Sequence[str] = ()
) -> Iterator[IO[bytes]]:
    """The backup as a stream of SQL. Leaving it fails if the program that unpacks it failed.

    :param options: of ``pg_restore``, for an archive.
    :raises BalikError: it cannot be unpacked to its end.
    """
    if kind == "plain":
        with path.open("rb") as file:
            yield file
        return
    command = _unpacking(path, kind, programs, options)
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err)
        assert process.stdout
        with limited(process, deadline) as over, process.stdout:
            yield process.stdout
            code = process.wait()
        if over.is_set():
            raise too_long(f"reading {path}", deadline)
        if code:
            raise BalikError(
                str(path),
                f"it cannot be read to its end: {complaint(err)}",
                do=ANOTHER,
            )


def listed(path: Path, programs: Programs, deadline: Deadline) -> Contents:
    """What an archive's table of contents says, without reading its data.

    :raises BalikError: ``pg_restore`` cannot read it.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    listing = run([programs["pg_restore"], "-l", str(path)], environment, deadline, f"reading {path}")
    taken_from = re.search(r"^; +Dumped from database version: (\d+)", listing, re.M)
    return Contents(
        dumped_from=int(taken_from[1]) if taken_from else 0,
        tables=len(re.findall(r"^\d+; \d+ \d+ TABLE (?!DATA |ATTACH )", listing, re.M)),
        holds_data=bool(re.search(r"^\d+; \d+ \d+ TABLE DATA ", listing, re.M)),
    )


def glance(path: Path, kind: str, programs: Programs, deadline: Deadline) -> Contents:
    """The little that can be known of a backup without reading all of it.

    :raises BalikError: its beginning, or the end of a plain one, is not as ``pg_dump`` writes.
    """
    if kind in ARCHIVES:
        return listed(path, programs, deadline)
    reader = Reader(str(path))
    with subprocess.Popen(
        _unpacking(path, kind, programs), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        with limited(process, deadline):
            reader.feed(process.stdout.read(65536))
            process.kill()
    reader.begun()
    if kind == "plain":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            if b"\n-- PostgreSQL database dump complete\n" not in file.read():
                raise reader.truncated("somewhere before its end")
    return reader.contents


def inspect(
    path: Path, kind: str, programs: Programs, deadline: Deadline, sums: bool = False, sink: Sink | None = None
) -> Contents:
    """Reads a whole backup without restoring it.

    :param sums: take the sum of each table's rows.
    :param sink: gets what is read, piece by piece.
    :raises BalikError: it is spoiled, or is no dump of one database.
    """
    reader = Reader(str(path), sums, sink)
    with opened(path, kind, programs, deadline) as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            reader.feed(chunk)
    return reader.finish()


class _Enough(Exception):
    """What is wanted of a backup was read; the rest is not."""


def definitions(path: Path, kind: str, programs: Programs, deadline: Deadline) -> Iterator[tuple[str, str]]:
    """Each table as it is written, and what stands between its parentheses; up to the first rows, which come after.

    One that inherits or has a type is left out: not all of it stands there. So is one that would end before its last
    parenthesis, which can then be run as a whole and nothing with it.
    """
    codec, table = "utf-8", ""
    lines: list[str] = []
    with suppress(_Enough), opened(path, kind, programs, deadline, ["--section=pre-data"]) as stream:
        for line in stream:
            if not table and _FIRST_ROWS.match(line):
                raise _Enough  # so that whatever unpacks it is not waited for
            encoding = _ENCODING.match(line)
            if encoding:
                codec = codec_of(encoding[1].decode())
            text = line.decode(codec, "replace").rstrip("\n")
            begun = _TABLE.match(text)
            if begun:
                table, lines = begun[1], []
            elif table and text.startswith(")"):
                if "INHERITS" not in text and _enclosed("\n".join(lines)):
                    yield table, "\n".join(lines)
                table = ""
            elif table:
                lines.append(text)


def _enclosed(text: str) -> bool:
    """Whether SQL in parentheses stays in them."""
    reader = Statements()
    ended = list(reader.feed(text.encode() + b"\n"))
    code, depth = reader.rest(), 0
    for sign in code:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return not ended and not reader.inside and depth == 0 and len(code) < LONGEST
