"""What would keep a revert from happening, or is good to know before: paused, on delete, quotas, budgets, selectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from ..kubernetes.client import Cluster, Refused, at_once, path_of
from ..units import format_duration
from . import selection
from .selection import Change, Selection
from .workloads import ROLLING, Workload, awaits, finished, key_of

Json = dict[str, Any]


class Findings(NamedTuple):
    """``refusals``: with these the step cannot be carried out. ``notes``: an operator should know them."""

    refusals: list[str]
    notes: list[str]


class Defaults(NamedTuple):
    """Quantities by resource, that a container gets which does not give its own."""

    requests: dict[str, Any]
    limits: dict[str, Any]


#: How many workloads a note names.
_NAMED = 10
NO_DEFAULTS = Defaults({}, {})
#: What each container must declare where a quota counts it; the API asks it of no other resource.
MUST_BE_DECLARED = {f"{part}.{name}": (part, name) for part in ("requests", "limits") for name in ("cpu", "memory")}
MUST_BE_DECLARED |= {"cpu": ("requests", "cpu"), "memory": ("requests", "memory")}


def examine(cluster: Cluster, found: Selection) -> Findings:
    """All reasons there are, each a sentence that begins with the workload's name. Reads quotas and budgets."""
    rolling = [one for one in found.changes if one.workload.kind.name in ROLLING]
    namespaces = sorted({one.workload.namespace for one in rolling})
    quotas = _all(cluster, "v1", "resourcequotas", namespaces)
    ranges = _all(cluster, "v1", "limitranges", [where for where in namespaces if quotas.get(where)])
    policy = cluster.first_offered("policy", ("v1", "v1beta1"), "poddisruptionbudgets")
    budgets = _all(cluster, policy, "poddisruptionbudgets", namespaces) if policy else {}
    refusals, notes = [], []
    refusals += [f"{one.key} {why}" for one in rolling for why in held(one.workload)]
    beside = [*found.seen, *_unread(cluster, namespaces, found)]
    refusals += shared_selectors([one.workload for one in rolling], beside)
    notes += slow_to_end(rolling)
    notes += without_pods(rolling)
    for namespace in namespaces:
        here = [one for one in rolling if one.workload.namespace == namespace]
        defaults = defaults_of(ranges.get(namespace, []))
        needed = [one.workload for one in here if one.needed]
        refusals += undeclared(needed, quotas.get(namespace, []), defaults)
        room = quota(needed, quotas.get(namespace, []), defaults)
        refusals += room.refusals
        notes += room.notes
        for one in here:
            tight = budget(one.workload, budgets.get(namespace, []), empty_takes_all=policy == "policy/v1")
            notes += [f"{one.key}: {said}" for said in tight]
    return Findings(refusals, notes)


def _all(cluster: Cluster, version: str, resource: str, namespaces: Sequence[str]) -> dict[str, list[Json]]:
    found, failed = at_once(namespaces, lambda one: list(cluster.list(path_of(version, resource, one))))
    for error in failed.values():
        raise error
    return found


def _unread(cluster: Cluster, namespaces: Sequence[str], found: Selection) -> list[Workload]:
    """The workloads of these namespaces that were not read on the way, as far as these credentials may."""
    read = {(one.kind.name, one.namespace) for one in found.seen}
    places = {
        f"{kind} {where} {labels}": (kind, where, labels)
        for where in namespaces
        for kind in ROLLING
        for labels in (found.unread if (kind, where) in read else [""])
    }

    def look(at: str) -> list[Workload]:
        try:
            return selection.read(cluster, *places[at])
        except Refused as error:
            if error.status == 403:
                return []  # whoever binds less than the manifest may revert all the same
            raise

    others, failed = at_once(places, look)
    for error in failed.values():
        raise error
    return [one for workloads in others.values() for one in workloads]


def held(workload: Workload) -> Iterator[str]:
    """Settings of the workload itself with which a new template does not reach its pods."""
    spec, kind = workload.spec, workload.kind.name
    if spec.get("paused"):
        yield "is paused (spec.paused: true): a change would not be rolled out. Resume it: kubectl rollout resume"
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        yield (
            "has the updateStrategy OnDelete: its pods keep the image they have until somebody deletes them. "
            "Set it to RollingUpdate"
        )
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    if kind == "StatefulSet" and partition and workload.replicas:
        yield (
            f"has the partition {partition} in its updateStrategy: pods below that number keep the image they have. "
            "Set it to 0"
        )


