"""A person's word: a data leak, a security hole, whatever no instrument shows."""

from __future__ import annotations

from typing import Any

from .. import specs
from ..conditions import Condition
from ..errors import BalikError
from ..units import iso, parse_time
from .base import Ask, Measured, Sample

_SPEC = specs.keys(
    required={"by": specs.listing(specs.text)},
    optional={"without": specs.one_of("safe", "unknown")},
)


class Statement:
    """``{by: [roles], without: safe|unknown}``: the newest statement by one of these roles counts.

    It counts until the next one, but not for another release: one that has a ``before`` is named and does not count.
    ``without`` says what silence means (default ``unknown``).
    """

    def check(self, spec: object, where: str) -> list[BalikError]:
        return _SPEC(spec, where)

    def check_with(self, spec: Any, unsafe: Condition, hold: float, limit: float, where: str) -> list[BalikError]:
        if hold:
            return [BalikError(f"{where}.for", "is given", "none: a statement counts at once")]
        return []

    def implied(self, spec: Any) -> Condition | None:
        return Condition("==", 1, "stated unsafe")

    def query(self, spec: Any, criterion: str) -> str:
        return f"the newest statement on {criterion} by {' or '.join(spec['by'])}"

    def patience(self, spec: Any, hold: float, limit: float) -> float:
        return limit

    def lasts(self, hold: float) -> bool:
        return False

    def measure(self, spec: Any, ask: Ask) -> Measured:
        given = ask.statements() if callable(ask.statements) else ask.statements
        heard = []
        for each in given:
            if each["criterion"] != ask.criterion or each["role"] not in spec["by"]:
                continue
            at = parse_time(each["at"], f"the statement of {each['by']} on {ask.criterion}")
            if at <= ask.now:
                heard.append((at, each))
        counting = [one for one in heard if not one[1].get("before")]
        if counting:
            at, newest = max(counting, key=lambda one: one[0])
            who = f"{newest['by']} ({newest['role']})"
            note = f"{who} at {iso(at)}: {newest['verdict']}, {newest.get('reason') or 'no reason given'}"
            value: float | None = 1.0 if newest["verdict"] == "unsafe" else 0.0
        else:
            note = f"no statement by {' or '.join(spec['by'])}"
            if heard:
                at, newest = max(heard, key=lambda one: one[0])
                note += (
                    f"; an older one ({newest['verdict']} by {newest['by']} at {iso(at)}) is from before "
                    f"{newest['before']} and does not count; state it again if it still holds"
                )
            value = 0.0 if spec.get("without") == "safe" else None
        return Measured([Sample(ask.now, value, note)], ask.now)
