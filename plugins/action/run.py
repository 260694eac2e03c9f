"""Opens, resumes and closes a run; see the module's documentation."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.files import write_whole
from ..module_utils.messages import VISITORS
from ..module_utils.record import Lock, Record, RecordUnavailable, is_dsn, is_there, see_that_it_can_be_made
from ..module_utils.units import format_duration, iso, utc_now
from ..plugin_utils.action import LEASE, RollbackAction

WORDS = {
    runs.ROLLED_BACK: "ROLLED BACK",
    runs.NOTHING_TO_DO: "NOTHING TO DO",
    runs.NOT_DECIDED: "NOT DECIDED",
    runs.FAILED: "FAILED",
}
#: What each outcome keeps of the one before until it has its own.
KEPT = ("record", "record_fingerprint", "record_head")


class ActionModule(RollbackAction):
    """The first and the last task of a rollback."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "state": {"type": "str", "required": True, "choices": ["opened", "closed"]},
        "run": {"type": "str", "default": ""},
        "decision": {"type": "dict", "default": {}},
        "failure": {"type": "str", "default": ""},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["state"] == "opened":
            return self._open()
        try:
            return self._closed(arguments)
        except RecordUnavailable as error:
            return self._unrecorded(arguments, error)

    def _closed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["failure"]:
            held = self.held_by_another(arguments["run"]) if arguments["run"] else ""
            return self._close(arguments["run"], runs.FAILED, arguments["failure"] + held)
        decision = arguments["decision"]
        outcome = runs.ROLLED_BACK if decision["outcome"] == runs.GO else decision["outcome"]
        reason = decision["reason"]
        if self.check_mode and decision["outcome"] == runs.GO:
            steps = "; ".join(f"{phase}: {', '.join(names)}" for phase, names in decision["steps"].items() if names)
            reason += f"; would roll back by remedy {decision['remedy']}: {steps}"
        return self._close(arguments["run"], outcome, reason)

    # Opening

    def _open(self) -> dict[str, Any]:
        if self.no_record():
            see_that_it_can_be_made(self.record_file)
        missing = self.believe_record()
        if not self.check_mode and (taken := self._lock()):
            self.say(f"took over the lock of {taken.holder}, which had it since {iso(taken.since)}")
        try:
            opened = self._begin()
            if missing:
                # This run's end will have a head of its own; that another one is gone must stay known.
                self.append("record-cut", {"head": missing}, opened["run"])
            return opened
        except BalikError:
            # Nobody closes a run that was never opened: the next call would find the lock of a dead process.
            if not self.check_mode:
                self.record.release(self.holder)
            raise

    def _begin(self) -> dict[str, Any]:
        found = runs.unfinished_run(self.entries())
        if found and (why := self._why_not_resumed(found)):
            self.say(f"run {found.id} is left as it is ({why}); this is a new one")
            self.append("outcome", {"outcome": runs.ABANDONED, "reason": why}, found.id)
            found = None
        if found and self.flag("rollback_traffic_back"):
            raise BalikError(
                "rollback_traffic_back",
                f"run {found.id} is not over, and this call would go on with it, page and all",
                do="To leave that run as it is, add -e rollback_fresh=true.",
            )
        if found:
            return self._resume(found)
        run = runs.new_run_id()
        body = {
            "product": self.plan.product,
            "environment": self.plan.environment,
            "release": self.plan.release,
            "stable": self.plan.stable,
            "by": self.operator,
            "job": self.variables.get("awx_job_id"),
            "speed": self.plan.speed,
        }
        self.append("run-opened", body, run)
        if self.flag("rollback_traffic_back"):
            self.append("traffic-back", {"by": self.operator}, run)
        return self._opened(run, f"run {run} is opened")

    def _lock(self) -> Lock | None:
        return self.record.acquire(self.holder, LEASE, self.flag("rollback_take_lock"))

    def _why_not_resumed(self, found: runs.Run) -> str:
        if self.flag("rollback_fresh"):
            return "a fresh one was asked for"
        return runs.why_not_resumed(found, self.plan.release, utc_now())

    def _refuse_other_wishes(self, found: runs.Run) -> None:
        """A run that was decided goes on as it was decided.

        :raises BalikError: this call wants another remedy or procedure, or the plan has that no longer.
        """
        anew = "to decide anew, add -e rollback_fresh=true."
        for name in ("remedy", "procedure"):
            wished, decided = self.variables.get(f"rollback_{name}"), (found.decided or {}).get(name)
            if wished and decided and wished != decided:
                raise BalikError(
                    f"rollback_{name}",
                    f"found {wished!r}, and run {found.id}, which is not over, was decided with {decided!r}",
                    do=f"Leave it out to go on with that run; {anew}",
                )
        if not found.decided or found.decided["outcome"] != runs.GO:
            return
        remedy, procedure = str(found.decided["remedy"]), str(found.decided["procedure"])
        for what, name, known in (
            ("remedy", remedy, self.plan.remedies),
            ("procedure", procedure, [each.name for each in self.plan.procedures]),
        ):
            if name not in known:
                raise BalikError(
                    f"run {found.id}",
                    f"it was decided with {what} {name!r}, which the plan no longer has",
                    f"one of {', '.join(known)}",
                    f"Put it back into the plan to go on with that run; {anew}",
                )
        covers = self.plan.remedies[remedy].covers
        if lacking := set(self.wished_scope()) - covers:
            raise BalikError(
                "rollback_scope",
                f"found {', '.join(sorted(lacking))}, and run {found.id}, which is not over, was decided with remedy "
                f"{remedy}, which covers {', '.join(sorted(covers))}",
                do=f"Leave it out to go on with that run; {anew}",
            )

    def _resume(self, found: runs.Run) -> dict[str, Any]:
        self._refuse_other_wishes(found)
        lines = [f"run {found.id}, last heard of {format_duration((utc_now() - found.last_at).total_seconds())} ago"]
        if found.decided:
            lines.append(f"it was decided: {found.decided['outcome']} by {found.decided['remedy']}")
        for step in found.steps_in_order:
            lines.append(f"{step.name}: {_what_comes_of(step, found)}")
        for line in lines:
            self.say("found " + line)
        self.append("run-resumed", {"by": self.operator, "found": lines}, found.id)
        return self._opened(found.id, f"run {found.id} is taken up again")

    def _opened(self, run: str, says: str) -> dict[str, Any]:
        if not self.check_mode:
            self._write_outcome({"product": self.plan.product, "run": run, "outcome": "running"})
        return {"changed": not self.check_mode, "says": says, "run": run}

    # Closing

    def _close(self, run: str, outcome: str, reason: str) -> dict[str, Any]:
        if self.check_mode:
            says = f"CHECK ONLY: nothing was changed. {reason}".strip()
            return {"says": says, "good": outcome != runs.FAILED}
        if not run:
            return self._never_opened(outcome, reason)
        if not self.holds_lock():
            # It was taken over: the run's end is for whoever has it now to say.
            return {"good": False, "held": True, "says": f"{WORDS[runs.FAILED]}: {reason}"}
        found = self._with_lost_end(self.run_of(run), reason)
        facts = {"remedy": (found.decided or {}).get("remedy", ""), "reason": reason}
        self.tell(outcome, run, {**facts, "visitors": VISITORS[self.plan.language][found.page_at_end or ""]})
        body = {"outcome": outcome, "reason": reason, "by": self.operator}
        self.append("outcome", body, run)
        summary = {
            "product": self.plan.product,
            "release": self.plan.release,
            "run": run,
            "outcome": outcome,
            "reason": reason,
            "verdict": (found.verdict or {}).get("verdict"),
            "remedy": (found.decided or {}).get("remedy"),
            "page": found.page_at_end,
            "opened": iso(found.opened_at),
            "closed": iso(utc_now()),
            "steps": {step.name: {"state": step.state, "seconds": step.seconds} for step in found.steps_in_order},
            "report": str(self.state_dir / "reports" / run / "report.html"),
            "record": self.record.place,
            "record_fingerprint": self.record_fingerprint,
            "record_head": self.record.head(),
        }
        self._write_outcome(summary)
        self.record.release(self.holder)
        says = f"{WORDS[outcome]}: {reason}"
        certain = outcome != runs.FAILED and found.page_at_end != runs.UNKNOWN
        visitors = "" if certain or not found.page_at_end else VISITORS["en"][found.page_at_end]
        return {"changed": True, "good": outcome in runs.GOOD, "says": says, "visitors": visitors, **summary}

    def _with_lost_end(self, found: runs.Run, reason: str) -> runs.Run:
        """The run with what a step has left of the page and could not write down itself, since the record was away: the
        next call has to know who has the application."""
        if not runs.has_no_end(found, runs.PAGE_DOWN):
            return found
        hosts = self.step_hosts(runs.PAGE_DOWN)
        left = {host: self.task_vars["hostvars"][host].get("rollback_step_left") or {} for host in hosts}
        if any(left.values()):
            body = {"phase": "restore", "step": runs.PAGE_DOWN, "stage": "main or verify", "left": left}
            self.append("step-failed", {**body, "failures": dict.fromkeys(hosts, reason)}, found.id)
        return self.run_of(found.id)

    def _unrecorded(self, arguments: dict[str, Any], error: RecordUnavailable) -> dict[str, Any]:
        """The record cannot be reached at the end: the file and the last lines say how it ended, as far as is known."""
        reason = f"{arguments['failure'].rstrip('.')}; " if arguments["failure"] else ""
        reason += f"the outcome could not be written down: {error}"
        summary = {"product": self.recorded_by[0], "run": arguments["run"] or None, "outcome": runs.FAILED}
        self._write_outcome({**summary, "reason": reason, "page": runs.UNKNOWN})
        says = f"{WORDS[runs.FAILED]}: {reason}"
        return {"good": False, "says": says, "visitors": VISITORS["en"][runs.UNKNOWN], "outcome": runs.FAILED}

    def _never_opened(self, outcome: str, reason: str) -> dict[str, Any]:
        """The plan or the call was refused, or the lock is somebody else's. That is not for the record."""
        held, page = self._left_behind()
        if not held:
            summary = {"product": self.variables.get("rollback_product"), "run": None, "outcome": outcome}
            try:
                self._write_outcome({**summary, "reason": reason, "page": page})
            except BalikError as error:
                reason = f"{reason}\n  - {error.what}: {error.found}"
        return {"good": False, "held": held, "says": f"{WORDS[outcome]}: {reason}"}

    def _left_behind(self) -> tuple[bool, str | None]:
        """Whether somebody else's run is going on: what was refused is no news of it; and where the page was left.

        A record that was edited cannot say that.
        """
        product, dsn, key = (
            str(self.variables.get(f"rollback_{name}") or "") for name in ("product", "record_dsn", "record_key")
        )
        held = False
        try:
            if not (is_dsn(dsn) or (not dsn and is_there(self.record_file))):
                return False, None
            with Record(dsn or str(self.record_file), product, key) as record:
                lock = record.lock()
                held = lock is not None and lock.is_held() and not lock.holder.same_process(self.holder)
                if not record.verify().whole:
                    return held, runs.UNKNOWN
                known = runs.read_runs(record.entries())
        except BalikError:
            return held, runs.UNKNOWN
        return held, next((run.page_at_end for run in reversed(known) if run.page), None)

    def _write_outcome(self, summary: dict[str, Any]) -> None:
        """Write ``outcome.json`` so that a reader sees the old or the new one, never half of it.

        Until a run ends with a head of its own, the one that was kept stays: it shows that the record's end is there.
        """
        path = self.outcome_file
        kept = {key: value for key, value in self.outcome_kept().items() if key in KEPT}
        text = json.dumps(self.scrubbed({**kept, **summary}), indent=2, ensure_ascii=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, text)
        except OSError as error:
            raise BalikError(str(path), f"cannot be written: {error.strerror}", do="The record has it.") from None


def _what_comes_of(step: runs.StepState, run: runs.Run) -> str:
    """How an earlier call has left a step, and what this one does about it."""
    if run.traffic_given_back and step.phase != "restore":
        return f"{step.state}; it is left as it is, since the traffic was given back"
    if step.state == "done":
        return "done; it is verified, and skipped if it holds"
    if not step.began:
        return "refused by its check, and not begun; it is checked again"
    return f"{'interrupted' if step.state == 'started' else 'failed'}; it is checked and done again"
