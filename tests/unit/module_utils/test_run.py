"""What a record's entries say about runs: pure functions, so entries are all that these tests need."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils import run as runs
from ansible_collections.balik.rollback.plugins.module_utils.record import Entry
from ansible_collections.balik.rollback.plugins.module_utils.units import iso
from hypothesis import given
from hypothesis import strategies as st

START = datetime(2026, 1, 10, 20, tzinfo=timezone.utc)


def entries(*told: tuple[float, str, str, dict[str, Any]]) -> list[Entry]:
    """A record's entries from (minutes after the start, run, kind, body)."""
    return [
        Entry("shop", seq, iso(START + timedelta(minutes=minutes)), run, kind, body, "", "")
        for seq, (minutes, run, kind, body) in enumerate(told, 1)
    ]


def opened(at: float, run: str = "r1") -> tuple[float, str, str, dict[str, Any]]:
    return (at, run, "run-opened", {"by": "rina", "release": "2"})


def outcome(at: float, what: str, run: str = "r1") -> tuple[float, str, str, dict[str, Any]]:
    return (at, run, "outcome", {"outcome": what, "reason": "because"})


def step(
    at: float, kind: str, name: str = "image-revert", run: str = "r1", **more: Any
) -> tuple[float, str, str, dict]:
    return (at, run, f"step-{kind}", {"step": name, "phase": more.pop("phase", "revert"), **more})


def word(at: float, answer: str, role: str = "lead", run: str = "", **more: str) -> tuple[float, str, str, dict]:
    kind = next(kind for kind, answers in runs.ANSWERS.items() if answer in answers)
    return (at, run, kind, {"role": role, "by": f"the {role}", "answer": answer, "reason": "so", **more})


def decided(at: float, what: str = runs.GO, run: str = "r1") -> tuple[float, str, str, dict[str, Any]]:
    return (at, run, "decided", {"outcome": what, "remedy": "deployment", "reason": "so"})


# Runs


def test_no_entries_no_runs() -> None:
    assert runs.read_runs([]) == []
    assert runs.unfinished_run([]) is None
    assert runs.read_runs(entries((0, "", "statement", {}), (0, "gone", "decided", {}))) == []


def test_the_names_of_runs_sort_by_time_and_differ() -> None:
    names = [runs.new_run_id(START + timedelta(seconds=n)) for n in range(3)]
    assert names == sorted(names)
    assert names[0].startswith("20260110T200000Z-")
    assert len({runs.new_run_id(START) for _ in range(20)}) > 1


@pytest.mark.parametrize("last", [*runs.FINAL])
def test_a_run_with_a_final_outcome_is_over(last: str) -> None:
    assert runs.unfinished_run(entries(opened(0), outcome(1, last))) is None


@pytest.mark.parametrize("told", [[], [outcome(1, runs.FAILED)], [decided(1)], [step(1, "started", saved={})]])
def test_a_run_without_one_is_taken_up_again(told: Sequence[Any]) -> None:
    found = runs.unfinished_run(entries(opened(0), *told))
    assert found
    assert found.id == "r1"


def test_only_the_newest_run_is_taken_up() -> None:
    assert runs.unfinished_run(entries(opened(0), opened(1, "r2"), outcome(2, runs.ROLLED_BACK, "r2"))) is None


def test_a_failed_run_that_is_taken_up_has_no_outcome_until_it_ends() -> None:
    told = [opened(0), decided(1), outcome(2, runs.FAILED), (3, "r1", "run-resumed", {"by": "rina"})]
    (found,) = runs.read_runs(entries(*told))
    assert (found.outcome, found.calls, found.decided and found.decided["outcome"]) == (None, 2, "go")
    (found,) = runs.read_runs(entries(*told, outcome(4, runs.ROLLED_BACK)))
    assert (found.outcome, found.is_over) == (runs.ROLLED_BACK, True)


@pytest.mark.parametrize("what", [runs.NOTHING_TO_DO, runs.NOT_DECIDED])
def test_killed_between_a_decision_against_and_its_outcome_it_is_decided_anew(what: str) -> None:
    """What was safe an hour ago may be on fire now; only a Go is carried on."""
    (found,) = runs.read_runs(entries(opened(0), decided(1, what), (60, "r1", "run-resumed", {"by": "rina"})))
    assert found.decided is None


