"""A backup as it lies there: which one, of what kind, whole or not, and what it will create.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from ..errors import BalikError
from ..units import parse_time
from .access import Deadline, Programs, complaint, limited, run, too_long

CHUNK = 1024 * 1024
ARCHIVES = ("custom", "directory")
ANOTHER = "Take another copy of this backup, or an earlier backup."
_CONVERT = "Turn it into SQL: pg_restore -f x.sql x.tar; do that now, and a truncated one will be noticed."
_SUFFIXES = (".sql.gz", ".sql.zst", ".sql.zstd", ".sql", ".dump.gz", ".dump", ".custom", ".pgdump", ".dir")
_TOKENS = {
    "YYYYMMDD": r"(?P<date>\d{8})",
    "YYYY-MM-DD": r"(?P<date>\d{4}-\d{2}-\d{2})",
    "HHMMSS": r"(?P<time>\d{6})",
    "HHMM": r"(?P<time>\d{4})",
}
_NAME = rb'(?:"(?:[^"]|"")+"|[^\s",;]+)'
_NOTABLE = re.compile(
    rb"\\(?P<meta>(?!\.|(?:un)?restrict\b).*)"
    rb"|(?P<database>(?:CREATE|DROP|ALTER) DATABASE .*)"
    rb"|(?P<insert>INSERT INTO |SELECT pg_catalog\.lo_)"
    rb"|CREATE EXTENSION (?:IF NOT EXISTS )?(?P<extension>" + _NAME + rb")"
    rb"|ALTER DEFAULT PRIVILEGES FOR ROLE (?P<default>" + _NAME + rb") .*"
    rb"|(?:GRANT|REVOKE) .* (?:TO|FROM) (?P<grantee>" + _NAME + rb")(?: WITH GRANT OPTION)?;$"
    rb"|-- (?:Data for )?Name: .*; Type: (?P<type>[A-Z ]+); Schema: .*; Owner: (?P<owner>.*?)(?:; Tablespace: .*)?$"
    rb"|-- (?P<header>PostgreSQL database (?:cluster )?dump)(?P<complete> complete)?$"
    rb"|-- Dumped from database version (?P<from>\d+)"
)
_FIRST = frozenset(b"\\-CDAGRIS")


@dataclass
class Contents:
    """What a backup says that it holds.

    :param dumped_from: major version of the server that it was taken from; 0 when it does not say.
    :param roles: owners and grantees that must exist on the server.
    :param tables: how many tables it creates.
    :param copies: (table as written, rows) of each COPY block, in order.
    :param size: bytes of SQL.
    """

    dumped_from: int = 0
    roles: set[str] = field(default_factory=set)
    extensions: set[str] = field(default_factory=set)
    tables: int = 0
    copies: list[tuple[str, int]] = field(default_factory=list)
    holds_data: bool = False
    size: int = 0

    @property
    def rows(self) -> int:
        """Rows in all COPY blocks together."""
        return sum(rows for _, rows in self.copies)


class Reader:
    """Reads SQL as ``pg_dump`` writes it, piece by piece, at the speed of searching for a few strings.

    It is no parser: it knows the lines that ``pg_dump`` begins its entries with, and where COPY data begins and ends.
    """

    def __init__(self, name: str) -> None:
        self.contents = Contents()
        self._name = name
        self._tail: list[bytes] = []
        self._line = 0
        self._rows: int | None = None  # of the COPY block that we are in
        self._begun = self._whole = False

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece. A line is judged before its end is handed on to anybody.

        :raises BalikError: it would leave the database that it is restored into, or is no dump of one database.
        """
        self.contents.size += len(chunk)
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            self._tail.append(chunk)
            return
        lines = b"".join([*self._tail, chunk[:cut]])
        self._tail = [chunk[cut:]]
        self._read(lines)

    def finish(self) -> Contents:
        """What was read.

        :raises BalikError: the end is missing, or it holds no data.
        """
        rest = b"".join(self._tail)
        self._tail = []
        if rest and self._whole:
            self._read(rest + b"\n")
        elif rest:  # half a line is no statement yet
            self._line += 1
        if not self._begun:
            raise BalikError(
                self._name,
                "it does not begin as pg_dump writes",
                "a dump made by pg_dump",
                "Name the backup that was made with pg_dump.",
            )
        if not self._whole or self._rows is not None:
            inside = f", in the rows of {self.contents.copies[-1][0]}" if self._rows is not None else ""
            raise self.truncated(f"it ends at line {self._line}{inside}")
        if self.contents.tables and not self.contents.holds_data:
            raise BalikError(
                self._name,
                f"it creates {self.contents.tables} tables and holds no rows for any (pg_dump --schema-only?)",
                "a dump with data",
                "Name the backup that holds the data.",
            )
        return self.contents

    def truncated(self, found: str) -> BalikError:
        """The error for a dump without its end."""
        return BalikError(
            self._name,
            f"truncated: {found}",
            "the line 'PostgreSQL database dump complete' at its end",
            ANOTHER,
        )

    def _read(self, lines: bytes) -> None:
        at = 0
        while at < len(lines):
            at = self._read_sql(lines, at) if self._rows is None else self._read_rows(lines, at)

    def _read_rows(self, lines: bytes, at: int) -> int:
        if lines.startswith(b"\\.\n", at):
            end = at
        else:
            found = lines.find(b"\n\\.\n", at)
            end = found + 1 if found >= 0 else len(lines)
        count = _count_lines(lines[at:end])
        self._line += count
        table, rows = self.contents.copies[-1]
        self._rows = rows + count
        self.contents.copies[-1] = (table, self._rows)
        if end == len(lines):
            return end
        self._rows = None
        self._line += 1
        return end + 3

    def _read_sql(self, lines: bytes, at: int) -> int:
        mark = lines.find(b" FROM stdin;\n", at)
        end = lines.index(b"\n", mark) + 1 if mark >= 0 else len(lines)
        line = b""
        for line in lines[at : end - 1].split(b"\n"):
            self._line += 1
            if line and line[0] in _FIRST:
                notable = _NOTABLE.match(line)
                if notable:
                    self._note(notable)
        if mark >= 0 and line.startswith(b"COPY "):
            table = line[5:].split(b" (")[0].removesuffix(b" FROM stdin;")
            self.contents.copies.append((table.decode("utf-8", "replace"), 0))
            self.contents.holds_data = True
            self._rows = 0
        return end

    def _note(self, notable: re.Match[bytes]) -> None:
        found = {key: value for key, value in notable.groupdict().items() if value is not None}
        contents = self.contents
        if "meta" in found or "database" in found:
            self._refuse(notable[0])
        elif "insert" in found:
            contents.holds_data = True
        elif "extension" in found:
            contents.extensions.add(_unquoted(found["extension"]))
        elif "default" in found or "grantee" in found:
            name = found.get("default") or found["grantee"]
            if name != b"PUBLIC":
                contents.roles.add(_unquoted(name))
        elif "owner" in found:
            contents.tables += found["type"] == b"TABLE"
            if found["owner"] not in (b"", b"-"):
                contents.roles.add(found["owner"].decode("utf-8", "replace"))
        elif "header" in found:
            if b"cluster" in found["header"]:
                raise BalikError(
                    self._name,
                    "a dump of a whole server (pg_dumpall)",
                    "a dump of one database (pg_dump)",
                    "Name the backup of the one database.",
                )
            self._begun = True
            self._whole = "complete" in found
        elif "from" in found:
            contents.dumped_from = int(found["from"])

    def _refuse(self, line: bytes) -> None:
        said = line[:60].decode("utf-8", "replace")
        raise BalikError(
            self._name,
            f"line {self._line} would leave the database that it is restored into: {said}",
            "a dump that names no database (pg_dump without --create)",
            "Restore it by hand on a spare server, and dump it from there without --create.",
        )


