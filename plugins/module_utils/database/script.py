"""SQL as ``pg_dump`` writes it, read piece by piece: what it holds, whether it is whole, and what must not be run."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import BalikError
from .rows import RowSum
from .statements import Statements, refused

CHUNK = 1024 * 1024
ANOTHER = "Take another copy of this backup, or an earlier backup."
_NAME = rb'(?:"(?:[^"]|"")+"|[^\s",;]+)'
_WORD = rb'(?:"(?:[^"]|"")+"|[^\s".(]+)'
_PLACE = rb"(?:" + _WORD + rb"\.)?" + _WORD
_NOTABLE = re.compile(
    rb"(?P<restrict>\\(?:un)?restrict\b)"
    rb"|\\(?P<meta>(?!\.).*)"
    rb"|CREATE EXTENSION (?:IF NOT EXISTS )?(?P<extension>" + _NAME + rb")"
    rb"|ALTER TABLE ONLY (?P<parent>" + _PLACE + rb") ATTACH PARTITION (?P<partition>" + _PLACE + rb") "
    rb"|ALTER TABLE ONLY (?P<forced>" + _PLACE + rb") FORCE ROW LEVEL SECURITY;$"
    rb"|ALTER DEFAULT PRIVILEGES FOR ROLE (?P<default>" + _NAME + rb") .*"
    rb"|(?:GRANT|REVOKE) .* (?:TO|FROM) (?P<grantee>" + _NAME + rb")(?: WITH GRANT OPTION)?;$"
    rb"|-- (?:Data for )?Name: (?P<name>.*); Type: (?P<type>[A-Z ]+); Schema: (?P<schema>.*);"
    rb" Owner: (?P<owner>.*?)(?:; Tablespace: .*)?$"
    rb"|-- (?P<header>PostgreSQL database (?:cluster )?dump)(?P<complete> complete)?$"
    rb"|-- Dumped from database version (?P<from>\d+)"
    rb"|SET client_encoding = '(?P<encoding>[^']+)'"
    rb"|SET search_path = (?P<path>" + _NAME + rb"), pg_catalog;$"
)
_TARGET = re.compile(rb"(?P<schema>" + _WORD + rb"\.)?(?P<table>" + _WORD + rb") ?(?P<columns>\(.*\))? ?")
# As pg_dump ends it, and what means the same: small letters, and the format that it has anyway.
_FROM_STDIN = re.compile(rb"(?i) FROM[ ]+stdin(?:[ ]+WITH)?(?:[ ]*\([ ]*FORMAT[ ]+'?text'?[ ]*\))?[ ]*;\n")
_FIRST = frozenset(b"\\-CDAGRS")
_BRINGS_ROWS = re.compile(r"(?i)INSERT INTO\b|COPY\b.* FROM STDIN\b|SELECT pg_catalog\.lo_")
_OTHERS = {
    b"-- MySQL dump": "a dump of MySQL",
    b"-- MariaDB dump": "a dump of MariaDB",
    b"/*M!999999": "a dump of MariaDB",
    b"-- phpMyAdmin SQL Dump": "a dump of MySQL",
    b"PRAGMA foreign_keys": "a dump of SQLite",
    b"<!DOCTYPE html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document, perhaps a storage service's error",
    b"version https://git-lfs": "a pointer of Git LFS",
    b"{": "a JSON document",
}


def codec_of(encoding: str) -> str:
    """Python's name for a ``client_encoding``; UTF-8 where it says nothing about letters."""
    if encoding.startswith("LATIN"):
        number = int(encoding[5:])  # Latin-5 is ISO 8859-9, and so on
        return f"iso8859-{number if number <= 4 else {5: 9, 6: 10, 7: 13, 8: 14, 9: 15, 10: 16}[number]}"
    others = {"SQL_ASCII": "utf-8", "UHC": "cp949", "EUC_CN": "gb2312", "EUC_JIS_2004": "euc_jis_2004"}
    name = others.get(encoding, re.sub(r"^WIN(\d+)$", r"cp\1", encoding))
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