def test_a_step_goes_from_started_to_done_and_says_how_long() -> None:
    (run,) = runs.read_runs(
        entries(opened(0), step(1, "started", saved={"web": {"image": "2"}}), step(3, "done", says={"web": "1 runs"}))
    )
    found = run.steps["image-revert"]
    assert (found.state, found.seconds, found.says, found.saved) == (
        "done",
        120,
        {"web": "1 runs"},
        {"web": {"image": "2"}},
    )


def test_what_stood_there_at_the_first_start_counts() -> None:
    """A later look may see the step's own half-done work; a host that came later adds its own."""
    (run,) = runs.read_runs(
        entries(
            opened(0),
            step(1, "started", saved={"a": {"line": "off"}}),
            (2, "r1", "run-resumed", {"by": "rina"}),
            step(3, "started", saved={"a": {"line": "half"}, "b": {"line": "off"}}),
            step(4, "failed", failures={"a": "no"}, stage="main"),
            step(5, "started", saved={"a": {"line": "more"}}),
        )
    )
    assert run.steps["image-revert"].saved == {"a": {"line": "off"}, "b": {"line": "off"}}
    assert run.steps["image-revert"].state == "started"


def test_steps_stand_in_the_order_of_the_phases() -> None:
    """A step of the remedy is looked at before the page goes up."""
    (run,) = runs.read_runs(
        entries(
            opened(0),
            step(1, "failed", "db-restore", failures={"db": "full"}, stage="check"),
            step(2, "started", "maintenance-page", phase="hold", saved={}),
            step(3, "started", "image-revert", saved={}),
        )
    )
    assert [each.name for each in run.steps_in_order] == ["maintenance-page", "db-restore", "image-revert"]


def test_another_run_of_the_same_step_saves_anew() -> None:
    found = runs.read_runs(
        entries(
            opened(0),
            step(1, "started", saved={"a": {"line": "off"}}),
            outcome(2, runs.ROLLED_BACK),
            opened(3, "r2"),
            step(4, "started", run="r2", saved={"a": {"line": "on"}}),
        )
    )
    assert found[1].steps["image-revert"].saved == {"a": {"line": "on"}}


def test_a_check_that_failed_was_never_started() -> None:
    (run,) = runs.read_runs(entries(opened(0), step(1, "failed", failures={"web": "no image"}, stage="check")))
    assert run.steps["image-revert"].state == "failed"
    assert run.steps["image-revert"].failures == {"web": "no image"}
    assert run.steps["image-revert"].saved == {}


def restoring(at: float, kind: str, name: str = "traffic-restore", **more: Any) -> tuple[float, str, str, dict]:
    return step(at, kind, name, phase="restore", **{"saved": {}, "failures": {"lb-2": "no answer"}, **more})


def watched(at: float, verdict: str) -> tuple[float, str, str, dict]:
    return (at, "r1", "watched", {"verdict": verdict, "seconds": 30})


WATCHING = (2, "r1", "watching", {"procedure": "standard", "seconds": 1800})


ANNOUNCED = [restoring(0, "started", "announce"), restoring(0, "done", "announce")]
UP = [
    step(0, "started", "maintenance-page", phase="hold", saved={}),
    step(0, "done", "maintenance-page", phase="hold"),
]
BEGUN, DONE, BROKEN = restoring(1, "started"), restoring(4, "done"), restoring(4, "failed", stage="main or verify")
AGAIN = (5, "r1", "run-resumed", {"by": "rina"})
BEGUN_AGAIN, BROKEN_AGAIN = restoring(6, "started"), restoring(8, "failed", stage="main or verify")
NOT_CHECKED = restoring(6, "failed", stage="check")


def left(hosts: dict[str, Any]) -> tuple[float, str, str, dict]:
    return restoring(4, "failed", stage="main or verify", left=hosts)


