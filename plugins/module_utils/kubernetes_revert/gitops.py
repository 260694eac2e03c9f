"""Who else writes these workloads: Argo CD, Flux, Helm, operators; and holding those off that would put a version back.

What is held off carries the annotation :data:`HELD` with what stood there before, so that it can be given back even
where nothing else is known of the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import BalikError
from ..kubernetes.client import UNKNOWN, Cluster, Refused, name_of, path_of
from ..kubernetes.permissions import Permission
from .guards import controller
from .selection import Change
from .workloads import Workload

Json = dict[str, Any]
#: Group, kind, namespace and name of an object.
_Key = tuple[str, str, str, str]

#: On an Application, Kustomization or HelmRelease: JSON of the product that holds it off, and of the field as it was.
HELD = "balik.dev/held"
#: The wish that Argo CD compares an Application; it takes it away when it has.
_COMPARE = "argocd.argoproj.io/refresh"
_ARGO = ("argoproj.io/v1alpha1", "applications")
_FLUX = {
    "kustomize.toolkit.fluxcd.io": ("Kustomization", "kustomizations", ("v1", "v1beta2", "v1beta1")),
    "helm.toolkit.fluxcd.io": ("HelmRelease", "helmreleases", ("v2", "v2beta2", "v2beta1")),
}
#: The label by which Argo CD tracks what is its own, unless set up otherwise; many charts set it as well.
_TRACKED = "app.kubernetes.io/instance"
#: The namespaces into which their own manuals install them.
ARGO_HOME, FLUX_HOME = "argocd", "flux-system"
#: The variables that name others.
ARGO_PLACES, FLUX_PLACES = "image_revert_argocd_namespaces", "image_revert_flux_namespaces"
_HERE = ("kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


class Where(NamedTuple):
    """Namespaces to look into; ``guessed``: the plan names none, these are where their own manuals install them."""

    namespaces: Sequence[str]
    guessed: bool = False

    @classmethod
    def named(cls, namespaces: Sequence[str] | None, home: str, variable: str) -> Where:
        """The plan's; ``None``: it says nothing.

        :raises BalikError: one is empty, which the API takes for all.
        """
        if not all(namespaces or ()):
            raise BalikError(variable, "one is empty", "names; an empty list means none")
        return cls([home], True) if namespaces is None else cls(namespaces)


@dataclass
class Owner:
    """Something that writes workloads. ``path`` is empty where it does not stand in this cluster.

    ``fights``: it puts its own version back by itself. ``cannot``: why it cannot be held off from here.
    ``instead``: what somebody can do by hand where it cannot.
    ``held``: the product whose rollback has done so already; empty also where somebody has switched it on again since.
    ``busy``: what it is doing just now, or was asked to do, whether it acts by itself or not.
    """

    name: str
    path: str
    kind: str
    fights: bool
    cannot: str = ""
    held: str = ""
    busy: str = ""
    state: Json = field(default_factory=dict)
    workloads: list[str] = field(default_factory=list)
    instead: str = ""

    @property
    def line(self) -> str:
        """``Deployment shop/web and 2 more``."""
        more = f" and {len(self.workloads) - 1} more" if len(self.workloads) > 1 else ""
        return f"{self.workloads[0]}{more}" if self.workloads else "the objects above"


def find(cluster: Cluster, changes: Sequence[Change], namespaces: Sequence[str]) -> list[Owner]:
    """Everybody who writes these workloads, those above them first.

    :param namespaces: where Argo CD's Applications stand.
    """
    owners: dict[str, Owner] = {}
    applications = _Applications(cluster, namespaces)
    for change in changes:
        workload = change.workload
        if controller(workload) and workload.kind.name != "Job":
            maker = controller(workload)
            owner = owners.setdefault(maker, Owner(maker, "", "operator", True, "an operator makes this workload"))
            owner.workloads.append(workload.key)
        for owner in (*applications.of(workload), *_flux(cluster, workload, owners), *_helm(workload)):
            owners.setdefault(owner.name, owner).workloads.append(workload.key)
    return [*applications.above(owners), *owners.values()]


def absent(cluster: Cluster, namespaces: Sequence[str]) -> list[str]:
    """A refusal for each namespace of Argo CD that does not exist, or may not, where the cluster has Applications at
    all."""
    refusals = []
    for one in namespaces if cluster.offers(*_ARGO) else ():
        there = cluster.has(one)
        if there is None and not any(cluster.list(path_of(*_ARGO, one))):
            refusals.append(
                f"image_revert_argocd_namespaces: no Application is in {one}{UNKNOWN} ({cluster.name}). Correct it, or "
                "let them `get` it (role balik-image-revert-gitops)"
            )
        elif there is False:
            refusals.append(
                f"image_revert_argocd_namespaces: {one} does not exist ({cluster.name}). Name where the Applications "
                "stand, or none"
            )
    return refusals


def _api(address: object) -> tuple[str | None, int]:
    """Host and port of an API's address; no host where it cannot be read, such as one with a placeholder."""
    try:
        parts = urlsplit(str(address))
        return parts.hostname, parts.port or 443
    except ValueError:
        return None, 443


