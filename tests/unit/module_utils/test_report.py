"""The report: what it tells about runs of every kind, in both languages, whatever stands in the record."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils import criteria
from ansible_collections.balik.rollback.plugins.module_utils import plan as plans
from ansible_collections.balik.rollback.plugins.module_utils import run as runs
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.plan import Plan, read_plan
from ansible_collections.balik.rollback.plugins.module_utils.record import Entry, Record
from ansible_collections.balik.rollback.plugins.module_utils.report import build, to_html, to_json, to_markdown
from ansible_collections.balik.rollback.plugins.module_utils.report.document import NOT_BEGUN, NOT_MEASURED, OPEN
from ansible_collections.balik.rollback.plugins.module_utils.report.words import WORDS, ZONES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

RUN = "20260110T130000Z-3f9a"
STEPS = ("maintenance-page", "image-revert", "db-restore", "smoke-test", "traffic-restore")
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")

VARIABLES: dict[str, Any] = {
    "rollback_product": "lawyers-hub",
    "rollback_language": "en",
    "rollback_plan_reviewed": "2026-01-10",
    "rollback_release": {"name": "2.0.0", "launched": "2026-01-10T12:00:00Z", "stable": "1.9.4"},
    "rollback_people": {
        "lead-engineer": {
            "title": "Lead Engineer",
            "does": "Decides on the rollback",
            "reach": {
                "email": "lead@shop.example",
                "webhook": "https://chat.example/hooks/T0K3N",
                "phone": "+62 812 0000",
            },
        },
        "qa-lead": {
            "title": "QA Lead",
            "does": "Verifies after the rollback",
            "names": ["Sari"],
            "reach": {"email": "qa@shop.example"},
            "escalates_to": "lead-engineer",
        },
    },
    "rollback_criteria": [
        {
            "name": "error-rate",
            "says": "Error rate > 5 % for 15 minutes",
            "measure": {"prometheus": {"url": "http://127.0.0.1:9", "query": 'errors{code=~"5.."} | x'}},
            "unsafe": "> 5 %",
            "for": "15m",
            "every": "1m",
            "touches": ["backend"],
        },
        {"name": "data-leak", "says": "A data leak", "measure": {"statement": {"by": ["lead-engineer"]}}},
    ],
    "rollback_decision": {"go": ["lead-engineer"], "wait": "15m", "break_glass": ["qa-lead"]},
    "rollback_procedures": [{"name": "standard", "says": "As written", "watch": "30m"}],
    "rollback_hold": ["maintenance-page"],
    "rollback_remedies": {
        "deployment": {"says": "The image goes back", "covers": ["backend"], "takes": "1m", "revert": ["image-revert"]},
    },
    "rollback_verify": ["smoke-test"],
    "rollback_restore": ["traffic-restore"],
    "rollback_smtp": "mail.shop.example:25",
    "rollback_sign_offs": [
        {"name": "verification", "role": "qa-lead", "phase": "verify", "says": "It works as before"}
    ],
    "rollback_checklist": [
        {"when": "before", "role": "lead-engineer", "says": "Take screenshots"},
        {"when": "after", "role": "lead-engineer", "says": "Analyse the root cause"},
        {"when": "after", "role": "qa-lead", "says": "Add a test case"},
    ],
}


def plan_of(**changes: Any) -> Plan:
    return read_plan({**VARIABLES, **{f"rollback_{name}": value for name, value in changes.items()}}, STEPS)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(str(tmp_path / "record.sqlite"), "lawyers-hub") as opened:
        yield opened


class Story:
    """A run as the actions write it, in the words of a test."""

    def __init__(self, record: Record, run: str = RUN) -> None:
        self.record, self.run = record, run

    def tell(self, kind: str, **body: Any) -> Entry:
        return self.record.append(kind, body, self.run)

    def opened(self, speed: float = 1, **more: Any) -> None:
        told = {
            "product": "lawyers-hub",
            "environment": "production",
            "release": "2.0.0",
            "stable": "1.9.4",
            "job": None,
        }
        self.tell("run-opened", **{**told, "by": "rina@desk", "speed": speed, **more})

    def criteria(self, verdict: str = "unsafe", kind: str = "criteria", **more: Any) -> None:
        samples = [
            {"at": f"2026-01-10T12:{minute:02}:00.000000Z", "value": None if minute == 7 else 0.1 + minute / 1000}
            for minute in range(45, 60)
        ]
        samples[3] = {**samples[3], "value": None, "note": "no data"}
        error_rate = {
            "criterion": "error-rate",
            "says": "Error rate > 5 % for 15 minutes",
            "verdict": verdict,
            "reason": "0.159, > 5 % for 15m (14 samples)",
            "query": 'errors{code=~"5.."} | x',
            "at": samples[-1]["at"],
            "took": 0.02,
            "touches": ["backend"],
            "sample_count": 15,
            "samples": samples,
        }
        self.tell(
            kind,
            **{
                "verdict": verdict,
                "reason": "error-rate: 0.159, > 5 %",
                "trigger": "any",
                "criteria": [error_rate],
                **more,
            },
        )

    def decided(self, outcome: str = "go", reason: str = "Go by Rina (Lead Engineer)") -> None:
        self.tell("decided", outcome=outcome, reason=reason, remedy="deployment", procedure="standard", answers={})

    def asked_and_answered(self) -> None:
        self.tell("asked", roles=["lead-engineer"], remedy="deployment", why="error-rate: 0.159")
        self.tell("message", moment="asked", role="lead-engineer", subject="Decide!", ways={"email": "sent"})
        self.tell(
            "decision", role="lead-engineer", by="Rina", answer="go", reason="users cannot save", item="", remedy=""
        )

    def started(self, step: str, phase: str, **saved: Any) -> None:
        self.tell("step-started", step=step, phase=phase, saved=saved or {"localhost": {}})

    def done(self, step: str, phase: str, host: str = "localhost", says: str = "it is so", **evidence: Any) -> None:
        self.started(step, phase, **{host: {"image": "lawyers-hub:2.0.0"}})
        self.tell(
            "step-done",
            **{
                "step": step,
                "phase": phase,
                "says": {host: says},
                "evidence": {host: {"main": evidence, "verify": {}}},
            },
        )

    def rolled_back(self) -> None:
        self.opened()
        self.criteria()
        self.asked_and_answered()
        self.decided()
        self.done("maintenance-page", "hold", "lb1", "lb1: the page is served", status=503, within_ms=4)
        self.done("image-revert", "revert", says="2 containers run 1.9.4")
        self.done("smoke-test", "verify", says="4 of 4 checks passed")
        self.tell("asked", roles=["qa-lead"], item="verification", why="It works as before")
        self.tell(
            "sign-off", role="qa-lead", by="Sari", answer="sign-off", reason="saved and read", item="verification"
        )
        self.started("traffic-restore", "restore")
        self.criteria("safe", "watched", seconds=0.001)
        self.tell(
            "step-done", step="traffic-restore", phase="restore", says={"localhost": "the page is off"}, evidence={}
        )
        self.tell("outcome", outcome="rolled-back", reason="Go by Rina (Lead Engineer)", by="rina@desk")

    def document(self, plan: Plan | None = None, **more: Any) -> dict[str, Any]:
        return build(plan or plan_of(), list(self.record.entries()), self.run, **more)


@pytest.fixture
def story(record: Record) -> Story:
    return Story(record)


def everything(document: dict[str, Any]) -> tuple[str, str, str]:
    """The report in all its forms; whatever cannot be written fails here."""
    texts = to_html(document), to_markdown(document), to_json(document)
    assert json.loads(texts[2]) == document
    for text in texts:
        assert "None" not in text
    return texts


class Reader(HTMLParser):
    """Collects what a browser would see: tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "line", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# ---- what is told ---------------------------------------------------------------------------------


