"""What all of balik's action plugins share.

They are action plugins, not modules, because they work on the control node only: in Ansible's own process such a
task takes about 30 ms where a module, a new process with imports of its own, takes 350 ms; and neither the record's
DSN nor the plan ever travels to a host.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from ..module_utils.plan import INTERNAL_PREFIXES, Plan, PlanRefused, is_slug, read_plan
from ..module_utils.printable import one_line
from ..module_utils.record import Entry, Holder, Lock, Record, is_there
from ..module_utils.run import Run, read_runs, still_held
from ..module_utils.units import iso, parse_duration, utc_now
from .variables import Variables, scrub

ENTRY_POINTS = {"check", "main", "verify", "undo"}
STATE_DIR = "~/.balik"
#: A lease is renewed by each task, and by tasks that wait as they wait; a step that may take longer says so.
LEASE = parse_duration("10m")
#: Characters of what a person gives to the record, which keeps it for good and shows it in one line.
LONGEST_TEXT = 4000


class RollbackAction(ActionBase):
    """Base of the actions: reads the plan, opens the record, and keeps secrets out of what it returns.

    A subclass sets ``ARGUMENTS`` (an argument spec) and writes :meth:`act`, which returns the task's result and
    raises :class:`BalikError` for whatever a person must mend.
    """

    ARGUMENTS: ClassVar[dict[str, Any]] = {}
    #: Whether what it writes of a run is for the holder of the lock only to write.
    UNDER_LOCK = False
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
            # What the logic below names as a command is completed with the inventories of this call.
            result.update(failed=True, msg=str(error).replace("`ansible-playbook playbooks/", f"`{self.command('')}"))
        return {key: self.scrubbed(value) for key, value in result.items()}

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
            return one_line(str(named)).strip()
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

    def wished_scope(self) -> list[str]:
        """``rollback_scope`` of this call; empty where it says nothing."""
        scope = self.variables.get("rollback_scope") or []
        # -e and AWX give texts.
        return [part.strip() for part in scope.split(",")] if isinstance(scope, str) else list(scope)

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
        value = read_defaults(step_role(step)).get(name)
        return self._templar.template(trust_as_template(value)) if isinstance(value, str) else value

    # The record

    @property
    def state_dir(self) -> Path:
        """The product's folder for record, outcome and reports; also for a plan that is refused otherwise."""
        place = self.variables.get("rollback_state_dir") or STATE_DIR
        product = str(self.variables.get("rollback_product"))
        try:
            folder = Path(place).expanduser().absolute()  # so that no name in it is read as a connection string
        except (TypeError, RuntimeError):
            expected = "a folder's path; `~` or the name of one of this machine's users after it"
            raise BalikError("rollback_state_dir", f"found {place!r}", expected) from None
        return folder / (product if is_slug(product) else "unknown-product")

    @cached_property
    def recorded_by(self) -> tuple[str, str, str]:
        """The product, its record's DSN (empty for a file in :attr:`state_dir`), and its key."""
        return self.plan.product, self.plan.record_dsn, self.plan.record_key

    @property
    def record_file(self) -> Path:
        """Where the record stands that is not in a server."""
        return self.state_dir / "record.sqlite"

    @cached_property
    def record(self) -> Record:
        product, dsn, key = self.recorded_by
        return Record(dsn or str(self.record_file), product, key)

    def believe_record(self) -> str:
        """Compute the chain anew before what stands in the record is acted upon; say where its end may be missing.

        :return: the hash that the newest outcome has kept and the record has not; empty where nothing is missing.
        :raises BalikError: it was changed.
        """
        if self.no_record():
            return ""
        head, missing = self.head_kept(), ""
        found = self.record.verify(head)
        if head and not found.whole and (found := self.record.verify()).whole:
            missing = head
            self.say(
                f"WARNING: the record {self.record.place} has not the entry that {self.outcome_file} ends with: it was "
                "lost, or its end was cut off"
            )
        if not found.whole:
            raise BalikError(
                f"record {self.record.place}",
                f"the chain is broken at entry {found.broken_at}: {found.reason}",
                do="Keep a copy, and ask who had access. To roll back without it, move it away: the new one knows "
                "nothing of earlier runs, and their containers and databases are kept under their names.",
            )
        return missing

    def head_kept(self) -> str:
        """The head of this very record as the newest outcome has kept it; empty where there is none."""
        kept = self.outcome_kept()
        return str(kept.get("record_head") or "") if kept.get("record_fingerprint") == self.record_fingerprint else ""

    @property
    def record_fingerprint(self) -> str:
        """Which record it is. What is written of its place is scrubbed, and does not tell one from another."""
        return hashlib.sha256(self.record.place.encode()).hexdigest()

    def outcome_kept(self) -> dict[str, Any]:
        """The newest outcome; empty where none can be read."""
        try:
            kept = json.loads(self.outcome_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    @property
    def outcome_file(self) -> Path:
        return self.state_dir / "outcome.json"

    def no_record(self) -> bool:
        """Whether this is a check run that finds no record, and makes none."""
        return self.check_mode and not self.recorded_by[1] and not is_there(self.record_file)

    @cached_property
    def holder(self) -> Holder:
        # An action runs in a worker process; the run lives and dies with its parent, ansible-playbook.
        return Holder.of_process(self.operator, os.getppid())

    def entries(self) -> list[Entry]:
        """All entries so far. A check run makes no record where there is none."""
        if self.no_record():
            return []
        return list(self.record.entries())

    def run_of(self, run_id: str) -> Run:
        """What the record says of a run; an empty one in a check run, which is not in the record."""
        found = next((each for each in read_runs(self.entries()) if each.id == run_id), None)
        return found or Run(run_id, utc_now(), {}, utc_now(), utc_now())

    def held_by_another(self, run: str) -> str:
        """That an earlier run keeps the traffic from the application, and what to do, to be put behind the reason why
        this one gives it back neither; empty where it is not so."""
        held = still_held(self.entries())
        if held in (None, run):
            return ""
        return (
            f"; but run {held} held the traffic and has not given it back. Roll back with -e \"rollback_reason='…'\", "
            "which ends with giving it back; or, if it is back already, say so: -e rollback_traffic_back=true"
        )

    def append(self, kind: str, body: dict[str, Any], run: str) -> None:
        """Write one entry, without secrets. A check run writes nothing.

        :raises BalikError: it is the lock's holder's to write, and somebody has taken the lock over.
        """
        if self.check_mode:
            return
        if self.UNDER_LOCK and run:
            self._must_hold_lock()
        self.record.append(kind, self.scrubbed(body), run)

    def keep_lock(self, seconds: float = LEASE) -> None:
        """Renew the lease, so that nobody takes a long step's lock.

        :raises BalikError: somebody took it over, on purpose: what they do must not be done by two.
        """
        if self.check_mode:
            return
        self._must_hold_lock()
        self.record.acquire(self.holder, max(seconds, LEASE))

    def _must_hold_lock(self) -> None:
        if not self.holds_lock():
            raise BalikError(
                f"the lock of {self.recorded_by[0]}",
                f"it was taken over: {_now_held(self.record.lock())}",
                do=f"Leave it to them; `{self.command('status.yml')}` shows how far they are.",
            )

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
        values = f" -e {shlex.quote(json.dumps(extra, ensure_ascii=False))}" if extra else ""
        return f"ansible-playbook{self._inventories()} playbooks/{playbook}{values}"

    def ad_hoc(self, host: str, module: str) -> str:
        """A command line that runs one module on one host."""
        return f"ansible{self._inventories()} {host} -m {module}"

    def _inventories(self) -> str:
        sources = [os.path.relpath(str(each)) for each in self.task_vars.get("ansible_inventory_sources") or ()]
        return "".join(f" -i {shlex.quote(source)}" for source in sources)

    def say(self, text: str) -> None:
        """A line for the operator, at once and not only when the task is over."""
        self._display.display("balik: " + one_line(self.scrubbed(text)))


def lost_words(task_vars: Mapping[str, Any]) -> Iterator[BalikError]:
    """That a text given with -e has lost all but its first word to the command line; nothing where it has not."""
    if words := task_vars.get("_raw_params"):
        do = "Put a text with spaces into quotes of its own: -e \"decide_reason='…'\"."
        yield BalikError("-e", f"found {words!r}, which belongs to no name", "name=value, or JSON", do)


def no_text(name: str, value: Any) -> Iterator[BalikError]:
    """That what a call wishes is no text, which it may be as JSON or from AWX; nothing where it is one."""
    several = name == "rollback_scope" and isinstance(value, Sequence) and all(isinstance(part, str) for part in value)
    if not isinstance(value, str) and not several:
        yield BalikError(name, f"found {value!r}", "a text" + (", or several" if name == "rollback_scope" else ""))


def too_long(name: str, text: str) -> Iterator[BalikError]:
    """Why a person's text is not taken into the record; nothing where it is."""
    if len(text) > LONGEST_TEXT:
        do = "Write it elsewhere, and say here where."
        yield BalikError(name, f"found {len(text)} characters", f"at most {LONGEST_TEXT}", do)


def _now_held(lock: Lock | None) -> str:
    return f"{lock.holder} has it since {iso(lock.since)[:19]}Z" if lock else "and has been given back since"


def step_roles() -> dict[str, Path]:
    """The roles that are steps, by name: those on the roles path with a spec for each of the four entry points."""
    found: dict[str, Path] = {}
    for folder in _roles_path():
        for specs in folder.glob("*/meta/argument_specs.yml"):
            if _is_step(specs):
                found.setdefault(specs.parents[1].name, specs.parents[1])
    return found


def step_role(step: str) -> Path:
    """One of :func:`step_roles`, without reading the others: each task of a step asks for it.

    :raises KeyError: no such role.
    """
    for folder in _roles_path():
        specs = folder / step / "meta" / "argument_specs.yml"
        if specs.exists() and _is_step(specs):
            return folder / step
    raise KeyError(step)


def _roles_path() -> list[Path]:
    return [*map(Path, C.DEFAULT_ROLES_PATH), Path(__file__).resolve().parents[2] / "roles"]


def _is_step(specs: Path) -> bool:
    return set(read_specs(specs)) >= ENTRY_POINTS


def read_specs(path: Path) -> dict[str, Any]:
    """The argument specs in a role's ``meta/argument_specs.yml``, by entry point."""
    return (_load_yaml(path) or {}).get("argument_specs", {})


def read_defaults(role: Path) -> dict[str, Any]:
    """A role's defaults, not templated; none where it has no such file."""
    path = role / "defaults" / "main.yml"
    return (_load_yaml(path) or {}) if path.exists() else {}


def read_above_zero(role: Path) -> set[str]:
    """A role's durations and numbers of which zero makes no sense, by its ``meta/settings.yml``; none without it."""
    path = role / "meta" / "settings.yml"
    return set((_load_yaml(path) or {}).get("above_zero", [])) if path.exists() else set()


def _load_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