@pytest.mark.parametrize(
    ("told", "given", "certain"),
    [
        pytest.param([], False, False, id="nothing"),
        pytest.param([step(1, "done", "smoke-test", phase="verify")], False, False, id="proved"),
        pytest.param([restoring(1, "done", "scale-thaw")], False, False, id="thawed"),
        pytest.param([NOT_CHECKED], False, False, id="could not be begun"),
        pytest.param([BEGUN], True, False, id="killed before the watch: the page may be down"),
        pytest.param([BEGUN, WATCHING], True, True, id="killed in the watch"),
        pytest.param([BEGUN, WATCHING, watched(3, "safe")], True, True, id="killed after a safe watch"),
        pytest.param([BEGUN, WATCHING, watched(3, "unknown")], True, True, id="killed after a blind watch"),
        pytest.param([BEGUN, WATCHING, watched(3, "unsafe")], False, False, id="killed after an unsafe watch"),
        pytest.param(
            [*UP, BEGUN, WATCHING, watched(3, "unsafe"), AGAIN, *UP, step(7, "started", saved={})],
            *(False, False),
            id="and the next call puts the page up and reverts again",
        ),
        pytest.param(
            [*UP, BEGUN, WATCHING, watched(3, "unsafe"), AGAIN, *UP, BEGUN_AGAIN],
            *(True, False),
            id="and is killed when it gives the traffic back once more",
        ),
        pytest.param([BEGUN, DONE], True, True, id="done by a step that does not watch"),
        pytest.param([BEGUN, WATCHING, watched(3, "safe"), DONE], True, True, id="done"),
        pytest.param([BEGUN, BROKEN], False, False, id="failed before the watch: the page is on again"),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN], True, True, id="lb-1 fine, the last look at lb-2 failed"
        ),
        pytest.param([BEGUN, WATCHING, watched(3, "unknown"), BROKEN], True, True, id="the watch could not see"),
        pytest.param([BEGUN, WATCHING, watched(3, "unsafe"), BROKEN], False, False, id="unsafe: the page is on again"),
        pytest.param(
            [
                restoring(0, "started", "announce"),
                restoring(0, "done", "announce"),
                BEGUN,
                WATCHING,
                watched(3, "unsafe"),
                BROKEN,
            ],
            *(False, False),
            id="unsafe, after another step of the phase was done",
        ),
        pytest.param(
            [
                BEGUN,
                WATCHING,
                watched(3, "safe"),
                DONE,
                restoring(4, "started", "announce"),
                restoring(4, "failed", "announce"),
            ],
            *(True, True),
            id="what comes after it failed",
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN, AGAIN], True, True, id="taken up after a safe watch"
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN, AGAIN, NOT_CHECKED],
            True,
            True,
            id="and lb-2 still gives no answer",
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN, AGAIN, BEGUN_AGAIN],
            *(True, True),
            id="and killed in the second attempt",
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN, AGAIN, BEGUN_AGAIN, BROKEN_AGAIN],
            *(True, True),
            id="and nobody answered at the second attempt",
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN, AGAIN, BEGUN_AGAIN, watched(7, "unsafe"), BROKEN_AGAIN],
            *(False, False),
            id="and the criteria were unsafe at the second attempt",
        ),
        pytest.param(
            [*UP, BEGUN, WATCHING, watched(3, "safe"), left({"lb-1": {"page": "on"}, "lb-2": {}})],
            *(True, True),
            id="the page is up by hand on one load balancer",
        ),
        pytest.param(
            [*UP, BEGUN, WATCHING, watched(3, "safe"), left({"lb-1": {"page": "on"}, "lb-2": {"page": "on"}})],
            *(False, False),
            id="the page is up by hand on each load balancer",
        ),
        pytest.param(
            [*UP, BEGUN, left({"lb-1": {"page": "off"}, "lb-2": {"page": "off"}})],
            *(True, True),
            id="the page is down on each load balancer, and the watch could not be written down",
        ),
        pytest.param(
            [*UP, BEGUN, left({"lb-1": {"page": "off"}, "lb-2": {}})],
            *(False, False),
            id="the page is down on one load balancer",
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "unsafe"), BROKEN, AGAIN, BEGUN_AGAIN, WATCHING, watched(7, "safe")],
            *(True, True),
            id="unsafe at first, safe at the second attempt",
        ),
        pytest.param(
            [BEGUN, WATCHING, watched(3, "safe"), BROKEN, AGAIN, step(6, "started", "hold-it", phase="hold", saved={})],
            *(False, False),
            id="the traffic was taken once more",
        ),
    ],
)
def test_whether_the_traffic_was_given_back(told: Sequence[Any], given: bool, certain: bool) -> None:
    (run,) = runs.read_runs(entries(opened(0), *told))
    assert (run.traffic_given_back, run.traffic_is_back) == (given, certain)


