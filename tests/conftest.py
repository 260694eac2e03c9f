"""Shared by all tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

# How long one example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile("balik", deadline=None)
hypothesis.settings.load_profile("balik")
pytest.register_assert_rewrite("tests.contracts.record")


class OneEngine(LoadScopeScheduling):
    """Where processes share the tests, each file stays with one; so do all that run containers on the one Docker
    engine. A parameter alone (``marks=``) does not make a file one of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        runs_containers = re.search(
            r"^(pytestmark = |@)pytest\.mark\.docker", Path(self.config.rootpath, file).read_text(), re.MULTILINE
        )
        return "docker" if runs_containers else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneEngine:
    """xdist's ``--dist`` for these tests."""
    return OneEngine(config, log)
