"""The project's one error reads as a person would say it."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BalikError("lb-1", "it is down"), "lb-1: it is down"),
        (BalikError("wait", "found 'soon'", "a duration"), "wait: found 'soon'; expected a duration"),
        (BalikError("wait", "found 'soon'", do="Mend it."), "wait: found 'soon'. Mend it."),
        (
            BalikError("hold", "wait: found 'soon'. Mend it.", do="Nothing is done."),
            "hold: wait: found 'soon'. Mend it. Nothing is done.",
        ),
        (BalikError("wait", "found 'soon'", "30s", "Mend it."), "wait: found 'soon'; expected 30s. Mend it."),
    ],
)
def test_it_says_what_found_expected_and_what_to_do(error: BalikError, text: str) -> None:
    assert str(error) == text


def test_a_system_that_does_not_answer_is_one_too() -> None:
    assert isinstance(Unreachable("db-1", "no answer within 5 s (tried port 5432)"), BalikError)
