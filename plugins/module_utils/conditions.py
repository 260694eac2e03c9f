"""Conditions as plans write them: ``> 0.05``, ``>= 90%``, ``> 5s``, ``!= 200``."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, field

from .errors import BalikError
from .units import parse_duration

_OPERATORS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_UNITS = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_CONDITION = re.compile(r"(>=|<=|==|!=|>|<)\s*(.+)")
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(%|[kKMG]?i?B)?", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """A comparison with a number. ``str()`` gives it back as its author wrote it."""

    op: str
    threshold: float
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, value: object, where: str = "condition") -> Condition:
        """The condition that a plan wrote as a text.

        Durations become seconds (``> 1m30s`` is 90), a percentage a ratio (``> 5%`` is 0.05),
        sizes bytes (``< 2GiB``).

        :raises BalikError: no operator, or a threshold that is no number, duration, percentage or size.
        """
        match = _CONDITION.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise BalikError(
                where,
                f"found {value!r}",
                'an operator and a threshold, in quotes: "> 0.05", ">= 90%", "> 5s", "!= 200"',
            )
        return cls(match[1], _threshold(match[2], where), f"{match[1]} {match[2]}")

    def holds(self, value: float) -> bool:
        """Whether ``value`` meets the condition. NaN meets none, not even ``!=``."""
        return not math.isnan(value) and _OPERATORS[self.op](value, self.threshold)

    @property
    def implied(self) -> bool:
        """Whether the measurement itself says what is unsafe: ``failed``."""
        return bool(self.text) and self.text[0] not in "<>=!"

    def __str__(self) -> str:
        return self.text or f"{self.op} {self.threshold:g}"


def _threshold(text: str, where: str) -> float:
    match = _NUMBER.fullmatch(text)
    if match and math.isinf(float(match[1])):
        raise BalikError(where, f"found the threshold {text!r}", "a number that can be reached (below 1.8e308)")
    if match and match[2] == "%":
        return float(match[1]) / 100
    if match and (match[2] or "") in _UNITS:
        return float(match[1]) * _UNITS[match[2] or ""]
    try:
        return parse_duration(text)
    except BalikError:
        raise BalikError(
            where,
            f"found the threshold {text!r}",
            "a number, a duration (5s, 1m30s), a percentage (5%) or a size (2GiB)",
        ) from None
