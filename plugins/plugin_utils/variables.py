"""A play's variables, templated leaf by leaf, so that what cannot be read is named by its key path and file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from ansible.errors import AnsibleError
from ansible.parsing.vault import EncryptedString

from ..module_utils.errors import BalikError

try:  # where a value stands in its file is a courtesy of ansible-core's internals: without it, messages are shorter
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

_SECRET_NAME = re.compile(
    r"passw|passphrase|[_-]pass$|secret|token|bearer|credential|authorization|(^|[_-])key$|dsn", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):([^\s/]+)@", re.IGNORECASE)
_DSN_PASSWORD = re.compile(r"\bpassword\s*=\s*('(?:\\.|[^'\\])*'|[^\s&'\"]+)", re.IGNORECASE)
#: A file whose variables are secrets whatever they are called.
_SECRETS_FILE = re.compile(r"(^|/)vault[^/]*(/[^/]*)?$")
#: What Ansible itself hands to each task, and what holds other hosts' variables.
_NOT_OWN = ("hostvars", "groups", "vars")
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
        """All values, to any depth, that are named like secrets, encrypted by ansible-vault, or stand in a file named
        vault; and the passwords in URLs and DSNs among them."""
        return set(self.named_secrets())

    def named_secrets(self) -> dict[str, str]:
        """Each of :meth:`secrets` with the key path at which it was found first."""
        values: dict[str, str] = {}
        for name, value in self._vars.items():
            if name not in _NOT_OWN:
                self._gather_secrets(name, name, value, False, values)
        for value, path in list(values.items()):
            inside = [_unquoted(found[-1]) for found in _passwords(value)]
            for password in (*inside, *map(unquote, inside)):
                values.setdefault(password, path)
        for value, path in list(values.items()):
            # A program that quotes a text of many lines shows them one by one.
            for line in value.splitlines():
                values.setdefault(line.strip(), path)
        for value, path in list(values.items()):
            values.setdefault(repr(value)[1:-1], path)  # as messages quote it
        return {value: path for value, path in values.items() if len(value) >= SHORTEST_SECRET}

    def _gather_secrets(self, path: str, name: str, value: Any, is_secret: bool, values: dict[str, str]) -> None:
        is_secret = is_secret or isinstance(value, EncryptedString) or bool(_SECRET_NAME.search(name))
        if Origin is not None and not is_secret and (origin := Origin.get_tag(value)):
            is_secret = bool(_SECRETS_FILE.search(str(origin.path)))
        if isinstance(value, Mapping):
            for key, item in value.items():
                self._gather_secrets(f"{path}.{key}", str(key), item, is_secret, values)
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, EncryptedString)):
            for number, item in enumerate(value):
                self._gather_secrets(f"{path}[{number}]", "", item, is_secret, values)
        elif is_secret and isinstance(value, (str, int, EncryptedString)) and not isinstance(value, bool):
            with suppress(AnsibleError):  # a secret that cannot be read cannot get out either
                for leaf in _leaves(self._templar.template(value)):
                    values.setdefault(leaf, path)

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
    """The value without any of the secrets, and without passwords in URLs and DSNs, to any depth."""
    return _scrub(value, sorted(secrets, key=len, reverse=True))


def _scrub(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        value = _without_beginnings(value, secrets)
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _DSN_PASSWORD.sub(f"password={HIDDEN}", _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {_scrub(str(key), secrets): _scrub(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_scrub(item, secrets) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and str(value) in secrets:
        return HIDDEN
    return value


def _without_beginnings(text: str, secrets: Sequence[str]) -> str:
    """The text without what is left of a secret where the text was cut, which ``…`` shows."""
    *cut, end = text.split("…")
    for number, part in enumerate(cut):
        found = max((_overlap(part, secret) for secret in secrets), default=0)
        if found >= SHORTEST_SECRET:
            cut[number] = part[:-found] + HIDDEN
    return "…".join([*cut, end])


def _overlap(text: str, secret: str) -> int:
    """With how many letters of the secret's beginning the text ends."""
    return next((n for n in range(min(len(text), len(secret)), 0, -1) if text.endswith(secret[:n])), 0)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (str, int)) and not isinstance(value, bool):
        yield str(value)


def _passwords(text: str) -> list[Any]:
    return [*_URL_PASSWORD.findall(text), *((password,) for password in _DSN_PASSWORD.findall(text))]


def _unquoted(password: str) -> str:
    """A DSN's password without its quotes."""
    return re.sub(r"\\(.)", r"\1", password[1:-1]) if password.startswith("'") else password