def _count_lines(text: bytes) -> int:
    # Five times as fast as text.count(b"\n"), and this is what reading a dump spends its time on.
    return len(text) - len(text.replace(b"\n", b""))


def _unquoted(name: bytes) -> str:
    text = name.decode("utf-8", "replace")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def choose(pattern: str, golive: str = "") -> Path:
    """The backup that is meant: the path itself, or the newest of a pattern's that is not younger than go-live.

    A pattern holds ``YYYYMMDD`` or ``YYYY-MM-DD``, and ``HHMM`` or ``HHMMSS`` where it has a time; a file that has
    another of the usual endings (``.sql.gz``, ``.dump``, …) counts too. The dates are in go-live's own time zone.

    :param golive: an ISO 8601 time with its zone.
    :raises BalikError: none is there, several are equally good, or the only good one was written after go-live.
    """
    if not any(token in Path(pattern).name for token in _TOKENS):
        path = Path(pattern)
        if not path.exists():
            raise BalikError(pattern, "no such file or directory", "the backup", _listing(path))
        return path
    if not golive:
        raise BalikError(
            "db_restore_golive",
            f"not set, while {pattern} may be any of several days",
            "the time of go-live, such as 2026-01-10T20:00:00+07:00",
        )
    parse_time(golive, "db_restore_golive")
    launch = datetime.fromisoformat(str(golive).strip().replace("Z", "+00:00"))
    taken = _dated(Path(pattern), launch)
    if not taken:
        raise BalikError(
            pattern, f"no backup dated at or before {launch.isoformat()}", "at least one", _listing(Path(pattern))
        )
    newest = max(moment for moment, _ in taken)
    best = [path for moment, path in taken if moment == newest]
    if len(best) > 1:
        raise BalikError(
            pattern,
            f"{len(best)} backups of the same date: {', '.join(sorted(path.name for path in best))}",
            "one",
            "Name one of them in db_restore_backup.",
        )
    written = datetime.fromtimestamp(best[0].stat().st_mtime, launch.tzinfo)
    if newest.date() == launch.date() and "HHMM" not in pattern and written > launch:
        raise BalikError(
            str(best[0]),
            f"of the day of go-live, and written at {written.isoformat(timespec='seconds')}",
            f"written before go-live, {launch.isoformat()}",
            "If it was only copied then, name it in db_restore_backup.",
        )
    return best[0]


