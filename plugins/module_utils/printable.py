"""Texts of people and programs, made fit to be shown: no terminal or page does by them what nobody wanted."""

from __future__ import annotations

import re

#: Control characters (not tab and line feed), and those that make a text read in another order than it is written.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """The text with a replacement character for each that must not be shown."""
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The text, printable and in one line, so that none of it can be taken for a line of somebody else's."""
    return printable(" ".join(text.splitlines()))