def test_what_was_said_since_the_traffic_may_have_been_given_back_counts() -> None:
    (run,) = runs.read_runs(entries(opened(0), *UP, BEGUN, left({"lb-1": {"page": "off"}})))
    assert (run.first_back, run.back_since) == (START + timedelta(minutes=BEGUN[0]), START + timedelta(minutes=4))
    assert run.page == "off"


def test_where_the_page_is_is_not_certain_after_a_step_whose_end_is_not_written_down() -> None:
    told = [*UP, BEGUN, WATCHING, outcome(3, runs.FAILED)]
    (run,) = runs.read_runs(entries(opened(0), *told))
    assert run.page == "unknown"
    (run,) = runs.read_runs(entries(opened(0), *told[:-1], AGAIN, outcome(6, runs.FAILED)))
    assert run.page == "off", "a call that was killed in its watch says nothing against it"


def test_when_the_traffic_was_given_back_first_and_last() -> None:
    again = (7, "r1", "watching", {"procedure": "standard", "seconds": 1800})
    told = [BEGUN, WATCHING, watched(3, "unsafe"), BROKEN, AGAIN, BEGUN_AGAIN, again, again]
    (run,) = runs.read_runs(entries(opened(0), *told))
    assert (run.first_back, run.back_since) == (START + timedelta(minutes=2), START + timedelta(minutes=7))


# What stands still

FREEZING = step(1, "started", "scale-freeze", phase="hold", saved={})
FROZEN = step(2, "done", "scale-freeze", phase="hold", says={"localhost": "3 autoscalers held still"})
THAWED = step(9, "done", "scale-thaw", phase="restore")


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ([], None),
        ([step(1, "failed", "scale-freeze", phase="hold", stage="check", failures={})], None),
        ([FREEZING], {}),
        ([FREEZING, step(2, "failed", "scale-freeze", phase="hold", failures={"localhost": "no"})], {}),
        ([FREEZING, FROZEN], {"localhost": "3 autoscalers held still"}),
        ([FREEZING, FROZEN, outcome(3, runs.FAILED)], {"localhost": "3 autoscalers held still"}),
        (
            [FREEZING, FROZEN, step(8, "started", "scale-thaw", phase="restore", saved={})],
            {"localhost": "3 autoscalers held still"},
        ),
        ([FREEZING, FROZEN, THAWED], None),
    ],
)
def test_whether_autoscalers_are_still_frozen(told: Sequence[Any], says: dict[str, str] | None) -> None:
    found = runs.still_frozen(entries(opened(0), *told))
    assert (found.says if found else None) == says


def test_a_later_run_takes_the_freeze_of_an_earlier_one_with_it() -> None:
    later = [(30 + at, "r2", kind, body) for at, _run, kind, body in (opened(0), FREEZING, FROZEN)]
    found = runs.still_frozen(entries(opened(0), FREEZING, FROZEN, outcome(3, runs.ABANDONED), *later))
    assert found is not None
    assert (found.run, found.since) == ("r2", START + timedelta(minutes=1))


def test_of_each_thing_what_stood_there_first_is_kept_and_what_a_later_start_adds_with_it() -> None:
    def started(at: float, **hosts: Any) -> Any:
        return step(at, "started", "image-revert", phase="revert", saved=hosts)

    first = {"workloads": {"web": {"images": {"app": "2.0"}}}, "held": ["a"], "cluster": "one", "rows": [{"n": 1}]}
    # Half of its work is done: of web, its own.
    later = {
        "workloads": {"web": {"images": {"app": "1.9", "more": "1.9"}}, "api": {"images": {"app": "2.0"}}},
        "held": ["b", "a"],
        "cluster": "two",
        "rows": [{"n": 2}],
        "new": True,
    }
    (run,) = runs.read_runs(entries(opened(0), started(1, h1=first), started(2, h1=later, h2={"held": []})))
    assert run.steps["image-revert"].saved == {
        "h1": {
            "workloads": {"web": {"images": {"app": "2.0"}}, "api": {"images": {"app": "2.0"}}},
            "held": ["a", "b"],
            "cluster": "one",
            "rows": [{"n": 1}],
            "new": True,
        },
        "h2": {"held": []},
    }


# Who is held off

PATH = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/hub"
HELD = step(1, "started", "image-revert", phase="revert", saved={"localhost": {"held": [PATH]}})


NAMES = ("applications hub in namespace argocd",)


