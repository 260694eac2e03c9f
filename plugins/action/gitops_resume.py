"""Lets Argo CD and Flux act again after a rollback, by the record and into it; see the module's documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.kubernetes.client import name_of
from ..module_utils.record import Entry
from ..module_utils.units import utc_now
from ..plugin_utils.action import LEASE, RollbackAction


class ActionModule(RollbackAction):
    """Before it whom to ask, and what the record says is held off; after its check *started*; after it what came of
    it."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "moment": {"type": "str", "required": True, "choices": ["asked", "checked", "told"]}
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"asked": self._asked, "checked": self._checked, "told": self._told}[arguments["moment"]]()

    def _asked(self) -> dict[str, Any]:
        self.believe_record()
        lock = None if self.no_record() else self.record.lock()
        if lock and lock.is_held():
            raise BalikError(
                self.plan.product,
                f"{lock.holder} is rolling it back",
                do="Let that end first: what acts again now may put the bad version back.",
            )
        entries = self.entries()
        self._refuse_unfinished(entries)
        hosts = self._asked_hosts()
        still = runs.still_held_off(entries)
        held = {host: self._held(host, entries, still) for host in hosts}
        if others := [host for host in (still.hosts if still else ()) if host not in hosts]:
            self.say(f"WARNING: what the record says is held off on {', '.join(others)} stays so (gitops_resume_hosts)")
        return {"hosts": hosts, "run_saved": {host: {runs.REVERT: saved} for host, saved in held.items()}}

    def _held(self, host: str, entries: Sequence[Entry], still: runs.HeldOff | None) -> dict[str, Any]:
        """What the reverts have kept of a host's cluster, the newer above the older, with the paths that are still held
        off there. Of two clusters, it is the one of the newest revert: a call is pointed at one only."""
        found: dict[str, Any] = {"held": []}
        elsewhere: list[str] = []
        for entry in reversed(entries if still else ()):
            if entry.kind != "step-started" or entry.body["step"] != runs.REVERT:
                continue
            saved = entry.body["saved"].get(host) or {}
            names = still.on(host, runs.cluster_uid(saved)) if still else ()
            paths = [one for one in saved.get("held") or [] if name_of(one) in names]
            if not paths:
                continue
            if runs.same_cluster(runs.cluster_uid(found), runs.cluster_uid(saved)):
                found = {**saved, **found, "held": list(dict.fromkeys([*paths, *found["held"]]))}
            else:
                elsewhere.append(str(saved.get("cluster")))
        if elsewhere:
            self.say(
                f"WARNING: what {host} has held off in the cluster at {', '.join(dict.fromkeys(elsewhere))} stays so. "
                "Once nothing is held off in this one any more, run it again with that one's kubeconfig and context."
            )
        return found

    def _refuse_unfinished(self, entries: Sequence[Entry]) -> None:
        """:raises BalikError: the next call goes on with a run that counts on nobody putting the version back."""
        run = runs.unfinished_run(entries)
        if run and runs.REVERT in run.steps and not runs.why_not_resumed(run, self.plan.release, utc_now()):
            raise BalikError(
                self.plan.product,
                f"run {run.id} is not over, and what acts again now may put the bad version back",
                do="Let it end first: `ansible-playbook playbooks/rollback.yml`. If it shall not go on, the role alone "
                "lets them act (roles/gitops-resume/README.md).",
            )

    def _asked_hosts(self) -> list[str]:
        """The role's hosts.

        :raises BalikError: there are none, or this call leaves one out.
        """
        hosts = self.step_hosts(runs.RESUME)
        if not hosts:
            pattern = self.step_setting(runs.RESUME, "hosts")
            raise BalikError("gitops_resume_hosts", f"{pattern!r} matches no host", "a host of the inventory")
        if absent := [host for host in hosts if host not in self.task_vars["ansible_play_hosts_all"]]:
            raise BalikError(
                "gitops_resume_hosts",
                f"{', '.join(absent)} is not among the hosts of this call",
                do="Leave --limit out, or name the host in the inventory.",
            )
        return hosts

    def _checked(self) -> dict[str, Any]:
        """Before anything acts again: who lets it, in the record, which nobody else's rollback may write meanwhile."""
        if not self.check_mode:
            self.record.acquire(self.holder, LEASE)
        saved = {host: self._read(host, "check").get("before") or {} for host in self.step_hosts(runs.RESUME)}
        body = {"phase": "restore", "step": runs.RESUME, "by": self.operator, "saved": saved}
        self.append("step-started", body, "")
        return {"changed": not self.check_mode}

    def _read(self, host: str, entry: str) -> dict[str, Any]:
        return dict(self.task_vars["hostvars"][host].get(f"rollback_step_{entry}") or {})

    def _told(self) -> dict[str, Any]:
        try:
            return self._write_down()
        finally:
            if not self.check_mode:
                self.record.release(self.holder)

    def _write_down(self) -> dict[str, Any]:
        hosts = self.step_hosts(runs.RESUME)
        results = {host: {entry: self._read(host, entry) for entry in ("main", "verify")} for host in hosts}
        last = "main" if self.check_mode else "verify"
        if failed := [host for host, read in results.items() if "says" not in read[last]]:
            failures = {host: self._failure(host) for host in failed}
            body = {"phase": "restore", "step": runs.RESUME, "by": self.operator, "failures": failures}
            self.append("step-failed", body, "")
            raise BalikError(
                f"{runs.RESUME} failed on {', '.join(failed)}",
                "; ".join(dict.fromkeys(failures.values())),
                do="Mend that, and run it again.",
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

    def _failure(self, host: str) -> str:
        return str(self.task_vars["hostvars"][host].get("__gitops_resume_failure") or f"{host} could not be reached")
