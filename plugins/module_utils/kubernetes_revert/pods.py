"""What really runs: pods cut down to images and troubles, and whether they are what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..kubernetes.client import Cluster, path_of
from .images import digest_of, parse, same, short
from .selection import Change
from .workloads import key_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Running:
    """One container of one pod: the image that the pod asks for, what the node says it runs, and what is wrong."""

    image: str
    image_id: str
    trouble: str


@dataclass(frozen=True)
class Pod:
    """What is kept of a pod; ``owner`` is the key of its workload, ``revision`` of a StatefulSet's or DaemonSet's,
    ``made_by`` the uid of what made it: a Deployment's ReplicaSet. One that is ``ending`` has been told to, and runs
    until it has: no controller counts it any more."""

    name: str
    namespace: str
    uid: str
    owner: str
    revision: str
    ready: bool
    trouble: str
    containers: Mapping[str, Running]
    made_by: str
    ending: bool = False


def read(cluster: Cluster, namespace: str) -> dict[str, list[Pod]]:
    """All pods of a namespace that run or will, also those that have been told to end: key of the workload → pods."""
    found: dict[str, list[Pod]] = {}
    for raw in cluster.list(path_of("v1", "pods", namespace)):
        if raw.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        pod = reduced(raw)
        found.setdefault(pod.owner, []).append(pod)
    return found


def reduced(raw: Json) -> Pod:
    """The pod without what need not be kept in memory."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    told = {
        one["name"]: one for part in ("initContainerStatuses", "containerStatuses") for one in status.get(part) or []
    }
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    trouble = ""
    if scheduled.get("status") == "False":
        trouble = f"{scheduled.get('reason', '')}: {scheduled.get('message', '')}"
    return Pod(
        metadata["name"],
        metadata["namespace"],
        metadata["uid"],
        _owner(metadata),
        (metadata.get("labels") or {}).get("controller-revision-hash", ""),
        conditions.get("Ready", {}).get("status") == "True",
        trouble,
        {
            one["name"]: Running(
                one.get("image", ""), (told.get(one["name"]) or {}).get("imageID", ""), _trouble(told.get(one["name"]))
            )
            for part in ("initContainers", "containers")
            for one in raw["spec"].get(part) or []
        },
        next((one.get("uid", "") for one in metadata.get("ownerReferences") or [] if one.get("controller")), ""),
        "deletionTimestamp" in metadata,
    )


def _owner(metadata: Json) -> str:
    for one in metadata.get("ownerReferences") or []:
        if one.get("controller"):
            kind, name = one["kind"], one["name"]
            template = (metadata.get("labels") or {}).get("pod-template-hash", "")
            if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
                # A Deployment names its ReplicaSets so; they need not be read.
                kind, name = "Deployment", name[: -len(template) - 1]
            return key_of(kind, metadata["namespace"], name)
    return ""


#: What kubelet says of probes; the second of one that was redirected, the last OpenShift's.
_PROBES = ("Unhealthy", "ProbeWarning", "ProbeError")
#: Reasons whose message quotes what a container's lifecycle hook is and what it printed.
_HOOKS = ("FailedPostStartHook", "FailedPreStopHook", "PostStartHookError", "PreStopHookError")


def _trouble(status: Json | None) -> str:
    """Why a container does not run, in its node's words; what the program itself said is left out."""
    if not status:
        return ""
    state = status.get("state") or {}
    last = (status.get("lastState") or {}).get("terminated")
    if "waiting" in state:
        reason, message = state["waiting"].get("reason", "waiting"), state["waiting"].get("message", "")
        words = f"{reason} ({message})" if message and reason not in _HOOKS else reason
        return f"{words}, ended with {last.get('exitCode')} before" if last else words
    if "terminated" in state and state["terminated"].get("exitCode"):
        return f"{state['terminated'].get('reason', 'ended')} with {state['terminated']['exitCode']}"
    if "running" in state and not status.get("ready", True):
        again = f", started again {status['restartCount']} times" if status.get("restartCount") else ""
        return f"runs, but is not ready{again}"
    return ""


def staying(pods: Sequence[Pod]) -> list[Pod]:
    """Those that have not been told to end."""
    return [pod for pod in pods if not pod.ending]


def wrong(change: Change, pods: Sequence[Pod]) -> str:
    """What of a workload's running pods is not what was asked for; empty when all is well."""
    return _other_than_asked_for(change, staying(pods)) or _ending(change, [pod for pod in pods if pod.ending])


