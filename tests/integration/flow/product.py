"""A product whose steps write lines into files, and the real ``ansible-playbook`` on its plan.

Its four steps (``hold-it``, ``revert-it``, ``verify-it``, ``restore-it``) are copies of the role ``write-line``: the
first two on two hosts, the others on the control node. All that a test changes is the plan, the inventory, and the
files that make a step slow or fail.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.balik.rollback.plugins.module_utils.record import Entry, Record

from tests.servers.loopback import hold

PROJECT = Path(__file__).resolve().parents[3]
STEPS = ("hold-it", "revert-it", "verify-it", "restore-it")
HOSTS = {
    "hold-it": ("web-1", "web-2"),
    "revert-it": ("web-1", "web-2"),
    "verify-it": ("localhost",),
    "restore-it": ("localhost",),
}
BREAK_GLASS = ("-e", "rollback_break_glass='test of the flow'", "-e", "rollback_role=lead")
LIMIT = 120

PLAN: dict[str, Any] = {
    "rollback_product": "flow",
    # A minute of the plan lasts half a second.
    "rollback_speed": 120,
    "rollback_plan_reviewed": "2026-01-10",
    "rollback_plan_review_every": "5000d",
    "rollback_release": {"name": "2.0", "launched": "2026-01-10T20:00:00+07:00", "stable": "1.0"},
    "rollback_people": {
        "lead": {"title": "Lead Engineer — Kepala Insinyur 工程师", "reach": {"phone": "+62 812 0000"}}
    },
    "rollback_criteria": [
        {"name": "leak", "says": "Kebocoran data §", "measure": {"statement": {"by": ["lead"], "without": "safe"}}}
    ],
    "rollback_decision": {"go": ["lead"], "wait": "2h", "break_glass": ["lead"]},
    "rollback_procedures": [{"name": "standard", "watch": "1m"}],
    "rollback_hold": ["hold-it"],
    "rollback_remedies": {
        "all": {"covers": ["frontend", "backend", "database"], "takes": "1m", "revert": ["revert-it"]}
    },
    "rollback_verify": ["verify-it"],
    "rollback_restore": ["restore-it"],
    "hold_it_hosts": "web",
    "revert_it_hosts": "web",
}


class Product:
    """One product in a folder of its own.

    :param web: whether the first two steps have hosts of their own; without, all is on the control node, which is
        quicker: each task costs each host a process.
    :param changes: variables that differ from ``PLAN``; None takes one away.
    """

    def __init__(self, folder: Path, web: bool = True, **changes: Any) -> None:
        self.folder = folder
        self.state = folder / "state" / "flow"
        self.inventory = folder / "inventory"
        variables = self.inventory / "group_vars" / "all"
        variables.mkdir(parents=True)
        self.plan_file = variables / "plan.yml"
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        self.hosts: dict[str, Any] = {"all": {"hosts": {"localhost": local}, "children": {}}}
        self.plan = {**PLAN, "rollback_state_dir": str(folder / "state")}
        self.hosts_of = HOSTS
        if web:
            self.hosts["all"]["children"]["web"] = {"hosts": {"web-1": {}, "web-2": {}}, "vars": local}
        else:
            self.hosts_of = dict.fromkeys(STEPS, ("localhost",))
            del self.plan["hold_it_hosts"], self.plan["revert_it_hosts"]
        for step in STEPS:
            role = folder / "roles" / step
            shutil.copytree(Path(__file__).parent / "roles" / "write-line", role)
            for file in role.rglob("*.yml"):
                text = file.read_text().replace("write-line", step).replace("write_line", step.replace("-", "_"))
                file.write_text(text)
            (folder / step).mkdir()
            self.plan[f"{step.replace('-', '_')}_dir"] = str(folder / step)
        self.write(**changes)

    def write(self, **changes: Any) -> None:
        """Write plan and hosts anew, with changes of the plan."""
        self.plan = {name: value for name, value in {**self.plan, **changes}.items() if value is not None}
        self.plan_file.write_text(yaml.safe_dump(self.plan, sort_keys=False, allow_unicode=True))
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(self.hosts))

    # Running

    def environment(self) -> dict[str, str]:
        """Nothing of this test's user: neither their settings nor their folders."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": f"{PROJECT / 'roles'}:{self.folder / 'roles'}",
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "remote"),
            "ANSIBLE_FORCE_COLOR": "0",
            # Ansible does not flush what it writes to a file, and the tests follow that.
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def command(self, *arguments: str, playbook: str = "rollback.yml") -> list[str]:
        return ["ansible-playbook", "-i", str(self.inventory), playbook, *arguments]

    def play(self, *arguments: str, playbook: str = "rollback.yml") -> subprocess.CompletedProcess[str]:
        """Run a playbook to its end; ``stdout`` has its errors too."""
        return subprocess.run(
            self.command(*arguments, playbook=playbook),
            env=self.environment(),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def decide(self, answer: str, reason: str = "sudah dilihat", **more: str) -> subprocess.CompletedProcess[str]:
        """One person's word, by the playbook that people use."""
        said = {"decide_role": "lead", "decide_answer": answer, "decide_reason": reason, "decide_by": "rina"}
        return self.play("-e", json.dumps({**said, **more}), playbook="playbooks/decide.yml")

    @contextmanager
    def started(self, *arguments: str, log: str = "log") -> Iterator[Process]:
        """A rollback that goes on while the test does something; killed at the end if it is still there."""
        written = self.folder / log
        with written.open("w") as output:
            process = subprocess.Popen(
                self.command(*arguments),
                env=self.environment(),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Process(process, written)
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait(10)

    # Seeing

    def line(self, step: str, host: str = "") -> str:
        """What stands in a step's file: off (no file), half or on."""
        path = self.folder / step / (host or self.hosts_of[step][0])
        return path.read_text().strip() if path.exists() else "off"

    def everywhere(self, step: str, line: str) -> bool:
        return all(self.line(step, host) == line for host in self.hosts_of[step])

    def lines(self) -> dict[str, str]:
        return {f"{step} {host}": self.line(step, host) for step in STEPS for host in self.hosts_of[step]}

    def times(self, step: str, host: str = "") -> int:
        """How often a step was carried out on a host."""
        path = self.folder / step / f"log-{host or self.hosts_of[step][0]}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def entries(self, *kinds: str) -> list[Entry]:
        """The record's entries, of these kinds only where there are any given; none where there is no record."""
        if not (self.state / "record.sqlite").exists():
            return []
        with Record(str(self.state / "record.sqlite"), "flow", self.plan.get("rollback_record_key", "")) as record:
            assert record.verify().whole
            return [entry for entry in record.entries() if not kinds or entry.kind in kinds]

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "outcome.json").read_text())
        return found

    def everything_written(self) -> Mapping[str, str]:
        """All texts that balik wrote for this product, by file."""
        files = {
            path.name: path.read_bytes().decode(errors="replace") for path in self.state.rglob("*") if path.is_file()
        }
        return {**files, "entries": repr(self.entries())}


