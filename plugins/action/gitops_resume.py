"""Lets Argo CD and Flux act again after a rollback, by the record and into it; see the module's documentation."""

from __future__ import annotations

from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.units import utc_now
from ..plugin_utils.action import RollbackAction


class ActionModule(RollbackAction):
    """Before it whom to ask, and what the record says is held off; after it what came of it."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {"moment": {"type": "str", "required": True, "choices": ["asked", "told"]}}

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._asked() if arguments["moment"] == "asked" else self._told()

    def _asked(self) -> dict[str, Any]:
        self.believe_record()
        lock = None if self.no_record() else self.record.lock()
        if lock and lock.until > utc_now() and not lock.holder.is_gone():
            raise BalikError(
                self.plan.product,
                f"{lock.holder} is rolling it back",
                do="Let that end first: what acts again now may put the bad version back.",
            )
        held: dict[str, dict[str, None]] = {}
        for entry in self.entries():
            if entry.kind == "step-started" and entry.body["step"] == runs.REVERT:
                for host, saved in entry.body["saved"].items():
                    held.setdefault(host, {}).update(dict.fromkeys(saved.get("held") or []))
        hosts = self.step_hosts(runs.RESUME)
        return {
            "hosts": hosts,
            "run_saved": {host: {runs.REVERT: {"held": list(held.get(host, ()))}} for host in hosts},
        }

    def _told(self) -> dict[str, Any]:
        results = {
            host: {
                entry: dict(self.task_vars["hostvars"][host].get(f"rollback_step_{entry}") or {})
                for entry in ("main", "verify")
            }
            for host in self.step_hosts(runs.RESUME)
        }
        last = "main" if self.check_mode else "verify"
        if failed := [host for host, read in results.items() if "says" not in read[last]]:
            raise BalikError(
                runs.RESUME,
                f"it did not end well on {', '.join(failed)}; the tasks above say why",
                do="Nothing was written down. Mend that, and run it again.",
            )
        says = {host: read["main"]["says"] for host, read in results.items()}
        evidence = {
            host: {entry: one.get("evidence", {}) for entry, one in read.items()} for host, read in results.items()
        }
        body = {"phase": "restore", "step": runs.RESUME, "by": self.operator, "says": says, "evidence": evidence}
        # Of no run: what runs have come to stays as it was written.
        self.append("step-done", body, "")
        for host, text in says.items():
            self.say(f"{'would be: ' if self.check_mode else ''}{host}: {text}")
        changed = any(read["main"].get("changed") for read in results.values())
        return {"changed": changed, "says": "; ".join(says.values())}