class _Applications:
    """Argo CD's Applications, by what they say that they manage: in this cluster, or in one that may be another."""

    def __init__(self, cluster: Cluster, namespaces: Sequence[str]) -> None:
        self.served = cluster.offers(*_ARGO)
        self._where = ", ".join(namespaces)
        self._raw: dict[str, Json] = {}
        self._host = cluster.host
        self._managing: dict[_Key, str] = {}
        self._perhaps: dict[_Key, list[str]] = {}
        for namespace in namespaces if self.served else ():
            for raw in cluster.list(path_of(*_ARGO, namespace)):
                name = raw["metadata"]["name"]
                self._raw[f"{namespace}/{name}"] = raw
                here = self._is_here(raw["spec"].get("destination") or {})
                for one in (raw.get("status") or {}).get("resources") or []:
                    key = (one.get("group", ""), one["kind"], one.get("namespace", ""), one["name"])
                    if here:
                        self._managing[key] = f"{namespace}/{name}"
                    else:
                        self._perhaps.setdefault(key, []).append(f"{namespace}/{name}")

    def _is_here(self, destination: Json) -> bool:
        """Whether this is certainly where an Application goes to; a cluster's name or another address may be, too."""
        if server := destination.get("server"):
            there = _api(server)
            return there[0] in _HERE or there == _api(self._host)
        return destination.get("name") in (None, "", "in-cluster")

    def _manager(self, key: _Key, labels: Mapping[str, str]) -> str:
        """The Application that manages an object; empty where none certainly does. One that goes to what may be another
        cluster does where the object carries its name."""
        carried = labels.get(_TRACKED, "")
        return self._managing.get(key) or next((one for one in self._perhaps.get(key, ()) if _is(one, carried)), "")

    def of(self, workload: Workload) -> Iterable[Owner]:
        key = (workload.kind.group, workload.kind.name, workload.namespace, workload.name)
        found = self._manager(key, workload.labels)
        if found:
            return [self._owner(found)]
        tracked, _, what = workload.annotations.get("argocd.argoproj.io/tracking-id", "").partition(":")
        if what != f"{key[0]}/{key[1]}:{key[2]}/{key[3]}":
            tracked = ""  # a copy of another object's annotation
        tracked = tracked or workload.labels.get("argocd.argoproj.io/instance", "")
        if not tracked:
            return self._maybe(key, workload)
        if found := self._named(tracked):
            return [self._owner(found)]
        return [
            Owner(
                f"Argo CD's Application {tracked}",
                "",
                "Application",
                True,
                f"it does not stand in this cluster, or not in namespace {self._where or '(none is named)'} "
                "(image_revert_argocd_namespaces)",
            )
        ]

    def _named(self, tracked: str) -> str:
        """The Application that a label or tracking id means; empty where there is none."""
        return next((one for one in self._raw if _is(one, tracked)), "")

    def _maybe(self, key: _Key, workload: Workload) -> list[Owner]:
        """Signs of Argo CD that are no proof: an Application that lists it in what may be another cluster, or its
        label, which may be a chart's just as well."""
        if listing := self._perhaps.get(key):
            to = self._raw[listing[0]]["spec"]["destination"]
            said = (
                f"stands in the list of Argo CD's Application {listing[0]}, whose destination "
                f"{to.get('server') or to.get('name')} is taken for another cluster. If it is this one, it will "
                "put the version back: switch its auto-sync off before"
            )
            return [Owner(f"Application {listing[0]}", "", "Label", False, said)]
        name = workload.labels.get(_TRACKED, "")
        if not (name and self.served and self._where) or any(_helm(workload)):
            return []
        found = self._named(name)
        said = f"carries Argo CD's label ({_TRACKED}: {name}), and " + (
            f"Application {found} does not list it: see there whether it is its own"
            if found
            else f"no Application {name} was found in namespace {self._where}: if it stands elsewhere, add that to "
            "image_revert_argocd_namespaces"
        )
        return [Owner(f"label {name}", "", "Label", False, said)]

    def above(self, owners: Mapping[str, Owner]) -> list[Owner]:
        """The Applications that manage the Applications among the owners, the highest first."""
        found: list[Owner] = []
        known = set(owners)
        todo = [owner for owner in owners.values() if owner.kind == "Application" and owner.path]
        while todo:
            owner = todo.pop()
            namespace, name = owner.path.split("/")[-3], owner.path.split("/")[-1]
            labels = self._raw[f"{namespace}/{name}"]["metadata"].get("labels") or {}
            parent = self._manager(("argoproj.io", "Application", namespace, name), labels)
            if parent and (above := self._owner(parent)).name not in known:
                above.workloads.append(owner.name)
                known.add(above.name)
                found.insert(0, above)
                todo.append(above)
        return found

    def _owner(self, key: str) -> Owner:
        namespace, name = key.split("/")
        raw = self._raw[key]
        path = path_of(*_ARGO, namespace, name)
        made_by = next((one for one in raw["metadata"].get("ownerReferences") or [] if one.get("controller")), None)
        cannot = instead = ""
        if made_by and made_by["kind"] == "ApplicationSet":
            cannot = f"ApplicationSet {made_by['name']} made it and would switch auto-sync on again"
            instead = (
                "let that ApplicationSet leave /spec/syncPolicy alone (ignoreApplicationDifferences), switch auto-sync "
                "off by hand and run again"
            )
        return Owner(
            f"Argo CD's Application {key}",
            path,
            "Application",
            _acts(path, raw),
            cannot,
            holder(path, raw),
            _busy(path, raw),
            _switch(path, raw),
            instead=instead,
        )


