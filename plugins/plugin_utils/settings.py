"""Whether the settings of a step can be right: by the specs of its role, and by what a spec cannot say."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import DEFAULT_TYPE_VALIDATORS

from ..module_utils.errors import BalikError
from ..module_utils.units import parse_duration
from .action import read_above_zero, read_defaults, read_specs
from .variables import Variables

#: Set by the wrapper when a step is called, not by a plan.
FROM_WRAPPER = ("rollback_step_saved", "rollback_step_early", "rollback_run_saved", "rollback_run_id")
#: Read by the wrapper, whatever the role's specs say.
FOR_WRAPPER = ("hosts", "limit")
HIGHEST_PORT = 65535
#: What selects something for image-revert, by backend.
SELECTIONS = {
    "docker": ("containers", "labels"),
    "compose": ("compose",),
    "kubernetes": ("workloads", "labels"),
}

#: The types of a spec, as people call them.
TYPES = {
    "str": "a text",
    "path": "a path",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a dictionary",
    "list": "a list",
}
#: The place in a list, of a key path.
_INDEX = re.compile(r"\[\d+\]")

Option = dict[str, Any]
"""A setting's spec."""
Problem = tuple[str, str]
"""A setting's name, and what is wrong with it."""


class StepSettings:
    """The settings that a step's role knows.

    :param role: the role's folder.
    :param others: the names of all steps, so that ``db_restore_x`` is not taken for a setting of a step ``db``.
    """

    def __init__(self, role: Path, others: set[str]) -> None:
        self.prefix = role.name.replace("-", "_") + "_"
        prefixes = (name.replace("-", "_") + "_" for name in others if name != role.name)
        self._longer = tuple(prefix for prefix in prefixes if prefix.startswith(self.prefix))
        specs = read_specs(role / "meta" / "argument_specs.yml")
        every = {name: option for spec in specs.values() for name, option in (spec.get("options") or {}).items()}
        needed = {name for entry in ("check", "main") for name in specs[entry].get("options") or {}}
        self.options = {
            name: _without_text(option) for name, option in every.items() if name in needed and name not in FROM_WRAPPER
        }
        limit = self.prefix + "limit"
        self.options.setdefault(limit, {"type": "raw"})
        self.options[self.prefix + "hosts"] = {"type": "raw"}  # a pattern, or several
        self.defaults = read_defaults(role)
        self._durations = {limit, *(name for name, value in self.defaults.items() if _is_duration(value))}
        self._above_zero = read_above_zero(role)
        self.known = {*every, *self.defaults, *(self.prefix + name for name in FOR_WRAPPER)}

    def problems(self, hostvars: Any, variables: Variables) -> Iterator[Problem]:
        """What is wrong with one host's settings.

        :param hostvars: its variables, templated as they are read.
        :param variables: the same, read leaf by leaf.
        """
        for name, option in self.options.items():
            yield from self._refused(name, option, hostvars)
        for name in hostvars:
            if name.startswith(self.prefix) and name not in self.known and not name.startswith(self._longer):
                near = difflib.get_close_matches(name, self.known, 1)
                yield name, f"it is no setting of this step. {f'Did you mean {near[0]}?' if near else 'Remove it.'}"
        if self.prefix == "image_revert_":
            yield from self._selection(variables)

    def _refused(self, name: str, option: Option, hostvars: Any) -> Iterator[Problem]:
        if name not in hostvars:
            if option.get("required"):
                yield name, "it is missing"
            return
        try:
            value = hostvars[name]
            # Empty there: only the API's objects are read.
            optional = name == "maintenance_page_url" and hostvars.get("maintenance_page_backend") == "kubernetes"
        except AnsibleError as error:
            yield name, f"it cannot be read: {str(error).splitlines()[0]}"
            return
        if option.get("required") and value in ("", [], {}) and not (optional and value == ""):
            yield name, f"found {value!r}; expected a value"
            return
        parts = [] if value is None else list(_parts(name, option, value))
        refused = [problem for part in parts for problem in (*_wrong_type(*part), *_wrong_keys(*part))]
        if not refused:
            messages = ArgumentSpecValidator({name: option}).validate({name: value}).error_messages
            refused = [(name, message) for message in messages]
        if refused:
            yield from refused
            return
        for where, known, part in parts:
            above_zero = _INDEX.sub("", where) in self._above_zero
            if where in self._durations or (above_zero and known.get("type") != "int"):
                yield from _no_duration(where, part, above_zero)
            elif known.get("type") == "int" and (where == name or above_zero):
                yield from _out_of_range(where, part, int(above_zero))

    def _selection(self, variables: Variables) -> Iterator[Problem]:
        """A step that would select nothing, or goes back to no image: a spec takes an empty value for a value."""

        def get(name: str) -> Any:
            return variables.get(self.prefix + name, self.defaults.get(self.prefix + name))

        for number, item in enumerate(get("workloads") if isinstance(get("workloads"), list) else ()):
            if isinstance(item, dict) and item.get("namespace") == "":
                yield f"{self.prefix}workloads[{number}].namespace", "found ''; expected the workload's namespace"
        backend = str(get("backend"))
        names = [name for name in SELECTIONS.get(backend, ()) if get(name)]
        if not names:
            wanted = " or ".join(self.prefix + name for name in SELECTIONS.get(backend, ()))
            if wanted:
                yield self.prefix + "backend", f"found {backend}, and nothing is selected; expected {wanted}"
        elif backend == "kubernetes" and len(names) > 1:
            yield self.prefix + "workloads", f"given beside {self.prefix}labels; expected one of the two"
        elif backend != "compose" and not get("image") and not (backend == "kubernetes" and get("images")):
            for name in names:
                if name == "labels":
                    yield self.prefix + "image", "found ''; expected the image to go back to"
                    continue
                for number, item in enumerate(get(name) if isinstance(get(name), list) else ()):
                    if isinstance(item, dict) and not item.get("image") and not item.get("containers"):
                        where = f"{self.prefix}{name}[{number}]"
                        yield where, f"found no image; expected one here, or in {self.prefix}image for all"


