"""What is changed on an autoscaler to hold it still: objects in, patches out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.scale import kinds
from ansible_collections.balik.rollback.plugins.module_utils.scale.kinds import DISABLED, NOTE, Note

NOTED = "/metadata/annotations/balik.dev~1frozen"


def thing(spec: dict[str, Any] | None = None, **annotations: str) -> dict[str, Any]:
    notes = {"annotations": {name.replace("__", "/"): value for name, value in annotations.items()}}
    return {"metadata": {"name": "web", "resourceVersion": "7", **(notes if annotations else {})}, "spec": spec or {}}


@pytest.mark.parametrize(
    ("versions", "minor", "version", "settings"),
    [
        (["v2", "v1"], 30, "v2", ("/spec/behavior",)),
        (["v2", "v2beta2", "v1"], 25, "v2", ("/spec/behavior",)),
        (["v2beta2", "v1"], 20, "v2beta2", ("/spec/behavior",)),
        (["v2beta2", "v1"], 17, "v1", ("/spec/minReplicas", "/spec/maxReplicas")),
        (["v1"], 20, "v1", ("/spec/minReplicas", "/spec/maxReplicas")),
    ],
)
def test_the_way_that_a_cluster_has(versions: list[str], minor: int, version: str, settings: tuple[str, ...]) -> None:
    kind = kinds.horizontal(versions, minor)
    assert (kind.version, kind.settings) == (version, settings)


def test_policies_stay_while_both_ways_are_disabled() -> None:
    up = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 60}]}
    still = kinds.behaviour("v2").still({"/spec/behavior": {"scaleUp": {**up, "selectPolicy": "Max"}}}, 0)
    assert still == {
        "/spec/behavior": {"scaleUp": {**up, "selectPolicy": DISABLED}, "scaleDown": {"selectPolicy": DISABLED}}
    }


@pytest.mark.parametrize(
    ("kind", "spec", "annotations", "holds"),
    [
        (kinds.behaviour("v2"), {}, {}, False),
        (kinds.behaviour("v2"), {"behavior": {"scaleUp": {"selectPolicy": DISABLED}}}, {}, False),
        (
            kinds.behaviour("v2"),
            {"behavior": {"scaleUp": {"selectPolicy": DISABLED}, "scaleDown": {"selectPolicy": DISABLED}}},
            {},
            True,
        ),
        (kinds.pinned(), {"minReplicas": 2, "maxReplicas": 9}, {}, False),
        (kinds.pinned(), {"minReplicas": 4, "maxReplicas": 4}, {}, True),
        (kinds.SCALED_OBJECT, {}, {}, False),
        (kinds.SCALED_OBJECT, {}, {"autoscaling.keda.sh__paused": "false"}, False),
        (kinds.SCALED_OBJECT, {}, {"autoscaling.keda.sh__paused": "true"}, True),
        (kinds.VERTICAL, {}, {}, False),
        (kinds.VERTICAL, {"updatePolicy": {"updateMode": "Auto"}}, {}, False),
        (kinds.VERTICAL, {"updatePolicy": {"updateMode": "Off", "minReplicas": 2}}, {}, True),
    ],
)
def test_what_stands_still(kind: kinds.Kind, spec: dict[str, Any], annotations: dict[str, str], holds: bool) -> None:
    found = thing(spec, **annotations)
    assert kind.is_still(found) is holds
    assert kind.holds(kind.still(kind.values(found), 3))


def test_a_pinned_autoscaler_has_as_few_and_as_many_as_there_are_but_never_zero() -> None:
    for replicas, pinned in ((4, 4), (0, 1)):
        still = kinds.pinned().still({"/spec/minReplicas": 2, "/spec/maxReplicas": 9}, replicas)
        assert still == {"/spec/minReplicas": pinned, "/spec/maxReplicas": pinned}


def test_settings_and_note_go_in_one_patch_that_minds_other_changes() -> None:
    note = Note("hub", "r1", {"/spec/behavior": None})
    ops = kinds.patch(thing(), {"/spec/behavior": {"x": 1}}, note)
    assert ops == [
        {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "add", "path": "/metadata/annotations", "value": {}},
        {"op": "add", "path": NOTED, "value": str(note)},
        {"op": "add", "path": "/spec/behavior", "value": {"x": 1}},
    ]
    frozen = thing({"behavior": {"x": 1}}, **{NOTE: str(note)})
    assert kinds.note_of(frozen) == note
    assert kinds.patch(frozen, note.was, None)[1:] == [
        {"op": "remove", "path": NOTED},
        {"op": "remove", "path": "/spec/behavior"},
    ]


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", json.dumps({"product": "hub", "run": "r", "was": 3})])
def test_a_note_that_cannot_be_read_is_none(text: str) -> None:
    assert kinds.note_of(thing(None, **{NOTE: text})) is None


def test_who_owns_an_autoscaler() -> None:
    owned = thing()
    owned["metadata"]["ownerReferences"] = [{"kind": "ScaledObject", "name": "queue"}]
    assert kinds.keeper_of(owned) == "queue"
    assert kinds.keeper_of(thing()) is None
