"""What all of balik's action plugins share.

They are action plugins, not modules, because they work on the control node only: in Ansible's own process such a
task takes about 30 ms where a module, a new process with imports of its own, takes 350 ms; and neither the record's
DSN nor the plan ever travels to a host.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml
from ansible import constants as C
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import Templar, trust_as_template

from ..module_utils.errors import BalikError
from ..module_utils.messages import tell
from ..module_utils.plan import INTERNAL_PREFIXES, Plan, PlanRefused, read_plan
from ..module_utils.record import Entry, Holder, Lock, Record
from ..module_utils.run import Run, read_runs
from ..module_utils.units import iso, parse_duration, utc_now
from .variables import Variables, scrub

ENTRY_POINTS = {"check", "main", "verify", "undo"}
STATE_DIR = "~/.balik"
#: A lease is renewed by each task, and by tasks that wait as they wait; a step that may take longer says so.
LEASE = parse_duration("10m")


class RollbackAction(ActionBase):
    """Base of the actions: reads the plan, opens the record, and keeps secrets out of what it returns.

    A subclass sets ``ARGUMENTS`` (an argument spec) and writes :meth:`act`, which returns the task's result and
    raises :class:`BalikError` for whatever a person must mend.
    """

    ARGUMENTS: ClassVar[dict[str, Any]] = {}
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Called by Ansible."""
        result = super().run(tmp, task_vars)
        self.task_vars = task_vars or {}
        self.variables = Variables(self.task_vars, self._templar)
        _validated, arguments = self.validate_argument_spec(self.ARGUMENTS)
        try:
            result.update(self.act(arguments))
        except BalikError as error:
            result.update(failed=True, msg=str(error))
        return self.scrubbed(result)

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do the work; return what the task returns."""
        raise NotImplementedError

    # The plan

    @cached_property
    def plan(self) -> Plan:
        """The product's plan, checked.

        :raises PlanRefused: with file and key path of each problem.
        """
        variables = self.variables.starting_with("rollback_", INTERNAL_PREFIXES)
        problems = list(self.variables.problems)
        # What could not be templated is None by now, and would be reported a second time as missing.
        broken = {problem.what for problem in problems}
        steps: Iterable[str] = ()
        try:
            plan = read_plan(variables, step_roles())
        except PlanRefused as refused:
            problems += [p for p in refused.problems if p.what not in broken]
            steps = refused.steps
        if problems:
            raise PlanRefused([self.with_place(problem) for problem in problems], steps)
        return plan

    def with_place(self, problem: BalikError) -> BalikError:
        """The problem with the file and line of its key path."""
        place = self.variables.place(problem.what)
        what = f"{place}: {problem.what}" if place else problem.what
        return BalikError(what, problem.found, problem.expected, problem.do)

    @property
    def check_mode(self) -> bool:
        return bool(self._task.check_mode)

    @cached_property
    def secrets(self) -> set[str]:
        return self.variables.secrets()

    @cached_property
    def operator(self) -> str:
        """Who runs this: -e rollback_by, the AWX user, or the shell's user with the host's name."""
        named = self.variables.get("rollback_by") or self.variables.get("awx_user_name")
        if named:
            return str(named)
        user = os.environ.get("SUDO_USER") or getpass.getuser()
        return f"{user}@{socket.gethostname()}"

    def flag(self, name: str) -> bool:
        """A variable of one run that says yes or no; AWX gives a question that was left blank as an empty text."""
        value = self.variables.get(name)
        try:
            return value not in (None, "") and boolean(value)
        except TypeError:
            raise BalikError(name, f"found {value!r}", "true or false") from None

    def glass_role(self) -> str:
        """The role in which the operator breaks the glass.

        :raises BalikError: the plan does not let it.
        """
        role = self.variables.get("rollback_role")
        if role not in self.plan.break_glass:
            allowed = ", ".join(self.plan.break_glass) or "nobody: rollback_decision.break_glass names no role"
            raise BalikError(
                "rollback_break_glass",
                f"rollback_role is {role!r}",
                f"a role that may break the glass ({allowed})",
                "Say in which role you do it: -e rollback_role=…",
            )
        return str(role)

    def variables_of(self, host: str) -> Variables:
        """Another host's variables."""
        own = self.task_vars["hostvars"].raw_get(host)
        return Variables(own, Templar(self._loader, variables=own))

    def step_hosts(self, step: str) -> list[str]:
        """The hosts of a step: those that ``<role>_hosts`` of the plan, or else of the role's defaults, matches."""
        pattern = self.step_setting(step, "hosts") or "localhost"
        if pattern == "localhost":
            return ["localhost"]
        query = trust_as_template("query('ansible.builtin.inventory_hostnames', pattern)")
        return list(self._templar.evaluate_expression(query, local_variables={"pattern": pattern}))

    def step_setting(self, step: str, name: str) -> Any:
        """A step's ``<role>_<name>`` from the plan, or else from the role's defaults; None where neither has it."""
        name = f"{step.replace('-', '_')}_{name}"
        if name in self.variables:
            return self.variables.get(name)
        defaults = step_roles()[step] / "defaults" / "main.yml"
        value = (_load_yaml(defaults) or {}).get(name) if defaults.exists() else None
        return self._templar.template(trust_as_template(value)) if isinstance(value, str) else value

    # The record

    @property
    def state_dir(self) -> Path:
        """The product's folder for record, outcome and reports; also for a plan that is refused otherwise."""
        place = self.variables.get("rollback_state_dir") or STATE_DIR
        return Path(str(place)).expanduser() / str(self.variables.get("rollback_product") or "unknown-product")

    @cached_property
    def record(self) -> Record:
        place = self.plan.record_dsn or str(self.state_dir / "record.sqlite")
        return Record(place, self.plan.product, self.plan.record_key)

    @cached_property
    def holder(self) -> Holder:
        # An action runs in a worker process; the run lives and dies with its parent, ansible-playbook.
        return Holder.of_process(self.operator, os.getppid())

    def entries(self) -> list[Entry]:
        """All entries so far. A check run makes no record where there is none."""
        if self.check_mode and not self.plan.record_dsn and not (self.state_dir / "record.sqlite").exists():
            return []
        return list(self.record.entries())

    def run_of(self, run_id: str) -> Run:
        """What the record says of a run; an empty one in a check run, which is not in the record."""
        found = next((each for each in read_runs(self.entries()) if each.id == run_id), None)
        return found or Run(run_id, utc_now(), {}, utc_now())

    def append(self, kind: str, body: dict[str, Any], run: str) -> None:
        """Write one entry, without secrets, and keep the lock. A check run writes nothing."""
        if not self.check_mode:
            self.record.append(kind, self.scrubbed(body), run)

    def keep_lock(self, seconds: float = LEASE) -> None:
        """Renew the lease, so that nobody takes a long step's lock.

        :raises BalikError: somebody took it over, on purpose: what they do must not be done by two.
        """
        if self.check_mode:
            return
        if not self.holds_lock():
            raise BalikError(
                f"the lock of {self.plan.product}",
                f"it was taken over: {_now_held(self.record.lock())}",
                do="Leave it to them; `ansible-playbook playbooks/status.yml` shows how far they are.",
            )
        self.record.acquire(self.holder, max(seconds, LEASE))

    def holds_lock(self) -> bool:
        lock = self.record.lock()
        return lock is not None and lock.holder.same_process(self.holder)

    def tell(self, moment: str, run: str, facts: dict[str, str], roles: Sequence[str] = ()) -> None:
        """Send the plan's message of a moment; say and write down whom it reached. A check run tells nobody."""
        if not self.check_mode:
            for line, body in tell(self.plan, moment, roles, {**facts, "run": run}):
                self.say(line)
                self.append("message", body, run)

    def scrubbed(self, value: Any) -> Any:
        """The value without any secret of this play's variables."""
        return scrub(value, self.secrets)

    def command(self, playbook: str, **extra: str) -> str:
        """A command line that somebody may paste: with the inventories of this call, and its values as JSON, since a
        text with spaces would lose all but its first word."""
        sources = [os.path.relpath(str(each)) for each in self.task_vars.get("ansible_inventory_sources") or ()]
        inventories = "".join(f" -i {shlex.quote(source)}" for source in sources)
        values = f" -e {shlex.quote(json.dumps(extra, ensure_ascii=False))}" if extra else ""
        return f"ansible-playbook{inventories} playbooks/{playbook}{values}"

    def say(self, text: str) -> None:
        """A line for the operator, at once and not only when the task is over."""
        self._display.display("balik: " + self.scrubbed(text))


def _now_held(lock: Lock | None) -> str:
    return f"{lock.holder} has it since {iso(lock.since)[:19]}Z" if lock else "and has been given back since"


def step_roles() -> dict[str, Path]:
    """The roles that are steps, by name: those on the roles path with a spec for each of the four entry points."""
    found: dict[str, Path] = {}
    project = Path(__file__).resolve().parents[2] / "roles"
    for folder in [*map(Path, C.DEFAULT_ROLES_PATH), project]:
        for specs in folder.glob("*/meta/argument_specs.yml"):
            if set(read_specs(specs)) >= ENTRY_POINTS:
                found.setdefault(specs.parents[1].name, specs.parents[1])
    return found


def read_specs(path: Path) -> dict[str, Any]:
    """The argument specs in a role's ``meta/argument_specs.yml``, by entry point."""
    return (_load_yaml(path) or {}).get("argument_specs", {})


def _load_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
