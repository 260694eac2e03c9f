"""Prints a rollback's outcome as the very last thing, below Ansible's recap."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: outcome
type: notification
short_description: The outcome of a rollback, last on the screen
version_added: 0.1.0
description:
  - Prints what C(balik.rollback.run) said when it closed a run, after the recap, where an operator looks first.
  - It only displays. The outcome itself is in the record, in C(outcome.json) and in the exit code.
options: {}
"""


class CallbackModule(CallbackBase):
    """Remembers the last outcome that passed by."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "balik.rollback.outcome"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def v2_runner_on_ok(self, result: Any) -> None:
        task = getattr(result, "task", None) or result._task
        found = getattr(result, "result", None) or result._result
        if task.action == "balik.rollback.run" and task.args.get("state") == "opened":
            # Replaced by the outcome, unless Ansible ends before that: with the last host that it could reach.
            self.lines = [
                "FAILED: Ansible ended before the outcome was written down; what ended it stands above",
                "What to do: mend that, then run the same command again; it goes on from there.",
            ]
        if task.action == "balik.rollback.run" and "good" in found:
            self.lines = [found["says"], *filter(None, [found.get("visitors")])]
            if found.get("report"):
                self.lines.append(f"report: {found['report']}")
            # Where somebody else's run goes on, the reason says what to do, and it is not to run again at once.
            failed = found.get("outcome", "failed") == "failed" and not found["good"]
            if failed and not found.get("held"):
                goes_on = "; it goes on from there" if "outcome" in found else ""
                self.lines.append(f"What to do: mend what is said above, then run the same command again{goes_on}.")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        task = getattr(result, "task", None) or result._task
        found = getattr(result, "result", None) or result._result
        if task.action == "balik.rollback.run" and task.args.get("state") == "closed":
            self.lines = [f"FAILED, and the outcome could not be written down: {found.get('msg')}"]

    def v2_playbook_on_stats(self, stats: Any) -> None:
        for line in self.lines:
            self._display.display(f"balik: {line}")