def test_a_rollback_from_its_opening_to_its_outcome(story: Story) -> None:
    story.rolled_back()
    found = story.document()
    html, markdown, _json = everything(found)
    assert (found["outcome"], found["reason"]) == ("rolled-back", "Go by Rina (Lead Engineer)")
    assert found["closed_at"] == list(story.record.entries())[-1].at
    assert found["remedy"] == {"name": "deployment", "says": "The image goes back"}
    assert found["procedure"] == {"name": "standard", "says": "As written"}
    assert found["warnings"] == []
    assert [step["state"] for step in found["steps"]] == ["done"] * 4
    assert found["steps"][0]["hosts"][0]["evidence"]["main"] == {"status": 503, "within_ms": 4}
    assert found["held"]["seconds"] is not None
    text = Reader(html).text
    for words in (
        "Rolled back",
        "Rina",
        "users cannot save",
        "lb1: the page is served",
        "within_ms",
        "saved and read",
        "As written",
    ):
        assert words in text, words
        assert words in markdown.replace("\\", ""), words


def test_each_entry_has_a_line_of_the_timeline(story: Story) -> None:
    story.rolled_back()
    found = story.document()
    assert [line["seq"] for line in found["timeline"]] == list(range(1, story.record.verify().entries + 1))
    says = {line["kind"]: line["says"] for line in found["timeline"]}
    assert says["run-opened"] == "Run opened by rina@desk: 2.0.0 → 1.9.4"
    assert says["decision"] == "Rina (Lead Engineer): Go. users cannot save"
    assert says["sign-off"] == "Sari (QA Lead): verification signed off. saved and read"
    assert says["message"] == "Message to Lead Engineer (decision asked for): mail: sent"
    assert says["step-done"] == "traffic-restore done. the page is off"


def test_who_answered_and_how_long_after_being_asked(story: Story) -> None:
    story.opened()
    story.asked_and_answered()
    story.decided()
    (answer,) = story.document()["decision"]["answers"]
    assert (answer["title"], answer["by"], answer["answer"]) == ("Lead Engineer", "Rina", "go")
    assert 0 <= answer["after"] < 5


def test_an_answer_given_before_the_run_was_opened_counts_and_is_told(story: Story) -> None:
    go = {"role": "lead-engineer", "by": "Rina", "answer": "go", "reason": "seen at my desk", "item": "", "remedy": ""}
    story.record.append("decision", go)
    story.opened()
    story.decided()
    story.tell("outcome", outcome="rolled-back", reason="done", by="x")
    story.record.append("decision", {**go, "reason": "for the next one"})
    found = story.document()
    assert [answer["reason"] for answer in found["decision"]["answers"]] == ["seen at my desk"]
    assert [line["kind"] for line in found["timeline"]] == ["decision", "run-opened", "decided", "outcome"]