def slow_to_end(changes: Sequence[Change]) -> list[str]:
    """Whose pods may take longer to end than the step waits for them; they run until they have."""
    slow: dict[tuple[float, float], list[str]] = {}
    for one in changes:
        grace = one.workload.pod_spec.get("terminationGracePeriodSeconds", 30)
        if one.needed and _has_pods(one) and grace > one.limit:
            slow.setdefault((grace, one.limit), []).append(one.key)
    return [
        f"{_names(keys)} {'gives its' if len(keys) == 1 else 'give their'} pods {format_duration(grace)} to end, and "
        f"the step waits {format_duration(limit)} for the last one of before: raise the limit if they take that long"
        for (grace, limit), keys in slow.items()
    ]


def without_pods(changes: Sequence[Change]) -> list[str]:
    """That nothing will show whether the image can be had."""
    keys = [one.key for one in changes if one.needed and not _has_pods(one)]
    return [f"no pod will show whether the image can be pulled and runs (replicas: 0): {_names(keys)}"] if keys else []


def _has_pods(change: Change) -> bool:
    return bool(change.workload.replicas) or change.workload.kind.name == "DaemonSet"


def _names(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more


def shared_selectors(workloads: Sequence[Workload], seen: Sequence[Workload]) -> list[str]:
    """Workloads whose selector takes the pods of another one: nobody can tell whose a pod is."""
    # By label first (None: with any value), and by namespace where none is asked for: quick for many workloads.
    with_label: dict[tuple[str, str, str | None], dict[str, Workload]] = {}
    of_namespace: dict[str, dict[str, Workload]] = {}
    for one in (*seen, *workloads):
        if one.kind.name in ROLLING:
            of_namespace.setdefault(one.namespace, {})[one.key] = one
            for label, value in _template_labels(one).items():
                for either in (value, None):
                    with_label.setdefault((one.namespace, label, either), {})[one.key] = one
    found = []
    for one in workloads:
        selector = one.spec.get("selector") or {}
        asked = [(label, [value]) for label, value in (selector.get("matchLabels") or {}).items()]
        asked += [
            (each["key"], each.get("values") or [None])
            for each in selector.get("matchExpressions") or []
            if each["operator"] in ("In", "Exists")
        ]
        near = [[with_label.get((one.namespace, label, value), {}) for value in values] for label, values in asked]
        rarest = min(near or [[of_namespace.get(one.namespace, {})]], key=lambda sets: sum(map(len, sets)))
        claimed = {
            key
            for workloads_with in rarest
            for key, each in workloads_with.items()
            if key != one.key and _selects(selector, _template_labels(each))
        }
        if claimed:
            found.append(
                f"{one.key} selects pods by {_said_of(selector)}, which those of {', '.join(sorted(claimed))} match "
                "too: two workloads claim the same pods. Give each a label of its own, or remove the one too many"
            )
    return found


def _said_of(selector: Json) -> str:
    """A label selector as ``kubectl -l`` takes it."""
    said = {"In": "{key} in ({values})", "NotIn": "{key} notin ({values})", "Exists": "{key}", "DoesNotExist": "!{key}"}
    return ", ".join(
        [f"{label}={value}" for label, value in (selector.get("matchLabels") or {}).items()]
        + [
            said[one["operator"]].format(key=one["key"], values=", ".join(one.get("values") or []))
            for one in selector.get("matchExpressions") or []
        ]
    )


def _template_labels(workload: Workload) -> Mapping[str, str]:
    return (workload.template.get("metadata") or {}).get("labels") or {}


def budget(workload: Workload, budgets: Sequence[Json], empty_takes_all: bool = False) -> Iterator[str]:
    """PodDisruptionBudgets of its pods that leave no room; they hold up a node that is drained, not a rollout.

    :param empty_takes_all: whether an empty selector means every pod of the namespace (policy/v1), or none (v1beta1).
    """
    labels = _template_labels(workload)
    for one in budgets:
        status, selector = one.get("status") or {}, one["spec"].get("selector")
        every = empty_takes_all and selector == {}
        if (every or _selects(selector or {}, labels)) and not status.get("disruptionsAllowed"):
            yield (
                f"PodDisruptionBudget {one['metadata']['name']} allows no disruption now "
                f"({status.get('currentHealthy', 0)} healthy, {status.get('desiredHealthy', 0)} wanted): "
                "the rollout goes on, but a node cannot be drained meanwhile"
            )


def _selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes a pod; an empty one, takes none."""
    chosen, expressions = selector.get("matchLabels") or {}, selector.get("matchExpressions") or []
    takes = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
        "Exists": lambda value, _values: value is not None,
        "DoesNotExist": lambda value, _values: value is None,
    }
    return bool(chosen or expressions) and all(
        (
            chosen.items() <= labels.items(),
            *(takes[one["operator"]](labels.get(one["key"]), one.get("values") or []) for one in expressions),
        )
    )


def defaults_of(ranges: Sequence[Json]) -> Defaults:
    """What a namespace's LimitRanges give to containers that do not say it themselves."""
    given = Defaults({}, {})
    for one in ranges:
        for item in one["spec"]["limits"]:
            if item["type"] == "Container":
                given.requests.update(item.get("defaultRequest") or {})
                given.limits.update(item.get("default") or {})
    return given


def undeclared(workloads: Sequence[Workload], quotas: Sequence[Json], defaults: Defaults = NO_DEFAULTS) -> list[str]:
    """Workloads whose containers do not say what a quota of their namespace counts: the API refuses their new pods."""
    refusals = []
    for one in quotas:
        if _of_some_pods(one):
            continue
        quoted = f"ResourceQuota {one['metadata']['namespace']}/{one['metadata']['name']}"
        hard = (one.get("status") or {}).get("hard") or one["spec"].get("hard") or {}
        for workload in workloads:
            of_pod = _declared(workload.pod_spec, NO_DEFAULTS)
            containers = [(each["name"], _declared(each, defaults)) for each in _all_containers(workload)]
            lacking = {
                resource: names
                for resource, (part, unit) in MUST_BE_DECLARED.items()
                if resource in hard and unit not in of_pod[part]
                if (names := [name for name, declared in containers if unit not in declared[part]])
            }
            if lacking and (workload.replicas or workload.kind.name == "DaemonSet"):
                said = "; ".join(f"{resource} for {', '.join(names)}" for resource, names in lacking.items())
                refusals.append(
                    f"{workload.key} does not say what {quoted} counts, so that the API would refuse its new pods: "
                    f"{said}. Give the containers resources, or the namespace a LimitRange with defaults"
                )
    return refusals


def _of_some_pods(quota: Json) -> bool:
    """Which pods count cannot be told from a template alone."""
    return bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))


