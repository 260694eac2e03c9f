"""Lawyers Hub's production, a bad release on it, and the plan that takes it off: killed at each step, the same end."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.rollback_runs import killed_when, run_to_the_end, started
from tools import demo

pytestmark = pytest.mark.docker

LIMIT = 300
STEPS = ("maintenance-page", "image-revert", "db-restore", "smoke-test", "traffic-restore")


def molecule(command: str) -> None:
    log = demo.STATE / f"molecule-{command}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [demo.HOUSE / ".venv/bin/molecule", command, "--scenario-name", "lawyers-hub"],
            cwd=demo.HOUSE,
            env=demo.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 0, log.read_text(encoding="utf-8")[-4000:] + last_words()


def last_words() -> str:
    """What the apps and their database said last: why one does not start stands nowhere else."""
    said = ""
    for name in ("lawyers-hub-app-1", "balik-lh-db"):
        command = ["docker", "logs", "--tail", "20", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said += f"\n{name}: {done.stdout}{done.stderr}"
    return said


@pytest.fixture(scope="module")
def production() -> Iterator[demo.Humans]:
    """The bad release live, seen by the monitoring; and the people of the plan, who answer what they are asked."""
    molecule("destroy")
    for left in (demo.STATE / demo.PRODUCT).glob("*.*"):
        left.unlink()
    try:
        molecule("create")
        molecule("converge")
        demo.wait_until_seen()
        humans = demo.Humans(0)
        humans.start()
        yield humans
        humans.over.set()
    finally:
        molecule("destroy")


def test_killed_after_each_step_has_started_it_comes_to_the_same_end(production: demo.Humans, tmp_path: Path) -> None:
    for step in STEPS:
        killed_when(partial(started, step), tmp_path / f"{step}.log")

    outcome = run_to_the_end(tmp_path / "last.log")

    assert outcome["outcome"] == "rolled-back", (tmp_path / "last.log").read_text(encoding="utf-8")[-4000:]
    assert {step["state"] for step in outcome["steps"].values()} == {"done"}
    assert set(outcome["steps"]) == set(STEPS)
    assert len({entry.run for entry in demo.entries_after(0) if entry.kind.startswith("step-")}) == 1
    stats = demo.get(f"{demo.TRAFFIC}/stats")
    wrong = [(name, found) for name, found, right in demo.proofs(stats) if not right]
    assert wrong == [], production.failures


def test_on_the_healthy_system_there_is_nothing_to_do(production: demo.Humans, tmp_path: Path) -> None:
    assert run_to_the_end(tmp_path / "again.log")["outcome"] == "nothing-to-do"


def test_when_the_app_fails_during_the_watch_the_page_goes_up_again(production: demo.Humans, tmp_path: Path) -> None:
    """Asked for though the criteria are safe; then both apps are taken away while the watch goes on."""
    before = demo.entries_after(0)[-1].seq
    watching = threading.Event()

    def take_the_apps_away() -> None:
        limit = time.monotonic() + LIMIT
        while time.monotonic() < limit and not watching.is_set():
            if demo.get(f"{demo.TRAFFIC}/stats") and any(
                e.kind == "step-started" and e.body["step"] == "traffic-restore" for e in demo.entries_after(before)
            ):
                time.sleep(8)
                subprocess.run(["docker", "pause", "lawyers-hub-app-1", "lawyers-hub-app-2"], check=True, timeout=60)
                return
            time.sleep(0.2)

    helper = threading.Thread(target=take_the_apps_away)
    helper.start()
    log = tmp_path / "watch.log"
    try:
        with log.open("w", encoding="utf-8") as output:
            code = subprocess.run(
                demo.ansible("rollback.yml", "-e", '{"rollback_reason": "a drill", "rollback_remedy": "deployment"}'),
                cwd=demo.HOUSE,
                env=demo.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
                check=False,
            ).returncode
    finally:
        watching.set()
        helper.join()
        subprocess.run(["docker", "unpause", "lawyers-hub-app-1", "lawyers-hub-app-2"], check=False, timeout=60)

    assert code != 0
    outcome = json.loads((demo.STATE / demo.PRODUCT / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["outcome"] == "failed"
    assert "The maintenance page is on again" in outcome["reason"], log.read_text(encoding="utf-8")[-4000:]

    again = run_to_the_end(tmp_path / "mended.log")
    assert again["outcome"] == "rolled-back", (tmp_path / "mended.log").read_text(encoding="utf-8")[-4000:]
