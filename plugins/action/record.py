"""Reads the record: where a rollback is, and whether the chain is whole; see the module's documentation."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.messages import VISITORS
from ..module_utils.record import Entry, is_there
from ..module_utils.units import format_duration, iso, utc_now
from ..plugin_utils.action import RollbackAction

FROZEN = (
    "AUTOSCALERS ARE FROZEN since {since} (run {run}): {says}. Nothing scales up under load until scale-thaw is done"
)
HELD_OFF = (
    "GITOPS IS HELD OFF since {since} (run {run}), by the record: {names}. These do not act by themselves until "
    "gitops-resume lets them (playbooks/gitops-resume.yml)"
)


class ActionModule(RollbackAction):
    """Answers two questions: where are we, and was anything changed afterwards."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "state": {"type": "str", "required": True, "choices": ["status", "entries", "saved", "verified"]},
        "head": {"type": "str", "default": ""},
        "run": {"type": "str", "default": ""},
        "step": {"type": "str", "default": ""},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["state"] == "verified":
            return self._verify(arguments["head"])
        if arguments["state"] == "saved":
            return self._saved(arguments["run"], arguments["step"])
        if not (self.recorded_by[1] or is_there(self.record_file) or self.outcome_kept()):
            # Looking makes no record.
            says = f"{self.plan.product} has never been rolled back: there is no record {self.record_file}"
            self.say(says)
            status = {"product": self.plan.product, "run": None, "outcome": None}
            return {"status": status, "entries": [], "says": says}
        self.believe_record()
        if arguments["state"] == "entries":
            self.flag("verify")  # what is neither true nor false was meant to be one
            run = arguments["run"]
            entries = list(self.record.entries(run or None))
            if run and not entries:
                raise self._unknown_run(run)
            for entry in entries:
                self.say(f"{entry.seq:>6}  {entry.at[:19]}Z  {entry.kind:<13} {_told(entry)}")
            return {"entries": [vars(entry) for entry in entries], "says": f"{len(entries)} entries"}
        return self._status()

    def _verify(self, head: str) -> dict[str, Any]:
        if head and not re.fullmatch("[0-9a-f]{64}", head):
            raise BalikError("record_head", f"found {head!r}", "64 hex digits, as an outcome or a report has them")
        found = self.record.verify(head or self.head_kept())
        if not found.whole:
            raise BalikError(
                f"record {self.record.place}",
                f"the chain is broken at entry {found.broken_at}: {found.reason}",
                do=f"The {found.entries} entries before it are as they were written. Keep a copy of the record, ask "
                "who had access.",
            )
        if cut := next((entry for entry in self.entries() if entry.kind == "record-cut"), None):
            raise BalikError(
                f"record {self.record.place}",
                f"before entry {cut.seq} ({cut.at[:19]}Z) its end was lost or cut off: the entry with hash "
                f"{cut.body['head']} is gone. What stands there is whole: {found.entries} entries, head {found.head}",
                do="Keep a copy, and ask who had access. Once that is known, a new record begins when it is moved away "
                f"together with {self.outcome_file}.",
            )
        says = f"the chain of {found.entries} entries is whole; its head is {found.head}"
        self.say(says)
        return {"entries": found.entries, "head": found.head, "says": says}

    def _saved(self, run: str, step: str) -> dict[str, Any]:
        """What stood on each host before the run first started the step."""
        self.believe_record()
        found = next((each for each in runs.read_runs(self.entries()) if each.id == run), None)
        if found is None:
            raise self._unknown_run(run)
        begun = {name: each for name, each in found.steps.items() if each.began}
        if step not in begun:
            names = ", ".join(begun) or "none"
            raise BalikError("step", f"found {step!r}", f"a step that run {run} has begun ({names})")
        saved = begun[step].saved
        return {"saved": saved, "says": f"what {step} of run {run} saved on {', '.join(saved) or 'no host'}"}

    def _unknown_run(self, run: str) -> BalikError:
        known = ", ".join(each.id for each in runs.read_runs(self.entries())[-3:]) or "none so far"
        return BalikError("record_run", f"found {run!r}", f"a run of this record (the newest: {known})")

    def _status(self) -> dict[str, Any]:
        entries = self.entries()
        lock = self.record.lock()
        found = runs.read_runs(entries)
        newest = found[-1] if found else None
        waiting = _waiting(entries, newest) if newest and newest.outcome is None else []
        frozen = _told_frozen(runs.still_frozen(entries))
        held_off = _told_held_off(runs.still_held_off(entries))
        status = {
            "product": self.plan.product,
            "lock": str(lock.holder) if lock else None,
            "lock_since": iso(lock.since) if lock else None,
            "run": newest.id if newest else None,
            "outcome": newest.outcome if newest else None,
            "remedy": (newest.decided or {}).get("remedy") if newest else None,
            "page": newest.page if newest else None,
            "steps": {s.name: s.state for s in newest.steps_in_order} if newest else {},
            "waiting": waiting,
            "frozen": frozen,
            "held_off": held_off,
            "head": self.record.head(),
        }
        for line in self._lines(newest, lock, waiting):
            self.say(line)
        held = runs.still_held(entries)
        if newest and held not in (None, newest.id):
            self.say(f"run {held} held the traffic, and has not given it back")
        if frozen:
            self.say(FROZEN.format(**frozen))
        if held_off:
            self.say(HELD_OFF.format(**held_off))
        return {"status": status, "says": status["outcome"] or "open"}

    def _lines(self, run: runs.Run | None, lock: Any, waiting: list[dict[str, Any]]) -> list[str]:
        if run is None:
            return [f"{self.plan.product} has never been rolled back; the record at {self.record.place} has no run"]
        lines = [f"run {run.id} of {self.plan.product}, opened by {run.opened['by']} at {iso(run.opened_at)[:19]}Z"]
        if lock:
            gone = " (that process has ended)" if lock.holder.is_gone() else ""
            lines.append(f"the lock is held by {lock.holder}{gone} since {iso(lock.since)[:19]}Z")
        if run.decided:
            lines.append(f"decided: {run.decided['outcome']} by {run.decided['remedy']}: {run.decided['reason']}")
        lines += [f"waiting for {', '.join(w['roles'])}: {w['why']}" for w in waiting]
        for step in run.steps_in_order:
            took = f" in {format_duration(step.seconds)}" if step.seconds is not None else ""
            lines.append(f"{step.phase}: {step.name}: {step.state}{took}")
        if run.page:
            lines.append(VISITORS["en"][run.page])
        if run.outcome:
            lines.append(f"outcome: {run.outcome}: {run.outcome_body['reason']}")
        else:
            quiet = format_duration((utc_now() - run.last_at).total_seconds())
            again = "" if lock and not lock.holder.is_gone() else ". Running rollback.yml again goes on from here"
            lines.append(f"not over; last heard of {quiet} ago{again}")
        return lines


