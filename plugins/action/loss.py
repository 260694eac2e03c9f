"""Tells what a restore or a way down would lose; see the module's documentation."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ..module_utils.errors import BalikError
from ..module_utils.loss.entries import DOWN, EXPORTED, STEP, TOLD
from ..module_utils.loss.statement import lines as all_lines
from ..module_utils.run import Run, read_runs
from ..module_utils.units import format_duration
from ..plugin_utils.action import LEASE, RollbackAction

#: Named by the tasks of the steps' roles, for the hosts that they run on.
RESULTS = {STEP: "__db_restore_loss", DOWN: "__prisma_down_loss"}


class ActionModule(RollbackAction):
    """Before the decision what would be lost; after the rollback what was."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "moment": {"type": "str", "required": True, "choices": ["asked", "told", "due", "kept"]},
        "run": {"type": "str", "default": ""},
        "remedy": {"type": "str", "default": ""},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.run_id, self.remedy = arguments["run"], arguments["remedy"]
        return getattr(self, "_" + arguments["moment"])()

    def _asked(self) -> dict[str, Any]:
        remedies = [self.plan.remedies[self.remedy]] if self.remedy else list(self.plan.remedies.values())
        revert = {step for remedy in remedies for step in remedy.revert}
        hosts, down = (self.step_hosts(step) if step in revert else [] for step in (STEP, DOWN))
        settings = self._settings()
        if self.variables.get("rollback_break_glass"):
            settings["limit"] = 0.0  # whoever breaks the glass has no minutes to wait for exact figures
        if hosts:
            self.say(f"reading what {STEP} would lose, for {format_duration(settings['limit'])} at most")
        if down:
            self.say(f"counting what {DOWN} would destroy")
        if not self.run_id and not hosts and not down:
            of = f"remedy {self.remedy} has no" if self.remedy else "no remedy of the plan has a"
            self.say(f"there is nothing to ask: {of} step {STEP} or {DOWN}")
        if (hosts or down) and self.run_id:  # playbooks/loss.yml needs no lock
            self.keep_lock(settings["limit"] + LEASE)
        return {"hosts": hosts, "down": down, "settings": settings}

    def _settings(self) -> dict[str, Any]:
        """As a module's arguments; limits in seconds."""
        return dict(self.plan.loss)

    def _told(self) -> dict[str, Any]:
        says: list[str] = []
        found: dict[str, Any] = {}
        for host, result in self._results(STEP).items():
            lost = result.get("lost")
            if lost:
                lines = lost["says"] if self.run_id else list(all_lines(lost, alone=True))
                found[host] = dict(lost)
            else:
                reason = _why_not(result)
                lines = [f"what {STEP} would lose is UNKNOWN: {reason}"]
                found[host] = {"says": lines, "reason": reason}
            says += [f"{host}: {lines[0]}", *lines[1:]]
        for host, result in self._results(DOWN).items():
            down = _down(result)
            lines = down["says"]
            before = found.get(host, {"says": []})
            found[host] = {**before, "says": [*before["says"], *lines], "down": down}
            says += [f"{host}: {lines[0]}", *lines[1:]]
        for line in says:
            self.say(line)
        if found and self.run_id:
            self.append(TOLD, {"hosts": found}, self.run_id)
        return {"changed": bool(found and self.run_id) and not self.check_mode, "says": says, "found": found}

    def _due(self) -> dict[str, Any]:
        self.believe_record()
        run = self._newest()
        step = run.steps.get(STEP) if run else None
        # Single tables are kept by the step itself, as dumps; only a whole database is replaced by another.
        whole = self.step_setting(STEP, "scope") in (None, "database")
        hosts = self.step_hosts(STEP) if step and step.state == "done" and whole else []
        backups = {host: saved.get("backup", "") for host, saved in step.saved.items()} if step else {}
        return {"hosts": hosts, "run": run.id if run else "", "backups": backups, "settings": self._settings()}

    def _newest(self) -> Run | None:
        """The run that is meant; without a name, the newest in which a database was restored."""
        found = read_runs(self.entries())
        if self.run_id:
            return next((run for run in found if run.id == self.run_id), None)
        return next((run for run in reversed(found) if STEP in run.steps), None)

    def _kept(self) -> dict[str, Any]:
        says, kept, failed = [], {}, {}
        for host, result in self._results(STEP).items():
            exported = result.get("exported")
            if exported:
                kept[host] = exported
                lines = result["says"]
            else:
                failed[host] = _why_not(result)
                lines = [f"what was lost is NOT exported yet: {failed[host]}"]
            says += [f"{host}: {lines[0]}", *lines[1:]]
        for line in says:
            self.say(line)
        run = self._newest()
        if run and kept:
            self.append(EXPORTED, {"hosts": {host: _short(found) for host, found in kept.items()}}, run.id)
        if failed:
            raise BalikError(
                "what the restore has lost",
                "; ".join(f"{host}: {why}" for host, why in failed.items()),
                do="The replaced database is still kept. Mend that, then: "
                + self.command("loss.yml", loss_export="true", loss_run=run.id if run else ""),
            )
        return {"changed": bool(kept), "says": says}

    def _results(self, step: str) -> dict[str, dict[str, Any]]:
        hostvars = self.task_vars["hostvars"]
        found = {host: hostvars[host].get(RESULTS[step]) for host in self.step_hosts(step)}
        return {host: dict(result) for host, result in found.items() if result and not result.get("skipped")}


def _why_not(result: dict[str, Any]) -> str:
    """Why a module gave nothing back."""
    if result.get("msg"):
        return str(result["msg"])
    if result.get("unreachable"):
        return "the host did not answer"
    # Not its text, which may quote a row.
    error = re.search(r"^([\w.]+)(?::|$)", (str(result.get("exception") or "").strip().splitlines() or [""])[-1])
    return f"the module broke{f' with {error[1]}' if error else ''}; its own output stands above"


def _down(result: dict[str, Any]) -> dict[str, Any]:
    """What going down would destroy: ``says``, ``migrations`` (name → rows by object), ``refused`` (why, or empty)."""
    evidence = result.get("evidence")
    if evidence:
        migrations = {each["name"]: each["lost"] for each in evidence["migrations"]}
        return {"says": [f"{DOWN}: {result['says']}"], "migrations": migrations, "refused": ""}
    reason = _why_not(result)
    if result.get("unreachable") or result.get("timedout"):
        return {"says": [f"what {DOWN} would destroy is UNKNOWN: {reason}"], "migrations": {}, "refused": ""}
    first, *more = reason.splitlines()
    lines = [f"{DOWN} would be REFUSED as things stand, also after a Go: {first}", *(f"  {line}" for line in more)]
    return {"says": lines, "migrations": {}, "refused": reason}


def _short(exported: dict[str, Any]) -> dict[str, Any]:
    """The manifest without what is long, and stands in its folder."""
    return {key: exported[key] for key in ("folder", "from", "backup", "at", "files", "sequences")}