def test_who_was_asked_and_stayed_silent(story: Story) -> None:
    story.opened()
    story.tell("asked", roles=["lead-engineer", "qa-lead"], remedy="deployment", why="broken")
    story.tell("decision", role="qa-lead", by="Sari", answer="go", reason="yes")
    story.decided("not-decided", "no answer from Lead Engineer within 15m")
    story.tell("outcome", outcome="not-decided", reason="no answer from Lead Engineer within 15m", by="x")
    found = story.document()
    html, _markdown, _json = everything(found)
    assert {a["role"]: a["answer"] for a in found["decision"]["answers"]} == {"qa-lead": "go", "lead-engineer": None}
    assert found["steps"] == []
    assert "No step was carried out." in html
    assert "Lead Engineer did not answer" in found["post_mortem"]["badly"]


def test_a_run_that_had_nothing_to_do(story: Story) -> None:
    story.opened()
    story.criteria("safe")
    story.decided("nothing-to-do", "safe: all 2 criteria are safe")
    story.tell("outcome", outcome="nothing-to-do", reason="safe: all 2 criteria are safe", by="x")
    found = story.document()
    html, _markdown, _json = everything(found)
    assert found["outcome"] == "nothing-to-do"
    assert found["steps"] == []
    assert "Nobody was asked." in html


def test_a_failed_run_says_where_and_that_the_page_is_still_up(story: Story) -> None:
    story.opened()
    story.decided()
    story.done("maintenance-page", "hold")
    story.started("image-revert", "revert", app1={}, app2={})
    story.tell(
        "step-failed", step="image-revert", phase="revert", stage="main", failures={"app2": "no such image\nat all"}
    )
    story.tell("outcome", outcome="failed", reason="image-revert failed on app2", by="x")
    found = story.document()
    html, markdown, _json = everything(found)
    states = {step["step"]: step["state"] for step in found["steps"]}
    assert states == {
        **{"maintenance-page": "done", "image-revert": "failed"},
        **{"smoke-test": NOT_BEGUN, "traffic-restore": NOT_BEGUN},
    }
    assert found["warnings"] == ["traffic-held"]
    assert found["held"]["until"] is None
    assert "users see the maintenance page" in html
    assert "users see the maintenance page" in markdown
    assert found["post_mortem"]["badly"] == ["image-revert failed (main): app2: no such image\nat all"]


def test_a_step_that_failed_its_check_first_was_not_done_at_the_first_attempt(story: Story) -> None:
    story.opened()
    story.decided()
    story.tell("step-failed", step="maintenance-page", phase="hold", stage="check", failures={"lb1": "unreachable"})
    story.tell("run-resumed", by="budi@desk", found=[])
    story.done("maintenance-page", "hold", "lb1")
    assert story.document()["post_mortem"]["well"] == []