def _all_containers(workload: Workload) -> list[Json]:
    return [*workload.pod_spec["containers"], *workload.pod_spec["initContainers"]]


def _declared(container: Json, defaults: Defaults) -> dict[str, dict[str, Any]]:
    """A container's requests and limits as the API counts them: a limit stands for the request where none is given."""
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    requests = {**limits, **(resources.get("requests") or {})}
    return {"requests": {**defaults.requests, **requests}, "limits": {**defaults.limits, **limits}}


def quota(workloads: Sequence[Workload], quotas: Sequence[Json], defaults: Defaults = NO_DEFAULTS) -> Findings:
    """Whether the pods that a rollout starts before it stops old ones fit into the namespace's quotas."""
    refusals, notes = [], []
    for one in quotas:
        spec, status = one["spec"], one.get("status") or {}
        if _of_some_pods(one):
            continue
        name = f"ResourceQuota {one['metadata']['namespace']}/{one['metadata']['name']}"
        hard, used = status.get("hard") or spec.get("hard") or {}, status.get("used") or {}
        together: dict[str, Fraction] = {}
        for workload in workloads:
            surge, spare = surge_of(workload)
            needs = needs_of(workload, defaults)
            for resource in hard:
                need = needs.get(resource)
                if not surge or not need:
                    continue
                free = amount(hard[resource]) - amount(used.get(resource, "0"))
                together[resource] = together.get(resource, Fraction(0)) + need * surge
                if need > free and not spare and not awaits(workload):
                    refusals.append(
                        f"{workload.key} must start a pod before it may stop one (maxUnavailable 0), and {name} has "
                        f"{resource} {_said(free)} left of {hard[resource]} where a pod takes {_said(need)}. "
                        "Raise the quota, or allow maxUnavailable 1"
                    )
        for resource, need in together.items():
            free = amount(hard[resource]) - amount(used.get(resource, "0"))
            if need > free and not any(name in refusal for refusal in refusals):
                notes.append(
                    f"{name} has {resource} {_said(free)} left where all at once would take {_said(need)}: "
                    "the rollouts will go on more slowly"
                )
    return Findings(refusals, notes)


