"""The flow of ``rollback.yml``, by the real ``ansible-playbook`` on a product of four small steps: from the question to
the report, and through all that may come between."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.record import Holder, Record

from tests.integration.flow.product import BREAK_GLASS, HOSTS, PROJECT, STEPS, Product

ALL_ON = {f"{step} {host}": "on" for step in STEPS for host in HOSTS[step]}
ALL_OFF = dict.fromkeys(ALL_ON, "off")
SECRET = "rahasia-9134"


@pytest.fixture
def product(tmp_path: Path) -> Product:
    return Product(tmp_path)


def said(stdout: str) -> list[str]:
    """What balik itself said."""
    return [line for line in stdout.splitlines() if line.startswith("balik: ")]


def test_from_the_question_to_the_report_and_to_nothing_to_do(product: Product) -> None:
    assert product.decide("unsafe", "dokumen klien terlihat — 委任状", decide_item="leak").returncode == 0

    with product.started() as rollback:
        rollback.until(lambda: product.entries("asked"))
        running = product.outcome()
        status = product.play(playbook="playbooks/status.yml")
        assert any("waiting for lead: unsafe: " in line for line in said(status.stdout)), status.stdout
        assert any(f"(process {rollback.pid} on " in line for line in said(status.stdout))
        answer = product.decide("go")
        assert "rina (Lead Engineer — Kepala Insinyur 工程师): go: sudah dilihat" in answer.stdout
        assert rollback.wait() == 0, rollback.stdout()
    assert running["outcome"] == "running"
    assert product.lines() == ALL_ON
    lines = said(rollback.stdout())
    assert any("UNSAFE   Kebocoran data §" in line for line in lines)
    assert any("waiting up to 1m for Go or No-Go on remedy all from Lead Engineer" in line for line in lines)
    (hint,) = [line for line in lines if "decide.yml" in line]
    assert '"decide_role": "lead", "decide_by": "…", "decide_answer": "go", "decide_reason": "…"' in hint
    assert rollback.stdout().splitlines()[-2].startswith("balik: ROLLED BACK: Go by rina (Lead Engineer"), lines
    kinds = [(entry.kind, entry.body.get("step")) for entry in product.entries()]
    assert kinds == [
        ("statement", None),
        ("run-opened", None),
        ("criteria", None),
        ("asked", None),
        ("decision", None),
        ("decided", None),
        *[(f"step-{what}", step) for step in STEPS for what in ("started", "done")],
        ("outcome", None),
    ]
    outcome = product.outcome()
    assert (outcome["outcome"], outcome["verdict"], outcome["remedy"]) == ("rolled-back", "unsafe", "all")
    assert {name: step["state"] for name, step in outcome["steps"].items()} == dict.fromkeys(STEPS, "done")
    assert outcome["record_head"] == product.entries()[-1].hash
    assert Path(outcome["report"]).read_text().count("工程师")
    assert [path.name for path in product.state.glob("*.part")] == []

    status = product.play(playbook="playbooks/status.yml")
    assert status.returncode == 0
    assert [line for line in said(status.stdout) if "outcome: rolled-back" in line], status.stdout
    assert (
        len([line for line in said(status.stdout) if re.search(r"(hold|revert|verify|restore)-it: done in", line)]) == 4
    )

    whole = product.play(
        "-e", "verify=true", "-e", f"record_head={outcome['record_head']}", playbook="playbooks/record.yml"
    )
    assert whole.returncode == 0, whole.stdout
    assert f"its head is {outcome['record_head']}" in whole.stdout

    for wish, told in (
        ("record_run=nonsense", f"found 'nonsense'; expected a run of this record (the newest: {outcome['run']})"),
        ("verify=maybe", "verify: found 'maybe'; expected true or false"),
    ):
        refused = product.play("-e", wish, playbook="playbooks/record.yml")
        assert refused.returncode != 0
        assert told in " ".join(refused.stdout.split()), refused.stdout

    again = product.play()
    assert again.returncode == 0, again.stdout
    assert again.stdout.splitlines()[-2].startswith("balik: NOTHING TO DO: safe"), again.stdout
    assert "an older one (unsafe by rina at " in again.stdout
    assert "is from before the last rollback and does not count; state it again if it still holds" in again.stdout
    assert product.outcome()["outcome"] == "nothing-to-do"
    assert {product.times(step) for step in STEPS} == {1}

    with sqlite3.connect(product.state / "record.sqlite") as connection:
        connection.executescript(
            "DROP TRIGGER balik_no_update; UPDATE balik_entries SET body = '{}' WHERE kind = 'decision'"
        )
    broken = product.play("-e", "verify=true", playbook="playbooks/record.yml")
    assert broken.returncode != 0
    assert "the chain is broken at entry 5: entry 5 (decision, " in broken.stdout


def test_without_an_answer_or_with_a_no_nothing_is_done(product: Product) -> None:
    product.write(rollback_decision={**product.plan["rollback_decision"], "wait": "2m"})
    silent = product.play("-e", "rollback_reason='keluhan pengguna'")
    assert silent.returncode != 0
    assert "NOT DECIDED: no answer from Lead Engineer" in silent.stdout.splitlines()[-2], silent.stdout
    assert (product.outcome()["outcome"], product.lines()) == ("not-decided", ALL_OFF)

    product.decide("no-go", "tunggu sampai pagi")
    refused = product.play("-e", "rollback_reason='keluhan pengguna'")
    assert refused.returncode != 0
    assert "NOT DECIDED: No-Go by rina" in refused.stdout.splitlines()[-2], refused.stdout
    assert "tunggu sampai pagi" in product.outcome()["reason"]
    assert product.lines() == ALL_OFF
    assert len({entry.run for entry in product.entries("run-opened")}) == 2, "each is a run of its own"


def test_a_no_of_a_role_that_is_not_asked_counts_and_its_go_decides_nothing(product: Product) -> None:
    people = {**product.plan["rollback_people"], "qa": {"title": "QA Lead", "reach": {"phone": "+62 812 0001"}}}
    product.write(rollback_people=people, rollback_decision={"go": [], "wait": "2m", "valid": "20h"})
    product.decide("unsafe", "dokumen klien terlihat", decide_item="leak")
    asks_nobody = product.play("--check")
    assert "Go of " not in asks_nobody.stdout
    assert "the plan asks nobody: unsafe" in asks_nobody.stdout.splitlines()[-1], asks_nobody.stdout
    no = product.decide("no-go", "tunggu sampai pagi", decide_role="qa", decide_by="dewi")
    assert "it counts for one within the plan's `valid` time" in no.stdout
    check = product.play("--check")
    assert "CHECK ONLY: nothing was changed. No-Go by dewi (QA Lead)" in check.stdout.splitlines()[-1], check.stdout
    refused = product.play()
    assert "NOT DECIDED: No-Go by dewi (QA Lead): tunggu" in refused.stdout.splitlines()[-2], refused.stdout
    assert product.lines() == ALL_OFF

    go = product.decide("go", decide_role="qa", decide_by="dewi")
    assert "nobody asked QA Lead, so it decides nothing but to take back a No-Go of theirs" in " ".join(
        go.stdout.split()
    )
    assert product.play().returncode == 0
    assert product.lines() == ALL_ON


def test_who_breaks_the_glass_and_says_what_to_do_waits_for_no_criterion(product: Product) -> None:
    """One that is watched for long, because nothing answers: at this speed for ten minutes."""
    gone = {"http": {"url": "http://127.0.0.1:1/"}}
    watched = {"name": "reached", "says": "App tidak menjawab", "measure": gone, "for": "20h", "every": "1m"}
    product.write(rollback_criteria=[*product.plan["rollback_criteria"], watched])
    with product.started() as rollback:
        rollback.until(lambda: "balik: measuring 2 criteria, which may take up to 10m" in rollback.stdout())
        rollback.kill()
    done = product.play(*BREAK_GLASS, "-e", "rollback_scope=backend")
    assert done.returncode == 0, done.stdout
    assert "balik: unknown  App tidak menjawab" in done.stdout
    assert product.lines() == ALL_ON


def test_the_glass_is_broken_by_those_who_may(product: Product) -> None:
    refused = product.play("-e", "rollback_break_glass=terbakar")
    assert refused.returncode != 0
    assert "a role that may break the glass (lead)" in refused.stdout
    assert product.lines() == ALL_OFF
    # The refusal is a failure of the run; with the role it goes on.
    assert product.outcome()["outcome"] == "failed"


def test_a_failure_on_one_host_stops_with_the_page_on_and_the_next_call_goes_on(product: Product) -> None:
    """With a look beforehand, a look between, and secrets in what the failing step shows."""
    product.hosts["all"]["children"]["web"]["hosts"]["web-2"] = {"web_two_api_token": "only-web-2-knows"}
    product.write(flow_db_password="geheim-bagi-semua", flow_copy="{{ flow_db_password }}")
    check = product.play("--check", "--diff", *BREAK_GLASS)
    assert check.returncode == 0, check.stdout
    plan = "by remedy all: hold: hold-it; revert: revert-it; verify: verify-it; restore: restore-it"
    assert "CHECK ONLY" in check.stdout.splitlines()[-1]
    assert plan in check.stdout.splitlines()[-1]
    assert [line for line in said(check.stdout) if "hold-it: would be done" in line]
    assert (product.lines(), product.state.exists()) == (ALL_OFF, False)

    shown = "login as postgresql://rina:pintu-belakang@db/x failed: geheim-bagi-semua, only-web-2-knows"
    (product.folder / "revert-it" / "break-web-2").write_text(shown)
    failed = product.play(*BREAK_GLASS)
    assert failed.returncode != 0
    assert {step: product.line(step, HOSTS[step][-1]) for step in STEPS} == {
        "hold-it": "on",
        "revert-it": "half",
        "verify-it": "off",
        "restore-it": "off",
    }
    assert product.line("revert-it", "web-1") == "on", "one host's failure does not end the other's work half-way"
    last = said(failed.stdout)
    assert "FAILED: revert-it failed on web-2: non-zero return code: login as " in last[-3], failed.stdout
    assert "then run the same command again" in last[-1]
    (entry,) = product.entries("step-failed")
    assert list(entry.body["failures"]) == ["web-2"]
    assert "login as" in entry.body["failures"]["web-2"], "a command's own words are the reason"
    for secret in ("geheim-bagi-semua", "only-web-2-knows", "pintu-belakang"):
        assert [name for name, text in product.everything_written().items() if secret in text] == []
        assert secret not in "\n".join(last)
        assert secret not in failed.stdout.rpartition("TASK [Note what failed]")[2]

    before = record_dump(product)
    check = product.play("--check", "--diff")
    assert "CHECK ONLY" in check.stdout.splitlines()[-1], check.stdout
    assert "balik: hold-it: done before, whether it still holds is seen in the run" in said(check.stdout)
    assert record_dump(product) == before
    assert product.line("revert-it", "web-2") == "half"

    (product.folder / "revert-it" / "break-web-2").unlink()
    resumed = product.play("-e", "rollback_take_lock=false", "-e", "rollback_fresh=false")
    assert resumed.returncode == 0, resumed.stdout
    assert product.lines() == ALL_ON
    assert (product.times("hold-it"), product.times("revert-it", "web-2")) == (1, 2)
    assert "balik: hold-it: done before, and it still holds" in said(resumed.stdout)
    assert len(product.entries("run-opened")) == 1
    assert product.outcome()["outcome"] == "rolled-back"


def test_a_no_after_the_decision_is_heard_by_the_next_call(product: Product) -> None:
    (product.folder / "revert-it" / "break-web-2").write_text("broken")
    assert product.play(*BREAK_GLASS).returncode != 0
    no = product.decide("no-go", "tunggu, datanya belum dicadangkan")
    assert no.returncode == 0
    assert "is decided already" in no.stdout
    assert "it does not go on after that without your Go" in " ".join(no.stdout.split())
    (product.folder / "revert-it" / "break-web-2").unlink()
    refused = product.play()
    assert refused.returncode != 0
    assert "No-Go by rina (Lead Engineer" in product.outcome()["reason"]
    assert "belum dicadangkan" in product.outcome()["reason"]
    assert product.line("revert-it", "web-2") == "half"
    assert product.decide("go", "sekarang sudah").returncode == 0
    assert product.play().returncode == 0
    assert product.lines() == ALL_ON


def test_a_run_goes_on_as_it_was_decided_or_not_at_all(product: Product) -> None:
    remedies = product.plan["rollback_remedies"]
    front = {**remedies, "front": {**remedies["all"], "covers": ["frontend"]}}
    product.write(rollback_remedies=front)
    (product.folder / "revert-it" / "break-web-2").write_text("broken")
    assert product.play(*BREAK_GLASS, "-e", "rollback_scope=frontend", "-e", "rollback_remedy=front").returncode != 0
    refused = product.play("-e", "rollback_scope=database")
    assert refused.returncode != 0
    found = "rollback_scope: found database, and run"
    assert found in refused.stdout and "was decided with remedy front, which covers frontend" in refused.stdout
    product.write(rollback_remedies=remedies)
    refused = product.play()
    assert refused.returncode != 0
    assert "it was decided with remedy 'front', which the plan no longer has; expected one of all" in refused.stdout

    product.write(rollback_remedies={**remedies, "other": {**remedies["all"]}})
    assert product.play(*BREAK_GLASS, "-e", "rollback_fresh=true", "-e", "rollback_remedy=all").returncode != 0
    (product.folder / "revert-it" / "break-web-2").unlink()
    refused = product.play("-e", "rollback_remedy=other")
    assert refused.returncode != 0
    assert "rollback_remedy: found 'other', and run" in refused.stdout
    assert "add -e rollback_fresh=true" in " ".join(refused.stdout.split())
    assert locks(product) == []
    assert product.line("verify-it") == "off"
    assert product.play("-e", "rollback_remedy=all").returncode == 0
    assert product.lines() == ALL_ON


def test_what_the_remedy_could_not_do_is_known_before_anybody_is_asked(product: Product) -> None:
    early = product.folder / "revert-it" / "refuse-early-web-2"
    early.write_text("it may: not be patched")
    for arguments in (("--check",), ()):
        refused = product.play("-e", "rollback_reason=keluhan", *arguments)
        assert refused.returncode != 0
        told = "revert-it failed on web-2: it may: not be patched. Nothing was touched, and nobody was asked."
        assert any(told in line for line in said(refused.stdout)), refused.stdout
        assert product.lines() == ALL_OFF
    assert product.entries("asked", "decided", "step-started") == []
    (entry,) = product.entries("step-failed")
    assert (entry.body["phase"], entry.body["stage"], list(entry.body["failures"])) == ("revert", "check", ["web-2"])
    assert product.outcome()["outcome"] == "failed"

    early.unlink()
    assert product.play(*BREAK_GLASS).returncode == 0
    assert product.lines() == ALL_ON
    assert len(product.entries("run-opened")) == 1


def test_what_several_steps_could_not_do_is_told_in_one_message(product: Product) -> None:
    (product.folder / "hold-it" / "refuse-web-1").write_text("web-1: rights: 5 missing.")
    (product.folder / "revert-it" / "refuse-early-web-2").write_text("rights: 3 missing")
    told = (
        "hold-it failed on web-1: rights: 5 missing; revert-it failed on web-2: rights: 3 missing. "
        "Nothing was touched, and nobody was asked."
    )
    for arguments in (("--check",), ()):
        refused = product.play("-e", "rollback_reason=keluhan", *arguments)
        assert refused.returncode != 0
        assert any(line.endswith(told) for line in said(refused.stdout)), refused.stdout
    assert product.lines() == ALL_OFF and product.outcome()["reason"] == told
    assert product.entries("asked", "decided", "step-started") == []
    assert [list(entry.body["failures"]) for entry in product.entries("step-failed")] == [["web-1"], ["web-2"]]


def test_a_check_that_fails_after_a_start_does_not_say_that_nothing_was_done(product: Product) -> None:
    (product.folder / "revert-it" / "break-web-1").write_text("web-1: half of it")
    assert product.play(*BREAK_GLASS).returncode != 0
    (product.folder / "revert-it" / "break-web-1").unlink()
    (product.folder / "revert-it" / "refuse-web-2").write_text("web-2: it is gone by now")
    again = product.play(*BREAK_GLASS)
    assert again.returncode != 0
    assert any("What it did when it was started before stays" in line for line in said(again.stdout)), again.stdout


def test_a_step_of_the_remedy_is_checked_again_when_its_turn_comes(product: Product) -> None:
    """``rollback_step_early`` tells its two checks apart. A run that is taken up again makes only the second."""
    (product.folder / "revert-it" / "refuse-web-2").write_text("web-2: it is paused by now")
    failed = product.play(*BREAK_GLASS)
    assert failed.returncode != 0
    assert any("it is paused by now. Nothing of this step was done" in line for line in said(failed.stdout))
    assert (product.line("hold-it"), product.line("revert-it")) == ("on", "off")

    (product.folder / "revert-it" / "refuse-web-2").rename(product.folder / "revert-it" / "refuse-early-web-2")
    (product.folder / "verify-it" / "break-localhost").write_text("not yet")
    again = product.play(*BREAK_GLASS)
    assert again.returncode != 0
    assert "balik: found revert-it: refused by its check, and not begun; it is checked again" in said(again.stdout)
    assert product.line("revert-it", "web-2") == "on"

    (product.folder / "revert-it" / "refuse-web-2").write_text("it is done")
    (product.folder / "verify-it" / "break-localhost").unlink()
    resumed = product.play(*BREAK_GLASS)
    assert resumed.returncode == 0, resumed.stdout
    assert product.lines() == ALL_ON


def test_what_a_check_said_reaches_the_operator_the_record_and_the_report(product: Product) -> None:
    def checked(stdout: str, step: str) -> list[str]:
        return [line for line in said(stdout) if line.startswith(f"balik: {step}: checked. ")]

    (product.folder / "hold-it" / "say-web-1").write_text("doorkey 3 sticks")
    for prefix in ("say-early-", "say-"):
        (product.folder / "revert-it" / f"{prefix}web-1").write_text("a node cannot be drained")
    (product.folder / "revert-it" / "say-web-2").write_text("one more is left out; " + "x" * 5000)
    product.write(flow_password="doorkey")

    looked = product.play("--check", "-e", "rollback_reason=keluhan")
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    for stdout in (looked.stdout, done.stdout):
        (hold,) = checked(stdout, "hold-it")
        assert "web-1: " in hold and " 3 sticks; web-2: what stands there is read" in hold
        early, later = checked(stdout, "revert-it")
        assert early.endswith("web-1: a node cannot be drained; web-2: what stands there is read")
        assert later.startswith("balik: revert-it: checked. web-2: one more is left out; xxx"), later
        assert later.endswith("xxx… (+1029 characters)"), later[-50:]
        begun = next(n for n, line in enumerate(said(stdout)) if "hold-it: done" in line or "hold-it: would" in line)
        assert said(stdout).index(hold) < begun and said(stdout).index(early) < begun

    started = {entry.body["step"]: entry.body["says"] for entry in product.entries("step-started")}
    assert started["revert-it"]["web-1"] == "a node cannot be drained"
    assert len(started["revert-it"]["web-2"]) > 5000
    assert "3 sticks" in started["hold-it"]["web-1"] and "doorkey" not in started["hold-it"]["web-1"]
    report = Path(product.outcome()["report"])
    for text in (report.read_text(), report.with_suffix(".md").read_text()):
        assert "a node cannot be drained" in text and "3 sticks" in text and "one more is left out" in text


def edit_record(product: Product, *statements: str) -> None:
    """What somebody with the file may do, round the triggers."""
    with sqlite3.connect(product.state / "record.sqlite") as database:
        for trigger in ("balik_no_update", "balik_no_delete"):
            database.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        ("UPDATE balik_entries SET body = '{\"x\": 1}' WHERE kind = 'step-done'", "entry 6"),
        ("UPDATE balik_entries SET body = '[]' WHERE seq = 1", "entry 1"),
        ("UPDATE balik_entries SET at = 'yesterday' WHERE seq = 2", "entry 2"),
    ],
    ids=["body", "list", "time"],
)
def test_an_edited_record_is_not_acted_upon(product: Product, statement: str, entry: str) -> None:
    (product.folder / "revert-it" / "break-web-2").write_text("broken")
    assert product.play(*BREAK_GLASS).returncode != 0
    edit_record(product, statement)
    rollback = product.play(*BREAK_GLASS)
    assert any(line.startswith("balik: FAILED: ") for line in rollback.stdout.splitlines()), rollback.stdout
    assert [product.outcome()[key] for key in ("run", "outcome", "page")] == [None, "failed", "unknown"]
    for refused in (
        rollback,
        product.play(playbook="playbooks/status.yml"),
        product.decide("no-go"),
        product.play("-e", "loss_export=true", playbook="playbooks/loss.yml"),
    ):
        assert refused.returncode != 0
        assert f"the chain is broken at {entry}" in " ".join(refused.stdout.split()), refused.stdout
        assert "Keep a copy" in refused.stdout
    assert product.line("verify-it") == "off"
    for path in product.state.glob("record.sqlite*"):
        path.rename(path.with_name(f"kept-{path.name}"))
    (product.folder / "revert-it" / "break-web-2").unlink()
    assert product.play(*BREAK_GLASS).returncode == 0, "it can be gone on without it"


def test_a_lost_end_of_the_record_is_told_and_a_spoiled_lock_can_be_taken(product: Product) -> None:
    assert product.play(*BREAK_GLASS).returncode == 0
    edit_record(product, "DELETE FROM balik_entries WHERE seq > 5")
    cut = product.play("-e", "verify=true", playbook="playbooks/record.yml")
    assert cut.returncode != 0
    assert "the end of the record was cut off" in " ".join(cut.stdout.split())
    head = product.outcome()["record_head"]
    assert product.play("-e", "rollback_sped=3").returncode != 0
    assert (product.outcome()["outcome"], product.outcome()["record_head"]) == ("failed", head), "a refused call"
    with product.started("-e", "rollback_reason='lagi'") as rollback:
        rollback.until(lambda: product.outcome()["outcome"] == "running")
        rollback.kill()
    assert product.outcome()["record_head"] == head, "a run that was killed"
    cut = product.play("-e", "verify=true", playbook="playbooks/record.yml")
    assert cut.returncode != 0, cut.stdout
    status = product.play(playbook="playbooks/status.yml")
    assert any("WARNING: the record" in line and "has not the entry" in line for line in said(status.stdout))
    assert product.play(*BREAK_GLASS).returncode == 0
    assert product.outcome()["record_head"] != head, "the next run has a head of its own"
    cut = product.play("-e", "verify=true", playbook="playbooks/record.yml")
    assert cut.returncode != 0, cut.stdout
    assert f"the entry with hash {head} is gone" in " ".join(cut.stdout.split()), cut.stdout
    report = json.loads(Path(product.outcome()["report"]).with_name("report.json").read_text())
    assert "record-cut" in report["warnings"]
    (product.state / "record.sqlite").unlink()
    lost = product.play("-e", "verify=true", playbook="playbooks/record.yml")
    assert lost.returncode != 0

    edit_record(product, "INSERT INTO balik_locks VALUES ('flow', 'nobody', 'once', 'ever')")
    for playbook in ("rollback.yml", "playbooks/status.yml"):
        refused = product.play(*BREAK_GLASS, playbook=playbook)
        assert refused.returncode != 0
        assert "the lock of flow cannot be read: 'nobody'" in " ".join(refused.stdout.split()), refused.stdout
    assert product.play(*BREAK_GLASS, "-e", "rollback_take_lock=true").returncode == 0


def test_a_step_that_no_longer_holds_is_done_again(product: Product) -> None:
    broken = product.folder / "verify-it" / "break-localhost"
    broken.write_text("not yet")
    assert product.play(*BREAK_GLASS).returncode != 0
    broken.unlink()
    (product.folder / "revert-it" / "web-2").write_text("off\n")

    resumed = product.play()

    assert resumed.returncode == 0, resumed.stdout
    assert product.lines() == ALL_ON
    assert product.times("hold-it", "web-2") == 1
    assert product.times("revert-it", "web-2") == 2
    assert any("revert-it: done before, but no longer so: web-2" in line for line in said(resumed.stdout))


def test_looking_makes_no_record_and_an_answer_names_the_one_it_goes_to(product: Product) -> None:
    status = product.play(playbook="playbooks/status.yml")
    assert status.returncode == 0, status.stdout
    assert f"flow has never been rolled back: there is no record {product.state}/record.sqlite" in status.stdout
    assert not product.state.exists()
    spoken = " ".join(product.decide("go", "lanjut").stdout.split())
    assert f"no rollback is running by the record {product.state}/record.sqlite" in spoken
    mistyped = product.play("-e", "verify=true", "-e", "record_head=zz", playbook="playbooks/record.yml")
    assert mistyped.returncode != 0
    assert "record_head: found 'zz'; expected 64 hex digits" in " ".join(mistyped.stdout.split())


def test_nothing_to_do_is_not_said_while_an_older_run_holds_the_traffic(product: Product) -> None:
    (product.folder / "verify-it" / "break-localhost").write_text("not yet")
    assert product.play(*BREAK_GLASS).returncode != 0

    refused = product.play("-e", "rollback_traffic_back=true")
    assert "this call would go on with it, page and all" in refused.stdout, refused.stdout
    assert locks(product) == []

    fresh = product.play("-e", "rollback_fresh=true")
    assert fresh.returncode != 0
    assert product.outcome()["outcome"] == "not-decided"
    assert "held the traffic and has not given it back" in product.outcome()["reason"]

    assert product.play("-e", "rollback_traffic_back=false").returncode != 0

    run = product.entries("run-opened")[0].run
    held = f"run {run} held the traffic and has not given it back"
    product.write(rollback_decision={"go": ["lead"], "wait": "5m", "break_glass": ["lead"]})
    silent = product.play("-e", "rollback_reason=keluhan")
    assert "NOT DECIDED: no answer from Lead Engineer" in said(silent.stdout)[-2], silent.stdout
    assert held in said(silent.stdout)[-2]
    assert held in product.outcome()["reason"]
    product.decide("no-go", "tunggu")
    refused = product.play("-e", "rollback_reason=keluhan")
    assert f"tunggu; but {held}" in said(refused.stdout)[-2], refused.stdout
    product.write(rollback_hold=[])
    (product.folder / "revert-it" / "break-web-2").write_text("not yet")
    assert product.play(*BREAK_GLASS).returncode != 0
    assert held in product.outcome()["reason"]
    status = product.play(playbook="playbooks/status.yml")
    assert f"run {run} held the traffic, and has not given it back" in status.stdout, status.stdout

    told = product.play("-e", "rollback_traffic_back=true", "-e", "rollback_fresh=true")
    assert told.returncode == 0, told.stdout
    assert product.outcome()["outcome"] == "nothing-to-do"


def locks(product: Product) -> list[tuple]:
    with sqlite3.connect(product.state / "record.sqlite") as connection:
        return connection.execute("SELECT * FROM balik_locks").fetchall()


def record_dump(product: Product) -> list[str]:
    with sqlite3.connect(product.state / "record.sqlite") as connection:
        return list(connection.iterdump())


def test_killed_after_each_step_has_started_it_comes_to_the_same_end(product: Product) -> None:
    with product.started("-e", "rollback_reason=keluhan") as waiting:
        waiting.until(lambda: product.entries("asked"))
        # Only the play's own process: its worker goes on waiting, and must neither hold the lock nor go on writing.
        waiting.kill_alone()
    for step in STEPS:
        slow = product.folder / step / "slow"
        slow.write_text("60")
        with product.started(*BREAK_GLASS) as killed:
            killed.until(partial(product.everywhere, step, "half"))
            killed.kill()
        assert [entry.body["step"] for entry in product.entries("step-started")][-1] == step
        slow.unlink()
    ended = product.play(*BREAK_GLASS)
    assert ended.returncode == 0, ended.stdout
    assert product.lines() == ALL_ON
    assert f"balik: found {STEPS[-1]}: interrupted; it is checked and done again" in said(ended.stdout)
    assert len(product.entries("run-opened")) == 1
    assert len(product.entries("run-resumed")) == 5
    assert len(product.entries("decided")) == 1
    for step in STEPS:
        assert product.times(step) == 2
        saved = [entry.body["saved"] for entry in product.entries("step-started") if entry.body["step"] == step]
        assert [each[HOSTS[step][0]]["line"] for each in saved] == ["off", "half"]
        given = (product.folder / step / f"saved-{HOSTS[step][0]}").read_text()
        assert given == "off", "what stood there at the first start, not the step's own half-done work"


def test_a_step_that_the_plan_gets_after_the_traffic_was_given_back_is_left_out(product: Product) -> None:
    product.write(rollback_hold=[])
    (product.folder / "restore-it" / "slow").write_text("60")
    with product.started(*BREAK_GLASS) as killed:
        killed.until(partial(product.everywhere, "restore-it", "half"))
        killed.kill()
    (product.folder / "restore-it" / "slow").unlink()
    product.write(rollback_hold=["hold-it"])
    ended = product.play()
    assert ended.returncode == 0, ended.stdout
    assert (product.line("hold-it"), product.line("restore-it")) == ("off", "on")
    assert "balik: found revert-it: done; it is left as it is, since the traffic was given back" in said(ended.stdout)
    assert "balik: hold-it: WARNING: left out: the plan had it not when the traffic was given back" in said(
        ended.stdout
    )


@pytest.mark.parametrize(
    ("way", "tried"),
    [
        (
            {
                "ansible_connection": "ssh",
                "ansible_host": "127.0.0.1",
                "ansible_port": 1,
                "ansible_user": "deploy",
            },
            "ssh to deploy@127.0.0.1",
        ),
        pytest.param(
            {"ansible_connection": "community.docker.docker", "ansible_host": "balik-no-such-container"},
            "community.docker.docker to balik-no-such-container",
            marks=pytest.mark.docker,
        ),
    ],
    ids=["ssh", "docker"],
)
def test_a_host_that_cannot_be_reached_is_named_with_what_to_do(
    product: Product, way: dict[str, Any], tried: str
) -> None:
    # Its interpreter is told, as it is for any container: Ansible asks nothing before the first module.
    product.hosts["all"]["children"]["web"]["hosts"]["web-2"] = way
    product.write()
    found = product.play(*BREAK_GLASS)
    assert found.returncode != 0
    (entry,) = product.entries("step-failed")
    assert list(entry.body["failures"]) == ["web-2"]
    assert f"web-2 could not be reached (tried {tried}" in entry.body["failures"]["web-2"]
    assert f"ansible -i {os.path.relpath(product.inventory, PROJECT)} web-2 -m ping" in product.outcome()["reason"]
    (outcome,) = [line for line in said(found.stdout) if "FAILED: hold-it failed on web-2" in line]
    assert f"tried {tried}" in outcome
    assert product.line("revert-it", "web-1") == "off"


def test_of_two_operators_the_second_is_told_and_the_first_is_not_disturbed(product: Product) -> None:
    held = product.folder / "revert-it" / "hold"
    held.touch()
    with product.started(*BREAK_GLASS, "-e", "rollback_by=rina") as first:
        first.until(lambda: product.line("revert-it") == "half")
        before, outcome = record_dump(product), product.outcome()
        second = product.play(*BREAK_GLASS, "-e", "rollback_by=budi")
        assert second.returncode != 0
        told = said(second.stdout)[-1]
        assert f"rina (process {first.pid} on " in told, second.stdout
        assert "What to do" not in second.stdout, "nothing is to be mended, and to run again at once is wrong"
        assert re.search(r"has held the lock since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(.* ago\)", told)
        assert (record_dump(product), product.outcome()) == (before, outcome)
        held.unlink()
        assert first.wait() == 0, first.stdout()
    assert product.lines() == ALL_ON
    assert {product.times(step) for step in STEPS} == {1}


def test_whose_lock_was_taken_over_stops_and_leaves_the_end_to_the_other(product: Product) -> None:
    """Somebody was sure that the first was dead, and was wrong."""
    slow = product.folder / "revert-it" / "slow"
    slow.write_text("100")
    with product.started(*BREAK_GLASS, "-e", "rollback_by=rina") as first:
        first.until(lambda: product.line("revert-it") == "half")
        slow.unlink()
        second = product.play("-e", "rollback_by=budi", "-e", "rollback_take_lock=true")
        assert second.returncode == 0, second.stdout
        taken = f"took over the lock of rina (process {first.pid} on"
        assert any(taken in line for line in said(second.stdout)), second.stdout
        before = record_dump(product)
        first.wake_up()
        assert first.wait() != 0
    assert "the lock of flow: it was taken over: and has been given back since" in first.stdout().splitlines()[-1]
    assert record_dump(product) == before
    assert (product.outcome()["outcome"], product.times("verify-it")) == ("rolled-back", 1)


def test_a_sign_off_is_waited_for_refused_and_given(product: Product) -> None:
    item = {"name": "looked", "role": "lead", "phase": "verify", "says": "Sudah dilihat", "wait": "1m"}
    product.write(rollback_sign_offs=[item])
    silent = product.play(*BREAK_GLASS)
    assert silent.returncode != 0
    assert "sign-off looked: no word from Lead Engineer" in silent.stdout.splitlines()[-3], silent.stdout
    assert '"decide_item": "looked"' in silent.stdout
    assert (product.line("verify-it"), product.line("restore-it")) == ("on", "off"), "the page stays"

    product.decide("refuse", "kolom hilang", decide_item="looked")
    refused = product.play()
    assert refused.returncode != 0
    assert "refused: kolom hilang" in refused.stdout.splitlines()[-3], refused.stdout
    assert product.line("restore-it") == "off"

    product.decide("sign-off", "sudah benar", decide_item="looked")
    given = product.play()
    assert given.returncode == 0, given.stdout
    assert (product.lines(), product.times("verify-it")) == (ALL_ON, 1)


def test_a_bad_plan_is_refused_with_every_place_and_nothing_is_touched(product: Product) -> None:
    product.write(
        rollback_colour="merah",
        rollback_hold=["hold-it", "hold-that"],
        rollback_people={**product.plan["rollback_people"], "dba": {"title": "DBA"}},
        rollback_criteria=[
            {
                "name": "errors",
                "measure": {"prometheus": {"url": "{{ flow_prometheus_url }}", "query": "up"}},
                "unsafe": "> 5",
            },
            {"name": "slow", "measure": {"prometheus": {"url": "http://p:9090", "query": "up"}}, "unsafe": "much > 5"},
        ],
        rollback_smtp="{{ flow_mail_server }}",
    )
    refused = product.play(*BREAK_GLASS)
    assert refused.returncode != 0
    for key, written, what in (
        ("rollback_colour", "rollback_colour:", "it is no key of a plan"),
        ("rollback_hold", "- hold-it", "found 'hold-that', which is no step"),
        ("rollback_people.dba.reach", "title: DBA", "it is missing"),
        ("rollback_criteria[1].unsafe", "unsafe: much", "much > 5"),
        ("rollback_criteria[0].measure.prometheus.url", "url: '{{ flow", "flow_prometheus_url"),
        ("rollback_smtp", "rollback_smtp:", "flow_mail_server"),
    ):
        lines = product.plan_file.read_text().splitlines()
        number = 1 + next(n for n, line in enumerate(lines) if line.strip().startswith(written))
        assert re.search(rf"plan\.yml:{number}: {re.escape(key)}: .*{re.escape(what)}", refused.stdout), (
            f"{key} at line {number}\n{refused.stdout}"
        )
    # Ansible shows the failed task's reasons twice, and the end repeats them for whoever looks there first.
    assert refused.stdout.count("rollback_colour: it is no key of a plan") == 3, refused.stdout
    assert (product.lines(), product.entries()) == (ALL_OFF, [])
    assert refused.stdout.splitlines()[-1].startswith("balik: "), refused.stdout
    assert product.outcome()["outcome"] == "failed"


def test_a_plan_and_its_steps_are_refused_together(product: Product) -> None:
    product.write(
        rollback_language="su",
        rollback_verify=["smoke-test"],
        smoke_test_checks=3,
        rollback_remedies={
            "all": {"covers": ["backend"], "takes": "1m", "revert": ["revert-it", "image-revert"]},
        },
        image_revert_containers=[],
        revert_it_hosts="nowhere",
    )
    refused = product.play(*BREAK_GLASS)
    assert refused.returncode != 0
    lines = refused.stdout.splitlines()
    told = lines[lines.index(next(line for line in lines if line.startswith("balik: FAILED"))) :]
    assert "4 problems" in told[0]
    for problem in (
        "rollback_language: found 'su'; expected one of id, en",
        "revert_it_hosts: no host of the inventory matches it",
        "image_revert_backend: found docker, and nothing is selected; "
        "expected image_revert_containers or image_revert_labels",
        "smoke_test_checks: found 3; expected a list of at least one",
    ):
        assert len([line for line in told if problem in line]) == 1, told
    assert product.entries() == []


def test_a_call_and_settings_that_cannot_be_right_are_refused_before_anything(product: Product) -> None:
    product.write(
        rollback_release={**product.plan["rollback_release"], "launched": "2126-01-10T20:00:00+07:00"},
        rollback_plan_reviewed="2126-01-10",
        hold_it_dirr="typo",
        hold_it_dir="",
    )
    refused = product.play(*BREAK_GLASS, "-e", "rollback_remedy=magic", "-e", "rollback_procedure=quick")
    assert refused.returncode != 0
    for problem in (
        "plan.yml:7: rollback_release.launched: 2126-01-10T13:00:00",
        "rollback_plan_reviewed: 2126-01-10 has not come yet",
        "rollback_remedy: found 'magic'",
        "rollback_procedure: found 'quick'",
        "hold_it_dirr: it is no setting of this step. Did you mean hold_it_dir? (hold-it on web-1, web-2)",
        "hold_it_dir: found ''; expected a value (hold-it on web-1, web-2)",
    ):
        assert problem in refused.stdout, f"{problem}\n{refused.stdout}"
    assert product.entries() == []
    assert product.outcome()["run"] is None


def test_a_secret_that_is_a_word_of_the_plan_is_refused_by_its_name(product: Product) -> None:
    """It would be hidden in the record, too, from where the flow reads its own names."""
    product.hosts["all"]["children"]["web"]["hosts"]["web-2"] = {"web_two_api_token": "vert-it"}
    product.write(
        rollback_remedies={"deployment": product.plan["rollback_remedies"]["all"]},
        rollback_procedures=[{"name": "standard-way", "watch": "1m"}],
        flow_secret_extra="deployment",
        flow_secrets={"database": {"user": "someone", "url": "redis://:standard@cache/0"}},
        flow_copy_token="{{ flow_secret_extra }}",
        flow_short_password="all",
        flow_other_password="reason",
    )
    refused = product.play(*BREAK_GLASS)
    assert refused.returncode != 0
    told = refused.stdout.rpartition("PLAY RECAP")[2]
    for name, what in (
        ("flow_secret_extra", "a remedy"),
        ("flow_secrets.database.url", "a procedure"),
        ("web_two_api_token", "a step"),
        ("flow_other_password", "a field of the record"),
    ):
        wanted = rf"yml:\d+: {re.escape(name)}: its value, which is not shown, stands in the name of {what}"
        assert re.search(wanted, refused.stdout), refused.stdout
    assert "4 problems" in told
    assert [line for line in said(refused.stdout) if "deployment" in line or "vert-it" in line] == []
    assert (product.lines(), product.entries()) == (ALL_OFF, [])


def test_durations_and_ports_of_steps_are_read_with_the_plan(product: Product) -> None:
    product.write(
        rollback_hold=["hold-it", "maintenance-page"],
        rollback_verify=["smoke-test"],
        rollback_restore=["traffic-restore"],
        rollback_remedies={
            "all": {"covers": ["backend"], "takes": "1m", "revert": ["image-revert", "db-restore"]},
        },
        hold_it_limit="a while",
        maintenance_page_within="{{ flow_within }}",
        flow_within="quick",
        maintenance_page_retry_after="soon",
        image_revert_limit="never",
        image_revert_steady="{{ 5 }}s",
        image_revert_containers=[{"name": "app", "image": "app:1", "limit": "long"}],
        smoke_test_limit="-5s",
        db_restore_login_port=99999999,
        db_restore_jobs=-1,
        image_revert_parallel=0,
        db_restore_lock_limit=90,
    )
    refused = product.play(*BREAK_GLASS)
    assert refused.returncode != 0
    lines = product.plan_file.read_text().splitlines()
    numbers = {
        "db_restore_login_port": "0 to 65535",
        "db_restore_jobs": "0 or more",
        "image_revert_parallel": "1 or more",
    }
    for name, written, found in (
        ("hold_it_limit", "hold_it_limit:", "'a while'"),
        ("maintenance_page_within", "maintenance_page_within:", "'quick'"),
        ("maintenance_page_retry_after", "maintenance_page_retry_after:", "'soon'"),
        ("image_revert_limit", "image_revert_limit:", "'never'"),
        ("image_revert_containers[0].limit", "limit: long", "'long'"),
        ("smoke_test_limit", "smoke_test_limit:", "'-5s'"),
        ("db_restore_login_port", "db_restore_login_port:", "99999999"),
        ("db_restore_jobs", "db_restore_jobs:", "-1"),
        ("image_revert_parallel", "image_revert_parallel:", "0"),
    ):
        number = 1 + next(n for n, line in enumerate(lines) if line.strip().startswith(written))
        expected = numbers.get(name, "a duration such as 30s")
        wanted = f"plan.yml:{number}: {name}: found {found}; expected {expected}"
        assert wanted in refused.stdout, f"{wanted}\n{refused.stdout}"
    for name in ("image_revert_steady", "db_restore_lock_limit"):
        assert name not in refused.stdout, refused.stdout
    assert (product.lines(), product.entries()) == (ALL_OFF, [])


def test_a_product_that_is_no_name_makes_no_folder_elsewhere(product: Product) -> None:
    product.write(rollback_product="../elsewhere")
    refused = product.play(*BREAK_GLASS)
    assert "rollback_product: found '../elsewhere'" in refused.stdout
    assert sorted(path.name for path in product.state.parent.iterdir()) == ["unknown-product"]


def test_a_refusal_keeps_its_reason_where_nothing_can_be_written(product: Product) -> None:
    product.write(rollback_state_dir="/proc/nowhere", rollback_colour="merah")
    refused = product.play(*BREAK_GLASS)
    told = refused.stdout.rpartition("PLAY RECAP")[2]
    assert "rollback_colour: it is no key of a plan" in told, refused.stdout
    assert "/proc/nowhere/flow/outcome.json: cannot be written" in told
    assert "What to do" in told


def test_what_is_no_text_of_a_call_is_refused_in_one_message(product: Product) -> None:
    values = {"rollback_scope": 5, "rollback_remedy": ["all"], "rollback_reason": ["keluhan"], "rollback_by": {"a": 1}}
    refused = product.play("-e", json.dumps(values))
    told = refused.stdout.rpartition("PLAY RECAP")[2]
    for name, value in values.items():
        assert f"- {name}: found {value!r}; expected a text" in told, refused.stdout
    assert product.entries() == []
    said = product.play(
        "-e", '{"decide_role": "lead", "decide_answer": "go", "decide_reason": ["a"]}', playbook="playbooks/decide.yml"
    )
    assert said.returncode != 0
    assert "decide_reason: found ['a']; expected a text" in " ".join(said.stdout.split()), said.stdout
    assert product.entries() == []


def test_names_of_the_flows_own_facts_are_no_keys_of_a_plan(product: Product) -> None:
    product.write(rollback_stepping=1, rollback_run_limit="5m")
    refused = product.play(*BREAK_GLASS, "-e", "rollback_run_id=hello")
    told = refused.stdout.rpartition("PLAY RECAP")[2]
    for name in ("rollback_stepping", "rollback_run_limit", "rollback_run_id"):
        assert f"{name}: it is no key of a plan" in told, refused.stdout
    assert (product.lines(), product.entries()) == (ALL_OFF, [])


def test_a_cache_of_facts_keeps_nothing_of_a_run(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = product.folder / "facts"
    cached = {"ANSIBLE_CACHE_PLUGIN": "jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(cache)}
    environment = product.environment()
    monkeypatch.setattr(product, "environment", lambda: {**environment, **cached})
    (product.folder / "revert-it" / "break-web-2").touch()
    assert product.play(*BREAK_GLASS).returncode != 0
    (product.folder / "revert-it" / "break-web-2").unlink()
    assert [file.name for file in cache.glob("*") if "rollback" in file.read_text()] == []
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert product.outcome()["outcome"] == "rolled-back"


def test_the_environment_does_not_change_how_the_play_goes(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    habits = {"ANSIBLE_STRATEGY": "free", "ANSIBLE_ANY_ERRORS_FATAL": "true", "ANSIBLE_INJECT_FACT_VARS": "false"}
    environment = product.environment()
    monkeypatch.setattr(product, "environment", lambda: {**environment, **habits})
    (product.folder / "revert-it" / "break-web-2").touch()
    broken = product.play(*BREAK_GLASS)
    assert broken.returncode != 0
    assert "revert-it failed on web-2: " in product.outcome()["reason"], broken.stdout
    assert [product.line("revert-it", host) for host in ("web-1", "web-2")] == ["on", "half"]
    assert product.line("verify-it") == "off"
    (product.folder / "revert-it" / "break-web-2").unlink()
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert product.everywhere("revert-it", "on")


def test_a_mistyped_inventory_is_refused(product: Product) -> None:
    mistyped = product.play("-i", str(product.inventory) + "-staging", *BREAK_GLASS)
    assert mistyped.returncode != 0
    assert "inventory-staging" in mistyped.stdout
    assert (product.lines(), product.entries()) == (ALL_OFF, [])


def test_a_folder_may_be_called_like_a_setting_of_a_connection(product: Product, tmp_path: Path) -> None:
    product.write(rollback_state_dir="env=prod")
    command = [str(PROJECT / each) if each == "rollback.yml" else each for each in product.command(*BREAK_GLASS)]
    env = product.environment()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "env=prod" / "flow" / "record.sqlite").exists()


def test_a_refused_call_is_the_outcome_though_a_dead_one_left_its_lock_elsewhere(product: Product) -> None:
    assert product.play(*BREAK_GLASS).returncode == 0
    with Record(str(product.state / "record.sqlite"), "flow") as record:
        record.acquire(Holder("rina@laptop", "laptop", "an earlier boot", 4711, 99), -3600)
    assert product.play(*BREAK_GLASS, "-e", "rollback_sped=3").returncode != 0
    assert (product.outcome()["outcome"], product.outcome()["run"]) == ("failed", None)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"rollback_state_dir": "~nosuch/x"}, "rollback_state_dir: found '~nosuch/x'; expected a folder's path"),
        ({"rollback_state_dir": ["/srv"]}, "rollback_state_dir: found ['/srv']; expected a folder's path"),
        ({"rollback_record_dsn": f"postgresql:/balik:{SECRET}@db/balik"}, "rollback_record_dsn: it cannot be read"),
        # libpq's, and not a file's name: who connects, and where is said by the environment or not at all.
        ({"rollback_record_dsn": f"port=1 user=balik password={SECRET}"}, "…: cannot be opened: connection"),
    ],
)
def test_a_place_that_can_be_none_is_refused_and_no_file_gets_its_name(
    product: Product, place: dict[str, object], told: str, tmp_path: Path
) -> None:
    product.write(**place)
    refused = product.play(*BREAK_GLASS)
    assert refused.returncode != 0
    assert told in refused.stdout.rpartition("PLAY RECAP")[2], refused.stdout
    assert (product.lines(), SECRET in refused.stdout) == (ALL_OFF, False)
    assert [path for path in (*PROJECT.iterdir(), *tmp_path.rglob("*")) if SECRET in path.name] == []


def test_a_plan_without_a_remedy_for_the_backend_finds_nothing_to_do(product: Product) -> None:
    remedy = {"covers": ["frontend"], "takes": "1m", "revert": ["revert-it"]}
    product.write(rollback_remedies={"flag": remedy})
    assert product.play().returncode == 0
    assert product.outcome()["outcome"] == "nothing-to-do"


def test_a_check_run_that_finds_no_record_sees_whether_one_could_be_made(product: Product) -> None:
    place = product.folder / "state"
    place.write_text("")
    refused = product.play("--check", *BREAK_GLASS)
    assert refused.returncode != 0
    assert f"record {place}/flow/record.sqlite: cannot be opened: {place} is no folder" in refused.stdout, (
        refused.stdout
    )
    assert product.lines() == ALL_OFF


def test_an_inventory_without_a_steps_hosts_is_refused(product: Product) -> None:
    found = product.play(*BREAK_GLASS, "--limit", "localhost,web-1")
    assert found.returncode != 0
    assert "hold-it on web-2: --limit leaves it out. Run without --limit." in found.stdout
    del product.hosts["all"]["hosts"]["localhost"]
    product.write(hold_it_hosts="nowhere")
    found = product.play(*BREAK_GLASS)
    assert found.returncode != 0
    assert "hold_it_hosts: no host of the inventory matches it" in found.stdout
    assert "verify-it on localhost: the inventory does not have it. Name it in hosts.yml." in found.stdout
    assert (product.lines(), product.entries()) == (ALL_OFF, [])


def test_under_ansible_runner_as_awx_runs_it(product: Product, tmp_path: Path) -> None:
    """Extra variables are texts there, blank ones too, and settings of callbacks and stdout are not ours."""
    (tmp_path / "runner").mkdir()
    environment = {
        name: value for name, value in product.environment().items() if name.startswith("ANSIBLE_") or name == "PATH"
    }
    found = ansible_runner.run(
        private_data_dir=str(tmp_path / "runner"),
        project_dir=str(PROJECT),
        playbook="rollback.yml",
        inventory=str(product.inventory),
        envvars=environment,
        extravars={
            "rollback_break_glass": "dari AWX",
            "rollback_role": "lead",
            "rollback_scope": "backend, database",
            "rollback_remedy": "",
            "rollback_procedure": "",
            "rollback_reason": "",
            "rollback_take_lock": "",
            "rollback_fresh": "false",
            "rollback_speed": "120",
            "awx_user_name": "rina",
            "awx_job_id": 42,
        },
        timeout=120,
        quiet=True,
    )
    stdout = found.stdout.read()
    assert found.rc == 0, stdout
    assert product.lines() == ALL_ON
    assert "balik: ROLLED BACK: glass broken by rina" in stdout.split("PLAY RECAP")[1], stdout
    (opened,) = product.entries("run-opened")
    assert (opened.body["by"], str(opened.body["job"])) == ("rina", "42")
    (measured,) = product.entries("criteria")
    assert sorted(measured.body["scope"]) == ["backend", "database"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"rollback_take_lock": "perhaps"}, "rollback_take_lock: found 'perhaps'; expected true or false"),
        ({"rollback_scope": "network"}, "rollback_scope: found ['network']; expected one of frontend"),
        ({"rollback_remedy": "magic"}, "rollback_remedy: found 'magic'; expected one of all"),
    ],
)
def test_a_variable_of_one_run_that_cannot_be_read_is_refused(
    product: Product, variables: dict[str, Any], message: str
) -> None:
    found = product.play(*BREAK_GLASS, "-e", json.dumps(variables))
    assert found.returncode != 0
    assert message in " ".join(found.stdout.split()), found.stdout
    assert product.lines() == ALL_OFF


def test_a_text_that_the_command_line_cut_is_refused(product: Product) -> None:
    answer = {"decide_role": "lead", "decide_answer": "go", "decide_by": "rina"}
    decide = ("-e", json.dumps(answer), "-e", "decide_reason=because it broke")
    for refused in (
        product.play(*decide, playbook="playbooks/decide.yml"),
        product.play("-e", "rollback_reason=because it broke"),
    ):
        assert refused.returncode != 0
        assert "-e: found 'it broke', which belongs to no name" in " ".join(refused.stdout.split()), refused.stdout
    assert product.entries() == []


def test_a_persons_word_that_means_nothing_or_is_too_long_is_not_written_down(product: Product) -> None:
    for found, message in (
        (product.decide("go", decide_item="zzz"), "decide_item: found 'zzz'; expected none with go"),
        (
            product.decide("go", "x" * 4001),
            "nothing was written down: decide_reason: found 4001 characters; expected at most 4000. Write it "
            "elsewhere, and say here where.",
        ),
        (
            product.decide("perhaps", "x" * 4001),
            "found 'perhaps'; expected one of go, no-go, sign-off, refuse, unsafe, safe; decide_reason: found 4001",
        ),
        (
            product.play(*BREAK_GLASS, "-e", json.dumps({"rollback_reason": "x" * 4001})),
            "rollback_reason: found 4001 characters; expected at most 4000",
        ),
    ):
        assert found.returncode != 0
        assert message in " ".join(found.stdout.split()), found.stdout
    word = {"decide_role": "lead", "decide_answer": "no-go", "decide_reason": "besok", "decide_by": "rina"}
    only = product.play("--check", "-e", json.dumps(word), playbook="playbooks/decide.yml")
    assert only.returncode == 0, only.stdout
    assert said(only.stdout)[0].startswith("balik: would write down: rina (Lead Engineer"), only.stdout
    assert product.entries() == []
    assert product.decide("go", "x" * 4000).returncode == 0
    forged = product.decide("no-go", "besok\nbalik: ROLLED BACK: all is well", decide_by="rina\x1b[31m\nbudi")
    assert forged.returncode == 0
    assert said(forged.stdout)[0].startswith("balik: rina\ufffd[31m budi (Lead Engineer"), forged.stdout
    assert not [line for line in forged.stdout.splitlines() if line.startswith("balik: ROLLED")]
    assert product.entries("decision")[-1].body["by"] == "rina\ufffd[31m budi"


def test_a_report_that_cannot_be_written_changes_no_outcome(product: Product) -> None:
    product.state.mkdir(parents=True)
    (product.state / "reports").write_text("no folder")
    rolled_back = product.play(*BREAK_GLASS)
    assert rolled_back.returncode == 0, rolled_back.stdout
    assert product.outcome()["outcome"] == "rolled-back"
    assert "playbooks/report.yml -e report_run=" in rolled_back.stdout


def test_no_part_of_a_rollback_can_be_picked_by_a_tag(product: Product) -> None:
    for arguments in (("--tags", "hold"), ("--skip-tags", "verify")):
        refused = product.play(*BREAK_GLASS, *arguments)
        assert refused.returncode != 0
        assert "a rollback has no parts to pick" in " ".join(refused.stdout.split())
    assert product.entries() == []


def test_an_end_that_ansible_reaches_before_the_outcome_is_told(product: Product) -> None:
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    product.hosts["all"] = {"children": {"web": {"hosts": {"web-1": away, "web-2": away}}}}
    product.write(verify_it_hosts="web", restore_it_hosts="web")
    ended = product.play(*BREAK_GLASS)
    assert ended.returncode != 0
    assert said(ended.stdout)[-2].startswith("balik: FAILED: Ansible ended before the outcome was written down")


def test_the_outcome_is_said_though_it_could_not_be_written(product: Product) -> None:
    """The record's place goes away in the middle: the last lines say so, and not only a task in the middle."""
    (product.folder / "verify-it" / "slow").write_text("3")
    with product.started(*BREAK_GLASS) as rollback:
        rollback.until(lambda: product.line("verify-it") == "half")
        for path in product.state.glob("record.sqlite*"):
            path.unlink()
        (product.state / "record.sqlite").write_text("no database\n" * 500)
        assert rollback.wait() != 0
    last = rollback.stdout().splitlines()[-6:]
    assert any(
        "balik: FAILED: " in line and "the outcome could not be written down: " in line and "not a database" in line
        for line in last
    ), rollback.stdout()
    assert any("it is not certain whether visitors see the maintenance page" in line for line in last)
    assert (product.outcome()["outcome"], product.outcome()["page"]) == ("failed", "unknown")
    assert product.line("restore-it") == "off"