def _is(application: str, carried: str) -> bool:
    """Whether a label or tracking id means this Application (``namespace/name``)."""
    return application.endswith(f"/{carried}") or application.replace("/", "_") == carried


def _flux(cluster: Cluster, workload: Workload, known: Mapping[str, Owner]) -> Iterable[Owner]:
    for group, (kind, resource, versions) in _FLUX.items():
        name = workload.labels.get(f"{group}/name", "")
        if not name:
            continue
        namespace = workload.labels.get(f"{group}/namespace", workload.namespace)
        said = f"Flux' {kind} {namespace}/{name}"
        left_alone = workload.annotations.get(f"{group}/reconcile") == "disabled"
        if said in known:
            known[said].fights |= not known[said].state.get("suspend") and not left_alone
            yield known[said]
            continue
        version = cluster.first_offered(group, versions, resource)
        path = path_of(version, resource, namespace, name) if version else ""
        raw = cluster.find(path) if path else None
        if raw is None:
            yield Owner(said, "", kind, True, "it does not stand in this cluster")
            continue
        fights = _acts(path, raw) and not left_alone
        busy = "" if left_alone else _busy(path, raw)
        yield Owner(said, path, kind, fights, held=holder(path, raw), busy=busy, state=_switch(path, raw))


def _helm(workload: Workload) -> Iterable[Owner]:
    release = workload.annotations.get("meta.helm.sh/release-name", "")
    if release and workload.labels.get("app.kubernetes.io/managed-by") == "Helm":
        namespace = workload.annotations.get("meta.helm.sh/release-namespace", workload.namespace)
        yield Owner(f"Helm release {namespace}/{release}", "", "Release", False)


