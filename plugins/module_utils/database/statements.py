"""Which statements a script holds, told piece by piece, and which of them no restore may run."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Bytes of a statement that are looked at; what makes one dangerous stands at its beginning.
LONGEST = 65536
#: From how many bytes on spaces are put together at once, so that they do not count.
_SHORT = 256
_SIGNS = re.compile(
    rb"--[^\r\n]*|(?m:^)\\(?:un)?restrict\b[^\n]*|/\*"
    rb"|(?<![\w$\x80-\xff])(?:[eE]'|\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$)|['\";]"
)
_CLOSES = {b"'": re.compile(rb"'"), b'"': re.compile(rb'"'), b"/*": re.compile(rb"/\*|\*/")}
_WORD = re.compile(rb"\w+")
_ESCAPES = re.compile(rb"(?s)\\.|''|'")
_END_OF_ROWS = re.compile(rb"(?m)(?<=^\\\.)\r?\n")
_STRINGS = re.compile(r"(?i)SET (?:SESSION |LOCAL )?standard_conforming_strings ?(?:=|\bTO\b) ?(\w+)")
_ROWS_FOLLOW = re.compile(r"(?i)COPY\b.* FROM STDIN\b")
# PostgreSQL 14 and newer: a body that is not quoted, and has semicolons.
_BODY = re.compile(r"(?i)CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE)\b.*\bBEGIN ATOMIC\b")
_WITHIN_BODY = b"CREATE FUNCTION BEGIN ATOMIC;"
_END_OF_BODY = re.compile(r"(?i)(?:;|\bATOMIC) ?END$")

_REFUSED = {
    "leave the database that it is restored into": re.compile(r"(?i)(?:CREATE|DROP|ALTER) DATABASE\b"),
    "change the whole server": re.compile(
        r"(?i)ALTER SYSTEM\b|(?:CREATE|ALTER|DROP) (?:ROLE|GROUP|TABLESPACE|USER(?! MAPPING\b))\b"
        r"|(?:DROP|REASSIGN) OWNED\b"
        r"|(?:COMMENT|SECURITY LABEL(?: FOR \S+)?) ON (?:DATABASE|ROLE|TABLESPACE)\b"
        r"|(?:GRANT|REVOKE) (?:.* ON (?:DATABASE|TABLESPACE|PARAMETER)\b|(?!.* ON ))"
    ),
    "run a program on the server, or use one of its files": re.compile(
        r"(?i)COPY\b.*\b(?:FROM|TO) ?(?:PROGRAM\b|'|\$)"
    ),
    # Either would take from the publisher what is the live database's.
    "receive rows from another server": re.compile(
        r"(?i)CREATE SUBSCRIPTION (?!.*\bCONNECT ?= ?FALSE\b)|ALTER SUBSCRIPTION \S+ (?:ENABLE|REFRESH)\b"
    ),
    "run what nobody can judge beforehand": re.compile(
        r"(?i)(?:DO|CALL|LOAD|PREPARE TRANSACTION|(?:COMMIT|ROLLBACK) PREPARED)\b"
    ),
}
# In these, a function is only named: in a view, in another's body, in a privilege; not in what is filled at once.
_NAMES_ONLY = re.compile(
    r"(?i)(?!CREATE (?:\w+ ){0,2}TABLE .*\bAS \(?(?:SELECT|WITH|VALUES|TABLE)\b"
    r"|CREATE MATERIALIZED VIEW .*(?<!WITH NO DATA)$)"
    r"(?:CREATE|ALTER|DROP|COMMENT|GRANT|REVOKE|SECURITY|SET) "
)
_TARGET = re.compile(r"(?i)(?:INSERT INTO|COPY) [^ (]+")
_OUTSIDE = re.compile(
    r"(?i)\b(?:PG_(?:TERMINATE|CANCEL)_BACKEND|PG_PROMOTE|PG_RELOAD_CONF|PG_ROTATE_LOGFILE|PG_READ_\w+|PG_LS_\w+|PG_STAT_FILE"
    r"|PG_FILE_\w+|PG_SWITCH_WAL|PG_BACKUP_\w+|PG_\w*REPLICATION\w*|PG_LOGICAL\w*|LO_IMPORT|LO_EXPORT|DBLINK\w*)\"? ?\("
)


def refused(statement: str) -> str:
    """What a statement of :class:`Statements` would do that no restore may; empty where it may run.

    No program can tell what a function does that a statement calls: this knows what is written by mistake, or by a
    tool that dumps more than one database, not what somebody hides.
    """
    if "\\" in statement:
        return "give psql a command"
    for would, kind in _REFUSED.items():
        if kind.match(statement):
            return would
    if _OUTSIDE.search(_TARGET.sub("", statement, count=1)) and not _NAMES_ONLY.match(statement):
        return "reach outside the database that it is restored into"
    return ""


class Statements:
    """Reads SQL as ``psql`` does, as far as to know where each statement ends, and what is a string, a quoted name, a
    comment, or a row of a ``COPY``."""

    def __init__(self) -> None:
        self._closes: re.Pattern[bytes] | None = None
        self._depth = 0  # of comments in comments
        self._parentheses = 0
        self._code = bytearray()
        self.backslashes = False  # standard_conforming_strings is off

    @property
    def inside(self) -> bool:
        """Whether what follows stands within a string, a quoted name, a comment, or rows."""
        return self._closes is not None

    def feed(self, text: bytes) -> Iterator[tuple[int, str]]:
        """Takes whole lines, and gives each statement that ends there: the place of its end, and the statement
        with single spaces, without what its strings hold, and quoted names that are more than a word."""
        at = 0
        while True:
            if self._closes:
                found = self._closes.search(text, at)
                if not found:
                    return
                self._depth += (found[0] == b"/*") - (found[0] == b"*/")
                if found[0] != b"''" and not found[0].startswith(b"\\") and self._depth == 0:
                    self._closes = None
                    if found[0] == b'"' and _WORD.fullmatch(text, at, found.start()):
                        self._take(text[at : found.end()])
            else:
                found = _SIGNS.search(text, at)
                self._take(text[at : found.start()] if found else text[at:])
                if not found:
                    return
                if found[0] != b";":
                    self._begin(found[0])
                elif statement := self._ended():
                    yield found.start(), statement
            at = found.end()

    def rest(self) -> str:
        """The statement that nobody ended, which ``psql`` runs at the end of its input."""
        return _plain(self._code)

    def _begin(self, sign: bytes) -> None:
        if sign.startswith((b"--", b"\\")):
            self._take(b" ")
        else:
            self._take(b" " if sign == b"/*" else sign[-1:])
            self._depth = int(sign == b"/*")
            if sign in (b"e'", b"E'") or (sign == b"'" and self.backslashes):
                self._closes = _ESCAPES
            else:
                self._closes = _CLOSES.get(sign) or re.compile(re.escape(sign))

    def _take(self, code: bytes) -> None:
        if not code.strip():
            code = b" " if self._code and not self._code.endswith(b" ") else b""
        elif len(code) > _SHORT:
            code = b" " + b" ".join(code.split()) + b" "
        self._parentheses += code.count(b"(") - code.count(b")")
        self._code += code[: LONGEST - len(self._code)]

    def _ended(self) -> str:
        """The statement that a semicolon ends; empty where it ends none."""
        statement = _plain(self._code)
        if self._parentheses > 0:
            self._take(b";")
            return ""
        self._code.clear()
        if _BODY.match(statement) and not _END_OF_BODY.search(statement):
            self._code += _WITHIN_BODY
            return ""
        self._parentheses = 0
        if setting := _STRINGS.fullmatch(statement):
            self.backslashes = setting[1].lower() in ("off", "false", "no", "0")
        if _ROWS_FOLLOW.match(statement):
            self._closes = _END_OF_ROWS
        return statement


def _plain(code: bytearray) -> str:
    return " ".join(code.decode("latin-1").split())
