"""The rule over samples, by examples and by properties; and what a plan's author may write."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.criteria import (
    SAFE,
    UNKNOWN,
    UNSAFE,
    Condition,
    Sample,
    check_criterion,
    combine,
    evaluate,
    judge,
    parse_criterion,
)
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 1, 10, 13, 0, tzinfo=timezone.utc)
HIGH = Condition(">", 0.05)
BAD, GOOD = 0.1, 0.01


def row(marks: str, every: float = 60.0, now: datetime = NOW) -> list[Sample]:
    """Samples up to now, the newest last: ``x`` bad, ``.`` good, ``-`` asked and missing, blank nothing."""
    values = {"x": BAD, ".": GOOD, "-": None}
    return [
        Sample(now - timedelta(seconds=every * back), values[mark])
        for back, mark in enumerate(reversed(marks))
        if mark != " "
    ]


def verdict(marks: str, hold: float = 900, **more: object) -> str:
    return judge(row(marks), HIGH, hold, 60, NOW, **more).verdict  # type: ignore[arg-type]


# ---- the rule, by examples ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ("xxxxxxxxxxxxxxxx", UNSAFE),  # all of 15 minutes, both ends
        ("................", SAFE),
        (".xxxxxxxxxxxxxxxx", UNSAFE),  # what was before the window does not count
        ("xxxxxxxxxxxxxxx.", SAFE),  # good now
        ("xxxxxxxx.xxxxxxx", SAFE),  # one good sample starts it again
        (".xxxxxxxxxxxxxxx", SAFE),
        ("----------------", UNKNOWN),
        ("", UNKNOWN),
        ("xxxxxxxx-xxxxxxx", UNKNOWN),  # a gap does not count as unsafe
        ("xxxxxxxx xxxxxxx", UNKNOWN),
        ("-xxxxxxxxxxxxxxx", UNKNOWN),
        ("xxxx", UNKNOWN),  # a history shorter than `for`
        ("x", UNKNOWN),
        ("xxxxxxx.--------", UNKNOWN),  # too old to say anything about now
        ("xxxxxxxxxxxxxxx-", UNSAFE),  # the newest is a minute old: not a gap yet
        ("xxxxxxxxxxxxxx--", UNKNOWN),
        ("--------------.-", SAFE),  # one good sample disproves "all bad", whatever else is missing
        (".--------------x", SAFE),
        ("-.-.-.-.-.-.-.-.", SAFE),
    ],
)
def test_the_rule(marks: str, expected: str) -> None:
    assert verdict(marks) == expected


@pytest.mark.parametrize(
    ("marks", "expected"),
    [("x", UNSAFE), (".", SAFE), ("-", UNKNOWN), ("", UNKNOWN), (".x", UNSAFE), ("x.", SAFE), (".-", UNKNOWN)],
)
def test_without_for_only_the_newest_sample_counts(marks: str, expected: str) -> None:
    assert verdict(marks, hold=0) == expected


@pytest.mark.parametrize(
    ("marks", "hold", "reason"),
    [
        ("xxxx", 900, "0.1, > 0.05 for 3m of 15m so far"),
        ("x" * 16, 900, "0.1, > 0.05 for 15m (16 samples)"),
        ("x", 30, "0.1, > 0.05 for 30s (1 sample)"),
        ("xxxxxxxx.xxxxxxx", 900, "0.1, > 0.05, but only for 7m of 15m: at 12:53:00Z it was 0.01, not > 0.05"),
        ("xxxxxxxx-xxxxxxx", 900, "0.1, > 0.05, but no data between 12:52:00Z and 12:54:00Z"),
        ("", 900, "no data in the last 15m"),
        ("x" + "-" * 9, 900, "the newest sample is 9m old"),
        ("x", 0, "0.1, > 0.05"),
        (".", 0, "0.01, not > 0.05"),
        ("", 0, "no data now"),
    ],
)
def test_the_reason_is_one_sentence(marks: str, hold: float, reason: str) -> None:
    assert judge(row(marks), HIGH, hold, 60, NOW).reason == reason


def test_what_was_before_since_does_not_count() -> None:
    launched = NOW - timedelta(minutes=5)
    assert verdict("x" * 16, since=launched) == UNKNOWN
    assert verdict("..........xxxxxx", since=launched) == UNKNOWN
    assert verdict("..........xxxxxx") == SAFE
    assert verdict("x", hold=0, since=NOW + timedelta(seconds=1)) == UNKNOWN


def test_what_comes_after_now_does_not_count() -> None:
    samples = [*row("x" * 16), Sample(NOW + timedelta(seconds=60), GOOD)]
    assert judge(samples, HIGH, 900, 60, NOW).verdict == UNSAFE


def test_two_samples_of_one_moment_that_disagree_prove_nothing() -> None:
    samples = [Sample(NOW, BAD), Sample(NOW, GOOD)]
    assert judge(samples, HIGH, 0, 60, NOW).verdict == UNKNOWN


def test_nan_is_missing_and_infinity_is_a_value() -> None:
    assert Sample(NOW, math.nan) == Sample(NOW, None, "NaN")
    assert judge([Sample(NOW, math.nan)], Condition("!=", 1), 0, 60, NOW).verdict == UNKNOWN
    assert judge([Sample(NOW, math.inf)], HIGH, 0, 60, NOW).verdict == UNSAFE


def test_a_sample_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Sample(datetime(2026, 1, 10, 13, 0), 1.0)


# ---- the rule, by properties ----------------------------------------------------------------------

HOLD, EVERY = 300.0, 60.0
values = st.one_of(st.none(), st.just(BAD), st.just(GOOD), st.floats(allow_nan=True))
#: Any number of samples at any time around the window, in any order, some at the same moment.
somewhere = st.lists(
    st.builds(
        lambda seconds, value: Sample(NOW - timedelta(seconds=seconds), value),
        st.one_of(st.integers(-2, 8).map(lambda step: step * EVERY), st.floats(-100, 500)),
        values,
    ),
    max_size=30,
)
#: Mostly bad samples on the grid: the neighbourhood of `unsafe`.
nearly = st.lists(st.sampled_from("xxxxx.- "), min_size=6, max_size=9).map(lambda marks: row("".join(marks)))
histories = st.one_of(somewhere, nearly)


def of(samples: list[Sample], hold: float = HOLD) -> str:
    return judge(samples, HIGH, hold, EVERY, NOW).verdict


@given(histories, st.data())
def test_losing_samples_leads_nowhere_but_to_unknown(samples: list[Sample], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(samples), unique_by=id) if samples else st.just([]))
    assert of(kept) in {of(samples), UNKNOWN} or (of(samples) == SAFE and not _any_good(kept))


@given(histories, st.data())
def test_a_sample_that_goes_missing_never_makes_safe(samples: list[Sample], data: st.DataObject) -> None:
    gone = {data.draw(st.integers(0, len(samples) - 1))} if samples else set()
    holed = [replace(each, value=None) if i in gone else each for i, each in enumerate(samples)]
    if of(samples) != SAFE:
        assert of(holed) != SAFE
    if _all_missing(samples, 0):
        assert of(samples, 0) == UNKNOWN


@given(histories, st.data())
def test_a_bad_sample_turned_good_never_makes_unsafe(samples: list[Sample], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(samples) - 1)) if samples else 0
    better = [replace(each, value=GOOD) if i == index else each for i, each in enumerate(samples)]
    if of(samples) != UNSAFE:
        assert of(better) != UNSAFE


@given(histories)
def test_one_good_sample_in_the_window_is_never_unsafe(samples: list[Sample]) -> None:
    begin = NOW - timedelta(seconds=HOLD)
    if any(begin <= each.at <= NOW and each.value == GOOD for each in samples):
        assert of(samples) != UNSAFE


@given(histories)
def test_unsafe_needs_the_whole_window_and_safe_a_good_sample(samples: list[Sample]) -> None:
    if of(samples) == SAFE:
        assert _any_good(samples)
    if of(samples) == UNSAFE:
        known = sorted(each.at for each in samples if each.value is not None and each.at <= NOW)
        inside = [at for at in known if at >= NOW - timedelta(seconds=HOLD + EVERY / 2)]
        edges = [NOW - timedelta(seconds=HOLD + EVERY / 2), *inside, NOW]
        assert all((b - a).total_seconds() <= 1.5 * EVERY for a, b in zip(edges, edges[1:], strict=False))


@given(histories, st.randoms(), st.sampled_from([0.0, HOLD]))
def test_order_and_doubles_do_not_matter(samples: list[Sample], random: object, hold: float) -> None:
    shuffled = [*samples, *samples]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert of(shuffled, hold) == of(samples, hold)


@given(
    histories,
    st.sampled_from(["Asia/Jakarta", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.sampled_from(["2026-03-29T01:02+00:00", "2026-10-25T01:02+00:00", "2026-11-01T06:02+00:00"]),
)
def test_time_zones_and_daylight_saving_do_not_matter(samples: list[Sample], zone: str, moment: str) -> None:
    now = datetime.fromisoformat(moment)
    moved = [replace(each, at=now + (each.at - NOW)) for each in samples]
    local = ZoneInfo(zone)
    there = [replace(each, at=each.at.astimezone(local)) for each in moved]
    assert judge(there, HIGH, HOLD, EVERY, now.astimezone(local)).verdict == of(samples)


def test_the_machines_own_time_zone_does_not_matter() -> None:
    before = os.environ.get("TZ")
    try:
        os.environ["TZ"] = "Asia/Jakarta"
        time.tzset()
        assert verdict("x" * 16) == UNSAFE
    finally:
        os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
        time.tzset()


def _any_good(samples: list[Sample]) -> bool:
    return any(each.value is not None and not HIGH.holds(each.value) for each in samples)


def _all_missing(samples: list[Sample], hold: float) -> bool:
    return all(each.value is None for each in samples)


# ---- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "any_of", "all_of"),
    [
        ([SAFE, SAFE], SAFE, SAFE),
        ([SAFE, UNSAFE], UNSAFE, SAFE),
        ([SAFE, UNKNOWN], UNKNOWN, SAFE),
        ([UNSAFE, UNKNOWN], UNSAFE, UNKNOWN),
        ([UNSAFE, UNSAFE], UNSAFE, UNSAFE),
        ([UNKNOWN, UNKNOWN], UNKNOWN, UNKNOWN),
        ([], UNKNOWN, UNKNOWN),
    ],
)
def test_the_verdict_of_the_whole(verdicts: list[str], any_of: str, all_of: str) -> None:
    assert (combine(verdicts, "any"), combine(verdicts, "all")) == (any_of, all_of)


# ---- what a plan's author may write ---------------------------------------------------------------

WHOLE = {
    "name": "error-rate",
    "says": "Error rate aplikasi > 5 % selama 15 menit berturut-turut",
    "measure": {"prometheus": {"url": "http://prometheus:9090", "query": "sum(errors)"}},
    "unsafe": "> 5%",
    "for": "15m",
    "every": "1m",
    "touches": ["backend"],
}
WHERE = "rollback_criteria[0]"


def test_a_criterion_as_the_plan_writes_it() -> None:
    criterion = parse_criterion(WHOLE, WHERE)
    assert (criterion.hold, criterion.every, criterion.limit) == (900, 60, 10)
    assert criterion.unsafe == Condition(">", 0.05)
    assert criterion.touches == ("backend",)


def test_speed_shortens_waiting_and_nothing_else() -> None:
    criterion = parse_criterion(WHOLE, WHERE, speed=30)
    assert (criterion.hold, criterion.every, criterion.limit) == (30, 2, 10)
    assert criterion.unsafe.threshold == 0.05


def test_every_makes_a_whole_number_of_steps() -> None:
    assert parse_criterion({**WHOLE, "for": "100s"}, WHERE).every == 50
    assert parse_criterion({**WHOLE, "for": "20s", "every": "10s"}, WHERE).every == 10
    without = {key: value for key, value in WHOLE.items() if key != "every"}
    assert parse_criterion({**without, "for": "20s"}, WHERE).every == 20


def test_defaults_fill_what_the_spec_leaves_out() -> None:
    data = {**WHOLE, "measure": {"prometheus": {"query": "up"}}}
    assert [each.what for each in check_criterion(data, WHERE)] == [f"{WHERE}.measure.prometheus.url"]
    criterion = parse_criterion(data, WHERE, defaults={"prometheus": {"url": "http://p:9090"}})
    assert criterion.measure == {"prometheus": {"url": "http://p:9090", "query": "up"}}


HTTP = {"requests": [{"url": "http://app/"}]}


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"fro": "1m"}, "fro", "Did you mean for?"),
        ({"for": "15 minutes"}, "for", "15 minutes"),
        ({"for": "1m", "every": "2m"}, "every", "at most"),
        ({"for": "10d", "every": "1s"}, "every", "864000 samples"),
        ({"every": 0}, "every", "above zero"),
        ({"timeout": "-1s"}, "timeout", "a duration"),
        ({"unsafe": "> 5x"}, "unsafe", "'5x'"),
        ({"unsafe": 0.05}, "unsafe", "in quotes"),
        ({"unsafe": "failed"}, "unsafe", "an operator"),
        ({"touches": ["api"]}, "touches[0]", "frontend, backend, database"),
        ({"measure": {"promethus": {}}}, "measure.promethus", "Did you mean prometheus?"),
        ({"measure": {}}, "measure", "exactly one of prometheus, http, statement"),
        ({"measure": "prometheus"}, "measure", "exactly one"),
        ({"measure": {"http": HTTP, "statement": {}}}, "measure", "http, statement"),
        ({"measure": {"prometheus": {"url": "prometheus:9090", "query": "x"}}}, "measure.prometheus.url", "http://"),
        ({"measure": {"prometheus": {"url": "http://p", "query": "x", "user": "u"}}}, "measure.prometheus", "both"),
        ({"measure": {"http": {}}}, "measure.http.requests", "is missing"),
        ({"measure": {"http": {"requests": []}}}, "measure.http.requests", "at least one"),
        ({"measure": {"http": {"requests": [{"url": "/x"}]}}}, "measure.http.requests[0].url", "base"),
        (
            {"measure": {"http": {"requests": [{"url": "http://app/<id>"}]}}},
            "measure.http.requests[0].url",
            "nothing saved before",
        ),
        (
            {"measure": {"http": {"requests": [{"url": "http://app/", "expect": {"status": "9xx"}}]}}},
            "measure.http.requests[0].expect.status",
            "2xx",
        ),
        (
            {"measure": {"http": {"requests": [{"url": "http://app/", "expect": {"matches": "("}}]}}},
            "measure.http.requests[0].expect.matches",
            "regular expression",
        ),
        ({"measure": {"http": {**HTTP, "value": "latency"}}, "unsafe": "> 30s"}, "timeout", "more than 30 s"),
        ({"measure": {"statement": {"by": []}}, "for": 0}, "measure.statement.by", "at least one"),
        ({"measure": {"statement": {"by": ["lead"]}}}, "for", "counts at once"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_path(change: dict, path: str, says: str) -> None:
    problems = check_criterion({**WHOLE, **change}, WHERE)
    assert any(each.what == f"{WHERE}.{path}" and says in str(each) for each in problems), list(map(str, problems))
    with pytest.raises(BalikError):
        parse_criterion({**WHOLE, **change}, WHERE)


def test_all_problems_are_found_at_once() -> None:
    problems = check_criterion({"unsafe": "> x", "for": "soon", "measure": {"http": {}}, "touches": []}, WHERE)
    assert {each.what.removeprefix(f"{WHERE}.") for each in problems} == {
        "name",
        "for",
        "unsafe",
        "measure.http.requests",
        "touches",
    }
    nonsense: list[object] = [None, [], "x", {}]
    for data in nonsense:
        assert check_criterion(data, WHERE)


def test_secrets_do_not_show_in_messages() -> None:
    measure = {
        "prometheus": {"url": "http:/user:hunter2@p", "query": "x", "bearer": ["hunter2"], "password": "hunter2"}
    }
    assert "hunter2" not in " ".join(map(str, check_criterion({**WHOLE, "measure": measure}, WHERE)))


def test_a_condition_that_the_measurement_implies_needs_not_be_written() -> None:
    failed = {"name": "x", "measure": {"http": HTTP}}
    for data in (failed, {**failed, "unsafe": "failed"}, {**failed, "unsafe": "== 1"}):
        assert parse_criterion(data, WHERE).unsafe == Condition("==", 1)
    assert check_criterion({"name": "x", "measure": {"http": {**HTTP, "value": "status"}}}, WHERE)


# ---- statements, which need no server -------------------------------------------------------------


def statement(verdict: str, role: str, minutes: float, criterion: str = "data-leak") -> dict:
    at = (NOW - timedelta(minutes=minutes)).isoformat()
    return {"criterion": criterion, "verdict": verdict, "by": "Ana", "role": role, "reason": "seen", "at": at}


@pytest.mark.parametrize(
    ("statements", "without", "expected"),
    [
        ([], None, UNKNOWN),
        ([], "safe", SAFE),
        ([], "unknown", UNKNOWN),
        ([statement("unsafe", "lead", 500)], None, UNSAFE),
        ([statement("unsafe", "lead", 5), statement("safe", "qa", 1)], None, SAFE),
        ([statement("safe", "qa", 5), statement("unsafe", "lead", 1)], "safe", UNSAFE),
        ([statement("unsafe", "intern", 5)], "safe", SAFE),
        ([statement("unsafe", "lead", 5, criterion="other")], "safe", SAFE),
        ([statement("unsafe", "lead", -5)], None, UNKNOWN),
    ],
)
def test_the_newest_statement_by_one_of_the_roles_counts(
    statements: list[dict], without: str | None, expected: str
) -> None:
    spec = {"by": ["lead", "qa"], **({"without": without} if without else {})}
    criterion = parse_criterion({"name": "data-leak", "measure": {"statement": spec}}, WHERE)
    for given_as in (statements, lambda: statements):
        found = evaluate([criterion], {"statements": given_as}, now=NOW)
        assert found.verdict == expected, found.reason


def test_a_statement_is_its_own_evidence() -> None:
    criterion = parse_criterion({"name": "data-leak", "measure": {"statement": {"by": ["lead"]}}}, WHERE)
    context = {"statements": [statement("unsafe", "lead", 5)]}
    found = evaluate([criterion], context, now=NOW)  # type: ignore[arg-type]
    assert found.reason == "data-leak: Ana (lead) at 2026-01-10T12:55:00.000000Z: unsafe, seen"
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_statement_about_an_earlier_release_is_named_and_does_not_count() -> None:
    spec = {"by": ["lead"], "without": "safe"}
    criterion = parse_criterion({"name": "data-leak", "measure": {"statement": spec}}, WHERE)
    past = {**statement("unsafe", "lead", 5), "before": "the launch"}
    found = evaluate([criterion], {"statements": [statement("unsafe", "intern", 1), past]}, now=NOW)
    assert found.verdict == SAFE
    assert found.verdicts[0].reason == (
        "no statement by lead; an older one (unsafe by Ana at 2026-01-10T12:55:00.000000Z) is from before the launch "
        "and does not count; state it again if it still holds"
    )
    again = evaluate([criterion], {"statements": [past, statement("unsafe", "lead", 1)]}, now=NOW)
    assert (again.verdict, "older one" in again.reason) == (UNSAFE, False)


def test_an_unreadable_statement_makes_its_criterion_unknown_and_no_other() -> None:
    criteria = [
        parse_criterion({"name": name, "measure": {"statement": {"by": ["lead"], "without": "safe"}}}, WHERE)
        for name in ("a", "b")
    ]
    broken = {**statement("unsafe", "lead", 5, "a"), "at": "yesterday"}
    found = evaluate(criteria, {"statements": [broken]}, now=NOW)
    assert [each.verdict for each in found.verdicts] == [UNKNOWN, SAFE]
    assert "yesterday" in found.reason