class Clock:
    """The record's clock, set by hand to a second of one minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.second = 0
        monkeypatch.setattr(f"{Record.__module__}.utc_now", lambda: self.time(self.second))

    @staticmethod
    def time(second: int) -> datetime:
        return datetime(2026, 1, 10, 13, 0, second, tzinfo=timezone.utc)


def page_times(story: Story) -> tuple[str, list[tuple[int, int | None]], float | None]:
    """Where the page is, the seconds from and to which it was up, and their sum."""
    held = story.document()["held"]
    everything(story.document())
    times = [
        (int(each["from"][17:19]), None if each["until"] is None else int(each["until"][17:19]))
        for each in held["times"]
    ]
    return held["now"], times, held["seconds"]


def failed(story: Story, **left: Any) -> None:
    story.tell(
        "step-failed",
        **{"step": "traffic-restore", "phase": "restore", "stage": "main or verify", "failures": {"lb-2": "no answer"}},
        left=left,
    )


def test_the_page_is_followed_through_all_its_ups_and_downs(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, on = Clock(monkeypatch), {"page": "on"}
    story.opened()
    story.decided()
    story.done("maintenance-page", "hold")
    assert page_times(story) == ("on", [(0, None)], None)
    clock.second = 4
    story.started("traffic-restore", "restore", **{"lb-1": {}, "lb-2": {}})
    assert page_times(story) == ("unknown", [(0, None)], None)
    clock.second = 5
    failed(story, **{"lb-1": on, "lb-2": on})
    assert page_times(story) == ("on", [(0, None)], None)
    story.started("traffic-restore", "restore", **{"lb-1": {}, "lb-2": {}})
    clock.second = 12
    story.tell("watching", procedure="standard", seconds=1800)
    assert page_times(story) == ("off", [(0, 12)], 12.0)
    clock.second = 20
    story.criteria("unsafe", "watched", seconds=8)
    assert page_times(story) == ("unknown", [(0, 12)], None)
    clock.second = 22
    failed(story, **{"lb-1": on, "lb-2": {}})
    assert page_times(story) == ("unknown", [(0, 12)], None)
    story.started("traffic-restore", "restore")
    story.tell("watching", procedure="standard", seconds=1800)
    story.criteria("unsafe", "watched", seconds=0)
    failed(story, **{"lb-1": on, "lb-2": on})
    assert page_times(story) == ("on", [(0, 12), (22, None)], None)
    assert "12 s, and again since 2026-01-10 13:00:22" in to_markdown(story.document())
    clock.second = 25
    story.started("traffic-restore", "restore")
    clock.second = 28
    story.tell("watching", procedure="standard", seconds=1800)
    clock.second = 55
    story.criteria("safe", "watched", seconds=27)
    failed(story)
    story.tell("outcome", outcome="failed", reason="traffic-restore failed on lb-2", by="x")
    assert page_times(story) == ("off", [(0, 12), (22, 28)], 18.0)
    found = story.document()
    assert (found["held"]["from"], found["held"]["until"]) == (
        "2026-01-10T13:00:00.000000Z",
        "2026-01-10T13:00:28.000000Z",
    )
    assert found["warnings"] == ["traffic-back"]
    assert "Users have the application" in to_html(found)


def test_a_page_that_was_never_read_back_may_be_up(story: Story) -> None:
    story.opened()
    story.decided()
    story.started("maintenance-page", "hold")
    story.tell("step-failed", step="maintenance-page", phase="hold", stage="main or verify", failures={"lb1": "no"})
    story.tell("outcome", outcome="failed", reason="maintenance-page failed on lb1", by="x")
    found = story.document()
    assert (found["held"]["now"], found["held"]["seconds"], found["held"]["times"]) == ("unknown", None, [])
    assert found["warnings"] == ["traffic-unknown"]
    assert "whether it is still up is not certain" in everything(found)[0]


def test_git_ops_that_is_held_off_is_told_until_it_is_let_go(story: Story) -> None:
    story.opened()
    story.decided()
    path = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/hub"
    story.started("image-revert", "revert", localhost={"held": [path]})
    found = story.document()
    assert "still-held-off" in found["warnings"]
    assert found["held_off"]["names"] == ["applications hub in namespace argocd"]
    html, markdown, _json = everything(found)
    for text in (html, markdown):
        assert "GitOps is still held off, since 20" in text and "applications hub in namespace argocd" in text
    everything(story.document(plan_of(language="id")))
    Story(story.record, "20260110T150000Z-aaaa").done("gitops-resume", "restore")
    assert story.document()["held_off"] is None


def test_autoscalers_that_stand_still_are_told_until_they_are_let_go(story: Story) -> None:
    story.opened()
    story.decided()
    story.done("scale-freeze", "hold", says="3 autoscalers held still")
    story.tell("outcome", outcome="failed", reason="image-revert failed", by="x")
    found = story.document()
    assert "still-frozen" in found["warnings"]
    assert found["frozen"]["says"] == ["3 autoscalers held still"]
    html, markdown, _json = everything(found)
    assert "Autoscalers are still frozen, since 20" in html
    assert "Autoscalers are still frozen, since 20" in markdown
    everything(story.document(plan_of(language="id")))
    # By another run, or by a person with that run's record.
    Story(story.record, "20260110T150000Z-aaaa").done("scale-thaw", "restore")
    assert story.document()["frozen"] is None


def test_a_run_that_is_still_open(story: Story) -> None:
    story.opened()
    story.decided()
    story.started("maintenance-page", "hold")
    found = story.document()
    everything(found)
    assert (found["outcome"], found["closed_at"], found["warnings"]) == (OPEN, None, ["still-open", "traffic-unknown"])
    assert found["steps"][0]["state"] == "started"


def test_a_run_of_which_only_the_opening_is_written(story: Story) -> None:
    story.tell("run-opened")
    found = story.document()
    html, _markdown, _json = everything(found)
    assert found["criteria"] is None
    assert "The criteria were not measured in this run." in html
    assert "There was no decision in this run." in html


def test_a_run_that_was_taken_up_again(story: Story) -> None:
    story.opened()
    story.decided()
    story.started("maintenance-page", "hold", lb1={"page": "off"})
    story.tell("run-resumed", by="budi@desk", found=["interrupted"])
    story.started("maintenance-page", "hold", lb1={"page": "half"})
    story.tell("step-failed", step="maintenance-page", phase="hold", stage="check", failures={"lb1": "unreachable"})
    story.tell("outcome", outcome="failed", reason="lb1", by="x")
    story.tell("run-resumed", by="budi@desk", found=["failed"])
    story.done("maintenance-page", "hold", "lb1")
    found = story.document()
    html, _markdown, _json = everything(found)
    assert found["outcome"] == OPEN
    assert [resumed["by"] for resumed in found["resumed"]] == ["budi@desk", "budi@desk"]
    step = found["steps"][0]
    assert (step["state"], step["attempts"], len(step["failures"])) == ("done", 3, 1)
    assert not [line for line in found["post_mortem"]["well"] if "first attempt" in line]
    assert step["hosts"][0]["saved"]["page"] == "off", "what stood there first"
    assert "2 times: budi@desk" in Reader(html).text


def test_broken_glass_stands_out(story: Story) -> None:
    story.opened()
    story.tell("glass-broken", by="sari", role="qa-lead", reason="nobody answers", remedy="deployment")
    story.decided("go", "glass broken by sari (QA Lead): nobody answers")
    found = story.document()
    html, markdown, _json = everything(found)
    assert "glass-broken" in found["warnings"]
    assert found["decision"]["glass_broken"]["title"] == "QA Lead"
    assert "without the answers that the plan asks for" in html
    assert "without the answers that the plan asks for" in markdown


def test_a_sandbox_clock_is_said(story: Story) -> None:
    story.opened(speed=60)
    found = story.document()
    html, markdown, _json = everything(found)
    assert "sandbox-clock" in found["warnings"]
    assert "60 times shorter" in html
    assert "60 times shorter" in markdown


def test_criteria_come_with_their_samples_drawn(story: Story) -> None:
    story.opened()
    story.criteria()
    found = story.document()
    html, markdown, _json = everything(found)
    rate, leak = found["criteria"]["criteria"]
    assert (rate["verdict"], rate["unsafe"], rate["threshold"], rate["sample_count"]) == ("unsafe", "> 5 %", 0.05, 15)
    assert (leak["name"], leak["verdict"]) == ("data-leak", NOT_MEASURED), "of the plan, but not measured"
    page = Reader(html)
    drawn = [attributes["points"] for tag, attributes in page.tags if tag == "polyline"]
    assert len(drawn) == 2, "a missing sample interrupts the line"
    assert [len((points or "").split()) for points in drawn] == [3, 11]
    assert "14 values from 0.145 to 0.159, the newest 0.159" in page.text
    assert '`errors{code=~"5.."} | x`' in markdown


@pytest.mark.parametrize("value", [float("inf"), "+Inf", True, None, 1e308, "NaN"])
def test_samples_that_are_no_figures_are_not_drawn(story: Story, value: Any) -> None:
    story.opened()
    samples = [{"at": f"2026-01-10T12:00:0{n}Z", "value": v} for n, v in enumerate([1, 2, 3, value, -1e308])]
    story.tell("criteria", verdict="safe", criteria=[{"criterion": "error-rate", "samples": samples}])
    html, _markdown, _json = everything(story.document())
    assert "nan" not in "".join(a["points"] or "" for tag, a in Reader(html).tags if tag == "polyline").lower()


def test_the_checklist_is_by_moment_and_ticks_what_was_signed_off(story: Story) -> None:
    story.rolled_back()
    found = story.document()
    html, markdown, _json = everything(found)
    assert [group["when"] for group in found["checklist"]] == ["before", "verify", "after"]
    assert "- [x] It works as before (QA Lead; signed off by Sari" in markdown
    assert "- [ ] Take screenshots (Lead Engineer)" in markdown
    assert html.count("☑") == 1


def test_a_sign_off_on_what_was_done_again_since_is_not_ticked(story: Story) -> None:
    story.opened()
    story.decided()
    story.done("smoke-test", "verify")
    story.tell("sign-off", role="qa-lead", by="Sari", answer="sign-off", reason="fine", item="verification")
    story.started("traffic-restore", "restore")
    assert story.document()["sign_offs"][0]["answer"] == "sign-off"
    story.done("image-revert", "revert")
    assert story.document()["sign_offs"][0]["answer"] is None


def test_a_refused_sign_off_is_not_ticked(story: Story) -> None:
    story.opened()
    story.decided()
    story.tell("sign-off", role="qa-lead", by="Sari", answer="refuse", reason="logo missing", item="verification")
    found = story.document()
    html, _markdown, _json = everything(found)
    assert found["sign_offs"][0]["answer"] == "refuse"
    assert "☑" not in html
    assert "Sari (QA Lead) refused verification: logo missing" in found["post_mortem"]["badly"]


def test_people_without_their_addresses(story: Story) -> None:
    story.opened()
    found = story.document()
    for text in everything(found):
        assert "T0K3N" not in text
        assert "lead@shop.example" not in text
    assert found["people"][0]["reach"] == ["email", "webhook", "phone"]
    assert found["people"][1]["escalates_to"] == "Lead Engineer"


def test_a_message_that_did_not_arrive(story: Story) -> None:
    story.opened()
    story.tell(
        "message",
        moment="asked",
        role="qa-lead",
        subject="Decide",
        ways={"email": "not sent: refused", "webhook": "sent"},
    )
    story.tell("message", moment="asked", role="lead-engineer", subject="Decide", ways={})
    found = story.document()
    html, _markdown, _json = everything(found)
    assert "mail: not sent: refused" in Reader(html).text
    assert len(found["post_mortem"]["badly"]) == 2


LOST = {
    "exact": True,
    "reason": "",
    "database": "hub",
    "backup": "/backups/pre-golive-snapshot-20260110.sql",
    "taken": "2026-01-10T11:00:00Z",
    "taken_by": "manifest",
    "at": "2026-01-10T13:00:00Z",
    "total": {"lost": 1402},
    "says": ["restoring hub would lose 1,402 rows"],
    "tables": [
        {"table": "public.documents", "how": "key", "inserted": 1390, "changed": 12, "deleted": 3, "by": "updated_at",
         "oldest": "2026-01-10T12:00:00Z", "newest": "2026-01-10T12:30:00Z", "columns": {"colour": 9}, "note": ""},
        {"table": "public.clicks", "how": "times", "inserted": 7, "changed": 1, "deleted": None, "columns": {}},
    ],
}  # fmt: skip


def test_what_was_lost_stands_in_the_report_and_what_is_unknown_is_no_figure(story: Story) -> None:
    story.opened()
    story.tell("loss", hosts={"db-1": LOST, "db-2": {"says": ["UNKNOWN"], "reason": "the host did not answer"}})
    file = {"file": "000-public.documents.inserted.csv", "table": "public.documents", "kind": "inserted", "rows": 1390}
    story.tell("loss-exported", hosts={"db-1": {"folder": "/backups/hub.lost", "from": "hub__before", "files": [file]}})
    document = story.document()
    told = document["loss"]["told"]
    assert [(table["inserted"], table["deleted"]) for table in told[0]["tables"]] == [(1390, 3), (7, None)]
    assert told[1]["lost"] is None
    assert document["loss"]["exported"][0]["files"] == [file]
    for text in (to_html(document), to_markdown(document).replace("\\", "")):
        assert "1,402 rows would be lost. Every row was compared." in text
        assert "What would be lost is unknown: the host did not answer" in text
        assert "9 values of the new column colour" in text
        assert "/backups/hub.lost" in text
    assert "| public.clicks | 7 | 1 | unknown |" in to_markdown(document)
    says = {event["kind"]: event["says"] for event in document["timeline"]}
    assert says["loss-exported"] == "What was lost is kept: db-1: /backups/hub.lost"
    assert "db-1: restoring hub would lose 1,402 rows" in says["loss"]


@pytest.mark.parametrize(
    ("total", "sentence"),
    [
        ({"lost": 7, "at_least": True}, "at least 7 rows would be lost. NOT exactly known: no room"),
        ({"lost": 7}, "about 7 rows would be lost. NOT exactly known: no room"),
        ({"lost": None}, "What would be lost is unknown: no room"),
    ],
)
def test_what_is_not_exactly_known_is_not_told_as_if_it_were(
    story: Story, total: dict[str, Any], sentence: str
) -> None:
    story.opened()
    story.tell("loss", hosts={"db-1": {**LOST, "exact": False, "reason": "no room", "total": total}})
    assert sentence in to_markdown(story.document()).replace("\\", "")


def test_archives_that_a_step_has_kept_are_named(story: Story) -> None:
    """Single tables are dumped by the step itself, before they are replaced."""
    story.opened()
    story.tell("loss", hosts={"db-1": LOST})
    assert "was not kept" in to_markdown(story.document())
    archive = "/backups/hub-run-tables.dump"
    step = {"step": "db-restore", "phase": "revert"}
    story.tell("step-started", **step)
    story.tell("step-done", **step, says={}, evidence={"db-1": {"main": {"kept": [archive]}, "verify": {}}})
    document = story.document()
    assert document["loss"]["kept"] == [{"host": "db-1", "step": "db-restore", "files": [archive]}]
    for text in (to_html(document), to_markdown(document).replace("\\", "")):
        assert f"db-1: db-restore kept what stood there before in {archive}." in text
        assert "was not kept" not in text


def test_the_post_mortem_knows_what_the_plan_wants_afterwards(story: Story) -> None:
    story.rolled_back()
    found = story.document()
    html, markdown, _json = everything(found)
    assert [action["says"] for action in found["post_mortem"]["actions"]] == [
        "Analyse the root cause",
        "Add a test case",
    ]
    assert len(found["post_mortem"]["well"]) == 7, "four steps, the answer, the sign-off, the watch"
    assert "verification: signed off by Sari (QA Lead)" in found["post_mortem"]["well"]
    assert not [line["says"] for line in found["timeline"] if "—" in line["says"]], "a fact is missing"
    assert "—" not in "".join([*found["post_mortem"]["well"], found["post_mortem"]["summary"]])
    for heading in ("Root cause analysis", "What went well", "What went badly", "Actions"):
        assert heading in html
        assert f"### {heading}" in markdown


def test_the_record_can_be_verified_with_the_reports_hash(story: Story) -> None:
    story.rolled_back()
    found = story.document(inventory=["inventories/lawyers-hub", "my places/sandbox"])
    assert story.record.verify(found["record"]["head"]).whole
    assert "-i inventories/lawyers-hub -i 'my places/sandbox' playbooks/record.yml" in found["record"]["verify"]
    assert found["record"]["head"] in found["record"]["verify"]


def test_the_same_record_gives_the_same_bytes(story: Story) -> None:
    story.rolled_back()
    first = everything(story.document())
    Story(story.record, "20260111T130000Z-aaaa").opened()
    assert everything(story.document()) == first, "a later run changes nothing in an earlier report"


def test_a_plan_that_has_changed_since(story: Story) -> None:
    story.opened(release="1.8.0")
    story.tell("decided", outcome="go", reason="yes", remedy="magic", procedure="slow", answers={})
    story.done("cdn-purge", "revert")
    story.tell("asked", roles=["gone"], remedy="magic", why="x")
    found = story.document()
    html, _markdown, _json = everything(found)
    assert "plan-changed" in found["warnings"]
    assert (found["release"], found["remedy"]) == ("1.8.0", {"name": "magic", "says": None})
    assert [step["step"] for step in found["steps"]] == ["cdn-purge"]
    assert "gone" in Reader(html).text


def test_a_run_that_is_not_in_the_record(story: Story) -> None:
    with pytest.raises(BalikError, match="No rollback of lawyers-hub was ever begun here"):
        story.document()
    story.opened()
    with pytest.raises(BalikError, match=f"found '20260110-none'.*one of {RUN}"):
        build(plan_of(), list(story.record.entries()), "20260110-none")


# ---- languages ------------------------------------------------------------------------------------


def test_both_languages_have_the_same_texts_with_the_same_gaps() -> None:
    def shape(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: shape(value) for key, value in part.items()}
        return sorted(re.findall(r"{(\w+)}", part))

    assert set(WORDS) == set(ZONES) == set(plans.LANGUAGES)
    assert shape(WORDS["id"]) == shape(WORDS["en"])


@pytest.mark.parametrize("language", plans.LANGUAGES)
def test_every_word_of_the_record_has_a_word(language: str) -> None:
    words = WORDS[language]
    assert set(words["outcome"]) == {*runs.FINAL, runs.FAILED, OPEN}
    assert set(words["verdict"]) == {criteria.SAFE, criteria.UNSAFE, criteria.UNKNOWN, NOT_MEASURED}
    assert set(words["answer"]) == {
        *(answer for answers in runs.ANSWERS.values() for answer in answers),
        "none",
        "not-asked",
    }
    assert set(words["phase"]) == set(plans.PHASES)
    assert set(words["moment"]) == set(plans.CHECKLIST_MOMENTS)
    assert set(words["told_at"]) == set(plans.MOMENTS)
    assert set(words["scope"]) == set(criteria.SCOPES)
    assert set(words["trigger"]) == set(criteria.TRIGGERS)


def test_an_indonesian_report_is_indonesian(story: Story) -> None:
    story.rolled_back()
    html, markdown, _json = everything(story.document(plan_of(language="id")))
    page = Reader(html)
    assert ("html", {"lang": "id"}) in page.tags
    for words in (
        "Laporan rollback",
        "Rollback berhasil",
        "tidak aman",
        "Lini masa",
        "Yang berjalan buruk",
        "disetujui",
    ):
        assert words in page.text, words
        assert words in markdown, words
    for words in ("Timeline", "Checklist", "Rolled back", "signed off"):
        assert words not in page.text, words


def test_times_are_the_readers_and_say_their_offset(story: Story) -> None:
    story.opened()
    opened = next(story.record.entries())
    entries = [dataclasses.replace(opened, at="2026-01-10T20:30:05.123456Z")]
    indonesian = Reader(to_html(build(plan_of(language="id"), entries, RUN)))
    assert "WIB (UTC+07:00)" in indonesian.text
    assert "2026-01-11 03:30:05" in indonesian.text
    assert "2026-01-10 20:30:05" in indonesian.text, "UTC, once"
    times = [attributes["datetime"] for tag, attributes in indonesian.tags if tag == "time"]
    assert set(times) == {"2026-01-10T20:30:05.123456Z"}
    english = Reader(to_html(build(plan_of(), entries, RUN)))
    assert "Times are UTC." in english.text
    assert "2026-01-10 20:30:05" in english.text


# ---- what is written by strangers -----------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; onmouseover='alert(1)",
    "</title></style></svg><iframe src=//evil>",
    "{{ 7 * 7 }} {% raw %} {0} {by}",
    "[click](javascript:alert(1)) ![x](http://evil/x.png)",
    "a | b | c\n| d |\n\n# heading\n\n---\n",
    "```\ncode\n``` `tick` ``two``",
    "<!-- hidden --> &lt;b&gt; <b>bold</b>",
    "# heading", "- item", "1. item", "> quote", "    code", "=====", "+ plus", "* star *star*", "_a_ __b__ ~~c~~ a_b",
    "\\| backslash \\", "[ref]: http://evil", "$math$", "<http://evil>", "~~~\nfence",
    "trojan \u202e txt.exe \u061c\u2066x\u2069 \x00 \x1b[31m \x7f",
    "é 委任状 😀 \ud83d",
]  # fmt: skip


CALM = "calm"


@pytest.fixture(scope="module")
def calm_entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """A run in which a stranger's text stands wherever one can."""
    with Record(str(tmp_path_factory.mktemp("calm") / "record.sqlite"), "lawyers-hub") as record:
        each = Story(record)
        each.opened(by=CALM, environment=CALM, release=CALM)
        samples = [{"at": "2026-01-10T12:00:00Z", "value": CALM, "note": CALM}]
        told = {"says": CALM, "reason": CALM, "query": CALM, "at": CALM, "samples": samples}
        measured = [{"criterion": "error-rate", "verdict": "unsafe", **told}]
        each.tell("criteria", verdict="unsafe", reason=CALM, trigger="any", criteria=measured)
        each.tell("asked", roles=["lead-engineer"], remedy="deployment", why=CALM)
        each.tell("decision", role="lead-engineer", by=CALM, answer="go", reason=CALM, item="", remedy="")
        each.tell("glass-broken", by=CALM, role=CALM, reason=CALM)
        each.decided("go", CALM)
        each.started("image-revert", "revert", **{CALM: {CALM: CALM}})
        step = {"step": "image-revert", "phase": "revert"}
        each.tell("step-failed", **step, stage=CALM, failures={CALM: CALM})
        each.tell("step-done", **step, says={CALM: CALM}, evidence={CALM: {CALM: CALM}})
        each.tell("sign-off", role="qa-lead", by=CALM, answer="refuse", reason=CALM, item="verification")
        each.tell("message", moment=CALM, role="qa-lead", subject=CALM, ways={CALM: CALM, "email": CALM})
        each.tell("news", text=CALM)
        each.tell("outcome", outcome="failed", reason=CALM, by=CALM)
        return list(record.entries())


