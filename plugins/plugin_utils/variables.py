"""A play's variables, templated leaf by leaf, so that what cannot be read is named by its key path and file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError

from ..module_utils.errors import BalikError

try:  # where a value stands in its file is a courtesy of ansible-core's internals: without it, messages are shorter
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

_SECRET_NAME = re.compile(r"(password|passwd|secret|token|bearer|private_key|api_key|_key$|dsn)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@", re.IGNORECASE)
HIDDEN = "********"
#: A shorter "secret" would hide half of the words in a report.
SHORTEST_SECRET = 6


class Variables:
    """The variables of the host that a task runs for.

    :param task_vars: what Ansible hands to an action plugin.
    :param templar: its templar.
    """

    def __init__(self, task_vars: Mapping[str, Any], templar: Any) -> None:
        self._vars, self._templar = task_vars, templar
        self.places: dict[str, str] = {}
        self.problems: list[BalikError] = []

    def __contains__(self, name: str) -> bool:
        return name in self._vars

    def get(self, name: str, default: Any = None) -> Any:
        """One variable, templated; what cannot be templated is added to ``problems`` and is None."""
        if self._vars.get(name) is None:
            return default
        return self._resolve(self._vars[name], name)

    def starting_with(self, prefix: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """All variables whose names begin so, but not those that begin like one of ``without``."""
        names = [name for name in self._vars if name.startswith(prefix) and not name.startswith(without)]
        return {name: self.get(name) for name in names}

    def secrets(self) -> set[str]:
        """The values of all variables that are named like secrets."""
        values = set()
        for name in self._vars:
            if _SECRET_NAME.search(name) and isinstance(self._vars[name], str):
                try:
                    values.add(str(self._templar.template(self._vars[name])))
                except AnsibleError:
                    continue  # a secret that cannot be read cannot get out either
        return {value for value in values if len(value) >= SHORTEST_SECRET}

    def place(self, path: str) -> str:
        """``group_vars/all/plan.yml:12`` of a key path, or of its nearest parent; empty where it is unknown."""
        while path:
            if path in self.places:
                return self.places[path]
            path = re.sub(r"(\.[^.\[]+|\[\d+\]|^[^.\[]+)$", "", path)
        return ""

    def _resolve(self, value: Any, path: str) -> Any:
        if Origin is not None and (origin := Origin.get_tag(value)) and origin.path:
            self.places[path] = f"{os.path.relpath(origin.path)}:{origin.line_num or 1}"
        if isinstance(value, Mapping):
            return {str(key): self._resolve(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return [self._resolve(item, f"{path}[{number}]") for number, item in enumerate(value)]
        try:
            return self._templar.template(value)
        except AnsibleError as error:
            reason = re.sub(r"^Error while resolving value[^:]*: ", "", str(error).splitlines()[0])
            self.problems.append(
                BalikError(path, f"it cannot be read: {reason}", do="Define it, or mend the template.")
            )
            return None


def scrub(value: Any, secrets: set[str]) -> Any:
    """The value without any of the secrets, and without passwords in URLs, to any depth."""
    if isinstance(value, str):
        for secret in sorted(secrets, key=len, reverse=True):
            value = value.replace(secret, HIDDEN)
        return _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", value)
    if isinstance(value, Mapping):
        return {scrub(str(key), secrets): scrub(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [scrub(item, secrets) for item in value]
    return value
