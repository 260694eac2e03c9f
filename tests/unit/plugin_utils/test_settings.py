"""Settings of a step that are refused with the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.plugin_utils.settings import StepSettings

ROLES = Path(__file__).parents[3] / "roles"


def problems(role: str, settings: dict[str, Any]) -> dict[str, str]:
    return dict(StepSettings(ROLES / role, {role}).problems(settings, settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "refused"), [("kubernetes", False), ("nginx", True)])
def test_the_page_s_url_may_be_empty_on_kubernetes_alone(backend: str, refused: bool) -> None:
    found = problems("maintenance-page", {"maintenance_page_backend": backend, "maintenance_page_url": ""})
    assert ("maintenance_page_url" in found) is refused


def test_workloads_beside_labels_and_an_empty_namespace() -> None:
    workloads = [{"namespace": "", "name": "web", "image": "hub:1"}]
    kubernetes = {"image_revert_backend": "kubernetes", "image_revert_workloads": workloads}
    found = problems("image-revert", kubernetes)
    assert "expected the workload's namespace" in found["image_revert_workloads[0].namespace"]
    both = problems("image-revert", {**kubernetes, "image_revert_labels": {"app": "web"}})
    assert both["image_revert_workloads"] == "given beside image_revert_labels; expected one of the two"
    assert "image_revert_workloads" not in problems("image-revert", kubernetes)
