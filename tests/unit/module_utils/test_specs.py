"""What is refused says what was found, and never shows what may be a secret."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils import specs


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "found ''"),
        ("geheim\ngeheimer", "found a text of several lines"),
        (["geheim"], "found no text"),
        (None, "found no text"),
    ],
)
def test_a_secret_that_is_refused_is_not_shown(value: object, found: str) -> None:
    (problem,) = specs.secret(value, "the.key")
    assert problem.found.startswith(found)
    assert "geheim" not in str(problem)