def _dated(pattern: Path, launch: datetime) -> list[tuple[datetime, Path]]:
    ending = next((suffix for suffix in _SUFFIXES if pattern.name.endswith(suffix)), "")
    expression = re.escape(pattern.name[: len(pattern.name) - len(ending)]).replace(r"\-", "-")
    for token, part in _TOKENS.items():
        if f"?P<{part[4:8]}" not in expression:
            expression = expression.replace(token, part, 1)
    endings = "|".join(re.escape(suffix) for suffix in _SUFFIXES)
    shape = re.compile(f"{expression}(?:{endings})?")
    found = []
    for path in pattern.parent.iterdir() if pattern.parent.is_dir() else ():
        match = shape.fullmatch(path.name)
        if match:
            parts = match.groupdict()
            text = parts["date"].replace("-", "") + (parts.get("time") or "").ljust(6, "0")
            try:
                moment = datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=launch.tzinfo)
            except ValueError:
                continue
            if moment <= launch:
                found.append((moment, path))
    return found


def _listing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} is no directory on this host."
    names = sorted(entry.name for entry in path.parent.iterdir())
    return f"In {path.parent}: {', '.join(names[:10]) or 'nothing'}."


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
        sums = _sums(beside, path)
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


def _sums(file: Path, path: Path) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if len(lines) == 1 and not path.is_dir():
        return {path.name: lines[0][0]}
    return {Path(line[-1].lstrip("*")).name: line[0] for line in lines}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _unpacking(path: Path, kind: str, programs: Programs) -> list[str]:
    unpack = {"plain": ["cat"], "gz": ["gzip", "-dc"], "zst": ["zstd", "-dcq"]}
    command = unpack.get(kind) or [programs["pg_restore"], "-f", "-"]
    if not shutil.which(command[0]):
        raise BalikError(command[0], "not installed on this host", do=f"Run: apt-get install {command[0]}")
    return [*command, str(path.absolute())]


@contextmanager
def opened(path: Path, kind: str, programs: Programs, deadline: Deadline) -> Iterator[IO[bytes]]:
    """The backup as a stream of SQL. Leaving it fails if the program that unpacks it failed.

    :raises BalikError: it cannot be unpacked to its end.
    """
    if kind == "plain":
        with path.open("rb") as file:
            yield file
        return
    command = _unpacking(path, kind, programs)
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
    if kind == "plain":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            if b"\n-- PostgreSQL database dump complete\n" not in file.read():
                raise reader.truncated("somewhere before its end")
    return reader.contents


def inspect(path: Path, kind: str, programs: Programs, deadline: Deadline) -> Contents:
    """Reads a whole backup without restoring it.

    :raises BalikError: it is spoiled, or is no dump of one database.
    """
    reader = Reader(str(path))
    with opened(path, kind, programs, deadline) as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            reader.feed(chunk)
    return reader.finish()
