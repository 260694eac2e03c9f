"""In which cluster a run began, and whether a later call of it is pointed at the same one.

Names do not tell: a staging cluster mostly has the same ones as production.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import BalikError
from .client import Cluster, Json, Refused, path_of

Uids = Mapping[str, str]


def identity_of(cluster: Cluster, objects: Mapping[str, Json]) -> Json:
    """For a step's ``before``: the address of the API, the cluster's uid, and those of the objects by name."""
    uids = {name: str(one["metadata"]["uid"]) for name, one in objects.items()}
    return {"cluster": cluster.host, "cluster_uid": _uid(cluster), "uids": uids}


def must_be_the_recorded(cluster: Cluster, recorded: Mapping[str, Any], uids: Callable[[], Uids], given: str) -> None:
    """Read that this is the cluster of the record.

    :param recorded: what :func:`identity_of` said when the run began; empty: it has not.
    :param uids: those of the objects that are here by now; asked for only where nothing else tells.
    :param given: the variables that name the cluster.
    :raises BalikError: it is another one.
    """
    address = recorded.get("cluster")
    if not address:
        return
    was, now = recorded.get("cluster_uid"), _uid(cluster) if recorded.get("cluster_uid") else ""
    if was and now:
        same = was == now
    else:
        # One cluster may have several addresses; no two have an object of the same uid.
        same = address == cluster.host or bool((recorded.get("uids") or {}).items() & _may_be_read(uids).items())
    if not same:
        raise BalikError(
            given,
            f"found {cluster.name}, and this run began in another cluster, at {address}",
            "that cluster, in which it has changed things",
            "Run again with its kubeconfig and context. If this is the same one, name it by its first address.",
        )


def _may_be_read(uids: Callable[[], Uids]) -> Uids:
    """Nothing where these credentials have no right to read what the run has changed: it was another cluster's."""
    try:
        return uids()
    except Refused as error:
        if error.status != 403:
            raise
        return {}


def _uid(cluster: Cluster) -> str:
    """That of the namespace ``kube-system``, which stands for the cluster; empty where these credentials may not read
    it."""
    try:
        found = cluster.find(path_of("v1", "namespaces", "", "kube-system"))
    except Refused as error:
        if error.status != 403:
            raise
        return ""
    return str(found["metadata"]["uid"]) if found else ""
