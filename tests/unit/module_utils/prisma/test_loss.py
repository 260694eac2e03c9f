from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma import loss


def test_a_folder_of_what_was_kept_that_cannot_be_looked_into_is_not_an_empty_one(tmp_path: Path) -> None:
    assert loss.attempts(tmp_path / "none", "20260102000000_leaderboard") == []
    with pytest.raises(BalikError, match=r"cannot be looked into by \S+: File name too long"):
        loss.attempts(tmp_path / ("a" * 300), "20260102000000_leaderboard")
