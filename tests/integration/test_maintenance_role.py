"""The role `maintenance-page` as users run it: two load balancers at once, locally and over SSH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.balancers import Balancers, balancers, needed
from tests.servers.loopback import free_port, wait_for_port

PROJECT = Path(__file__).parents[2]
SECRET = "0123456789abcdef-bypass"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")

pytestmark = needed


@dataclass(frozen=True)
class Part:
    """One entry point of a role, and what the wrapper gives it."""

    entry: str
    registers: str
    role: str = "maintenance-page"
    saved: dict[str, str] = field(default_factory=dict)

    def tasks(self) -> list[dict[str, Any]]:
        given = {"rollback_step_saved": self.saved, "traffic_restore_procedure": "quick"}
        said = f"{{{{ {{'host': inventory_hostname, 'result': {self.registers}}} | to_json }}}}"
        return [
            {"ansible.builtin.include_role": {"name": self.role, "tasks_from": self.entry}, "vars": given},
            {"ansible.builtin.debug": {"msg": said}},
        ]


@dataclass
class World:
    """Two load balancers and the folder with their inventory."""

    folder: Path
    balancers: Balancers

    def run(self, *parts: Part, arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
        """What each host registered in each part."""
        done = self.play(*parts, arguments=arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.lstrip().startswith('"msg": "{')]
        found = [json.loads(json.loads(line)) for line in lines]
        size = len(self.balancers.hosts)
        groups = [found[start : start + size] for start in range(0, len(found), size)]
        return [{one["host"]: one["result"] for one in group} for group in groups]

    def play(self, *parts: Part, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        tasks = [task for part in parts for task in part.tasks()]
        play = self.folder / "play.yml"
        play.write_text(json.dumps([{"hosts": "balancers", "gather_facts": False, "tasks": tasks}]))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.folder / "hosts.yml")]
        settings = {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        done = subprocess.run(
            [*command, str(play), "--diff", *arguments],
            env={**os.environ, **settings, "ANSIBLE_NOCOLOR": "1"},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert SECRET not in done.stdout + done.stderr
        return done


@contextmanager
def world(folder: Path, connection: dict[str, Any]) -> Iterator[World]:
    with balancers() as both:
        common = {"maintenance_page_bypass": SECRET, "rollback_product": "Lawyers Hub", **connection}
        (folder / "hosts.yml").write_text(json.dumps({"balancers": {"hosts": both.hosts, "vars": common}}))
        yield World(folder, both)


LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}


@contextmanager
def sshd(folder: Path) -> Iterator[dict[str, Any]]:
    """A private SSH server on loopback; gives the variables of hosts that are reached through it."""
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    settings = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host_key", "PidFile": "none"}
    settings |= {"AuthorizedKeysFile": folder / "authorized_keys", "StrictModes": "no", "UsePAM": "no"}
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    control = folder / "control"
    try:
        wait_for_port(port, process)
        yield {
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(folder / "user_key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={folder}/known_hosts -o ControlPath={control}",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
    finally:
        subprocess.run(["ssh", "-o", f"ControlPath={control}", "-O", "exit", "x"], check=False, capture_output=True)
        process.terminate()
        process.wait(10)


PREPARE = Part("prepare", "maintenance_page_prepared")
CHECK = Part("check", "rollback_step_check")
MAIN = Part("main", "rollback_step_main")
VERIFY = Part("verify", "rollback_step_verify")
DOWN = Part("down", "rollback_step_main")


def restore(part: Part) -> Part:
    return replace(part, role="traffic-restore")


def undo(page: str) -> Part:
    return Part("undo", "rollback_step_undo", saved={"page": page})


def prepare(one: World) -> None:
    """The owner of both load balancers does what the first run asks for."""
    [first] = one.run(PREPARE)
    assert "first line of the block" in first["lb-web"]["missing"][0]
    assert "frontend.cfg" in first["lb-api"]["missing"][0]
    one.balancers.configure()
    [second] = one.run(PREPARE)
    assert all(result["changed"] and not result["missing"] for result in second.values())


def live(one: World) -> None:
    """From the check to the last undo, on both load balancers at once."""
    [would] = one.run(MAIN, arguments=["--check"])
    assert all(result["changed"] for result in would.values())
    assert not (one.balancers.nginx.switch / "on").exists()

    everything = [CHECK, MAIN, VERIFY, MAIN, restore(CHECK), DOWN, restore(VERIFY)]
    parts = one.run(*everything, restore(undo("on")), undo("off"))
    checked, main, verified, again, served, down, passing, on, off = map(dict.values, parts)
    assert [result["before"] for result in checked] == [{"page": "off"}] * 2
    assert all(result["changed"] and result["evidence"]["status"] == 503 for result in main)
    assert all("no-store" in result["says"] for result in verified)
    assert not any(result["changed"] for result in again)
    assert [result["before"] for result in served] == [{"page": "on"}] * 2
    assert [result["evidence"]["page"] for result in [*down, *on, *off]] == [*["off"] * 2, *["on"] * 2, *["off"] * 2]
    assert [result["evidence"]["status"] for result in passing] == [200] * 2


@pytest.mark.skipif(os.geteuid() != 0 or not SSHD, reason="needs root and openssh-server")
def test_over_ssh(tmp_path: Path) -> None:
    with sshd(tmp_path) as connection, world(tmp_path, connection) as one:
        prepare(one)
        live(one)


def test_on_this_host(tmp_path: Path) -> None:
    with world(tmp_path, LOCAL) as one:
        prepare(one)
        main, off = one.run(MAIN, undo("off"))
        assert [result["evidence"]["page"] for result in [*main.values(), *off.values()]] == [*["on"] * 2, *["off"] * 2]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with world(tmp_path, LOCAL) as one:
        assert "nothing is saved of the page" in one.play(replace(undo("on"), saved={})).stdout
        printed = one.play(CHECK, arguments=["-e", "maintenance_page_bypass=short"]).stdout
        assert "maintenance_page_bypass: found 5 characters; expected 16 or more" in printed


def test_the_page_that_goes_up_again_is_told_in_whole_sentences(tmp_path: Path) -> None:
    """traffic-restore on a page that is off already, in front of an application that answers 500."""
    with world(tmp_path, LOCAL) as one:
        prepare(one)
        broken = {"maintenance_page_url": f"{one.balancers.nginx.url}broken", "maintenance_page_within": "1s"}
        done = one.play(restore(MAIN), arguments=["--limit", "lb-web", "-e", json.dumps(broken)])
        assert done.returncode != 0
        assert "Bring the application up first. The maintenance page is on again." in done.stdout, done.stdout
        assert "left off" not in done.stdout