def _parts(where: str, option: Option, value: Any) -> Iterator[tuple[str, Option, Any]]:
    """A value and all within it that the spec knows: each with its key path and its own spec."""
    yield where, option, value
    if isinstance(value, list) and option.get("elements"):
        of_each = {**option, "type": option["elements"], "elements": None}
        for number, item in enumerate(value):
            yield from _parts(f"{where}[{number}]", of_each, item)
    elif isinstance(value, dict):
        for name, sub in (option.get("options") or {}).items():
            if value.get(name) not in (None, ""):
                yield from _parts(f"{where}.{name}", sub, value[name])


def _wrong_type(where: str, option: Option, value: Any) -> Iterator[Problem]:
    """What Ansible says of it names Python's types, and an item by its list only."""
    wanted = option.get("type", "str")
    of_dicts = wanted == "list" and option.get("elements") == "dict"
    try:
        DEFAULT_TYPE_VALIDATORS[wanted](value)
        # Ansible takes the first for its own text, and the second for texts between commas.
        right = not (wanted == "str" and isinstance(value, (dict, list))) and (not of_dicts or isinstance(value, list))
    except (TypeError, ValueError):
        right = False
    if not right:
        hidden = "what is not shown: it may be a secret" if option.get("no_log") else repr(value)
        found = next((TYPES[kind.__name__] for kind in (dict, list) if isinstance(value, kind)), hidden)
        yield where, f"found {found}; expected {'a list of dictionaries' if of_dicts else TYPES.get(wanted, wanted)}"


def _wrong_keys(where: str, option: Option, value: Any) -> Iterator[Problem]:
    """What Ansible says of them names an item by its list only, and a misspelt key as one that is missing as well."""
    known = option.get("options")
    if option.get("type") != "dict" or not known or not isinstance(value, dict):
        return
    missing = [name for name, sub in known.items() if sub.get("required") and name not in value]
    for key in map(str, value):
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f". Did you mean {near[0]}?" if near else ""
            yield f"{where}.{key}", f"it is no key here; expected one of {', '.join(known)}{meant}"
            missing = [name for name in missing if name not in near]
    for name in missing:
        yield f"{where}.{name}", f"it is missing; expected {TYPES.get(known[name].get('type', 'str'), 'a value')}"


def _no_duration(name: str, value: Any, above_zero: bool = False) -> Iterator[Problem]:
    try:
        seconds = parse_duration(value, name)
        if above_zero and not seconds:
            yield name, f"found {value!r}; expected a duration above zero"
    except BalikError as problem:
        yield name, f"{problem.found}; expected {problem.expected}"


def _out_of_range(name: str, value: Any, least: int) -> Iterator[Problem]:
    most = HIGHEST_PORT if name.endswith("_port") else math.inf
    if not least <= int(value) <= most:
        expected = f"{least} to {most}" if name.endswith("_port") else f"{least} or more"
        yield name, f"found {value!r}; expected {expected}"


def _is_duration(value: Any) -> bool:
    """Whether a role's default is one with a unit: a plain number may count anything."""
    return isinstance(value, str) and value[-1:].isalpha() and not any(_no_duration("", value))


def _without_text(option: Option) -> dict[str, Any]:
    kept = {key: value for key, value in option.items() if key not in ("description", "version_added")}
    if kept.get("options"):
        kept["options"] = {name: _without_text(sub) for name, sub in kept["options"].items()}
    return kept