def _is_application(path: str) -> bool:
    return path.startswith(f"/apis/{_ARGO[0]}/")


def _switch(path: str, raw: Json) -> Json:
    """The field that lets it act by itself, as it stands."""
    if _is_application(path):
        return {"automated": (raw["spec"].get("syncPolicy") or {}).get("automated")}
    return {"suspend": raw["spec"].get("suspend")}


def _acts(path: str, raw: Json) -> bool:
    switch = _switch(path, raw)
    if "suspend" in switch:
        return not switch["suspend"]
    return isinstance(switch["automated"], dict) and switch["automated"].get("enabled") is not False


def _busy(path: str, raw: Json) -> str:
    """What it is doing just now, or was asked to do, that may still write workloads; empty: nothing."""
    status = raw.get("status") or {}
    if _is_application(path):
        state = status.get("operationState") or {}
        if state.get("phase") in ("Running", "Terminating"):
            return f"a sync is under way ({state.get('message', '')})"
        return "a sync is asked for and has not begun" if raw.get("operation") else ""
    for one in status.get("conditions") or []:
        # With another reason it waits for its next attempt. The health checks come when all has been written.
        doing = one.get("message", "")
        under_way = (one["type"], one["status"], one.get("reason")) == ("Reconciling", "True", "Progressing")
        if under_way and not doing.startswith("Running health checks"):
            return f"a reconciliation is under way ({doing})"
    return ""


def _note(path: str, raw: Json) -> tuple[str, Json] | None:
    """The product that a rollback has held it off for, and the field as it was.

    :raises BalikError: the annotation cannot be read.
    """
    note = (raw["metadata"].get("annotations") or {}).get(HELD)
    try:
        kept = json.loads(note or "null")
        return (str(kept["product"]), dict(kept["was"])) if kept else None
    except (ValueError, TypeError, KeyError):
        raise BalikError(
            f"{name_of(path)}: annotation {HELD}",
            f"is {note!r}, which this project has not written",
            do="Switch it on by hand, and remove the annotation.",
        ) from None


def holder(path: str, raw: Json) -> str:
    """The product whose rollback holds it off; empty: none, or somebody has switched it on again since."""
    note = _note(path, raw)
    return note[0] if note and not _acts(path, raw) else ""


def judge(owners: Sequence[Owner], policy: str, product: str) -> tuple[list[str], list[str]]:
    """(refusals, notes), each a sentence.

    :param policy: ``refuse``, ``suspend`` or ``accept``.
    :param product: whose rollback this is.
    """
    refusals, notes = [], []
    for one in owners:
        if one.kind == "Release":
            notes.append(
                f"{one.line} belongs to {one.name}: `helm upgrade` will put its own image back, `helm rollback` too"
            )
        elif one.kind == "Label":
            notes.append(f"{one.line} {one.cannot}")
        elif one.held == product:
            notes.append(f"{one.name} of {one.line} is held off already")
        elif one.held and policy != "accept":
            refusals.append(
                f"{one.name} of {one.line} is held off by the rollback of {one.held}, which would let it put the "
                "version back. Let that end first, or set image_revert_owners: accept"
            )
        elif one.busy and not one.fights and policy == "refuse":
            refusals.append(
                f"{one.name} of {one.line} acts by itself no more, but {one.busy}, and would put the version back. Let "
                "that end, or end it; or set image_revert_owners: suspend, which waits for it"
            )
        elif one.busy and not one.fights and policy == "suspend":
            notes.append(f"{one.name} of {one.line}: {one.busy}; its end will be waited for")
        elif not one.fights and not one.held and not one.busy:
            made = f". {one.cannot}, unless it leaves /spec/syncPolicy alone" if one.instead else ""
            notes.append(
                f"{one.line} belongs to {one.name}, which does not act by itself now; a sync by hand would{made}"
            )
        elif policy == "accept":
            notes.append(f"{one.line} belongs to {one.name}, which may put the version back (accepted by the plan)")
        elif one.cannot:
            why = f", and cannot be held off from here: {one.cannot}" if policy == "suspend" else f" ({one.cannot})"
            instead = f", or {one.instead}" if one.instead else ""
            refusals.append(
                f"{one.line} belongs to {one.name}, which would put the version back{why}. Revert there{instead}, or "
                "set image_revert_owners: accept"
            )
        elif policy == "suspend":
            first = f" ({one.busy}; its end will be waited for)" if one.busy else ""
            notes.append(f"{one.name} of {one.line} will be held off until it is resumed{first}")
        else:
            refusals.append(
                f"{one.line} belongs to {one.name}, which would put the version back. Revert there, or set "
                "image_revert_owners: suspend"
            )
    return refusals, notes