def _other_than_asked_for(change: Change, pods: Sequence[Pod]) -> str:
    for one in change.replaced:
        target = parse(one.new)
        for pod in pods:
            running = pod.containers.get(one.container)
            if running is None:
                return f"pod {pod.name} has no container {one.container}"
            if not _is(running.image, one.new):
                return (
                    f"pod {pod.name} runs {short(running.image)} in {one.container}, where {change.key} says "
                    f"{short(one.new)}. If it is no pod of before, an admission rule of the cluster gives it another "
                    "image: name the image by its digest, or what the rule sets (`containers`)"
                )
            if not running.image_id:
                reasons = ", ".join(troubles([pod]))
                return f"pod {pod.name}: {one.container} does not run yet" + (f" ({reasons})" if reasons else "")
        ids = _ids(one.container, pods)
        if target and target.digest:
            # An id without a registry's digest (a loaded image) tells nothing; the pod's own image names the content.
            others = [id_ for id_, of_registry in ids.items() if of_registry and id_ != target.digest]
            if others:
                return f"{one.container} runs {short(', '.join(others))}, and not {short(target.digest)}"
        elif len(ids) > 1:
            return (
                f"{one.container} runs different images under the name {one.new} ({short(', '.join(ids))}): "
                "the tag has moved, name the image by its digest"
            )
    return ""


def _ending(change: Change, pods: Sequence[Pod]) -> str:
    for pod in pods:
        for one in change.replaced:
            running = pod.containers.get(one.container)
            if running and not _is(running.image, one.new):
                return (
                    f"pod {pod.name}, which runs {short(running.image)} in {one.container}, has been told to end and "
                    f"has not yet. If its node is lost: kubectl -n {pod.namespace} delete pod {pod.name} --force"
                )
    return ""


def _is(image: str, wanted: str) -> bool:
    """Whether a pod's image is what was asked for, also by the name of a mirror: a digest is the content."""
    given, target = parse(image), parse(wanted)
    return same(image, wanted) or bool(given and target and target.digest and given.digest == target.digest)


def digests(change: Change, pods: Sequence[Pod]) -> dict[str, list[str]]:
    """Container → the digests (or ids) that its pods run."""
    return {one.container: list(_ids(one.container, pods)) for one in change.replaced}


def content(change: Change, pods: Sequence[Pod]) -> dict[str, str]:
    """Container whose image is to be replaced → the one digest (or id) that runs under its name of before."""
    found = {}
    for one in change.replaced:
        before = [pod for pod in pods if (now := pod.containers.get(one.container)) and _is(now.image, one.old)]
        ids = list(_ids(one.container, before))
        if len(ids) == 1 and not same(one.old, one.new):
            found[one.container] = ids[0]
    return found


def unmoved(change: Change, pods: Sequence[Pod]) -> str:
    """Which container went back by name only: what its tag stands for is what ran before; empty where none did."""
    for one in change.replaced:
        target = parse(one.new)
        if target and not target.digest and list(_ids(one.container, pods)) == [change.ran.get(one.container)]:
            return (
                f"{one.container} runs the same content as before ({short(change.ran[one.container])}): {one.new} is "
                "another name of it. Name the image of the release before by its digest, or accept it "
                "(image_revert_already: accept)"
            )
    return ""


def _ids(container: str, pods: Sequence[Pod]) -> dict[str, bool]:
    """What the nodes say that they run: a digest, or an id → whether it is a registry's digest."""
    said = {pod.containers[container].image_id for pod in staying(pods) if container in pod.containers} - {""}
    return {digest_of(one) or one: bool(digest_of(one)) for one in sorted(said)}


def troubles(pods: Sequence[Pod]) -> Iterator[str]:
    """``pod web-5d9-x2: app ImagePullBackOff (Back-off pulling image …)`` for each that has any."""
    for pod in pods:
        parts = [f"{name} {one.trouble}" for name, one in pod.containers.items() if one.trouble]
        if pod.trouble:
            parts.append(pod.trouble)
        if parts:
            yield f"pod {pod.name}: {', '.join(parts)}"


class Warned(NamedTuple):
    """A warning of the cluster: when it was first and last seen, by the cluster's clock, and its line."""

    first: str
    last: str
    line: str


def warned(raw: Json) -> Warned:
    """An Event, of which there are two forms: with a count, and with one time in microseconds."""
    when = raw.get("eventTime") or raw["metadata"].get("creationTimestamp") or ""
    last = (raw.get("series") or {}).get("lastObservedTime") or raw.get("lastTimestamp") or when
    return Warned(_second(raw.get("firstTimestamp") or when), _second(last), event(raw))


def _second(time: str) -> str:
    return f"{time[:19]}Z"


def event(raw: Json) -> str:
    """A warning of the cluster in one line. What a probe's or hook's own command printed is left out, and so is a
    hook's command: they may hold anything."""
    reason, message = raw.get("reason") or "", " ".join((raw.get("message") or "").split())
    if reason in _PROBES:
        code = re.search(r"statuscode: \d+", message)
        message = message.split(":", 1)[0] + (f": {code[0]}" if code else "")
    elif reason in _HOOKS:
        parts = [re.search(pattern, message) for pattern in (r'Container "[\w.-]+"', r"exited with \d+")]
        message = ", ".join(["failed", *(part[0] for part in parts if part)])
    return f"{reason}: {message[:300]}"
