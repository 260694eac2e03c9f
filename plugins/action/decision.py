"""Waits for the people's decision; see the module's documentation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.loss import entries as losses
from ..module_utils.plan import Procedure, Remedy
from ..module_utils.printable import one_line
from ..module_utils.units import format_duration, utc_now
from ..plugin_utils.action import RollbackAction

LOOK_EVERY = 0.5


class ActionModule(RollbackAction):
    """Go, No-Go, or nothing to do."""

    UNDER_LOCK = True
    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "run": {"type": "str", "required": True},
        "verdict": {"type": "str", "required": True, "choices": ["safe", "unsafe", "unknown"]},
        "says": {"type": "str", "default": ""},
        "remedy": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.run_id = arguments["run"]
        if decided := self.run_of(self.run_id).decided:
            self._refuse_taken_back(decided)
            return {**decided, "steps": self._steps(self.plan.remedy((), decided["remedy"])), "says": decided["reason"]}
        remedy = self.plan.remedies[arguments["remedy"]]
        procedure = self.plan.procedure(utc_now(), self.variables.get("rollback_procedure"))
        needed = tuple(dict.fromkeys((*self.plan.go, *procedure.go, *remedy.go)))
        if broken := self._said("rollback_break_glass"):
            return self._break_glass(broken, remedy, procedure)
        wish = self._said("rollback_reason")
        if arguments["verdict"] == "safe" and not wish:
            return self._nothing_to_do(arguments["says"], remedy, procedure)
        if not needed and arguments["verdict"] != "unsafe" and not wish:
            reason = f"the criteria are {arguments['verdict']}, and the plan asks nobody: {arguments['says']}"
            return self._outcome(runs.NOT_DECIDED, reason, remedy, procedure, {})
        why = wish or arguments["says"]
        if not self.check_mode:
            return self._wait(needed, remedy, procedure, why)
        standing = self._standing(needed, remedy)
        reason = f"would wait for the Go of {', '.join(standing.waiting)}"
        return self._decided(standing, remedy, procedure, why) or self._outcome(runs.GO, reason, remedy, procedure, {})

    def _said(self, name: str) -> str:
        """A reason that this call gives."""
        return one_line(str(self.variables.get(name) or "")).strip()

    def _refuse_taken_back(self, decided: dict[str, Any]) -> None:
        """A run that was decided goes on without asking again, unless somebody has said No-Go meanwhile."""
        no = runs.taken_back(self.entries(), self.run_id, decided["remedy"])
        if not no:
            return
        if glass := self._said("rollback_break_glass"):
            body = {"by": self.operator, "role": self.glass_role(), "reason": glass, "remedy": decided["remedy"]}
            self.append("glass-broken", body, self.run_id)
            return
        again = {"decide_role": no.role, "decide_by": "…", "decide_answer": "go", "decide_reason": "…"}
        raise BalikError(
            f"run {self.run_id}",
            f"No-Go by {no.by} ({self.plan.people[no.role].title}) since it was decided: {no.reason}",
            do=f"What was done stays as it is. To go on, let them say Go (`{self.command('decide.yml', **again)}`), "
            "break the glass, or begin anew with -e rollback_fresh=true.",
        )

    def _nothing_to_do(self, says: str, remedy: Remedy, procedure: Procedure) -> dict[str, Any]:
        """Not so while an earlier run keeps the traffic from the application, however well that is."""
        outcome = runs.NOT_DECIDED if self.held_by_another(self.run_id) else runs.NOTHING_TO_DO
        return self._outcome(outcome, says, remedy, procedure, {})

    def _wait(self, needed: tuple[str, ...], remedy: Remedy, procedure: Procedure, why: str) -> dict[str, Any]:
        began = time.monotonic()
        asked: set[str] = set()
        escalated: set[str] = set()
        head = ""
        while True:
            if head != (now := self.record.head()):
                head, standing = now, self._standing(needed, remedy)
            if decided := self._decided(standing, remedy, procedure, why):
                return decided
            waited = time.monotonic() - began
            titles = ", ".join(self.plan.people[role].title for role in standing.waiting)
            if waited > self.plan.wait:
                reason = f"no answer from {titles} within {format_duration(waited)}"
                return self._outcome(runs.NOT_DECIDED, reason, remedy, procedure, _words(standing))
            if set(standing.waiting) != asked:
                self._ask(standing.waiting, asked, remedy, why)
                asked = set(standing.waiting)
            for role in set(standing.waiting) - escalated:
                person = self.plan.people[role]
                if person.escalates_to and waited > person.after:
                    escalated.add(role)
                    self.say(f"{person.title} has not answered; telling {self.plan.people[person.escalates_to].title}")
                    self._tell_asked(remedy, why, [person.escalates_to])
            self.keep_lock()
            time.sleep(LOOK_EVERY)

    def _standing(self, needed: tuple[str, ...], remedy: Remedy) -> runs.Standing:
        entries = self.entries()
        answers = runs.answers_for_run(entries, self.run_of(self.run_id), self.plan.valid)
        return runs.standing([a for a in answers if a.role in self.plan.people], needed, remedy.name)

    def _decided(
        self, standing: runs.Standing, remedy: Remedy, procedure: Procedure, why: str
    ) -> dict[str, Any] | None:
        """What the answers so far decide; None where somebody is waited for."""
        if no := standing.refused:
            reason = f"No-Go by {no.by} ({self.plan.people[no.role].title}): {no.reason}"
            return self._outcome(runs.NOT_DECIDED, reason, remedy, procedure, _words(standing))
        if standing.made:
            by = ", ".join(f"{a.by} ({self.plan.people[a.role].title})" for a in standing.answers.values())
            reason = f"Go by {by}" if by else f"the plan asks nobody: {why}"
            return self._outcome(runs.GO, reason, remedy, procedure, _words(standing))
        return None

    def _ask(self, waiting: tuple[str, ...], asked: set[str], remedy: Remedy, why: str) -> None:
        titles = ", ".join(f"{self.plan.people[role].title} ({role})" for role in waiting)
        self.say(
            f"waiting up to {format_duration(self.plan.wait)} for Go or No-Go on remedy {remedy.name} from {titles}:"
        )
        for role in waiting:
            answer = {"decide_role": role, "decide_by": "…", "decide_answer": "go", "decide_reason": "…"}
            self.say("  " + self.command("decide.yml", **answer))
        if not asked:
            self.append("asked", {"roles": list(waiting), "remedy": remedy.name, "why": why}, self.run_id)
            self._tell_asked(remedy, why, waiting)

    def _tell_asked(self, remedy: Remedy, why: str, roles: Sequence[str]) -> None:
        """What a restore would lose belongs into the reason: nobody should say Go without having read it."""
        lost = losses.text(losses.newest(self.entries(), losses.TOLD, self.run_id))
        message = self.plan.messages.get("asked", {}).get("says", "")
        reason = f"{why}\n\n{lost}" if lost and "<loss>" not in message else why
        self.tell("asked", self.run_id, {"remedy": remedy.name, "reason": reason, "loss": lost or "—"}, roles)

    def _break_glass(self, reason: str, remedy: Remedy, procedure: Procedure) -> dict[str, Any]:
        role = self.glass_role()
        body = {"by": self.operator, "role": role, "reason": reason, "remedy": remedy.name}
        self.append("glass-broken", body, self.run_id)
        title = self.plan.people[role].title
        return self._outcome(runs.GO, f"glass broken by {self.operator} ({title}): {reason}", remedy, procedure, {})

    def _outcome(
        self, outcome: str, reason: str, remedy: Remedy, procedure: Procedure, answers: dict[str, str]
    ) -> dict[str, Any]:
        if outcome == runs.NOT_DECIDED:
            reason += self.held_by_another(self.run_id)
        body = {
            "outcome": outcome,
            "reason": reason,
            "remedy": remedy.name,
            "procedure": procedure.name,
            "answers": answers,
        }
        self.append("decided", body, self.run_id)
        self.say(f"would be decided: {reason}" if self.check_mode else f"decided: {outcome} ({reason})")
        return {**body, "changed": not self.check_mode, "steps": self._steps(remedy), "says": reason}

    def _steps(self, remedy: Remedy) -> dict[str, list[str]]:
        steps: dict[str, list[str]] = {}
        for phase, step in self.plan.steps(remedy.name):
            steps.setdefault(phase, []).append(step)
        return steps


def _words(standing: runs.Standing) -> dict[str, str]:
    """What each role has said, in a line."""
    return {role: f"{a.answer} by {a.by}: {a.reason}" for role, a in standing.answers.items()}
