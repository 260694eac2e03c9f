"""Each Molecule scenario is a test, so that the closing line of pytest counts them, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
# A product's scenario is tested with a rollback on it, in a module of its own (test_lawyers_hub.py).
PRODUCTS = {"lawyers-hub"}
SCENARIOS = sorted({path.parent.name for path in HOUSE.glob("molecule/*/molecule.yml")} - PRODUCTS)
LIMIT = 900


@pytest.mark.docker
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, tmp_path: Path) -> None:
    """`molecule test` of the scenario ends well; what it printed is shown when it does not."""
    programs = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "MOLECULE_COMMAND_BORDERS": "0",
        "NO_COLOR": "1",
    }
    log = tmp_path / "molecule.log"
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [programs / "molecule", "test", "--scenario-name", scenario],
            cwd=HOUSE,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 0, "\n".join(log.read_text(encoding="utf-8").splitlines()[-80:])
