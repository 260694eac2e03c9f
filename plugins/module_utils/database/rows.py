"""A checksum of a table's rows that does not depend on their order."""

from __future__ import annotations


class RowSum:
    """How many rows, and the sum of a 64-bit hash of each.

    The hash is Python's own of ``bytes`` (SipHash, with a key that each process draws anew): such a sum is compared
    with others of its process, and is kept nowhere.
    """

    def __init__(self) -> None:
        self.count = self._sum = 0
        self._begun = b""

    def add(self, lines: bytes) -> int:
        """Takes whole lines; how many."""
        rows = lines.split(b"\n")  # and after the last one nothing, whose hash is 0
        self._sum += sum(map(hash, rows))
        self.count += len(rows) - 1
        return len(rows) - 1

    def feed(self, chunk: bytes) -> None:
        """Takes a piece that may end within a line."""
        lines, newline, rest = chunk.rpartition(b"\n")
        if newline:
            self.add(self._begun + lines + newline)
            self._begun = rest
        else:
            self._begun += rest

    def text(self) -> str:
        """The sum, to be compared."""
        return f"{self.count} rows, {self._sum & 0xFFFFFFFFFFFFFFFF:016x}"
