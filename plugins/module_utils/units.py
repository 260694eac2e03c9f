"""Durations and times as plans write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .errors import BalikError

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])", re.ASCII)
#: What is longer was meant otherwise; and sums with times stay within the calendar.
_LONGEST = 100 * 365 * 86400


def parse_duration(value: object, what: str = "duration") -> float:
    """Seconds of ``15m``, ``1h30m``, ``500ms``, ``2 d`` or a plain number of seconds.

    :raises BalikError: the value is none of these, is negative, or is longer than a hundred years.
    """
    seconds: float = -1
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            seconds = float(text)
        elif text and not _PART.sub("", text).strip():
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if 0 <= seconds <= _LONGEST:
        return float(seconds)
    raise BalikError(what, f"found {value!r}", "a duration such as 30s, 15m, 1h30m or 7d")


def format_duration(seconds: float) -> str:
    """``93.4`` as ``1m33s``; below ten seconds with one decimal, below one in milliseconds."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def counted(number: int, what: str) -> str:
    """
    >>> counted(1, "row"), counted(1400, "row")
    ('1 row', '1,400 rows')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def utc_now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(timezone.utc)


def parse_time(value: object, what: str = "time") -> datetime:
    """An aware UTC ``datetime`` of an ISO 8601 text or of what YAML made of one.

    :raises BalikError: no time, or one without a time zone (which hour would it be in Jakarta?).
    """
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        except ValueError:
            moment = None
    if not isinstance(moment, datetime):
        raise BalikError(what, f"found {value!r}", "a time such as 2026-01-10T20:00:00+07:00")
    if moment.tzinfo is None:
        raise BalikError(what, f"found {value!r}, which has no time zone", "one such as ...+07:00 or ...Z")
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        raise BalikError(what, f"found {value!r}", "a time within the calendar") from None


def iso(moment: datetime) -> str:
    """``2026-01-10T13:00:00.123456Z``: UTC, microseconds, sorts as text."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def label_terms(labels: Mapping[str, Any]) -> list[str]:
    """``["app=web", "tier"]`` of ``{"app": "web", "tier": ""}``: nothing (also ``None``) takes any value.

    What YAML has read as a truth or a number is the text again that stood there.
    """
    texts = {key: "" if value is None else str(value) for key, value in labels.items()}
    texts.update((key, str(value).lower()) for key, value in labels.items() if isinstance(value, bool))
    return [f"{key}={text}" if text else key for key, text in texts.items()]
