"""Which role a step's name means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import constants
from ansible_collections.balik.rollback.plugins.plugin_utils.action import ENTRY_POINTS, step_role, step_roles


def role(folder: Path, *entry_points: str) -> Path:
    """A role with specs of these entry points."""
    (folder / "meta").mkdir(parents=True)
    specs: dict[str, dict[str, Any]] = {"argument_specs": {name: {} for name in entry_points}}
    (folder / "meta" / "argument_specs.yml").write_text(yaml.safe_dump(specs))
    return folder


def test_one_step_is_found_where_all_of_them_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(constants, "DEFAULT_ROLES_PATH", [str(first), str(tmp_path / "none"), str(second)])
    role(first / "half-a-step", "main", "check")
    own = role(first / "image-revert", *ENTRY_POINTS)
    whole = role(second / "half-a-step", *ENTRY_POINTS)
    (first / "no-specs").mkdir()

    steps = step_roles()
    assert {"maintenance-page", "traffic-restore"} < set(steps)
    assert {name: step_role(name) for name in steps} == steps
    assert (steps["image-revert"], steps["half-a-step"]) == (own, whole)
    for name in ("no-specs", "rollback-step", "nowhere"):
        assert name not in steps
        with pytest.raises(KeyError, match=name):
            step_role(name)