class Process:
    """A running ``ansible-playbook``."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self._process, self._log = process, log
        self.pid: int = process.pid

    def stdout(self) -> str:
        return self._log.read_text()

    def until(self, there: Callable[[], Any], limit: float = LIMIT) -> None:
        """Wait for something to be so while it runs."""
        end = time.monotonic() + limit
        while not there():
            assert self._process.poll() is None, f"it ended before that:\n{self.stdout()}"
            assert time.monotonic() < end, f"not so within {limit} s:\n{self.stdout()}"
            time.sleep(0.05)

    def wait(self) -> int:
        return self._process.wait(LIMIT)

    def wake_up(self) -> None:
        """End the sleep of a slow step, which fails by that."""
        for pid in _tree(self.pid):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith("sleep\0"):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """``kill -9`` of it and of all that it started, at one moment."""
        kill_tree(self.pid)
        self._process.wait(10)

    def kill_alone(self) -> None:
        """``kill -9`` of ``ansible-playbook`` itself, while its worker lives on."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(10)


def kill_tree(pid: int) -> None:
    """Kill a process with all below it. They are stopped first, so that none starts another meanwhile."""
    found = [pid]
    for each in found:
        try:
            hold(each)
        except ProcessLookupError:
            continue
        found += _children(each)
    for each in found:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _tree(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += _children(each)
    return found


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found