@dataclass
class Block:
    """The rows of one ``COPY … FROM stdin``.

    :param table: schema and name, quoted where they must be.
    :param columns: as they are written, in parentheses; empty for all.
    :param rows: how many.
    :param sum: of the rows as :class:`~.rows.RowSum` says; empty when it was not asked for.
    :param statement: its line as it is written, in the dump's own encoding.
    """

    table: str
    columns: str = ""
    rows: int = 0
    sum: str = ""
    statement: bytes = b""


@dataclass
class Contents:
    """What a backup says that it holds.

    :param dumped_from: major version of the server that it was taken from; 0 when it does not say.
    :param encoding: of its text; empty when it does not say.
    :param roles: owners and grantees that must exist on the server.
    :param owners: those of them that own something.
    :param tables: how many tables it creates.
    :param names: schema and name of each; empty when only a table of contents was read.
    :param schemas: that it creates; ``public`` is there anyway.
    :param partitions: of what each is one, both as they are written.
    :param forced: tables whose row-level security holds for their owner, too, as they are written.
    :param blocks: each COPY, in order.
    :param size: bytes of SQL.
    """

    dumped_from: int = 0
    encoding: str = ""
    roles: set[str] = field(default_factory=set)
    owners: set[str] = field(default_factory=set)
    extensions: set[str] = field(default_factory=set)
    tables: int = 0
    names: set[tuple[str, str]] = field(default_factory=set)
    schemas: set[str] = field(default_factory=lambda: {"public"})
    partitions: dict[str, str] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    blocks: list[Block] = field(default_factory=list)
    holds_data: bool = False
    size: int = 0

    @property
    def codec(self) -> str:
        """Python's name for its encoding."""
        return codec_of(self.encoding)

    @property
    def copies(self) -> list[tuple[str, int]]:
        """Table as written, and rows, of each COPY."""
        return [(block.table, block.rows) for block in self.blocks]

    @property
    def rows(self) -> int:
        """Rows in all COPY blocks together."""
        return sum(block.rows for block in self.blocks)


class Sink(Protocol):
    """Who takes the pieces of a script as they are read."""

    def sql(self, text: bytes) -> None:
        """Whole lines of SQL between two COPY blocks; without the line that begins the next one, and with a comment in
        the place of each ``\\restrict``."""

    def rows(self, block: Block, text: bytes) -> None:
        """Whole lines of a block; at least once for each block, perhaps with nothing."""

    def end(self, block: Block) -> None:
        """The block is complete."""