def saying(value: Any, text: str) -> Any:
    """The value with another text wherever the calm one stands."""
    if isinstance(value, dict):
        return {saying(key, text): saying(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [saying(item, text) for item in value]
    return text if value == CALM else value


def tags(page: str) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attributes)) for tag, attributes in Reader(page).tags]


def blocks_and_spans(text: str) -> list[str]:
    tokens = MARKDOWN.parse(text)
    spans = [
        span.type for token in tokens for span in token.children or [] if span.type not in ("text", "text_special")
    ]
    return [token.type for token in tokens] + spans


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert_wherever_it_stands(calm_entries: list[Entry], text: str) -> None:
    told = [
        [dataclasses.replace(entry, body=saying(entry.body, said)) for entry in calm_entries] for said in (CALM, text)
    ]
    checklist = [[{"when": "after", "role": "qa-lead", "says": said}] for said in (CALM, text)]
    documents = [build(plan_of(checklist=todo), entries, RUN) for todo, entries in zip(checklist, told)]
    (calm_html, calm_markdown, _), (html, markdown, _) = map(everything, documents)
    assert tags(html) == tags(calm_html), "the text made or broke a tag or an attribute"
    assert blocks_and_spans(markdown) == blocks_and_spans(calm_markdown), "the text became Markdown"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u061c\u202a-\u202e\u2066-\u2069]", html + markdown)