def held_in(uid: str) -> Any:
    saved = {"localhost": {"held": [PATH], "cluster_uid": uid}}
    return step(1, "started", "image-revert", phase="revert", saved=saved)


def resumed_in(uid: str) -> list[Any]:
    asked = {"localhost": {"held": [], "cluster_uid": uid}}
    return [step(7, "started", "gitops-resume", phase="restore", saved=asked), resumed()]


def resumed(*left: str) -> Any:
    evidence = {"localhost": {"main": {}, "verify": {"left": list(left)}}}
    return step(8, "done", "gitops-resume", phase="restore", evidence=evidence)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ([], None),
        ([step(1, "started", "image-revert", phase="revert", saved={"localhost": {"workloads": {}}})], None),
        ([step(1, "started", "image-revert", phase="revert", saved={"localhost": {"held": "spoiled"}})], None),
        ([HELD], ("applications hub in namespace argocd",)),
        ([HELD, step(2, "started", "image-revert", phase="revert", saved={"another": {}})], NAMES),
        ([HELD, outcome(3, runs.FAILED)], ("applications hub in namespace argocd",)),
        ([HELD, step(8, "failed", "gitops-resume", phase="restore")], ("applications hub in namespace argocd",)),
        ([HELD, resumed("applications desk in namespace argocd")], ("applications desk in namespace argocd",)),
        ([HELD, resumed()], None),
        (
            [HELD, step(8, "done", "gitops-resume", phase="restore", evidence={"another": {"verify": {"left": []}}})],
            NAMES,
        ),
        ([HELD, step(8, "done", "gitops-resume", phase="restore", evidence={})], NAMES),
        ([held_in("a"), held_in("b"), *resumed_in("b")], NAMES),
        ([held_in("a"), *resumed_in("b"), *resumed_in("a")], None),
        ([held_in("a"), held_in("b"), *resumed_in("b"), *resumed_in("a")], None),
        ([HELD, *resumed_in("b")], None),
        ([held_in("a"), *resumed_in("")], None),
    ],
)
def test_whether_git_ops_is_still_held_off(told: Sequence[Any], names: tuple[str, ...] | None) -> None:
    found = runs.still_held_off(entries(opened(0), *told))
    assert (found.names if found else None) == names
    assert (found.hosts if found else ()) == (("localhost",) if names else ())


# Answers


def counted(told: Sequence[Any], valid: float = 3600) -> list[str]:
    record = entries(*told)
    return [a.reason for a in runs.answers_for_run(record, runs.read_runs(record)[-1], valid)]


def test_an_answer_counts_when_it_was_given_in_the_run_or_shortly_before() -> None:
    assert counted([word(0, "go", reason="before"), opened(30), word(31, "go", run="r1", reason="in")]) == [
        "before",
        "in",
    ]


def test_an_answer_from_too_long_before_does_not_count() -> None:
    assert counted([word(0, "go"), opened(61)]) == []
    assert counted([word(0, "go"), opened(2)], valid=60) == []


def test_each_rollback_is_decided_anew() -> None:
    told = [word(0, "go"), opened(1), word(2, "go", run="r1"), outcome(3, runs.ROLLED_BACK), opened(4, "r2")]
    assert counted(told) == []
    told.insert(4, word(3.5, "go", reason="after the end of the first"))
    assert counted(told) == ["after the end of the first"]


def test_runs_of_the_same_second_stand_in_the_records_order() -> None:
    """Their names end in chance; where they stand in the record does not."""
    told = [word(0, "go"), opened(1, "20260110T200100Z-ffff"), outcome(1, runs.NOTHING_TO_DO, "20260110T200100Z-ffff")]
    assert counted([*told, opened(1, "20260110T200100Z-0000")]) == []


def test_an_answer_in_another_run_does_not_count() -> None:
    assert counted([opened(0), word(1, "go", run="r1"), outcome(2, runs.NOT_DECIDED), opened(3, "r2")]) == []


def test_an_answer_has_all_that_was_said() -> None:
    (answer,) = runs.read_answers(entries(word(5, "sign-off", role="qa", run="r1", item="looked", reason="bagus")))
    assert answer == runs.Answer(
        "sign-off", "qa", "the qa", "sign-off", "bagus", START + timedelta(minutes=5), "r1", "looked", ""
    )


# Statements


