"""Whether the new release still runs somewhere: it would apply again what goes down, or fail without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BalikError

Json = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where to look for the new release, and by which images it is known.

    :param images: references as its containers name them; a digest is best.
    :param docker_hosts: engines (``unix://``, ``tcp://``, ``ssh://``).
    :param namespaces: of one Kubernetes cluster.
    """

    images: Sequence[str] = ()
    docker_hosts: Sequence[str] = ()
    docker_cert_path: str = ""
    namespaces: Sequence[str] = ()
    kubeconfig: str = ""
    context: str = ""


@dataclass(frozen=True)
class Seen:
    """``problems`` forbid going down, ``notes`` do not."""

    problems: list[str]
    notes: list[str]


def look(places: Places) -> Seen:
    """Every container and pod of the new release that runs, and every one that would migrate when it starts.

    :raises BalikError: a place cannot be looked into; not to know is not to be safe.
    """
    where = bool(places.docker_hosts or places.namespaces)
    if where != bool(places.images):
        raise BalikError(
            "prisma_down_new_images",
            "is given without a place to look" if places.images else "is empty, though places to look are given",
            "both the new release's images, and prisma_down_docker_hosts or prisma_down_namespaces",
        )
    if not where:
        return Seen([], ["whether the new release still runs was not looked at (prisma_down_new_images)"])
    problems: list[str] = []
    notes: list[str] = []
    for host in places.docker_hosts:
        for name, runs, migrates in _docker(host, places):
            _take(problems, notes, f"container {name}", runs, migrates)
    if places.namespaces:
        for name, runs, migrates in _kubernetes(places):
            _take(problems, notes, name, runs, migrates)
    return Seen(problems, notes)


def _take(problems: list[str], notes: list[str], name: str, runs: str, migrates: bool) -> None:
    if runs:
        problems.append(f"{name} still runs the new release ({runs}); revert it first (image-revert)")
    if migrates:
        notes.append(
            f"{name} runs `migrate deploy` when it starts: if that is the new release, it applies again what goes down"
        )


def migrates(words: Sequence[str]) -> bool:
    """Whether a command is, or has within a shell's line, ``prisma migrate deploy``."""
    return "migrate deploy" in " ".join(str(word) for word in words)


def _docker(host: str, places: Places) -> Iterator[tuple[str, str, bool]]:
    from ..docker_revert.engine import Engine, parse_reference

    engine = Engine(host, places.docker_cert_path)
    ids = {}
    for reference in places.images:
        here = engine.local_image(parse_reference(reference))
        if here:
            ids[here["Id"]] = reference
    for found in engine.containers():
        state = found["State"]
        if not (state.get("Running") or state.get("Restarting")):
            continue
        new = ids.get(found["Image"], "")
        if not new and found["Config"]["Image"] in places.images:
            new = found["Config"]["Image"]
        yield found["Name"].lstrip("/"), new, migrates([found["Path"], *found["Args"]])


def _kubernetes(places: Places) -> Iterator[tuple[str, str, bool]]:
    from ..kubernetes.client import Cluster, path_of
    from ..kubernetes_revert.images import digest_of, parse, same
    from ..kubernetes_revert.workloads import KINDS

    cluster = Cluster.connect(places.kubeconfig, places.context)
    digests = {image.digest: name for name in places.images if (image := parse(name)) and image.digest}
    for namespace in places.namespaces:
        for pod in cluster.list(path_of("v1", "pods", namespace)):
            if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                continue  # one that is being ended runs still
            ids = {digest_of(one.get("imageID", "")) for one in _all(pod["status"], "Statuses")}
            new = [
                one["image"]
                for one in _all(pod["spec"], "s")
                if any(same(one["image"], name) for name in places.images)
            ]
            new += [digests[one] for one in ids if one in digests]
            yield f"pod {namespace}/{pod['metadata']['name']}", ", ".join(sorted(set(new))), False
        for kind in KINDS.values():
            version = cluster.first_offered(kind.group, kind.versions, kind.resource)
            for one in cluster.list(path_of(version, kind.resource, namespace)) if version else ():
                template: Json = one
                for step in (*kind.template, "spec"):
                    template = template[step]
                words = [[*(each.get("command") or ()), *(each.get("args") or ())] for each in _all(template, "s")]
                name = f"{kind.name} {namespace}/{one['metadata']['name']}"
                yield name, "", any(migrates(each) for each in words)


def _all(part: Mapping[str, Any], ending: str) -> Iterator[Json]:
    """Init containers and containers, of a spec (``s``) or a status (``Statuses``)."""
    for name in ("initContainer", "container"):
        yield from part.get(f"{name}{ending}") or []
