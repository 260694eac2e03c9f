"""Who else writes the plan's routes: Argo CD, Flux, operators; they put their backends back while the page is up."""

from __future__ import annotations

from collections.abc import Sequence

from ..kubernetes.client import Cluster, Json, Refused
from ..kubernetes_revert import gitops
from ..kubernetes_revert.gitops import Owner
from ..kubernetes_revert.selection import Change
from ..kubernetes_revert.workloads import Kind, Workload
from .kubernetes_routes import API, Route

_WRITERS = ("Application", "Kustomization", "HelmRelease", "operator")


class _Routed(Workload):
    """A route, as its owners are looked for: it has no pods."""

    @property
    def pod_spec(self) -> Json:
        return {}


def judge(
    cluster: Cluster, things: Sequence[tuple[Route, Json]], namespaces: Sequence[str], product: str
) -> tuple[list[str], list[str]]:
    """What certainly takes the page down again, and what may; each a sentence.

    :param namespaces: where Argo CD's Applications stand.
    :param product: what its rollback holds off does nothing.
    """
    changes = [Change(_routed(route, thing), (), 0) for route, thing in things]
    certain: list[str] = []
    perhaps: list[str] = []
    try:
        owners = gitops.find(cluster, changes, namespaces)
    except Refused as error:
        if error.status != 403:
            raise
        return [], [f"not looked for: Argo CD and Flux, which would take the page down again ({error.found})"]
    for one in owners:
        if one.kind not in _WRITERS or not one.fights or one.held == product:
            continue
        sure = _puts_back(one)
        does = f"{'puts' if sure else 'may put'} its backends back and {'takes' if sure else 'take'} the page down"
        how = f" ({one.cannot}: {one.instead})" if one.instead else ""
        (certain if sure else perhaps).append(f"{one.line} belongs to {one.name}, which {does}{how}")
    return certain, perhaps


def _routed(route: Route, thing: Json) -> _Routed:
    group, versions, resource = API[route.kind]
    return _Routed(Kind(route.kind, resource, group, versions), thing["apiVersion"], thing)


def _puts_back(owner: Owner) -> bool:
    """Whether it writes its own version over whatever it finds changed, and not only when Git has a new one."""
    if owner.kind == "Application":
        return bool((owner.state.get("automated") or {}).get("selfHeal"))
    return owner.kind == "Kustomization" and bool(owner.path)
