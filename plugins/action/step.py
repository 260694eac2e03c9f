"""Keeps the record around one step; see the module's documentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.plan import PHASES
from ..module_utils.record import RecordUnavailable
from ..module_utils.units import format_duration, parse_duration
from ..plugin_utils.action import LEASE, RollbackAction
from .criteria import stated_unsafe

MOMENTS = ("ready", "looked", "confirmed", "checked", "seen", "finished")
#: Characters of what a check said that the operator is shown; the record has all of it.
LONGEST_SHOWN = 4000


class ActionModule(RollbackAction):
    """Before a step: what is to be done, and *started*. After it: *done* or *failed*."""

    UNDER_LOCK = True
    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "moment": {"type": "str", "required": True, "choices": MOMENTS},
        "run": {"type": "str", "required": True},
        "phase": {"type": "str", "required": True, "choices": list(PHASES)},
        "step": {"type": "str", "required": True},
    }

    @cached_property
    def secrets(self) -> set[str]:
        """Those of each host of the step: what failed there may have shown its own."""
        found = self.variables.secrets()
        for host in self._hosts:
            found |= self.variables_of(host).secrets()
        return found

    @cached_property
    def recorded_by(self) -> tuple[str, str, str]:
        """As the plan says, which was checked when the run was opened: reading all of it again would take longer than
        all else here, while visitors wait for the page."""
        product, dsn, key = (self.variables.get(f"rollback_{name}") for name in ("product", "record_dsn", "record_key"))
        return str(product), dsn or "", key or ""

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.run_id, self.phase, self.step = (arguments[key] for key in ("run", "phase", "step"))
        return getattr(self, "_" + arguments["moment"])()

    def _ready(self) -> dict[str, Any]:
        """After ``check`` before the decision: say what it said, and keep what stands there, so that it need not be
        read again, or why it cannot be done, until all steps were checked. What the steps before a remedy's change is
        not kept: it is checked again in its phase."""
        if failures := self._failures():
            why = str(self._failed("check", failures)).removesuffix(".")
            return {**self._so_far, "refused": [*self._so_far["refused"], why]}
        found = {**self._so_far, "told": {**self._so_far["told"], self.step: self._tell_check()}}
        if self.phase == "hold":
            found["ready"] = {**self._so_far["ready"], self.step: self._before()}
        return found

    @cached_property
    def _so_far(self) -> dict[str, Any]:
        """What this task found of the steps before: ``refused``, ``told`` and ``ready``. It is a registered result: the
        facts of an action live on in a cache of facts, where the next call would find them."""
        found = self.task_vars.get("rollback_step_found") or {}
        return {"refused": found.get("refused", []), "told": found.get("told", {}), "ready": found.get("ready", {})}

    def _tell_check(self) -> dict[str, str]:
        """What ``check`` said on each host, said to the operator where this call has not said so already."""
        told = self._so_far["told"].get(self.step, {})
        if self.step in self._so_far["ready"]:
            return told
        said = {host: says for host in self._hosts if (says := self._result(host, "check").get("says"))}
        if news := _listed({host: says for host, says in said.items() if says != told.get(host)}):
            more = f"… (+{len(news) - LONGEST_SHOWN} characters)" if len(news) > LONGEST_SHOWN else ""
            self.say(f"{self.step}: checked. {news[:LONGEST_SHOWN]}{more}")
        return said

    def _before(self) -> dict[str, Any]:
        """What ``check`` saw on each host."""
        return {host: self._result(host, "check").get("before") or {} for host in self._hosts}

    def _looked(self) -> dict[str, Any]:
        """What is to be done: ``do`` the step, only ``begin`` it where it was checked before the decision, ``confirm``
        that it still holds, or ``skip`` it."""
        run = self.run_of(self.run_id)
        before = run.steps.get(self.step)
        done = before is not None and before.state == "done"
        if run.traffic_given_back and self.phase != "restore":
            todo = "skip"
            left_out = "WARNING: left out: the plan had it not when the traffic was given back"
            self.say(
                f"{self.step}: {'done before, and proved before the traffic was given back' if done else left_out}"
            )
        elif done and self.step == runs.PAGE_DOWN and (unsafe := stated_unsafe(self, run)):
            self.say(f"{self.step}: done before, but since then {unsafe.says}: {unsafe.reason}")
            todo = "do"
        elif done:
            todo = "confirm"
        else:
            todo = "begin" if self.step in self._so_far["ready"] else "do"
        hosts = self._hosts
        if todo != "skip" and self.step in (runs.PAGE_UP, runs.PAGE_DOWN):
            self._require_all_with_page(run, hosts)
        return {
            "todo": todo,
            "hosts": hosts,
            "page_hosts": self._page_hosts(run),
            "saved": before.saved if before else {},
            "run_saved": {
                host: {name: step.saved[host] for name, step in run.steps.items() if host in step.saved}
                for host in self._hosts
            },
        }

    def _require_all_with_page(self, run: runs.Run, hosts: list[str]) -> None:
        """:raises BalikError: a host that got the page from this run is not among these, so that it would keep it."""
        left = _left_out(run, hosts) if run.page != runs.OFF else []
        known = [host for host in left if host == "localhost" or host in self.task_vars["groups"]["all"]]
        variable = f"{self.step.replace('-', '_')}_hosts"
        if known:
            raise BalikError(
                variable,
                f"{', '.join(known)} got the page from this run, and {self.step} would leave it as it is",
                "every host that has the page",
                f"Let {variable} match it again; or take it out of the inventory, if it is gone for good.",
            )
        if left:
            gone = ", ".join(left)
            self.say(f"{self.step}: WARNING: not in the inventory any more, but got the page from this run: {gone}")

    def _page_hosts(self, run: runs.Run) -> list[str]:
        """Where the page is to be looked at before this step: nowhere if this run has it not up, or gives the traffic
        back."""
        kept_from_visitors = self.phase in ("revert", "verify") and run.page == runs.ON and not self.check_mode
        return self.step_hosts(runs.PAGE_UP) if kept_from_visitors else []

    def _seen(self) -> dict[str, Any]:
        """After a look at the page of a run: where it is gone or cannot be seen, write that down and stop."""
        if failures := self._failures():
            raise self._failed(
                runs.SEEN,
                failures,
                "It is not certain any more that visitors have the page: the rollback goes no further.",
            )
        return {}

    def _confirmed(self) -> dict[str, Any]:
        """After ``verify`` of a step that was done: skip it if it holds everywhere, else do it again."""
        failures = self._failures()
        if failures:
            self.say(f"{self.step}: done before, but no longer so: {_listed(failures)}")
            return {"todo": "do"}
        if self.step == runs.PAGE_UP and not self.check_mode and self.run_of(self.run_id).page != runs.ON:
            self.say(f"{self.step}: it holds, and is done once more, since the record was not certain of it any more")
            return {"todo": "do"}
        # Not all roles look in a check run.
        holds = "whether it still holds is seen in the run" if self.check_mode else "and it still holds"
        self.say(f"{self.step}: done before, {holds}")
        return {"todo": "skip"}

    def _checked(self) -> dict[str, Any]:
        """After ``check``: write *started* with what stands there and what it said, or stop before anything is
        touched."""
        if failures := self._failures():
            before = self.run_of(self.run_id).steps.get(self.step)
            so_far = "Nothing of this step was done."
            if before is not None and before.began:
                so_far = "What it did when it was started before stays."
            raise self._failed("check", failures, so_far)
        saved = self._so_far["ready"].get(self.step) or self._before()
        limit = self.step_setting(self.step, "limit")
        self.keep_lock(parse_duration(limit) * 2 + LEASE if limit else LEASE)
        body = {"phase": self.phase, "step": self.step, "saved": saved, "says": self._tell_check()}
        self.append("step-started", body, self.run_id)
        # What an interrupted run saved first is what stood there; a check after it may see half-done work.
        begun = self.run_of(self.run_id).steps.get(self.step)
        return {"changed": not self.check_mode, "saved": begun.saved if begun else saved}

    def _finished(self) -> dict[str, Any]:
        """After ``main`` and ``verify``: write *done*, or *failed* and stop; nothing if the lock was taken over."""
        if failures := self._failures():
            raise self._failed("main or verify", failures)
        self.keep_lock()
        hosts = self._hosts
        says = {host: self._result(host, "main").get("says", "") for host in hosts}
        if self.check_mode:
            told = _listed({h: s for h, s in says.items() if s})
            self.say(f"{self.step}: would be done{f'. {told}' if told else ''}")
            return {"says": "would be done"}
        evidence = {
            host: {
                "main": self._result(host, "main").get("evidence", {}),
                "verify": self._result(host, "verify").get("evidence", {}),
            }
            for host in hosts
        }
        body: dict[str, Any] = {"phase": self.phase, "step": self.step, "says": says, "evidence": evidence}
        if self.step == runs.PAGE_DOWN and (gone := _left_out(self.run_of(self.run_id), hosts)):
            body["gone"] = gone
            self.say(f"{self.step}: WARNING: where the page is on {', '.join(gone)} nobody could see")
        self.append("step-done", body, self.run_id)
        took = format_duration(self.run_of(self.run_id).steps[self.step].seconds or 0)
        self.say(f"{self.step}: done in {took}. {_listed({h: s for h, s in says.items() if s})}")
        return {"changed": True, "says": says}

    def _failed(self, stage: str, failures: dict[str, str], so_far: str = "") -> BalikError:
        """Write *failed*; what to tell of it, also where it cannot be written."""
        body: dict[str, Any] = {"phase": self.phase, "step": self.step, "stage": stage, "failures": failures}
        left = {host: self._result(host, "left") for host in self._hosts}
        if any(left.values()):
            body["left"] = left
        found = _listed(failures) if len(set(failures.values())) > 1 else next(iter(failures.values()))
        try:
            self.append("step-failed", body, self.run_id)
        except RecordUnavailable as error:
            found = f"{found.removesuffix('.')}; that is not written down: {error.what}: {error.found}"
            so_far = so_far or error.do
        return BalikError(f"{self.step} failed on {', '.join(failures)}", found, do=so_far)

    @cached_property
    def _hosts(self) -> list[str]:
        return self.step_hosts(self.step)

    def _result(self, host: str, entry: str) -> dict[str, Any]:
        return self.task_vars["hostvars"][host].get(f"rollback_step_{entry}") or {}

    def _failures(self) -> dict[str, str]:
        """Each host that failed or could not be reached, with the reason."""
        alive = self.task_vars.get("ansible_play_hosts", [])
        failures = {}
        for host in self._hosts:
            hostvars = self.task_vars["hostvars"][host]
            if host not in alive:
                failures[host] = self._unreachable(host, hostvars)
            elif (failure := hostvars.get("rollback_step_failure")) and failure["step"] == self.step:
                failures[host] = _told(failure, host)
                # A connection whose own program fails gives an answer that is no module's, and not "unreachable".
                if "No start of json char" in failure["msg"]:
                    said = failure["msg"].partition("found: ")[2].strip().splitlines() or ["nothing"]
                    failures[host] = self._unreachable(host, hostvars, f", which said: {said[0]}")
        return failures

    def _unreachable(self, host: str, hostvars: Any, said: str = "") -> str:
        address = hostvars.get("ansible_host", host)
        connection = hostvars.get("ansible_connection", "ssh")
        user = hostvars.get("ansible_user")
        how = f"{connection} to {f'{user}@' if user else ''}{address}"
        return (
            f"{host} could not be reached (tried {how}{said}). Try `{self.ad_hoc(host, 'ping')}`; mend the way there, "
            "or take it out of the inventory if it is gone for good, and run again"
        )


def _told(failure: dict[str, str], host: str) -> str:
    """A failed task's message. The task's name helps only where the message does not say what it is about."""
    message = failure["msg"].removeprefix(f"{host}: ")
    return message if ": " in message else f"{failure['task']}: {message}"


def _listed(texts: dict[str, str]) -> str:
    """Each text once, behind the names of its hosts."""
    hosts: dict[str, list[str]] = {}
    for host, text in texts.items():
        hosts.setdefault(text.removeprefix(f"{host}: "), []).append(host)
    return "; ".join(text if names == ["localhost"] else f"{', '.join(names)}: {text}" for text, names in hosts.items())


def _left_out(run: runs.Run, hosts: Sequence[str]) -> list[str]:
    """Those that got the page from a run, and are not among these hosts."""
    up = run.steps.get(runs.PAGE_UP)
    return [host for host in up.saved if host not in hosts] if up else []
