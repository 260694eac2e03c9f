"""What the demo tells from the record; the demo itself is run by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.record import Record

from tools import demo

PAGE = {"step": "maintenance-page", "phase": "hold"}
RESTORE = {"step": "traffic-restore", "phase": "restore"}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo, "STATE", tmp_path)
    (tmp_path / demo.PRODUCT).mkdir()
    return tmp_path / demo.PRODUCT


def test_a_run_that_failed_is_told_with_its_outcome(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Record(str(state / "record.sqlite"), demo.PRODUCT) as record:
        record.append("step-done", {**PAGE, "says": {"lb-1": "the page is served"}}, "r1")
        record.append("step-failed", {**RESTORE, "failures": {"lb-2": "no answer: timed out"}}, "r1")
    outcome = {
        **{"outcome": "failed", "reason": "traffic-restore failed on lb-2"},
        **{"opened": "2026-01-10T13:00:00Z", "closed": "2026-01-10T13:01:05Z"},
        "steps": {"maintenance-page": {"state": "done", "seconds": 2.5}},
    }
    (state / "outcome.json").write_text(json.dumps(outcome))

    with pytest.raises(demo.Failed, match=r"rollback\.yml ended with 2; see above\nDewi could not answer"):
        demo.require_success(2, demo.entries_after(0), ["Dewi could not answer"])

    told = capsys.readouterr().out
    assert told.startswith("\nWhat happened\n")
    for words in ("2.5s  the page is served", "failed  no answer: timed out", "in all    1m5s\n"):
        assert words in told
    assert "outcome   failed: traffic-restore failed on lb-2" in told


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (None, "outcome.json is not there"),
        ({"outcome": "running", "run": "r1"}, "outcome   running: it was not written down"),
        ({"outcome": "failed", "run": None, "reason": "the plan is refused"}, "outcome   failed: the plan is refused"),
    ],
)
def test_a_run_that_wrote_little_is_told_all_the_same(
    state: Path, capsys: pytest.CaptureFixture[str], written: dict | None, says: str
) -> None:
    if written:
        (state / "outcome.json").write_text(json.dumps(written))
    with pytest.raises(demo.Failed):
        demo.require_success(4, demo.entries_after(0), [])
    assert says in capsys.readouterr().out


def test_a_run_that_ended_well_is_told_later(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.require_success(0, demo.entries_after(0), [])
    assert capsys.readouterr().out == ""