def test_the_page_forbids_itself_scripts_and_requests(story: Story) -> None:
    story.rolled_back()
    page = Reader(to_html(story.document()))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        assert (attributes.get("href") or "#").startswith("#")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    *(
        "by",
        "role",
        "roles",
        "answer",
        "reason",
        "item",
        "remedy",
        "procedure",
        "outcome",
        "verdict",
        "criteria",
        "trigger",
    ),
    *("step", "phase", "saved", "says", "evidence", "failures", "stage", "ways", "moment", "subject", "why", "seconds"),
    *("speed", "job", "release", "product", "samples", "found", "touches"),
)
KNOWN = st.sampled_from(
    ["lead-engineer", "deployment", "image-revert", "go", "unsafe", "verification", "hold", "rolled-back"]
)
BODY = st.dictionaries(
    st.sampled_from(KEYS), KNOWN | JSON | st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), max_size=2)
)
KINDS = st.sampled_from([*WORDS["en"]["event"], "something new"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(told=st.lists(st.tuples(KINDS, BODY | JSON), max_size=8))
def test_no_entry_of_any_shape_keeps_a_report_from_being_written(told: list[tuple[str, Any]]) -> None:
    entries = [
        Entry("lawyers-hub", seq, f"2026-01-10T13:00:{seq:02}.000000Z", RUN, kind, body, "0" * 64, "f" * 64)
        for seq, (kind, body) in enumerate([("run-opened", {}), *told], 1)
    ]
    found = build(plan_of(), entries, RUN)
    Reader(to_html(found))
    to_markdown(found)
    assert json.loads(to_json(found)) == found
    assert len(found["timeline"]) == len(entries)


def test_an_entry_that_cannot_be_read_is_shown_as_it_is(story: Story) -> None:
    story.opened()
    story.tell("step-started", phase="hold")
    story.tell("outcome", outcome=["failed"])
    found = story.document()
    html, _markdown, _json = everything(found)
    assert found["unreadable"] == 2
    assert found["outcome"] == OPEN
    assert "2 entries of the record could not be read" in html
    assert 'outcome: {"outcome": ["failed"]}' in Reader(html).text


def test_ten_thousand_entries_in_two_seconds(story: Story) -> None:
    story.rolled_back()
    template = list(story.record.entries())
    # Not appended one by one: what is measured is the report, and each append waits for the disk.
    entries = [
        dataclasses.replace(template[3 + number % 9], seq=number) if 0 < number < 9999 else template[-(number > 0)]
        for number in range(10_000)
    ]
    began = time.process_time()
    found = build(plan_of(), entries, RUN)
    html, markdown = to_html(found), to_markdown(found)
    to_json(found)
    assert time.process_time() - began < 2
    assert html.count("<tr") > 10_000
    assert markdown.count("\n| 20") >= 10_000
