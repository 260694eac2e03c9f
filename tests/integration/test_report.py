"""The report as users get it: from the playbook, from the flow's role, under ansible-runner."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ansible_runner
import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.record import Record

from tests.unit.module_utils.test_report import RUN, VARIABLES, Story

PROJECT = Path(__file__).parents[2]
SECRET = "correct-horse-battery"
FORMS = ["report.html", "report.json", "report.md"]


class Checkout:
    """A checkout with an inventory and a record of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ansible.cfg", "collections", "playbooks", "plugins", "roles"):
            (folder / name).symlink_to(PROJECT / name)
        self.state = folder / "state"
        self.reports = self.state / "lawyers-hub" / "reports"
        inventory = folder / "inventories" / "lawyers-hub"
        (inventory / "group_vars" / "all").mkdir(parents=True)
        (inventory / "hosts.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}\n")
        plan = {
            **VARIABLES,
            "rollback_language": "id",
            "rollback_state_dir": str(self.state),
            "rollback_checklist": [{"when": "after", "role": "qa-lead", "says": "Ganti {{ app_secret }}"}],
            "app_secret": SECRET,
        }
        (inventory / "group_vars" / "all" / "plan.yml").write_text(yaml.safe_dump(plan))
        self.record = Record(str(self.state / "lawyers-hub" / "record.sqlite"), "lawyers-hub")

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "HOME": str(self.folder), "ANSIBLE_NOCOLOR": "1"}

    def shell(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def play(self, *arguments: str, playbook: str = "playbooks/report.yml") -> subprocess.CompletedProcess[str]:
        done = self.shell("ansible-playbook", "-i", "inventories/lawyers-hub", playbook, *arguments)
        assert "Traceback" not in done.stdout + done.stderr
        return done


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path)
    yield made
    made.record.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_newest_run_is_reported_in_three_forms_for_its_owner_only(checkout: Checkout) -> None:
    Story(checkout.record, "20260109T130000Z-0000").opened()
    Story(checkout.record).rolled_back()
    before = os.umask(0)
    try:
        done = checkout.play()
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stdout
    assert "changed=1" in done.stdout
    folder = checkout.reports / RUN
    assert sorted(path.name for path in folder.iterdir()) == FORMS
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert (mode(checkout.reports), mode(folder)) == (0o700, 0o700)
    assert f"report of run {RUN} (rolled-back) is {folder}/report.html" in " ".join(done.stdout.split())
    for path in folder.iterdir():
        text = path.read_text()
        assert SECRET not in text
        assert "Ganti ********" in text.replace("\\", "")
    assert "<title>Laporan rollback: lawyers-hub" in (folder / "report.html").read_text()

    assert "changed=0" in checkout.play().stdout, "the same record gives the same report"

    older = checkout.play("-e", "report_run=20260109T130000Z-0000")
    assert older.returncode == 0, older.stdout
    assert json.loads((checkout.reports / "20260109T130000Z-0000" / "report.json").read_text())["outcome"] == "open"


def test_the_reports_command_finds_out_whether_the_record_is_whole(checkout: Checkout) -> None:
    Story(checkout.record).rolled_back()
    assert checkout.play().returncode == 0
    verify = json.loads((checkout.reports / RUN / "report.json").read_text())["record"]["verify"]
    assert "-i inventories/lawyers-hub " in verify
    whole = checkout.shell(*shlex.split(verify))
    assert whole.returncode == 0, whole.stdout
    with sqlite3.connect(checkout.record.place) as connection:
        connection.executescript("DROP TRIGGER balik_no_delete")
        connection.execute("DELETE FROM balik_entries WHERE seq = (SELECT max(seq) FROM balik_entries)")
    connection.close()
    cut = checkout.shell(*shlex.split(verify))
    assert cut.returncode != 0
    assert "cut off" in cut.stdout


def test_check_mode_writes_nothing(checkout: Checkout) -> None:
    Story(checkout.record).rolled_back()
    done = checkout.play("--check", "--diff")
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert not checkout.reports.exists()


@pytest.mark.parametrize("run", ["20260101T000000Z-none", "../../../etc"])
def test_a_run_that_there_never_was(checkout: Checkout, run: str) -> None:
    Story(checkout.record).opened()
    done = checkout.play("-e", f"report_run={run}")
    assert done.returncode != 0
    assert f"found '{run}'" in done.stdout
    assert not checkout.reports.exists()


def in_the_flow(checkout: Checkout) -> subprocess.CompletedProcess[str]:
    """The role as rollback.yml runs it, and what comes after it."""
    flow = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": {"rollback_run_id": RUN},
            "tasks": [
                {"ansible.builtin.include_role": {"name": "rollback-report"}},
                {"ansible.builtin.debug": {"msg": "the outcome"}},
            ],
        }
    ]
    (checkout.folder / "flow.yml").write_text(yaml.safe_dump(flow))
    return checkout.play(playbook="flow.yml")


def test_a_report_that_cannot_be_written_does_not_fail_the_flow(checkout: Checkout) -> None:
    Story(checkout.record).opened()
    checkout.reports.write_text("a file where the folder should be")
    alone = checkout.play()
    assert alone.returncode != 0
    assert "cannot be written" in alone.stdout
    done = in_the_flow(checkout)
    assert done.returncode == 0, done.stdout
    assert "cannot be written" in done.stdout
    assert f"playbooks/report.yml -e report_run={RUN}" in done.stdout
    assert "the outcome" in done.stdout


def test_an_edited_record_is_neither_reported_nor_shown(checkout: Checkout) -> None:
    Story(checkout.record).rolled_back()
    with sqlite3.connect(checkout.record.place) as connection:
        connection.executescript("DROP TRIGGER balik_no_update; UPDATE balik_entries SET body = '{}' WHERE seq = 2")
    connection.close()
    for done in (checkout.play(), checkout.play(playbook="playbooks/record.yml")):
        assert done.returncode != 0
        assert "the chain is broken at entry 2" in " ".join(done.stdout.split()), done.stdout
    flow = in_the_flow(checkout)
    assert flow.returncode == 0, flow.stdout
    assert "the chain is broken at entry 2" in " ".join(flow.stdout.split())
    assert "Once that is mended: " in flow.stdout
    assert "the outcome" in flow.stdout
    assert not checkout.reports.exists()


def test_under_ansible_runner(checkout: Checkout, tmp_path: Path) -> None:
    Story(checkout.record).rolled_back()
    (tmp_path / "runner").mkdir()
    done = ansible_runner.run(
        private_data_dir=str(tmp_path / "runner"),
        project_dir=str(checkout.folder),
        playbook="playbooks/report.yml",
        inventory=str(checkout.folder / "inventories" / "lawyers-hub"),
        envvars={"HOME": str(tmp_path), "PATH": checkout.environment["PATH"]},
        quiet=True,
        timeout=120,
    )
    assert done.rc == 0, done.stdout.read()
    assert sorted(path.name for path in (checkout.reports / RUN).iterdir()) == FORMS


def test_the_documentation_can_be_read(checkout: Checkout) -> None:
    done = checkout.shell("ansible-doc", "--json", "balik.rollback.report")
    assert done.returncode == 0, done.stderr
    documented = json.loads(done.stdout)["balik.rollback.report"]["doc"]
    assert set(documented["options"]) == {"run"}
    assert documented["attributes"]["check_mode"]["support"] == "full"