class Reader:
    """Reads SQL as ``pg_dump`` writes it, piece by piece, at the speed of searching for a few strings.

    It is no parser: it knows the lines that ``pg_dump`` begins its entries with, and where COPY data begins and ends.

    :param sums: take the sum of each block's rows.
    """

    def __init__(self, name: str, sums: bool = False, sink: Sink | None = None) -> None:
        self.contents = Contents()
        self._name, self._sums, self._sink = name, sums, sink
        self._tail: list[bytes] = []
        self._line = 0
        self._open = False  # within the rows of the last block
        self._schema = b""  # of names without one, in dumps made before 2018
        self._sum: RowSum | None = None
        self._statements = Statements()
        self._codec = "utf-8"
        self._begun = self._whole = False
        self._start = b""

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece; the sink gets the whole lines that it completes, judged.

        :raises BalikError: it would leave the database that it is restored into, or is no dump of one database.
        """
        self.contents.size += len(chunk)
        cut = chunk.rfind(b"\n") + 1
        if cut:
            lines = b"".join([*self._tail, chunk[:cut]])
            self._tail = [chunk[cut:]]
            self._read(lines)
        else:
            self._tail.append(chunk)

    def finish(self) -> Contents:
        """What was read.

        :raises BalikError: the end is missing, or it holds no data.
        """
        last = b"".join(self._tail)
        self._tail = []
        if last and self._whole:
            self._read(last + b"\n")
        elif last:  # half a line is no statement yet
            self._start = self._start or last[:4096]
            self._line += 1
        self.begun()
        if not self._whole or self._open:
            inside = f", in the rows of {self.contents.blocks[-1].table}" if self._open else ""
            raise self.truncated(f"it ends at line {self._line}{inside}")
        if would := refused(rest := self._statements.rest()):
            self._refuse(rest, self._line, would)
        if self.contents.tables and not self.contents.holds_data:
            raise BalikError(
                self._name,
                f"it creates {self.contents.tables} tables and holds no rows for any (pg_dump --schema-only?)",
                "a dump with data",
                "Name the backup that holds the data.",
            )
        return self.contents

    def begun(self) -> None:
        """Refuses what does not begin as a dump does.

        :raises BalikError: and what it seems to be.
        """
        if self._begun:
            return
        if b"-- PostgreSQL database dump\r\n" in self._start:
            raise BalikError(
                self._name,
                "line ends of Windows (CRLF), as a copy in text mode has them",
                "the bytes that pg_dump wrote",
                "Copy it again in binary mode. Let pg_dump write the file itself next time (-f).",
            )
        start = self._start.lstrip(b"\xef\xbb\xbf \t\r\n")
        other = next((what for sign, what in _OTHERS.items() if start.lower().startswith(sign.lower())), "")
        raise BalikError(
            self._name,
            f"it does not begin as pg_dump writes{f', but as {other}' if other else ''}",
            "a dump made by pg_dump",
            "Name the backup that was made with pg_dump.",
        )

    def truncated(self, found: str) -> BalikError:
        """The error for a dump without its end."""
        return BalikError(
            self._name,
            f"truncated: {found}",
            "the line 'PostgreSQL database dump complete' at its end",
            ANOTHER,
        )

    def _unusual(self, line: bytes) -> BalikError:
        said = self._text(line[:60])
        return BalikError(self._name, f"line {self._line}: {said}", "a COPY as pg_dump writes it", ANOTHER)

    def _read(self, lines: bytes) -> None:
        if b"\0" in lines:
            at = self._line + 1 + lines.count(b"\n", 0, lines.index(b"\0"))
            raise BalikError(self._name, f"line {at} has a NUL byte", "text, which never has one", ANOTHER)
        self._start = self._start or lines[:4096]
        at = 0
        while at < len(lines):
            at = self._read_rows(lines, at) if self._open else self._read_sql(lines, at)

    def _read_rows(self, lines: bytes, at: int) -> int:
        if lines.startswith(b"\\.\n", at):
            end = at
        else:
            found = lines.find(b"\n\\.\n", at)
            end = found + 1 if found >= 0 else len(lines)
        text, block = lines[at:end], self.contents.blocks[-1]
        count = self._sum.add(text) if self._sum else _count_lines(text)
        self._line += count
        block.rows += count
        if self._sink:
            self._sink.rows(block, text)
        if end == len(lines):
            return end
        self._open = False
        self._line += 1
        if self._sum:
            block.sum = self._sum.text()
        if self._sink:
            self._sink.end(block)
        return end + 3

    def _read_sql(self, lines: bytes, at: int) -> int:
        mark = _FROM_STDIN.search(lines, at)
        end = mark.end() if mark else len(lines)
        text, line, start, judged = lines[at:end], b"", 0, 0
        restricts = []
        for line in text[:-1].split(b"\n"):
            if line and line[0] in _FIRST:
                notable = _NOTABLE.match(line)
                if notable:
                    self._judge(text[judged:start])
                    judged = start
                if notable and not self._statements.inside:
                    if notable["restrict"]:
                        restricts.append(start)
                    else:
                        self._note(notable)
            start += len(line) + 1
        start -= len(line) + 1
        self._judge(text[judged:start])
        copy = mark if not self._statements.inside and line[:5].upper() == b"COPY " else None
        if copy:
            self._line += 1
        else:
            self._judge(text[start:])
        if self._sink:
            for place in restricts:  # the key is the dump's own, and so nobody's secret: psql has one of ours
                text = text[:place] + b"--" + text[place + 2 :]
            self._sink.sql(text[:start] if copy else text)
        if copy:
            self._begin(line, line[5 : copy.start() - end + 1])
        return end

    def _judge(self, text: bytes) -> None:
        """Takes whole lines of SQL.

        :raises BalikError: they hold what no restore may run.
        """
        for end, statement in self._statements.feed(text):
            if would := refused(statement):
                self._refuse(statement, self._line + 1 + _count_lines(text[:end]), would)
            self.contents.holds_data = self.contents.holds_data or bool(_BRINGS_ROWS.match(statement))
        self._line += _count_lines(text)
        # psql obeys at once, and waits for no semicolon.
        if "\\" in (rest := self._statements.rest()):
            self._refuse(rest, self._line, refused(rest))

    def _begin(self, line: bytes, target: bytes) -> None:
        found = _TARGET.fullmatch(target)
        if not found:
            raise self._unusual(line)
        schema = found["schema"] or (self._schema + b"." if self._schema else b"")
        table, columns = self._text(schema + found["table"]), self._text(found["columns"] or b"")
        self.contents.blocks.append(Block(table, columns, statement=line + b"\n"))
        self.contents.holds_data = self._open = True
        self._sum = RowSum() if self._sums else None

    def _note(self, notable: re.Match[bytes]) -> None:
        found = {key: value for key, value in notable.groupdict().items() if value is not None}
        contents = self.contents
        if "meta" in found:
            self._refuse(self._text(notable[0]), self._line + 1, "leave the database that it is restored into")
        elif "path" in found:
            self._schema = found["path"]
        elif "partition" in found:
            contents.partitions[self._text(found["partition"])] = self._text(found["parent"])
        elif "extension" in found:
            contents.extensions.add(self._unquoted(found["extension"]))
        elif "default" in found or "grantee" in found:
            name = found.get("default") or found["grantee"]
            if name != b"PUBLIC":
                contents.roles.add(self._unquoted(name))
        elif "owner" in found:
            self._note_entry(found)
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
        elif found:
            self._note_setting(found)

    def _note_entry(self, found: dict[str, bytes]) -> None:
        name, owner = self._text(found["name"]), self._text(found["owner"])
        if found["type"] == b"TABLE":
            self.contents.tables += 1
            self.contents.names.add((self._text(found["schema"]), name))
        elif found["type"] == b"SCHEMA":
            self.contents.schemas.add(name)
        if owner not in ("", "-"):
            self.contents.owners.add(owner)
            self.contents.roles.add(owner)

    def _note_setting(self, found: dict[str, bytes]) -> None:
        if "forced" in found:
            self.contents.forced.add(self._text(found["forced"]))
        elif "from" in found:
            self.contents.dumped_from = int(found["from"])
        else:
            self.contents.encoding = self.contents.encoding or found["encoding"].decode()
            self._codec = self.contents.codec

    def _text(self, name: bytes) -> str:
        return name.decode(self._codec, "replace")

    def _unquoted(self, name: bytes) -> str:
        text = self._text(name)
        return text[1:-1].replace('""', '"') if text.startswith('"') else text

    def _refuse(self, text: str, line: int, would: str) -> None:
        said = " ".join(text[:60].split())
        raise BalikError(
            self._name,
            f"line {line} would {would}: {said}",
            "a dump of one database as pg_dump writes it without --create, and no program in it",
            "Restore it by hand on a spare server, and dump the database from there with pg_dump.",
        )


def _count_lines(text: bytes) -> int:
    # Five times as fast as text.count(b"\n"), and this is what reading a dump spends its time on.
    return len(text) - len(text.replace(b"\n", b""))