def argocd_permissions(cluster: Cluster, namespaces: Sequence[str], policy: str) -> list[Permission]:
    """What finding the Applications of these namespaces takes, and holding them off; nothing where there are none."""
    verbs = ("list", "get", "patch") if policy == "suspend" else ("list",)
    group, resource = _ARGO[0].partition("/")[0], _ARGO[1]
    served = cluster.offers(*_ARGO)
    return [Permission(verb, group, resource, one) for one in namespaces for verb in verbs] if served else []


def flux_permissions(changes: Sequence[Change], policy: str) -> list[Permission]:
    """What looking at the Flux objects that these workloads name takes, and holding them off."""
    verbs = ("get", "patch") if policy == "suspend" else ("get",)
    return [
        Permission(verb, group, resource, labels.get(f"{group}/namespace", one.workload.namespace), (name,))
        for one in changes
        for group, (_, resource, _) in _FLUX.items()
        for labels in [one.workload.labels]
        if (name := labels.get(f"{group}/name", ""))
        for verb in verbs
    ]


def search_permissions(cluster: Cluster, argocd: Where, flux: Where) -> list[Permission]:
    """What finding those that are held off in these namespaces takes, and letting them go; what is guessed only, is
    looked at as far as one may."""
    return [
        Permission(verb, version.partition("/")[0], resource, one)
        for version, resource, one, variable in _places(cluster, argocd, flux)
        for verb in ("list", "get", "patch")
        if variable
    ]


def resume_permissions(paths: Sequence[str]) -> list[Permission]:
    """What letting go those at these paths takes."""
    parts = [path.split("/") for path in paths]  # /apis/group/version/namespaces/namespace/resource/name
    return [Permission(verb, one[2], one[6], one[5], (one[7],)) for one in parts for verb in ("get", "patch")]


def hold(cluster: Cluster, path: str, product: str) -> bool:
    """Keep an owner from acting by itself; whether there was need to.

    :raises BalikError: it is gone, or another product's rollback holds it off.
    """
    raw = cluster.get(path)
    by = holder(path, raw)
    if by not in ("", product):
        raise BalikError(name_of(path), f"held off by the rollback of {by}", do="Let that end first.")
    if by:
        return False
    note = {"annotations": {HELD: json.dumps({"product": product, "was": _switch(path, raw)})}}
    change = {"syncPolicy": {"automated": None}} if _is_application(path) else {"suspend": True}
    cluster.patch(path, {"metadata": note, "spec": change})
    return True


def wait_until_idle(cluster: Cluster, paths: Sequence[str], limit: float) -> None:
    """Wait until what these are doing just now has ended: holding them off does not end it.

    :param limit: seconds, for all of them.
    :raises BalikError: one goes on and on.
    """
    end = time.monotonic() + limit
    for path in paths:
        while busy := _busy(path, cluster.get(path)):
            if time.monotonic() > end:
                name = path.rpartition("/")[2]
                raise BalikError(
                    name_of(path),
                    f"it acts by itself no more, but {busy}",
                    do=f"End it (argocd app terminate-op {name}), then run again."
                    if _is_application(path)
                    else "See that its controller runs, and let that end; then run again.",
                )
            time.sleep(1)


@dataclass(frozen=True)
class Held:
    """Something that a product's rollback holds off.

    ``apart``: how Git differs from what runs; empty: it does not. ``acts``: somebody has switched it on again, so that
    what is left of it is the annotation.
    """

    path: str
    was: Json
    apart: str
    acts: bool = False

    @property
    def name(self) -> str:
        """``applications hub in namespace argocd``."""
        return name_of(self.path)