@given(
    st.lists(
        st.sampled_from(["launch", "word", "other word", runs.ROLLED_BACK, runs.NOTHING_TO_DO, runs.FAILED]), min_size=1
    )
)
def test_a_statement_counts_for_the_release_that_it_was_made_about(course: list[str]) -> None:
    """The newest launch and the last end that was rolled-back are what ends it; no other outcome."""
    told: list[tuple[float, str, str, dict[str, Any]]] = []
    launched, expected = START - timedelta(days=1), []
    for at, what in enumerate(course):
        if "word" in what:
            told.append(word(at, runs.UNSAFE, role=what, item="leak"))
            expected.append("")
        elif what == "launch":
            launched = START + timedelta(minutes=at)
            expected = ["the launch"] * len(expected)
        else:
            told += [opened(at, f"r{at}"), outcome(at, what, f"r{at}")]
            if what == runs.ROLLED_BACK:
                expected = ["the last rollback"] * len(expected)
    found = runs.read_statements(entries(*told), launched)
    assert [each["before"] for each in found] == expected
    assert {each["criterion"] for each in found} <= {"leak"}


def test_what_was_stated_before_a_run_gave_the_traffic_back_does_not_count_in_its_watch() -> None:
    told = entries(*(word(at, runs.UNSAFE, item="leak") for at in (1, 3)))
    found = runs.read_statements(told, START, first_back=START + timedelta(minutes=2))
    assert [each["before"] for each in found] == ["the traffic was given back", ""]


def test_what_was_stated_after_a_rollback_gave_the_traffic_back_counts_when_that_is_over() -> None:
    restore = [
        step(at, state, runs.PAGE_DOWN, phase="restore", saved={}) for at, state in ((2, "started"), (3, "done"))
    ]
    said = [word(at, runs.UNSAFE, item="leak") for at in (1, 4)]
    told = [opened(0), said[0], *restore, said[1], outcome(5, runs.ROLLED_BACK)]
    found = runs.read_statements(entries(*told), START - timedelta(days=1))
    assert [each["before"] for each in found] == ["the last rollback", ""]


def test_an_answer_counts_though_an_older_run_is_left_as_it_is_after_it() -> None:
    told = [opened(0), word(5, runs.NO_GO), outcome(9, runs.ABANDONED), opened(9, "r2")]
    found = runs.read_runs(entries(*told))
    assert [each.answer for each in runs.answers_for_run(entries(*told), found[1], valid=3600)] == [runs.NO_GO]


# Where a decision stands


def stand(*told: tuple[float, str, str, dict], needed: Sequence[str] = ("lead", "dba")) -> runs.Standing:
    return runs.standing(runs.read_answers(entries(*told)), needed, "database")


def test_nobody_has_answered() -> None:
    assert stand() == runs.Standing({}, ("lead", "dba"), None)
    assert not stand().made


def test_it_waits_for_who_has_not_answered() -> None:
    assert stand(word(0, "go")).waiting == ("dba",)
    assert not stand(word(0, "go")).made


def test_all_have_said_go() -> None:
    found = stand(word(0, "go"), word(1, "go", "dba"))
    assert (found.made, sorted(found.answers)) == (True, ["dba", "lead"])


def test_one_no_go_is_enough_even_while_others_are_waited_for() -> None:
    found = stand(word(0, "no-go", "dba"))
    assert found.refused
    assert (found.refused.role, found.made, found.waiting) == ("dba", False, ("lead",))


@pytest.mark.parametrize(("first", "then", "made"), [("no-go", "go", True), ("go", "no-go", False)])
def test_who_changes_their_mind_is_heard(first: str, then: str, made: bool) -> None:
    found = stand(word(0, first), word(1, then), needed=["lead"])
    assert (found.made, found.refused is None) == (made, made)


def test_a_word_about_another_remedy_does_not_count_for_this_one() -> None:
    assert stand(word(0, "go", remedy="deployment"), needed=["lead"]).waiting == ("lead",)
    assert stand(word(0, "no-go", remedy="deployment"), word(1, "go"), needed=["lead"]).made
    assert stand(word(0, "go", remedy="database"), needed=["lead"]).made


