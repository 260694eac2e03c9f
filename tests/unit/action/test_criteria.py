"""What a check run may ask."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.action.criteria import writes


@pytest.mark.parametrize(
    ("requests", "found"),
    [
        ([{"url": "/"}], False),
        ([{"url": "/", "method": "get"}, {"url": "/", "method": "HEAD"}], False),
        ([{"url": "/"}, {"url": "/documents", "json": {"title": "x"}}], True),
        ([{"url": "/search", "body": "q=x", "method": "GET"}], False),
        ([{"url": "/documents/1", "method": "DELETE"}], True),
    ],
)
def test_a_sequence_that_may_change_something_is_known(requests: list[dict[str, Any]], found: bool) -> None:
    assert writes({"requests": requests}) is found
    assert writes({"url": "/", **requests[-1]}) is found
    assert writes({"requests": [{"url": "/"}], "after": requests}) is found
