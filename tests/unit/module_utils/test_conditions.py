from __future__ import annotations

import math

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.conditions import Condition
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError


@pytest.mark.parametrize(
    ("text", "op", "threshold"),
    [
        ("> 0.05", ">", 0.05),
        (">0.05", ">", 0.05),
        ("> 5%", ">", 0.05),
        (">= 90 %", ">=", 0.9),
        ("> 5s", ">", 5),
        ("> 1m30s", ">", 90),
        ("> 500ms", ">", 0.5),
        ("< 2GiB", "<", 2 * 1024**3),
        ("<= 10 MB", "<=", 10_000_000),
        ("== 0", "==", 0),
        ("!= 200", "!=", 200),
        ("< -1.5e3", "<", -1500),
    ],
)
def test_conditions_as_plans_write_them(text: str, op: str, threshold: float) -> None:
    condition = Condition.parse(text)
    assert (condition.op, condition.threshold) == (op, pytest.approx(threshold))


@pytest.mark.parametrize(
    "value",
    [
        "",
        ">",
        "0.05",
        "=> 5",
        "> ",
        "> five",
        "> 5,5",
        "> nan",
        "> inf",
        "> 1e400",
        "> ٥",
        "> 5 apples",
        0.05,
        None,
        True,
        "> 1 > 2",
        "~ 5",
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(BalikError) as caught:
        Condition.parse(value, "rollback_criteria[2].unsafe")
    assert caught.value.what == "rollback_criteria[2].unsafe"
    assert caught.value.expected


def test_a_condition_is_shown_as_it_was_written() -> None:
    assert str(Condition.parse(">  5%")) == "> 5%"
    assert str(Condition(">", 0.05)) == "> 0.05"


@pytest.mark.parametrize("op", [">", ">=", "<", "<=", "==", "!="])
def test_no_condition_holds_for_nan(op: str) -> None:
    assert not Condition(op, 1).holds(math.nan)