def test_whom_nobody_asked_may_refuse_and_take_it_back_but_not_decide() -> None:
    found = stand(word(0, "no-go", "intern"), word(1, "go"), needed=["lead"])
    assert (found.made, found.refused and found.refused.role) == (False, "intern")
    assert set(found.answers) == {"lead", "intern"}
    assert stand(word(0, "no-go", "intern"), needed=[]).refused
    back = stand(word(0, "no-go", "intern"), word(1, "go"), word(2, "go", "intern"), needed=["lead"])
    assert (back.made, set(back.answers)) == (True, {"lead"})
    assert stand(word(0, "go", "intern"), needed=["lead"]).waiting == ("lead",)


def test_a_sign_off_or_statement_is_no_go() -> None:
    assert stand(word(0, "sign-off", item="x"), word(0, "unsafe", item="leak"), needed=["lead"]).waiting == ("lead",)


# Sign-offs


def test_the_newest_word_of_its_role_on_its_item_is_the_sign_off() -> None:
    answers = runs.read_answers(
        entries(
            word(0, "sign-off", "qa", item="looked", reason="first"),
            word(1, "refuse", "qa", item="looked", reason="second"),
            word(2, "sign-off", "lead", item="looked"),
            word(3, "sign-off", "qa", item="other"),
        )
    )
    found = runs.sign_off_of(answers, "looked", "qa")
    assert found
    assert (found.answer, found.reason) == ("refuse", "second")
    assert runs.sign_off_of(answers, "looked", "dba") is None


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        ([word(1, "no-go", run="r1"), decided(2)], False),
        ([decided(2), word(3, "no-go", run="r1")], True),
        ([decided(2), word(3, "no-go", run="r1"), word(4, "go", run="r1")], False),
        ([decided(2), word(3, "go", role="other", run="r1"), word(4, "no-go", run="r1")], True),
        ([decided(2), word(3, "no-go", run="r1"), (4, "r1", "glass-broken", {})], False),
        ([decided(2), word(3, "no-go", run="r0")], False),
        ([decided(2), word(3, "no-go", run="r1", remedy="all")], True),
        ([decided(2), word(3, "no-go", run="r1", remedy="database")], False),
    ],
    ids=["before", "after", "changed mind", "one of two", "glass", "another run", "to it", "to another remedy"],
)
def test_a_no_after_the_decision(told: Sequence[Any], refused: bool) -> None:
    found = runs.taken_back(entries(opened(0), *told), "r1", "all")
    assert (found is not None) is refused


def test_a_sign_off_from_before_the_last_step_saw_something_else() -> None:
    told = [
        opened(0),
        word(1, "sign-off", "qa", "r1", item="x", reason="early"),
        step(2, "done"),
        (3, "r1", "asked", {}),
    ]
    assert runs.answers_since_last_step(entries(*told)) == []
    told.append(word(4, "sign-off", "qa", "r1", item="x", reason="late"))
    assert [a.reason for a in runs.answers_since_last_step(entries(*told))] == ["late"]
    assert runs.answers_since_last_step([]) == []


def hold(at: float, kind: str, run: str = "r1") -> tuple[float, str, str, dict]:
    return step(at, kind, "maintenance-page", run, phase="hold", saved={})


@pytest.mark.parametrize(
    ("told", "held"),
    [
        ([], None),
        ([opened(0), hold(1, "failed")], None),  # its check failed: nothing was touched
        ([opened(0), hold(1, "started")], "r1"),
        ([opened(0), hold(1, "started"), hold(2, "done"), outcome(3, "failed")], "r1"),
        (
            [opened(0), hold(1, "started"), outcome(3, "abandoned"), opened(4, "r2"), outcome(5, "not-decided", "r2")],
            "r1",
        ),
        ([opened(0), hold(1, "started"), outcome(3, "failed"), (4, "r2", "traffic-back", {"by": "rina"})], None),
        ([opened(0), hold(1, "started"), step(2, "started", "traffic-restore", phase="restore", saved={})], "r1"),
        ([opened(0), hold(1, "started"), step(2, "done", "traffic-restore", phase="restore")], None),
        ([opened(0), hold(1, "started"), step(2, "done", "gitops-resume", phase="restore")], "r1"),
        ([opened(0), hold(1, "started"), outcome(3, "rolled-back")], None),
        ([opened(0), hold(1, "started"), outcome(3, "failed"), opened(4, "r2"), outcome(5, "rolled-back", "r2")], None),
    ],
)
def test_who_still_holds_the_traffic(told: list[tuple], held: str | None) -> None:
    assert runs.still_held(entries(*told)) == held
