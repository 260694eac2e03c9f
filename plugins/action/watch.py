"""Watches the criteria after the traffic was given back; see the module's documentation."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ..module_utils.criteria import SAFE, UNKNOWN, UNSAFE
from ..module_utils.units import format_duration, utc_now
from ..plugin_utils.action import RollbackAction
from .criteria import measure

#: How many more looks a watch takes whose last one saw nothing.
LAST_LOOKS = 3


class ActionModule(RollbackAction):
    """Evaluates the criteria every interval until the procedure's watch is over or they turn unsafe."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "run": {"type": "str", "required": True},
        "procedure": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        procedure = self.plan.procedure(utc_now(), arguments["procedure"])
        watch = format_duration(procedure.watch)
        if self.check_mode:
            return {"verdict": SAFE, "says": f"would watch the criteria for {watch}"}
        began, since = time.monotonic(), utc_now()
        looks = blind = 0
        self.say(f"traffic is back; watching the criteria every {format_duration(procedure.every)} for {watch}")
        while True:
            found = measure(self, since)
            looks += 1
            blind += found.verdict == UNKNOWN
            left = procedure.watch - (time.monotonic() - began)
            # What cannot be seen at the very end is looked at again.
            grace = LAST_LOOKS * procedure.every if found.verdict == UNKNOWN else 0
            if found.verdict == UNSAFE or left + grace <= 0:
                break
            self.say(f"watch: {found.verdict}, {format_duration(max(left, 0))} to go")
            self.keep_lock()
            time.sleep(min(procedure.every, left) if left > 0 else procedure.every)
        verdict, reason = found.verdict, found.reason
        if verdict == SAFE and blind * 2 > looks:
            verdict, reason = UNKNOWN, f"safe at the end, but {blind} of {looks} times nothing could be seen"
        watched = format_duration(time.monotonic() - began)
        times = "once" if looks == 1 else f"{looks} times"
        says = f"watched for {watched}, {times}: {verdict}: {reason}"
        seen = {"verdict": verdict, "reason": reason, "looks": looks, "unseen": blind}
        body = {**found.as_dict(), **seen, "seconds": round(time.monotonic() - began, 1)}
        self.append("watched", body, arguments["run"])
        return {"changed": True, "verdict": verdict, "says": says}
