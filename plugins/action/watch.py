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
        "once": {"type": "bool", "default": False},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        procedure = self.plan.procedure(utc_now(), arguments["procedure"])
        length = 0.0 if arguments["once"] else procedure.watch
        watch = format_duration(length)
        if self.check_mode:
            return {"verdict": SAFE, "says": f"would watch the criteria for {watch}"}
        began = time.monotonic()
        looks = blind = 0
        if not arguments["once"]:
            self.append("watching", {"procedure": procedure.name, "seconds": length}, arguments["run"])
            self.say(f"traffic is back; watching the criteria every {format_duration(procedure.every)} for {watch}")
        # What was seen and said between an earlier call's watch and this one counts: visitors had the application.
        since = self.run_of(arguments["run"]).back_since
        while True:
            found = measure(self, since)
            looks += 1
            blind += found.verdict == UNKNOWN
            left = length - (time.monotonic() - began)
            # What cannot be seen at the very end is looked at again.
            grace = LAST_LOOKS * procedure.every if found.verdict == UNKNOWN else 0
            if arguments["once"] or found.verdict == UNSAFE or left + grace <= 0:
                break
            self.say(f"watch: {found.verdict}, {format_duration(max(left, 0))} to go")
            self.keep_lock()
            time.sleep(min(procedure.every, left) if left > 0 else procedure.every)
        verdict, reason = found.verdict, found.reason
        if verdict == SAFE and blind * 2 > looks:
            verdict, reason = UNKNOWN, f"safe at the end, but {blind} of {looks} times nothing could be seen"
        watched = format_duration(time.monotonic() - began)
        times = "once" if looks == 1 else f"{looks} times"
        how = "looked once" if arguments["once"] else f"watched for {watched}, {times}"
        says = f"{how}: {verdict}: {reason}"
        seen = {"verdict": verdict, "reason": reason, "looks": looks, "unseen": blind}
        body = {**found.as_dict(), **seen, "seconds": round(time.monotonic() - began, 1)}
        self.append("watched", body, arguments["run"])
        return {"changed": True, "verdict": verdict, "says": says}
