"""Watches the criteria after the traffic was given back; see the module's documentation."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ..module_utils.criteria import SAFE, UNSAFE
from ..module_utils.units import format_duration, utc_now
from ..plugin_utils.action import RollbackAction
from .criteria import measure


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
        began, since, looks = time.monotonic(), utc_now(), 0
        self.say(f"traffic is back; watching the criteria every {format_duration(procedure.every)} for {watch}")
        while True:
            found = measure(self, since)
            looks += 1
            left = procedure.watch - (time.monotonic() - began)
            if found.verdict == UNSAFE or left <= 0:
                break
            self.say(f"watch: {found.verdict}, {format_duration(max(left, 0))} to go")
            self.keep_lock()
            time.sleep(min(procedure.every, max(left, 0)))
        watched = format_duration(time.monotonic() - began)
        says = f"watched for {watched}, {looks} times: {found.verdict}: {found.reason}"
        self.append("watched", {**found.as_dict(), "seconds": round(time.monotonic() - began, 1)}, arguments["run"])
        return {"changed": True, "verdict": found.verdict, "says": says}
