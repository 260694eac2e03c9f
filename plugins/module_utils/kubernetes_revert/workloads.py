"""The kinds of workloads, what is kept of one, and when its rollout is complete. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..kubernetes.client import MANAGER, path_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of workload; ``template`` is the way to its pod template, ``versions`` the best first."""

    name: str
    resource: str
    group: str
    versions: tuple[str, ...]
    template: tuple[str, ...] = ("spec", "template")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("Deployment", "deployments", "apps", ("v1",)),
        Kind("StatefulSet", "statefulsets", "apps", ("v1",)),
        Kind("DaemonSet", "daemonsets", "apps", ("v1",)),
        Kind("CronJob", "cronjobs", "batch", ("v1", "v1beta1"), ("spec", "jobTemplate", "spec", "template")),
        Kind("Job", "jobs", "batch", ("v1",)),
    )
}
#: Kinds whose pods are there all the time, and are replaced by a rollout.
ROLLING = ("Deployment", "StatefulSet", "DaemonSet")


class Container(NamedTuple):
    """A container of a pod template; ``path`` is its JSON pointer."""

    name: str
    image: str
    path: str


class Workload:
    """What is kept of one object of the API: no environment, no volumes, nobody's notes.

    :param version: ``apps/v1``.
    :param raw: the object; it is cut down in place.
    """

    def __init__(self, kind: Kind, version: str, raw: Json) -> None:
        self.kind, self.version, self.raw = kind, version, raw
        metadata = raw["metadata"]
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.key = key_of(kind.name, self.namespace, self.name)
        self.path = path_of(version, kind.resource, self.namespace, self.name)
        #: When this project changed it last, by the cluster's clock; empty where it never did.
        self.patched_at = _patched_at(metadata.pop("managedFields", None) or [])
        annotations = metadata.get("annotations") or {}
        annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
        pod = self.pod_spec
        for part in ("initContainers", "containers"):
            pod[part] = [{key: one.get(key) for key in ("name", "image", "resources")} for one in pod.get(part) or []]
        pod.pop("volumes", None)

    def __str__(self) -> str:
        return self.key

    @property
    def spec(self) -> Json:
        return self.raw["spec"]

    @property
    def status(self) -> Json:
        return self.raw.get("status") or {}

    @property
    def labels(self) -> Mapping[str, str]:
        return self.raw["metadata"].get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.raw["metadata"].get("annotations") or {}

    @property
    def uid(self) -> str:
        return self.raw["metadata"]["uid"]

    @property
    def template(self) -> Json:
        part = self.raw
        for step in self.kind.template:
            part = part[step]
        return part

    @property
    def pod_spec(self) -> Json:
        return self.template["spec"]

    @property
    def replicas(self) -> int:
        return int(self.spec.get("replicas", 1)) if self.kind.name != "DaemonSet" else 0

    @property
    def suspended(self) -> bool:
        return bool(self.spec.get("suspend"))

    def containers(self) -> Iterator[Container]:
        """All of the template's, those that run first first."""
        root = "/" + "/".join((*self.kind.template, "spec"))
        for part in ("initContainers", "containers"):
            for number, one in enumerate(self.pod_spec[part]):
                yield Container(one["name"], one["image"] or "", f"{root}/{part}/{number}")

    def image(self, container: str) -> str:
        """The image of a container, empty where there is no such container."""
        return next((one.image for one in self.containers() if one.name == container), "")


def key_of(kind: str, namespace: str, name: str) -> str:
    """How people and the record call a workload: ``Deployment shop/web``."""
    return f"{kind} {namespace}/{name}"


def parts_of(key: str) -> tuple[str, str, str]:
    """Kind, namespace and name of a :func:`key_of`."""
    kind, _, rest = key.partition(" ")
    namespace, _, name = rest.partition("/")
    return kind, namespace, name


def _patched_at(managers: list[Json]) -> str:
    return max((one.get("time") or "" for one in managers if one.get("manager") == MANAGER), default="")


def changed_by(kind: Kind, raw: Json, container: str) -> str:
    """Who wrote the image last, as the object's ``metadata.managedFields`` tell; empty where they do not."""
    managers = raw["metadata"].get("managedFields") or []
    for entry in sorted(managers, key=lambda one: one.get("time") or "", reverse=True):
        part = entry.get("fieldsV1") or {}
        for step in (*kind.template, "spec"):
            part = part.get(f"f:{step}") or {}
        for containers in ("containers", "initContainers"):
            of_one = (part.get(f"f:{containers}") or {}).get(f'k:{{"name":"{container}"}}') or {}
            if "f:image" in of_one:
                return str(entry.get("manager", ""))
    return ""


def finished(job: Workload) -> bool:
    """Whether a Job has ended, well or not."""
    return any(
        one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in job.status.get("conditions") or []
    )


def awaits(workload: Workload) -> str:
    """What the rollout of the newest template still waits for; empty when it is complete."""
    status, name = workload.status, workload.kind.name
    if name not in ROLLING:
        return ""
    if status.get("observedGeneration", 0) < workload.raw["metadata"].get("generation", 0):
        return "the controller has not seen the change yet"
    if name == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        updated, available = status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0)
        old = 0
    else:
        wanted, updated = workload.replicas, status.get("updatedReplicas", 0)
        old = max(0, status.get("replicas", 0) - updated)
        available = status.get("availableReplicas", 0)
        if name == "StatefulSet":
            # A cluster that keeps minReadySeconds counts availableReplicas too; before 1.22 a StatefulSet had neither.
            if not workload.spec.get("minReadySeconds"):
                available = status.get("readyReplicas", 0)
            if not wanted:
                updated = 0
            elif status.get("updateRevision") == status.get("currentRevision"):
                # Once all are updated, the update's revision becomes the current one and the count may be left out.
                updated, old = status.get("replicas", 0), 0
    if updated >= wanted and available >= wanted and not old:
        return ""
    more = f", {old} of the old ones still there" if old else ""
    return f"{updated} of {wanted} updated, {available} available{more}"


def condition(workload: Workload) -> str:
    """What the controller could not do (``ReplicaFailure``: a quota, an admission rule); empty when nothing."""
    for one in workload.status.get("conditions") or []:
        if one["type"] == "ReplicaFailure" and one["status"] == "True":
            return f"{one.get('reason', '')}: {one.get('message', '')}"
    return ""
