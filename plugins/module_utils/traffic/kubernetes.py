"""The maintenance page in a Kubernetes cluster: routes whose backends are switched to a Service that serves it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..errors import BalikError, Unreachable
from ..kubernetes.client import JSON_PATCH, Cluster, Json, Refused, at_once, path_of
from ..kubernetes.identity import identity_of, must_be_the_recorded
from ..kubernetes.permissions import Permission, require
from ..kubernetes_revert.images import parse
from . import kubernetes_owners as owners
from . import kubernetes_page as made
from .balancer import Balancer, File, State
from .kubernetes_routes import (
    API,
    INGRESS,
    Route,
    Upstream,
    beside,
    held_by_others,
    hosts_of,
    misfits,
    originals,
    patch_off,
    patch_on,
    places,
    require_free,
    shows_page,
)
from .maintenance import Maintenance, Result
from .page import Page, PageIsOn

MANIFEST = "roles/maintenance-page/files/rbac-kubernetes.yml"
_APPLY = "application/apply-patch+yaml"
_TRIES = 6
_LOOK = 0.5
_PREPARE = "Run maintenance-page's `prepare`."
_RESOURCES = {
    "ConfigMap": ("", "v1", "configmaps"),
    "Secret": ("", "v1", "secrets"),
    "Deployment": ("apps", "apps/v1", "deployments"),
    "Service": ("", "v1", "services"),
}


@dataclass(frozen=True)
class Routes(Balancer):
    """The routes of the plan, as a load balancer whose switch is their backends.

    :param page: the name of the page's Service, Deployment, ConfigMap and Secret, in each route's namespace.
    :param product: whose page it is; what another product has switched is left to that one.
    :param recorded: the routes that this run has put the page up on, whatever the plan names by now.
    :param began: what the record has of the page that this run has put up; empty where it has not.
    :param left: those among ``routes`` that are not the plan's, see :meth:`with_left`.
    :param gone: those of the record that are not the plan's, and whose namespace was deleted.
    """

    cluster: Cluster
    page: str
    run: str
    routes: tuple[Route, ...]
    product: str = ""
    recorded: tuple[Route, ...] = ()
    began: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[Route, ...] = ()
    gone: tuple[Route, ...] = ()

    title = "Kubernetes"

    @property
    def namespaces(self) -> list[str]:
        return sorted({route.namespace for route in self.routes})

    def must_be_where_it_began(self) -> None:
        """:raises BalikError: the page that this run has put up is in another cluster, where it would stay."""

        def uids(route: Route) -> dict[str, str]:
            thing = self.cluster.find(self._path(route))
            return {str(route): str(thing["metadata"]["uid"])} if thing else {}

        given = "maintenance_page_kubernetes_kubeconfig, maintenance_page_kubernetes_context"
        must_be_the_recorded(self.cluster, self.began, [partial(uids, route) for route in self.recorded], given)

    def with_left(self) -> Routes:
        """The same, with those of the record that still show the page in places that the plan does not name.

        :raises Refused: one may not be read, and its namespace is there, or may be.
        """
        left, gone = [], []
        planned = {str(route) for route in self.routes}
        for route in self.recorded:
            try:
                thing = self.cluster.find(self._path(route))
            except Refused as error:
                if str(route) in planned:
                    raise
                self.cluster.must_be_gone(route.namespace, error)
                gone.append(route)
                continue
            if thing is None:
                continue
            named = {place.pointer for mine in self.routes if str(mine) == str(route) for place in places(mine, thing)}
            others = held_by_others(thing, self.product)
            if any(
                shows_page(place, self.page) and place.pointer not in named and place.at not in others
                for place in places(route, thing)
            ):
                left.append(route)
        return replace(self, routes=(*self.routes, *left), left=tuple(left), gone=tuple(gone))

    def read(self) -> State:
        """On where any of the places shows the page, kept where all do; those that another product holds count only
        where there is no other."""
        found = [
            (shows_page(place, self.page), place.at in held_by_others(thing, self.product))
            for route, thing in self.things()
            for place in self._places(route, thing)
        ]
        showing = [shows for shows, theirs in found if not theirs] or [shows for shows, _ in found]
        return State(any(showing), all(showing))

    def others(self) -> list[str]:
        """What other products' rollbacks have switched on these routes."""
        found = {
            f"{route}, {at} ({holder})"
            for route, thing in self.things()
            for at, holder in held_by_others(thing, self.product).items()
        }
        return sorted(found)

    def require_fitting(self) -> None:
        """:raises BalikError: paths or hosts of the plan are not a route's, others would be switched with them, or
        another product's rollback holds them."""
        things = self.things()
        wrong = [line for route, thing in things for line in misfits(route, thing, self.routes)]
        if wrong:
            raise BalikError(
                "maintenance_page_kubernetes_routes",
                "; ".join(dict.fromkeys(wrong)),
                do="Correct the entry (`paths` and `hosts` are compared as they stand in the route), or the route.",
            )
        for route, thing in things:
            require_free(route, thing, self.product)

    def several_hosts(self) -> str:
        """The hosts of each route that the plan takes with several, and names none of."""
        found = {f"{route}{route.choice}": hosts_of(route, thing) for route, thing in self.things() if not route.hosts}
        return "".join(f"; {route}: on {', '.join(hosts)}" for route, hosts in found.items() if len(hosts) > 1)

    def past_the_page(self) -> str:
        """Other Ingresses of the routes' namespaces for the same hosts and paths, such as a canary."""
        ingresses = [(route, thing) for route, thing in self.things() if route.kind == INGRESS]
        named = {str(route) for route in self.routes}
        says = ""
        for namespace in sorted({route.namespace for route, _ in ingresses}):
            try:
                others = list(self.cluster.list(path_of(self.group_version(INGRESS), API[INGRESS][2], namespace)))
            except Refused as error:
                if error.status != 403:
                    raise
                says += f"; not looked for: other Ingresses in {namespace}, which these credentials may not list"
                continue
            for other in others:
                name = f"{INGRESS} {namespace}/{other['metadata']['name']}"
                if name not in named:
                    here = [(route, thing) for route, thing in ingresses if route.namespace == namespace]
                    places = [one for route, thing in here for one in beside(route, thing, other, self.page)]
                    if places:
                        says += f"; {name} also answers {', '.join(dict.fromkeys(places))}, and is not in the plan"
        return says

    def taken_down_by(self, namespaces: Sequence[str], accept: bool) -> str:
        """Argo CD and Flux, where they may take the page down again.

        :param namespaces: where Argo CD's Applications stand.
        :param accept: also where they certainly do.
        :raises BalikError: they certainly do, or cannot be read; neither where ``accept`` takes whatever they do.
        """
        try:
            certain, perhaps = owners.judge(self.cluster, self.things(), namespaces, self.product)
        except BalikError as error:
            if not accept:
                raise
            why = f"{error.what}: {error.found}"
            return f"; not looked for: Argo CD and Flux, which may take the page down again ({why})"
        if certain and not accept:
            raise BalikError(
                "; ".join(certain),
                "it acts by itself",
                "held off while the page is up",
                "Hold it off before (argocd app set <name> --sync-policy none; flux suspend kustomization <name>), or "
                "set maintenance_page_kubernetes_owners: accept, where it leaves the backends alone.",
            )
        return "".join(f"; {one}" for one in (*certain, *perhaps))

    def switch(self, on: bool) -> None:
        """:raises BalikError: some routes could not be switched; says which, and which were."""
        ports = {namespace: self.ports(namespace) for namespace in self.namespaces} if on else {}

        def port_of(upstream: Upstream, route: Route) -> int:
            known = ports[route.namespace]
            if str(upstream) not in known:
                raise BalikError(f"{route}", f"leads to {upstream}, which the page does not know", do=_PREPARE)
            return known[str(upstream)]

        def patch(route: Route, thing: Json) -> list[dict[str, Any]]:
            if on:
                return patch_on(
                    route, thing, self.page, self.run, self.product, lambda upstream: port_of(upstream, route)
                )
            return patch_off(route, thing, self.page, self.product)

        by_name: dict[str, list[Route]] = {}
        for route in self.routes:
            by_name.setdefault(str(route), []).append(route)

        def switch(name: str) -> None:
            # The patches of one route follow each other; what one takes away, another would look for.
            for route in by_name[name]:
                self._switch(route, patch)

        done, failed = at_once(by_name, switch)
        if failed:
            told = "; ".join(str(error) for error in failed.values())
            raise BalikError(
                self.cluster.name,
                f"{len(done)} of {len(by_name)} routes are switched {'to the page' if on else 'back'}: {told}",
                do="Mend that and run again: it goes on with the rest.",
            )

    def _switch(self, route: Route, patch: Callable[[Route, Json], list[dict[str, Any]]]) -> None:
        for left in reversed(range(_TRIES)):
            thing = self.thing(route)
            ops = patch(route, thing)
            if not ops:
                return
            try:
                self.cluster.patch(self._path(route), ops, JSON_PATCH)
                return
            except Refused as error:
                if error.status != 409 or not left:
                    raise

    def things(self) -> list[tuple[Route, Json]]:
        """Every route as it stands.

        :raises BalikError: one is not there.
        """
        return [(route, self.thing(route)) for route in self.routes]

    def thing(self, route: Route) -> Json:
        found = self.cluster.find(self._path(route))
        if found is None:
            raise BalikError(
                str(route),
                f"is not there ({self.cluster.name})",
                do="Correct maintenance_page_kubernetes_routes, or the context.",
            )
        return found

    def upstreams(self, namespace: str) -> set[Upstream]:
        """The Services that the routes of a namespace lead to while the page is off."""
        return {
            place.upstream
            for route, thing in self.things()
            if route.namespace == namespace
            for now, place in zip(self._places(route, thing), originals(route, thing, self.page))
            if route not in self.left or shows_page(now, self.page)
        }

    def ports(self, namespace: str) -> dict[str, int]:
        """Service → port of the page, as ``prepare`` assigned them; empty where it has not been there.

        :raises BalikError: they cannot be read.
        """
        service = self.cluster.find(path_of("v1", "services", namespace, self.page)) or {"metadata": {}}
        note = (service["metadata"].get("annotations") or {}).get(made.UPSTREAMS) or "{}"
        try:
            return {str(key): int(port) for key, port in json.loads(note).items()}
        except (ValueError, TypeError, AttributeError):
            raise BalikError(
                f"Service {namespace}/{self.page}",
                f"its annotation {made.UPSTREAMS} cannot be read ({note[:80]!r})",
                "the ports that `prepare` assigned",
                "Delete this Service while the page is down, and run maintenance-page's `prepare`.",
            ) from None

    def serving(self, namespace: str, service: str) -> int:
        """How many pods answer behind a Service."""
        found = self.cluster.find(path_of("v1", "endpoints", namespace, service)) or {}
        return sum(len(subset.get("addresses") or []) for subset in found.get("subsets") or [])

    def _places(self, route: Route, thing: Json) -> list[Any]:
        found = places(route, thing)
        if not found:
            raise BalikError(str(route), f"has no backend{route.choice} that is a Service", "at least one")
        return found

    def group_version(self, kind: str) -> str:
        group, versions, resource = API[kind]
        found = self.cluster.first_offered(group, versions, resource)
        if not found:
            raise BalikError(
                f"{kind} ({self.cluster.name})", "the cluster does not have it", f"{group} {' or '.join(versions)}"
            )
        return found

    def _path(self, route: Route) -> str:
        return path_of(self.group_version(route.kind), API[route.kind][2], route.namespace, route.name)

    # A cluster has no files, and nothing to reload: KubernetesMaintenance makes its objects instead.

    def files(self, page: Page, bypass: str) -> list[File]:
        raise NotImplementedError

    def missing(self) -> list[str]:
        raise NotImplementedError

    def validate(self) -> None:
        raise NotImplementedError

    def reload(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class KubernetesMaintenance(Maintenance):
    """The page in a cluster. Without a URL only the API's objects are read, and no visitor's answer.

    :param image: nginx, as the cluster can pull it.
    :param limit: seconds that the page's pods have to become ready.
    :param argocd: the namespaces of Argo CD's Applications.
    :param accept_owners: also where Argo CD or Flux would take the page down.
    """

    balancer: Routes
    image: str = ""
    replicas: int = 2
    limit: float = 120.0
    argocd: tuple[str, ...] = ()
    accept_owners: bool = False

    def prepare(self, page: Page, group: str = "") -> Result:
        """Makes the page's objects, and waits until its pods are ready."""
        routes = self.balancer
        if not self.image:
            raise BalikError("maintenance_page_kubernetes_image", "names none", "an nginx that the cluster can pull")
        if not parse(self.image):
            raise BalikError(
                "maintenance_page_kubernetes_image", f"{self.image!r} is no name of an image", "repository:tag"
            )
        self._require_replicas()
        require(routes.cluster, [*self._permissions(), *self._permissions_to_prepare()], MANIFEST)
        routes.require_fitting()
        stale = []
        made_by_namespace = {namespace: self._objects(namespace, page) for namespace in routes.namespaces}
        self._require_own([one for wanted in made_by_namespace.values() for one in wanted])
        for namespace, wanted in made_by_namespace.items():
            other = [one for one in wanted if self._revision_of(one) != _revision(one) or self._is_scaled(one)]
            stale += [f"{one['kind']} {namespace}/{routes.page}" for one in other]
            if not self.dry:
                for one in other:
                    self._apply(one)
                self._await_pods(namespace)
        if self.dry:
            says = f"would make {', '.join(stale)}" if stale else "everything of the page is there"
        else:
            says = f"the page is ready in {', '.join(routes.namespaces)}"
        return {"changed": bool(stale), "missing": [], "says": self._says(says)}

    def check(self, page: Page) -> Result:
        """Reads that every route can be switched, and that the page of the plan is what they would show."""
        routes = self.balancer
        self._require_replicas()
        require(routes.cluster, self._permissions(), MANIFEST)
        routes.require_fitting()
        state = routes.read()
        for namespace in routes.namespaces:
            known, wanted = routes.ports(namespace), {str(one) for one in routes.upstreams(namespace)}
            if lacking := sorted(wanted - known.keys()):
                raise BalikError(
                    f"Service {namespace}/{routes.page}", f"has no port for {', '.join(lacking)}", do=_PREPARE
                )
            deployment = next(one for one in self._objects(namespace, page) if one["kind"] == "Deployment")
            found = self._revision_of(deployment)
            # In the running object the image is the one that was prepared with; the plan may leave it out later.
            if found != _revision(deployment):
                raise BalikError(
                    f"Deployment {namespace}/{routes.page}",
                    f"serves revision {found or 'none'}",
                    f"the plan's, {_revision(deployment)}",
                    _PREPARE,
                )
            self._must_serve(namespace)
        word = "on" if state.is_fully(True) else "off"
        notes = routes.several_hosts() + routes.past_the_page() + _told_left(routes.with_left())
        notes += routes.taken_down_by(self.argocd, self.accept_owners)
        return {
            "changed": False,
            "before": {
                "page": word,
                "routes": [str(route) for route in routes.routes],
                **identity_of(routes.cluster, {str(route): thing for route, thing in routes.things()}),
            },
            "evidence": {"page": word},
            "says": self._says(f"{_many(routes.routes)} can show the page, which is {word}{notes}"),
        }

    def on(self) -> Result:
        self.balancer.require_fitting()
        result = super().on() if self.door.url else self._switched(True)
        return {**result, "says": f"{result['says']}{self.balancer.several_hosts()}"}

    def off(self, app_must_answer: bool) -> Result:
        every = replace(self, balancer=self.balancer.with_left())
        outside = every._require_app() if app_must_answer else []
        result = every._off(app_must_answer)
        more = "".join(f"; Service {one} is outside of the cluster and was not looked at" for one in outside)
        return {**result, "says": f"{result['says']}{_told_left(every.balancer)}{more}"}

    def _off(self, app_must_answer: bool) -> Result:
        return self._with_others(super().off(app_must_answer) if self.door.url else self._switched(False))

    def _require_app(self) -> list[str]:
        """The Services that lead out of the cluster, of which the API does not know who answers.

        :raises BalikError: no pod behind another one is ready.
        """
        outside = []
        for namespace in self.balancer.namespaces:
            for where, service in sorted({(one.namespace, one.service) for one in self.balancer.upstreams(namespace)}):
                if self.balancer.serving(where, service):
                    continue
                found = self.balancer.cluster.find(path_of("v1", "services", where, service)) or {}
                if (found.get("spec") or {}).get("type") != "ExternalName":
                    raise BalikError(
                        f"Service {where}/{service}",
                        "no pod behind it is ready",
                        "the application",
                        "The page stays. Bring the application up first.",
                    )
                outside.append(f"{where}/{service}")
        return outside

    def verify_on(self) -> Result:
        if not self.dry:
            for namespace in self.balancer.namespaces:
                self._must_serve(namespace)
        return super().verify_on() if self.door.url else self._verified(True)

    def see_on(self) -> Result:
        """An API that does not answer is waited for: whether visitors still have the page is not known, and a moment of
        it is no reason to end the rollback between two steps."""
        end, away = time.monotonic() + self.within, False
        while True:
            try:
                with self.balancer.cluster.within(max(end - time.monotonic(), _LOOK)):
                    self.balancer.must_be_where_it_began()
                    return super().see_on() if self.door.url else self._verified(True)
            except BalikError as error:
                # One that is coming back may say for a moment that nothing is permitted, or is there.
                away = away or isinstance(error, Unreachable) or getattr(error, "status", 0) >= 500
                if not away or time.monotonic() > end:
                    raise
            time.sleep(_LOOK)

    def verify_off(self) -> Result:
        return replace(self, balancer=self.balancer.with_left())._verify_off()

    def _verify_off(self) -> Result:
        return self._with_others(super().verify_off() if self.door.url else self._verified(False))

    def _with_others(self, result: Result) -> Result:
        others = self.balancer.others()
        return {**result, "says": f"{result['says']}; still on for others: {'; '.join(others)}"} if others else result

    def _must_stand(self, on: bool) -> None:
        routes = self.balancer
        wrong = [
            f"{route}, {place.at}"
            for route, thing in routes.things()
            for place in places(route, thing)
            if shows_page(place, routes.page) is not on
            and (on or place.at not in held_by_others(thing, routes.product))
        ]
        if wrong:
            words = ("the page", "the application")
            found, expected = words if not on else words[::-1]
            raise (BalikError if on else PageIsOn)("; ".join(wrong), f"leads to {found}", expected)

    def _switched(self, on: bool) -> Result:
        result, word = self._change(self.balancer.read(), on), "on" if on else "off"
        if self.dry:
            return {
                **result,
                "says": self._says(f"the page {f'would go {word}' if result['changed'] else f'is {word}'}"),
            }
        start = time.monotonic()
        if result["changed"]:
            self.balancer.switch(on)
        taken = round((time.monotonic() - start) * 1000, 1)
        lead = _lead(self.balancer.routes, "the page" if on else "the application")
        return {
            **result,
            "evidence": {"page": word, "routes": len(self.balancer.routes), "switched_after_ms": taken},
            "says": self._says(f"{lead}, within {taken} ms"),
        }

    def _verified(self, on: bool) -> Result:
        word = "on" if on else "off"
        if self.dry:
            return {"changed": False, "says": self._says("the page is not verified in check mode")}
        self._must_stand(on)
        lead = _lead(self.balancer.routes, "it" if on else "the application")
        return {"changed": False, "evidence": {"page": word}, "says": self._says(f"the page is {word}: {lead}")}

    # What is made

    def _objects(self, namespace: str, page: Page) -> list[Json]:
        routes = self.balancer
        upstreams = routes.upstreams(namespace)
        addresses = {str(one): self._address(one) for one in upstreams}
        ports = made.assign(routes.ports(namespace), upstreams)
        return made.objects(routes.page, namespace, self.image, self.replicas, page, self.bypass, ports, addresses)

    def _require_replicas(self) -> None:
        if self.replicas < 1:
            raise BalikError("maintenance_page_kubernetes_replicas", f"is {self.replicas}", "at least 1")

    def _require_own(self, wanted: Sequence[Json]) -> None:
        """:raises BalikError: an object of the page's name is somebody else's."""
        readable = [one for one in wanted if one["kind"] != "Secret"]
        found = [(one, self.balancer.cluster.find(_path(one))) for one in readable]
        others = [
            f"{one['kind']} {one['metadata']['namespace']}/{one['metadata']['name']}"
            for one, there in found
            if there and not _revision(there)
        ]
        if others:
            raise BalikError(
                f"maintenance_page_kubernetes_name ({self.balancer.cluster.name})",
                f"{', '.join(others)} is there, and not the page's",
                "a name that nothing else has",
                "Choose another name.",
            )

    def _apply(self, wanted: Json) -> None:
        try:
            self.balancer.cluster.patch(_path(wanted), wanted, _APPLY, force=self._is_scaled(wanted))
        except Refused as error:
            if error.status != 409:
                raise
            raise BalikError(
                f"{wanted['kind']} {wanted['metadata']['namespace']}/{wanted['metadata']['name']}",
                f"somebody else has set what the page sets ({error.found})",
                do="Take that back, or choose another maintenance_page_kubernetes_name.",
            ) from None

    def _address(self, upstream: Upstream) -> str:
        """Where nginx reaches a Service: by its address, so that nginx starts whatever else is broken.

        :raises BalikError: it has none (nginx would look its pods up once, and not notice that they are replaced).
        """
        path = path_of("v1", "services", upstream.namespace, upstream.service)
        service = self.balancer.cluster.find(path)
        if service is None:
            raise BalikError(f"Service {upstream.namespace}/{upstream.service}", "is not there, but routes lead to it")
        spec = service["spec"]
        numbers = {str(each.get("name")): each["port"] for each in spec.get("ports") or []}
        port = numbers.get(upstream.port, upstream.port)
        if not str(port).isdigit():
            known = ", ".join(numbers) or "none"
            raise BalikError(f"Service {upstream.namespace}/{upstream.service}", f"no port {port!r}", f"one of {known}")
        address = spec.get("clusterIP", "")
        if address == "None":
            raise BalikError(
                f"Service {upstream.namespace}/{upstream.service}",
                "is headless",
                "an address of its own: the operator's bypass could not follow its pods while they are replaced",
                "Let the route lead to a Service for the same pods that has one.",
            )
        if not address:  # ExternalName
            address = f"{upstream.service}.{upstream.namespace}.svc"
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    def _revision_of(self, wanted: Json) -> str:
        """The revision of the object that is there; empty where there is none."""
        if wanted["kind"] == "Secret":  # which only `prepare` may read; the Deployment's revision is over it too
            wanted = {**wanted, "kind": "Deployment", "apiVersion": "apps/v1"}
        return _revision(self.balancer.cluster.find(_path(wanted)) or {})

    def _is_scaled(self, wanted: Json) -> bool:
        """Whether somebody has set another number of pods than the plan's, such as none over night."""
        found = self.balancer.cluster.find(_path(wanted)) if wanted["kind"] == "Deployment" else None
        return bool(found and found["spec"]["replicas"] != self.replicas)

    def _await_pods(self, namespace: str) -> None:
        """:raises BalikError: they do not serve within the limit; with what the Deployment says."""
        path = path_of("apps/v1", "deployments", namespace, self.balancer.page)
        end = time.monotonic() + self.limit
        while True:
            found = self.balancer.cluster.get(path)
            status = found.get("status") or {}
            seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
            counts = [int(status.get(key) or 0) for key in ("updatedReplicas", "availableReplicas", "replicas")]
            serving = self.balancer.serving(namespace, self.balancer.page)
            if seen and serving and counts == [self.replicas] * 3:
                return
            if time.monotonic() > end:
                why = "; ".join(
                    f"{one['type']}: {one.get('message', one.get('reason', ''))}"
                    for one in status.get("conditions") or []
                    if one["status"] != "True"
                )
                raise BalikError(
                    f"Deployment {namespace}/{self.balancer.page}",
                    f"{counts[1]} of {self.replicas} pods are ready, and {serving} behind its Service, after "
                    f"{self.limit:g} s ({why or 'no reason'})",
                    do=f"Can the cluster pull {self.image}? `kubectl -n {namespace} describe pods -l "
                    f"app.kubernetes.io/name={self.balancer.page}` says more.",
                )
            time.sleep(_LOOK)

    def _must_serve(self, namespace: str) -> None:
        if not self.balancer.serving(namespace, self.balancer.page):
            raise BalikError(
                f"Service {namespace}/{self.balancer.page}", "no pod behind it is ready", "the page's", _PREPARE
            )

    # What one must be allowed to do

    def _permissions(self) -> list[Permission]:
        routes, page = self.balancer, (self.balancer.page,)
        wanted = [
            Permission(verb, API[route.kind][0], API[route.kind][2], route.namespace, (route.name,))
            for route in routes.routes
            for verb in ("get", "patch")
        ]
        for namespace in routes.namespaces:
            wanted += [Permission("get", "", resource, namespace) for resource in ("services", "endpoints")]
            wanted.append(Permission("get", "apps", "deployments", namespace, page))
        return wanted

    def _permissions_to_prepare(self) -> list[Permission]:
        routes, page = self.balancer, (self.balancer.page,)
        wanted = []
        for namespace in routes.namespaces:
            wanted.append(Permission("get", "", "configmaps", namespace, page))
            for group, _version, resource in _RESOURCES.values():
                wanted.append(Permission("create", group, resource, namespace))
                wanted.append(Permission("patch", group, resource, namespace, page))
        return wanted


def _path(thing: Json) -> str:
    _group, version, resource = _RESOURCES[thing["kind"]]
    return path_of(version, resource, thing["metadata"]["namespace"], thing["metadata"]["name"])


def _revision(thing: Json) -> str:
    return str(((thing.get("metadata") or {}).get("annotations") or {}).get(made.REVISION, ""))


def _told_left(routes: Routes) -> str:
    down = "has the page by the record, and not by the plan: it goes down, too"
    gone = "had the page by the record, and its namespace does not exist any more"
    told = [f"{route} {down}" for route in routes.left] + [f"{route} {gone}" for route in routes.gone]
    return "".join(f"; {one}" for one in told)


def _many(routes: Sequence[Route]) -> str:
    return f"{len(routes)} route{'' if len(routes) == 1 else 's'} ({', '.join(map(str, routes[:5]))})"


def _lead(routes: Sequence[Route], where: str) -> str:
    return f"{_many(routes)} lead{'s' if len(routes) == 1 else ''} to {where}"
