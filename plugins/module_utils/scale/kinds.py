"""The kinds of autoscalers in Kubernetes: what is changed to hold one still, and how to put it back.

Everything here is pure: objects in, JSON patches out. What a freeze replaces stands on the object itself, in an
annotation that is written and removed by the same patch as the settings. So a freeze cannot be half-done, the thaw
needs no more than the object, and whoever looks at the object sees why it stands still.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
Values = dict[str, Any]
"""Settings by JSON pointer; None for one that is absent."""

NOTE = "balik.dev/frozen"
"""Annotation on what is frozen: JSON of :class:`Note`."""

DISABLED = "Disabled"
_PAUSED = "/metadata/annotations/autoscaling.keda.sh~1paused"


@dataclass(frozen=True)
class Note:
    """What a freeze leaves on the object: whose it is, and the settings that it replaced."""

    product: str
    run: str
    was: Values

    def __str__(self) -> str:
        return json.dumps({"product": self.product, "run": self.run, "was": self.was}, sort_keys=True)


@dataclass(frozen=True)
class Kind:
    """One kind of autoscaler.

    :ivar settings: JSON pointers of what freezing replaces.
    :ivar still: the settings that hold it still, from those that it has and the replicas that its target has.
    :ivar holds: whether settings hold it still.
    :ivar pins: ``still`` needs to know the replicas.
    :ivar rest: of one that was changed while frozen, what is to be put back: from the settings before and those now.
    :ivar rare: nobody but a freeze leaves it standing still.
    """

    name: str
    group: str
    version: str
    plural: str
    settings: tuple[str, ...]
    still: Callable[[Values, int], Values]
    holds: Callable[[Values], bool]
    pins: bool = False
    rest: Callable[[Values, Values], Values] = lambda _was, _values: {}
    rare: bool = False

    def values(self, thing: Object) -> Values:
        """The settings as they stand."""
        return {pointer: copy.deepcopy(_at(thing, pointer)) for pointer in self.settings}

    def is_still(self, thing: Object) -> bool:
        return self.holds(self.values(thing))


def behaviour(version: str) -> Kind:
    """A HorizontalPodAutoscaler whose API has ``behavior``: it may neither scale up nor down."""

    def still(values: Values, _replicas: int) -> Values:
        behavior = values["/spec/behavior"] or {}
        ways = {way: {**(behavior.get(way) or {}), "selectPolicy": DISABLED} for way in ("scaleUp", "scaleDown")}
        return {"/spec/behavior": {**behavior, **ways}}

    def holds(values: Values) -> bool:
        behavior = values["/spec/behavior"] or {}
        return all((behavior.get(way) or {}).get("selectPolicy") == DISABLED for way in ("scaleUp", "scaleDown"))

    def rest(was: Values, values: Values) -> Values:
        before, now = was["/spec/behavior"] or {}, values["/spec/behavior"] or {}
        disabled = {way for way, one in now.items() if (one or {}).get("selectPolicy") == DISABLED}
        kept = {way: one for way, one in now.items() if way not in disabled}
        return {"/spec/behavior": {**kept, **{way: before[way] for way in disabled if before.get(way)}} or None}

    return Kind(*_HPA[:2], version, _HPA[2], ("/spec/behavior",), still, holds, rest=rest, rare=True)


def pinned() -> Kind:
    """A HorizontalPodAutoscaler of an older cluster: as few and as many replicas as there are."""
    least, most = "/spec/minReplicas", "/spec/maxReplicas"
    return Kind(
        *(*_HPA[:2], "v1", _HPA[2], (least, most)),
        # A target at zero is left alone by its autoscaler, which takes no zero itself.
        lambda _values, replicas: {least: max(replicas, 1), most: max(replicas, 1)},
        lambda values: values[least] == values[most],
        pins=True,
    )


_HPA = ("HorizontalPodAutoscaler", "autoscaling", "horizontalpodautoscalers")


def _keda(name: str, plural: str) -> Kind:
    return Kind(
        *(name, "keda.sh", "v1alpha1", plural, (_PAUSED,)),
        lambda _values, _replicas: {_PAUSED: "true"},
        lambda values: values[_PAUSED] == "true",
    )


SCALED_OBJECT = _keda("ScaledObject", "scaledobjects")
SCALED_JOB = _keda("ScaledJob", "scaledjobs")
VERTICAL = Kind(
    *("VerticalPodAutoscaler", "autoscaling.k8s.io", "v1", "verticalpodautoscalers", ("/spec/updatePolicy",)),
    lambda values, _replicas: {"/spec/updatePolicy": {**(values["/spec/updatePolicy"] or {}), "updateMode": "Off"}},
    lambda values: (values["/spec/updatePolicy"] or {}).get("updateMode") == "Off",
)
NAMES = (_HPA[0], SCALED_OBJECT.name, SCALED_JOB.name, VERTICAL.name)


def horizontal(versions: list[str], minor: int) -> Kind:
    """The way to hold a HorizontalPodAutoscaler that a cluster has.

    :param versions: of the API group ``autoscaling`` that it serves.
    :param minor: its version, 1.``minor``: before 1.18, v2beta2 drops ``behavior``.
    """
    if "v2" in versions:
        return behaviour("v2")
    return behaviour("v2beta2") if "v2beta2" in versions and minor >= 18 else pinned()


def note_of(thing: Object) -> Note | None:
    """What a freeze has left on the object; None where it left nothing, or nothing that can be read."""
    text = (thing["metadata"].get("annotations") or {}).get(NOTE, "")
    try:
        found = json.loads(text)
        return Note(str(found["product"]), str(found["run"]), dict(found["was"]))
    except (TypeError, ValueError, KeyError):
        return None


def keeper_of(thing: Object) -> str | None:
    """The ScaledObject that made this HorizontalPodAutoscaler, and would undo what is done to it."""
    owners = thing["metadata"].get("ownerReferences") or []
    return next((owner["name"] for owner in owners if owner.get("kind") == SCALED_OBJECT.name), None)


def patch(thing: Object, values: Values, note: Note | None) -> list[dict[str, Any]]:
    """The JSON patch that gives the object these settings and this note, or takes its note away.

    It is refused (409) when the object has changed since it was read.
    """
    metadata = thing["metadata"]
    ops: list[dict[str, Any]] = [
        {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}
    ]
    wanted = {"/metadata/annotations/" + NOTE.replace("/", "~1"): None if note is None else str(note), **values}
    if not metadata.get("annotations"):
        ops.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    for pointer, value in wanted.items():
        if value is not None:
            ops.append({"op": "add", "path": pointer, "value": value})
        elif _at(thing, pointer) is not None:
            ops.append({"op": "remove", "path": pointer})
    return ops


def _at(thing: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        thing = (thing or {}).get(part.replace("~1", "/"))
    return thing
