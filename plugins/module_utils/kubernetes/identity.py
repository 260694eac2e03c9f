"""In which cluster a run began, and whether a later call of it is pointed at the same one.

Names do not tell: a staging cluster mostly has the same ones as production.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import BalikError
from .client import Cluster, Json, Refused, path_of

#: Reads the uids of what is in one place by now, by name.
Place = Callable[[], Mapping[str, str]]


def identity_of(cluster: Cluster, objects: Mapping[str, Json]) -> Json:
    """For a step's ``before``: the address of the API, the cluster's uid, and those of the objects by name."""
    uids = {name: str(one["metadata"]["uid"]) for name, one in objects.items()}
    return {"cluster": cluster.host, "cluster_uid": _uid(cluster), "uids": uids}


def must_be_the_recorded(
    cluster: Cluster, recorded: Mapping[str, Any], places: Iterable[Place], given: str, ended: bool = False
) -> None:
    """Read that this is the cluster of the record.

    :param recorded: what :func:`identity_of` said when the run began; empty: it has not.
    :param places: where those of the record are; read one after the other, and only where nothing else tells.
    :param given: the variables that name the cluster.
    :param ended: nothing of the run is to be gone on with, so that there is nothing to leave.
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
        known = (recorded.get("uids") or {}).items()
        same = address == cluster.host or any(known & _may_be_read(place).items() for place in places)
    if not same:
        leave = (
            " To leave that run (a page, a freeze or what is held off stays there), begin anew: rollback.yml "
            "-e rollback_fresh=true."
        )
        raise BalikError(
            given,
            f"found {cluster.name}, and this run began in another cluster, at {address}",
            "that cluster, in which it has changed things",
            "Run again with its kubeconfig and context. If this is the same one, name it by its first address."
            + ("" if ended else leave),
        )


def _may_be_read(place: Place) -> Mapping[str, str]:
    """Nothing where these credentials may not read there: it is another cluster's, or the namespace is gone."""
    try:
        return place()
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
