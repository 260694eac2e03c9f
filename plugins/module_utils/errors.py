"""The one error of this project: it says what, found, expected, and what to do next."""

from __future__ import annotations


class BalikError(Exception):
    """Something that a person must read and act upon.

    :param what: the object, as its owner calls it (a key path, a host, a container, a file).
    :param found: what is there.
    :param expected: what should have been there; may be left out where ``found`` says enough.
    :param do: the next thing to do, as an instruction.
    """

    def __init__(self, what: str, found: str, expected: str = "", do: str = "") -> None:
        self.what, self.found, self.expected, self.do = what, found, expected, do
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.what}: {self.found}"]
        if self.expected:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        # What was found may be another one's message, which is a sentence already.
        if not self.do:
            return text
        return f"{text.removesuffix('.')}{'' if text.endswith(('?', '!')) else '.'} {self.do}"


class Unreachable(BalikError):
    """A system that did not answer; ``found`` says how it was tried."""


class SchemaUnfit(BalikError):
    """A database's schema that does not allow what is wanted, as it stands now."""


class NotAdmitted(BalikError):
    """A system that answered and let nobody in: a wrong password, role, database or address. Waiting mends nothing."""
