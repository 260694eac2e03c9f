"""Waits for the sign-offs that a phase needs; see the module's documentation."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.plan import PHASES, SignOff
from ..module_utils.units import format_duration
from ..plugin_utils.action import RollbackAction
from .criteria import stated_unsafe

LOOK_EVERY = 0.5


class ActionModule(RollbackAction):
    """A phase ends when the people whom the plan names have looked."""

    UNDER_LOCK = True
    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "run": {"type": "str", "required": True},
        "phase": {"type": "str", "required": True, "choices": list(PHASES)},
        "remedy": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        wanted = [
            item
            for item in self.plan.sign_offs
            if item.phase == arguments["phase"] and arguments["remedy"] in item.remedies
        ]
        phase, run = arguments["phase"], self.run_of(arguments["run"])
        looks = phase == "restore" or (phase == "verify" and not run.traffic_given_back)
        if looks and not self.check_mode:
            self._refuse_unsafe(run)
        if self.check_mode or not wanted:
            return {"says": f"would ask {', '.join(item.role for item in wanted)} to sign off" if wanted else ""}
        if phase != "restore" and run.traffic_given_back:
            return {"says": "signed off before the traffic was given back"}
        given = [self._wait(item, arguments["run"]) for item in wanted]
        if looks:
            self._refuse_unsafe(run)
        return {"says": "; ".join(f"{a.item} signed off by {a.by}: {a.reason}" for a in given)}

    def _refuse_unsafe(self, run: runs.Run) -> None:
        """What somebody stated since this run gave the traffic back counts until it is taken back: the next watch would
        end by it, and a run that is over would leave it behind."""
        if found := stated_unsafe(self, run):
            extra = {"decide_item": found.criterion, "decide_answer": runs.SAFE}
            command = self.command("decide.yml", **extra, decide_role="…", decide_by="…", decide_reason="…")
            page = (
                "Run again, and the maintenance page goes up. "
                if run.traffic_given_back and runs.PAGE_DOWN in run.steps
                else ""
            )
            raise BalikError(
                f"criterion {found.criterion}",
                f"stated since the traffic was given back: {found.reason}",
                do=f"{page}When that is mended, let them take it back ({command}), and run again.",
            )

    def _command(self, item: SignOff) -> str:
        extra = {"decide_role": item.role, "decide_answer": runs.SIGN_OFF, "decide_item": item.name}
        return self.command("decide.yml", **extra, decide_by="…", decide_reason="…")

    def _answers(self, run_id: str) -> list[runs.Answer]:
        return runs.answers_since_last_step(list(self.record.entries(run_id)))

    def _wait(self, item: SignOff, run_id: str) -> runs.Answer:
        began, asked = time.monotonic(), False
        title = self.plan.people[item.role].title
        while True:
            answer = runs.sign_off_of(self._answers(run_id), item.name, item.role)
            if answer and answer.answer == runs.SIGN_OFF:
                self.say(f"{item.name}: signed off by {answer.by}, {title}")
                return answer
            if answer:
                raise BalikError(
                    f"sign-off {item.name}",
                    f"{answer.by} ({title}) refused: {answer.reason}",
                    do="Mend what they found, let them sign off (playbooks/decide.yml), and run again.",
                )
            if time.monotonic() - began > item.wait:
                raise BalikError(
                    f"sign-off {item.name}",
                    f"no word from {title} within {format_duration(item.wait)}: {item.says}",
                    do=f"{self._command(item)}, then run again.",
                )
            if not asked:
                asked = True
                self.say(
                    f"waiting up to {format_duration(item.wait)} for {title} to sign off: {item.says}: "
                    + self._command(item)
                )
                self.append("asked", {"roles": [item.role], "item": item.name, "why": item.says}, run_id)
            self.keep_lock()
            time.sleep(LOOK_EVERY)
