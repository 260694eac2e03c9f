"""What one may do in a cluster, asked before anything is done; everything that is missing, in one message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import BalikError
from .client import Cluster, at_once


@dataclass(frozen=True)
class Permission:
    """One verb on one resource (``pods``, ``deployments/scale``) of an API group (``""`` is the core one).

    ``namespace`` empty: in the whole cluster. ``names``: the objects that it is needed for; a permission for all of
    them serves as well as one for each (RBAC's ``resourceNames``).
    """

    verb: str
    group: str
    resource: str
    namespace: str = ""
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = f" {', '.join(self.names)}" if self.names else ""
        group = f".{self.group}" if self.group else ""
        where = f"in namespace {self.namespace}" if self.namespace else "in the whole cluster"
        return f"{self.verb} {self.resource}{group}{names} {where}"


def missing(cluster: Cluster, wanted: Iterable[Permission]) -> list[Permission]:
    """Those that the cluster does not grant.

    :raises BalikError: the API does not answer, or does not take the credentials.
    """
    todo = sorted(set(wanted), key=str)
    # One question for the whole cluster may answer those for many namespaces.
    spread: dict[Permission, int] = {}
    for one in todo:
        wide = replace(one, namespace="", names=())
        spread[wide] = spread.get(wide, 0) + 1
    granted = _granted(cluster, [wide for wide, count in spread.items() if count > 1])
    todo = [one for one in todo if replace(one, namespace="", names=()) not in granted]
    granted = _granted(cluster, [replace(one, names=()) for one in todo])
    todo = [one for one in todo if replace(one, names=()) not in granted]
    granted = _granted(cluster, [replace(one, names=(name,)) for one in todo for name in one.names])
    lacking = []
    for one in todo:
        names = tuple(name for name in one.names if replace(one, names=(name,)) not in granted)
        if names or not one.names:
            lacking.append(replace(one, names=names if len(names) < len(one.names) else ()))
    return lacking


def require(cluster: Cluster, wanted: Iterable[Permission], manifest: str) -> None:
    """:raises BalikError: permissions are missing; names all of them, and the ``manifest`` that grants them."""
    lacking = missing(cluster, wanted)
    if lacking:
        raise BalikError(
            f"Permissions ({cluster.name})",
            f"{len(lacking)} missing: {'; '.join(map(str, lacking))}",
            do=f"Apply {manifest} and bind its role to this account; nothing was changed.",
        )


def _granted(cluster: Cluster, questions: list[Permission]) -> set[Permission]:
    by_text = {f"{one}": one for one in questions}

    def ask(text: str) -> bool:
        one = by_text[text]
        resource, _, subresource = one.resource.partition("/")
        attributes = {"verb": one.verb, "group": one.group, "resource": resource, "namespace": one.namespace}
        if subresource:
            attributes["subresource"] = subresource
        if one.names:
            attributes["name"] = one.names[0]
        review = cluster.create(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        return bool(review["status"].get("allowed"))

    answers, failed = at_once(by_text, ask)
    if failed:
        raise next(iter(failed.values()))
    return {by_text[text] for text, yes in answers.items() if yes}