def surge_of(workload: Workload) -> tuple[int, int]:
    """How many pods a rollout may start above the number wanted, and how many may be missing meanwhile."""
    if workload.kind.name != "Deployment" or not workload.replicas:
        return 0, 1
    strategy = workload.spec.get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, workload.replicas
    rolling = strategy.get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", "25%"), workload.replicas, math.ceil)
    spare = _share(rolling.get("maxUnavailable", "25%"), workload.replicas, math.floor)
    return surge, spare


def _share(value: Any, of: int, rounded: Any) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return int(rounded(Fraction(value[:-1]) * of / 100))
    return int(value)


def needs_of(workload: Workload, defaults: Defaults = NO_DEFAULTS) -> dict[str, Fraction]:
    """What one pod takes, by a quota's names: ``pods``, ``requests.cpu``, ``limits.memory``, …"""
    needs: dict[str, Fraction] = {"pods": Fraction(1), "count/pods": Fraction(1)}
    for part in ("requests", "limits"):
        running: dict[str, Fraction] = {}
        for one in workload.pod_spec["containers"]:
            for name, value in _declared(one, defaults)[part].items():
                running[name] = running.get(name, Fraction(0)) + amount(value)
        for one in workload.pod_spec["initContainers"]:
            for name, value in _declared(one, defaults)[part].items():
                running[name] = max(running.get(name, Fraction(0)), amount(value))
        for name, value in running.items():
            needs[f"{part}.{name}"] = value
            if part == "requests":
                needs[name] = value
    return needs


_SUFFIXES = {
    **{suffix: Fraction(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    "m": Fraction(1, 1000),
    "u": Fraction(1, 10**6),
    "n": Fraction(1, 10**9),
}


def amount(quantity: Any) -> Fraction:
    """The number of a Kubernetes quantity, such as ``500m`` or ``1.5Gi``."""
    text = str(quantity)
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return Fraction(text[: -len(suffix)]) * factor
    return Fraction(text)


def _said(value: Fraction) -> str:
    if value.denominator != 1:
        return f"{float(value * 1000):g}m"
    for suffix in ("Gi", "Mi"):
        if value and not value % _SUFFIXES[suffix]:
            return f"{value // _SUFFIXES[suffix]}{suffix}"
    return str(value)


def controller(workload: Workload) -> str:
    """The object that made this workload and keeps it as it is, such as ``Website shop/main``; empty where none."""
    for one in workload.raw["metadata"].get("ownerReferences") or []:
        if one.get("controller"):
            return key_of(one["kind"], workload.namespace, one["name"])
    return ""


def running_jobs(changes: Sequence[Change], jobs: Sequence[Workload]) -> list[str]:
    """Jobs under way that CronJobs among these made: they keep the image that they have."""
    names = {(one.workload.namespace, one.workload.name) for one in changes if one.workload.kind.name == "CronJob"}
    return [
        f"{one.key}, made by CronJob {owner['name']}, is under way and keeps its image"
        for one in jobs
        if not finished(one)
        for owner in one.raw["metadata"].get("ownerReferences") or []
        if owner.get("controller") and owner["kind"] == "CronJob" and (one.namespace, owner["name"]) in names
    ]
