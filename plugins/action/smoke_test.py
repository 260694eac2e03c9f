"""Runs the module of the same name, and keeps the play's secrets out of all that Ansible shows of it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action.normal import ActionModule as NormalAction

from ..plugin_utils.variables import Variables, scrub


class ActionModule(NormalAction):
    """What a check found may quote a secret that only the play knows, in whose variables it stands."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Called by Ansible."""
        result = super().run(tmp, task_vars)
        # The checks as they were written, with commands and with queries of URLs, which -vvv and AWX would show.
        result.pop("invocation", None)
        # Ansible makes it anew from the message.
        result.pop("exception", None)
        secrets = Variables(task_vars or {}, self._templar).secrets()
        return {key: scrub(value, secrets) for key, value in result.items()}
