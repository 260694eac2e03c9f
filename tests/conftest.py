"""Shared by all tests."""

from __future__ import annotations

import hypothesis
import pytest

# How long one example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile("balik", deadline=None)
hypothesis.settings.load_profile("balik")
pytest.register_assert_rewrite("tests.contracts.record")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where two processes share the tests, each file stays with one; so do all that use the one Docker engine."""
    for item in items:
        group = "docker" if item.get_closest_marker("docker") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