def _told_frozen(frozen: runs.Frozen | None) -> dict[str, str] | None:
    if frozen is None:
        return None
    says = "; ".join(text for text in frozen.says.values() if text) or "the freeze did not end: some may stand still"
    return {"run": frozen.run, "since": iso(frozen.since), "says": says}


def _told_held_off(held: runs.HeldOff | None) -> dict[str, str] | None:
    return {"run": held.run, "since": iso(held.since), "names": ", ".join(held.names)} if held else None


def _waiting(entries: list[Entry], run: runs.Run) -> list[dict[str, Any]]:
    """The last thing that people were asked in a run, while nobody has answered it and nothing came after it."""
    waiting: list[dict[str, Any]] = []
    for entry in entries:
        if entry.run == run.id and entry.kind == "asked":
            waiting = [entry.body]
        elif entry.run == run.id and entry.kind in ("decided", "outcome", "run-resumed"):
            waiting = []
        elif waiting and entry.kind == ("sign-off" if "item" in waiting[0] else "decision"):
            left = [role for role in waiting[0]["roles"] if role != entry.body["role"]]
            waiting = [{**waiting[0], "roles": left}] if left else []
    return waiting


def _told(entry: Entry) -> str:
    keys = ("step", "role", "by", "answer", "item", "verdict", "outcome", "reason")
    return ", ".join(f"{key} {entry.body[key]}" for key in keys if entry.body.get(key))
