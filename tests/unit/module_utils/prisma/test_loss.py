"""Where what would be lost is kept, and who may look into it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma import loss

from tests.contracts.record import PROJECT


def test_a_folder_of_what_was_kept_that_cannot_be_looked_into_is_not_an_empty_one(tmp_path: Path) -> None:
    assert loss.attempts(tmp_path / "none", "20260102000000_leaderboard") == []
    with pytest.raises(BalikError, match=r"cannot be looked into by \S+: File name too long"):
        loss.attempts(tmp_path / ("a" * 300), "20260102000000_leaderboard")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, as which this is tried")
def test_a_folder_that_is_another_users_only(tmp_path: Path) -> None:
    (tmp_path / "kept" / "run").mkdir(parents=True)
    (tmp_path / "kept").chmod(0o700)
    code = (
        "import os, sys\n"
        "from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError\n"
        "from ansible_collections.balik.rollback.plugins.module_utils.prisma import down, loss\n"
        "from pathlib import Path\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(*down._writable(Path(sys.argv[1])))\n"
        "try:\n  loss.listed(Path(sys.argv[1]))\nexcept BalikError as error:\n  print(error)\n"
    )
    for parent in (tmp_path, *tmp_path.parents):
        if parent == Path("/tmp"):
            break
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "kept" / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
    )
    assert f"cannot be made, because {tmp_path}/kept may not be written by nobody\n" in done.stdout, done.stderr
    assert f"{tmp_path}/kept/run: cannot be looked into by nobody: Permission denied" in done.stdout
