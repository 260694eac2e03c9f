"""What a measurement is asked, and what it answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol, Union

from ..conditions import Condition
from ..errors import BalikError
from ..units import utc_now

#: One person's word about one criterion: criterion, verdict (``unsafe`` or ``safe``), by, role, reason, at; and
#: ``before``: what has come since, so that it no longer counts (empty or left out where it does).
Statement = Mapping[str, Any]
Statements = Union[Sequence[Statement], Callable[[], Sequence[Statement]]]


@dataclass(frozen=True)
class Sample:
    """One value at one moment.

    :param at: an aware time; kept in UTC, since the difference of two local times is wrong around
        a change of daylight saving time.
    :param value: ``None`` when nothing could be measured; NaN becomes ``None``.
    :param note: why it is missing, or what it was made of.
    """

    at: datetime
    value: float | None
    note: str = ""

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError(f"a sample's time needs a time zone, found {self.at!r}")
        object.__setattr__(self, "at", self.at.astimezone(timezone.utc))
        if self.value is not None and math.isnan(self.value):
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "note", self.note or "NaN")


@dataclass(frozen=True)
class Ask:
    """What one measurement is asked. Times in seconds."""

    criterion: str
    unsafe: Condition
    hold: float = 0.0
    every: float = 60.0
    limit: float = 10.0
    now: datetime = field(default_factory=utc_now)
    since: datetime | None = None
    statements: Statements = ()
    #: Set when nobody needs the answer any more: a measurement that samples over time ends early.
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Measured:
    """What one measurement answers.

    :param samples: in any order.
    :param now: the moment at which the samples are to be judged.
    :param every: seconds between the samples, where it was not the asked one.
    """

    samples: Sequence[Sample]
    now: datetime
    every: float | None = None


class Measurement(Protocol):
    """A way to measure. Stateless; ``spec`` is what the plan wrote below the measurement's name."""

    def check(self, spec: object, where: str) -> list[BalikError]:
        """What is wrong with ``spec``."""

    def check_with(self, spec: Any, unsafe: Condition, hold: float, limit: float, where: str) -> list[BalikError]:
        """What of a ``spec`` that is right by itself does not go with the rest of its criterion."""

    def implied(self, spec: Any) -> Condition | None:
        """The condition that needs not be written, if there is one."""

    def query(self, spec: Any, criterion: str) -> str:
        """What is asked, as evidence; without secrets."""

    def patience(self, spec: Any, hold: float, limit: float) -> float:
        """Seconds after which an answer can no longer come."""

    def lasts(self, hold: float) -> bool:
        """Whether it samples over the time of ``for``, because there is no history to ask for."""

    def measure(self, spec: Any, ask: Ask) -> Measured:
        """Samples of the window that ends at ``ask.now``; missing ones with the reason in their note.

        :raises BalikError: nothing could be measured, and why; the criterion is then unknown.
        """
