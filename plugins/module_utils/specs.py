"""Checks of what a plan's author wrote: each finds every problem and names its key path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from .errors import BalikError
from .units import parse_duration

#: Takes a value and its key path, gives back what is wrong with it.
Check = Callable[[object, str], "list[BalikError]"]


def text(value: object, where: str) -> list[BalikError]:
    """A text that is not empty."""
    if isinstance(value, str) and value.strip():
        return []
    return [BalikError(where, f"found {value!r}", "a text")]


def word(value: object, where: str) -> list[BalikError]:
    """A text or a number, as commands take them."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return []
    return [BalikError(where, f"found {value!r}", "a text or a number")]


def secret(value: object, where: str) -> list[BalikError]:
    """A text that no message may show."""
    if isinstance(value, str) and value and "\n" not in value:
        return []
    if isinstance(value, str):
        found = "found a text of several lines (it is not shown: it may be a secret)" if value else "found ''"
    else:
        found = "found no text (it is not shown: it may be a secret)"
    return [BalikError(where, found, "a text of one line")]


def flag(value: object, where: str) -> list[BalikError]:
    return [] if isinstance(value, bool) else [BalikError(where, f"found {value!r}", "true or false")]


def integer(lowest: int, highest: int) -> Check:
    def check(value: object, where: str) -> list[BalikError]:
        try:
            # A template gives a text where its author meant a number.
            right = not isinstance(value, bool) and lowest <= int(str(value)) <= highest
        except ValueError:
            right = False
        return [] if right else [BalikError(where, f"found {value!r}", f"a number from {lowest} to {highest}")]

    return check


def duration(value: object, where: str) -> list[BalikError]:
    """A duration above zero."""
    try:
        seconds = parse_duration(value, where)
    except BalikError as error:
        return [error]
    return [] if seconds > 0 else [BalikError(where, f"found {value!r}", "a duration above zero")]


def regex(value: object, where: str) -> list[BalikError]:
    try:
        re.compile(value)  # type: ignore[call-overload]
    except (re.error, TypeError) as error:
        return [BalikError(where, f"found {value!r} ({error})", "a regular expression")]
    return []


def url(*schemes: str) -> Check:
    def check(value: object, where: str) -> list[BalikError]:
        if isinstance(value, str) and re.match(rf"({'|'.join(schemes)})://[^/\s]", value):
            return []
        expected = " or ".join(f"{scheme}://…" for scheme in schemes)
        # A URL may hold a password: only its beginning is shown.
        found = f"found {value.split('@')[-1][:60]!r}" if isinstance(value, str) else f"found {value!r}"
        return [BalikError(where, found, f"a URL {expected}")]

    return check


def one_of(*words: str) -> Check:
    def check(value: object, where: str) -> list[BalikError]:
        if value in words:
            return []
        return [BalikError(where, f"found {value!r}", "one of " + ", ".join(words))]

    return check


def anything(value: object, where: str) -> list[BalikError]:
    return []


def listing(item: Check) -> Check:
    """A list of at least one ``item``."""

    def check(value: object, where: str) -> list[BalikError]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
            return [BalikError(where, f"found {value!r}", "a list of at least one")]
        return [problem for index, each in enumerate(value) for problem in item(each, f"{where}[{index}]")]

    return check


def table(item: Check) -> Check:
    """A dictionary of free names, each holding an ``item``."""

    def check(value: object, where: str) -> list[BalikError]:
        if not isinstance(value, Mapping):
            return [BalikError(where, f"found {value!r}", "a dictionary")]
        return [problem for key, each in value.items() for problem in item(each, f"{where}.{key}")]

    return check


def keys(required: Mapping[str, Check] | None = None, optional: Mapping[str, Check] | None = None) -> Check:
    """A dictionary of these keys and no other."""
    needed = required or {}
    known = {**needed, **(optional or {})}

    def check(value: object, where: str) -> list[BalikError]:
        if not isinstance(value, Mapping):
            return [BalikError(where, f"found {type(value).__name__}", f"a dictionary of {', '.join(known)}")]
        problems = [unknown_key(f"{where}.{key}", key, known) for key in value if key not in known]
        problems += [
            BalikError(f"{where}.{key}", "is missing", f"one of the required keys {', '.join(needed)}")
            for key in needed
            if key not in value
        ]
        for key, item in known.items():
            if key in value:
                problems += item(value[key], f"{where}.{key}")
        return problems

    return check


def unknown_key(where: str, key: object, known: Mapping[str, object] | Sequence[str]) -> BalikError:
    """The error for a key that is not among ``known``, with the likeliest meant."""
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return BalikError(where, "is not a known key", ", ".join(known), f"Did you mean {near[0]}?" if near else "")
