"""Watches the criteria after the traffic was given back; see the module's documentation."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ..module_utils.criteria import SAFE, UNKNOWN, UNSAFE, Evaluation, longest
from ..module_utils.record import RecordUnavailable
from ..module_utils.units import format_duration, utc_now
from ..plugin_utils.action import LEASE, RollbackAction
from .criteria import measure

#: How many more looks a watch takes whose last one saw nothing.
LAST_LOOKS = 3


class ActionModule(RollbackAction):
    """Evaluates the criteria every interval until the procedure's watch is over or they turn unsafe."""

    UNDER_LOCK = True
    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "moment": {"type": "str", "required": True, "choices": ["given-back", "failed"]},
        "run": {"type": "str", "required": True},
        "procedure": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.run_id = arguments["run"]
        self.procedure = self.plan.procedure(utc_now(), arguments["procedure"])
        if self.check_mode:
            return {"verdict": SAFE, "says": f"would watch the criteria for {format_duration(self.procedure.watch)}"}
        return self._watch() if arguments["moment"] == "given-back" else self._look()

    @property
    def _measuring(self) -> float:
        """Seconds that one look may take."""
        return longest(self.plan.criteria)

    def _look(self) -> dict[str, Any]:
        """What is to become of the traffic that could not be given back: where visitors had it before this call, only
        criteria that are unsafe take it from them."""
        self.keep_lock(self._measuring + LEASE)
        run = self.run_of(self.run_id)
        if not run.traffic_is_back:
            return {"verdict": UNSAFE, "says": ""}
        began = time.monotonic()
        found = measure(self, run.back_since, run.first_back)
        unseen = int(found.verdict == UNKNOWN)
        written = self._written(found, found.verdict, found.reason, began, looks=1, unseen=unseen)
        return {**written, "says": f"looked once: {found.verdict}: {found.reason}"}

    def _watch(self) -> dict[str, Any]:
        watch, every = self.procedure.watch, self.procedure.every
        self.append("watching", {"procedure": self.procedure.name, "seconds": watch}, self.run_id)
        self.say(f"traffic is back; watching the criteria every {format_duration(every)} for {format_duration(watch)}")
        # What was seen and said between an earlier call's watch and this one counts: visitors had the application.
        run = self.run_of(self.run_id)
        self.keep_lock(self._measuring + LEASE)
        began = time.monotonic()
        looks = blind = 0
        while True:
            found = measure(self, run.back_since, run.first_back)
            looks += 1
            blind += found.verdict == UNKNOWN
            left = watch - (time.monotonic() - began)
            # What cannot be seen at the very end is looked at again.
            grace = LAST_LOOKS * every if found.verdict == UNKNOWN else 0
            if found.verdict == UNSAFE or left + grace <= 0:
                break
            self.say(f"watch: {found.verdict}, {format_duration(max(left, 0))} to go")
            pause = min(every, left) if left > 0 else every
            self.keep_lock(pause + self._measuring + LEASE)
            time.sleep(pause)
        verdict, reason = found.verdict, found.reason
        if verdict == SAFE and blind * 2 > looks:
            verdict, reason = UNKNOWN, f"safe at the end, but {blind} of {looks} times nothing could be seen"
        return self._written(found, verdict, reason, began, looks, blind)

    def _written(
        self, found: Evaluation, verdict: str, reason: str, began: float, looks: int, unseen: int
    ) -> dict[str, Any]:
        seconds = time.monotonic() - began
        seen = {"verdict": verdict, "reason": reason, "looks": looks, "unseen": unseen, "seconds": round(seconds, 1)}
        unwritten = ""
        try:
            self.append("watched", {**found.as_dict(), **seen}, self.run_id)
        except RecordUnavailable:
            # What does harm is taken from visitors all the same.
            if verdict != UNSAFE:
                raise
            unwritten = ", which could not be written down"
        times = "once" if looks == 1 else f"{looks} times"
        says = f"watched for {format_duration(seconds)}, {times}: {verdict}: {reason}{unwritten}"
        return {"changed": True, "verdict": verdict, "says": says}