def _places(cluster: Cluster, argocd: Where, flux: Where) -> list[tuple[str, str, str, str]]:
    """Version, resource and namespace to look into, and the variable by which the plan names that; empty: guessed."""
    kinds = [(*_ARGO, argocd, ARGO_PLACES)] if cluster.offers(*_ARGO) else []
    for group, (_, resource, versions) in _FLUX.items():
        version = cluster.first_offered(group, versions, resource)
        kinds += [(version, resource, flux, FLUX_PLACES)] if version else []
    return [
        (version, resource, one, "" if where.guessed else variable)
        for version, resource, where, variable in kinds
        for one in where.namespaces
    ]


def held(
    cluster: Cluster, product: str, argocd: Where, flux: Where, recorded: Sequence[str] | None
) -> tuple[list[Held], list[str]]:
    """All that the rollback of this product holds off in these namespaces, and at these paths from the record; and
    where it may not be looked for.

    :param recorded: all that the run has held off, so that what may not be listed is none of it; None where no record
        says so.
    :raises BalikError: without a record, a namespace of the plan's that may not be listed or does not exist, or none
        of those that are guessed may be.
    """
    places = _places(cluster, argocd, flux)
    found: list[Held] = []
    unseen: list[str] = []
    for version, resource, namespace, variable in places:
        listed: list[Json] = []
        try:
            listed += cluster.list(path_of(version, resource, namespace))
        except Refused as error:
            unseen.append(f"{resource} in namespace {namespace}")
            if error.status != 403 or (recorded is None and (variable or len(unseen) == len(places))):
                raise
        if variable and recorded is None and not listed and cluster.has(namespace) is False:
            raise BalikError(
                variable, f"{namespace} does not exist ({cluster.name})", do="Correct it, or leave it out."
            )
        for raw in listed:
            one = _held(path_of(version, resource, namespace, raw["metadata"]["name"]), raw, product)
            found += [one] if one else []
    known = {one.path for one in found}
    others = (held_at(cluster, path, product) for path in recorded or [] if path not in known)
    return [*found, *(one for one in others if one)], unseen


def held_at(cluster: Cluster, path: str, product: str) -> Held | None:
    """The same of one object; ``None`` where it is not held off, or by another product."""
    raw = cluster.find(path)
    return _held(path, raw, product) if raw else None


def _held(path: str, raw: Json, product: str) -> Held | None:
    note = _note(path, raw)
    if not note or note[0] != product:
        return None
    if _acts(path, raw):
        return Held(path, _switch(path, raw), "", True)
    was = note[1]
    apart = "Flux does not tell what Git wants"
    if "automated" in was:
        synced = ((raw.get("status") or {}).get("sync") or {}).get("status") or "not compared"
        apart = "" if synced == "Synced" else f"it is {synced}: Git wants another version"
        if _is_uncompared(raw):
            apart = "Argo CD has not compared it with Git since it was asked to: see that its controller runs"
    return Held(path, was, apart)


def compare_anew(cluster: Cluster, held: Sequence[Held], limit: float) -> None:
    """Ask Argo CD to compare these with Git once more, and wait until it has: what it says may be of before the revert.

    :param limit: seconds, for all of them; what has not been compared by then keeps :data:`_COMPARE`.
    """
    paths = [one.path for one in held if "automated" in one.was]
    for path in paths:
        cluster.patch(path, {"metadata": {"annotations": {_COMPARE: "normal"}}})
    end = time.monotonic() + limit
    while any(_is_uncompared(cluster.find(path)) for path in paths) and time.monotonic() < end:
        time.sleep(0.5)


def _is_uncompared(raw: Json | None) -> bool:
    return _COMPARE in ((raw or {"metadata": {}})["metadata"].get("annotations") or {})


def give_back(cluster: Cluster, one: Held) -> None:
    """Put back what :func:`hold` changed."""
    spec = {"syncPolicy": {"automated": one.was["automated"]}} if "automated" in one.was else one.was
    cluster.patch(one.path, {"metadata": {"annotations": {HELD: None}}, "spec": spec})
