"""Ingresses and HTTPRoutes: which backends stand in them, and how they are switched to the maintenance page and back.

Everything here is pure: objects in, JSON patches out. What a switch replaces stands on the route itself, in an
annotation that is written and removed by the same patch as the backends. So no route is half-switched, and whatever
else stands in it (TLS, annotations, other paths, filters) is not even named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BalikError

Object = Mapping[str, Any]

NOTE = "balik.dev/maintenance"
"""Annotation on a route that shows the page: JSON, ``{"run": …, "was": {place: backend}, "of": {place: product}}``."""

INGRESS, HTTP_ROUTE = "Ingress", "HTTPRoute"
API = {
    INGRESS: ("networking.k8s.io", ("v1",), "ingresses"),
    HTTP_ROUTE: ("gateway.networking.k8s.io", ("v1", "v1beta1"), "httproutes"),
}


#: Whose annotations are known: ingress-nginx and older ones, the AWS controller, NGINX's own, and both of HAProxy.
_CONTROLLERS = (
    "nginx.ingress.kubernetes.io",
    "ingress.kubernetes.io",
    "alb.ingress.kubernetes.io",
    "nginx.org",
    "haproxy.org",
    "haproxy-ingress.github.io",
)
#: Their words for how to speak to what an Ingress leads to → the values that mean plain HTTP.
_PLAIN: dict[str, tuple[str, ...]] = {
    "backend-protocol": ("http", "auto_http", "h1"),
    "backend-protocol-version": ("http1",),
    "ssl-passthrough": ("false",),
    "secure-backends": ("false",),
    "server-ssl": ("false",),
    "server-proto": (),
    "ssl-services": (),
    "grpc-services": (),
}


@dataclass(frozen=True)
class Upstream:
    """A Service that a route leads to; ``port`` is its number or its name."""

    namespace: str
    service: str
    port: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port}"


@dataclass(frozen=True)
class Route:
    """One route of the plan; ``paths`` empty: all of them, ``hosts`` empty: of all hosts."""

    kind: str
    namespace: str
    name: str
    paths: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def choice(self) -> str:
        """What of the route is meant, in words; empty where it is all."""
        parts = [
            *([", ".join(self.paths)] if self.paths else []),
            *([f"on {', '.join(self.hosts)}"] if self.hosts else []),
        ]
        return f" for {' '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Place:
    """A backend in a route: where it is, what it is for (which stays when others are added before it), what it is."""

    pointer: str
    at: str
    backend: Any
    upstream: Upstream


def places(route: Route, thing: Object) -> list[Place]:
    """The backends of a route that lead to Services, as far as its paths and hosts are the plan's."""
    found = _ingress(route, thing) if route.kind == INGRESS else _http_route(route, thing)
    counted: dict[str, int] = {}
    named = []
    for pointer, at, backend, upstream in found:
        # Two rules may be for the same path; the order among these is theirs.
        counted[at] = counted.get(at, 0) + 1
        named.append(Place(pointer, at if counted[at] == 1 else f"{at} #{counted[at]}", backend, upstream))
    return named


def unmatched(route: Route, thing: Object) -> tuple[list[str], list[str]]:
    """The plan's paths that no backend of the route is for on the plan's hosts, and the paths that there are."""
    there = sorted({path for paths in _rule_paths(route, thing) for path in paths})
    return [path for path in route.paths if path not in there], there


def misfits(route: Route, thing: Object, entries: Sequence[Route]) -> list[str]:
    """Why the route cannot be switched as the plan says; empty where it can.

    :param entries: all of the plan's for this route, which may name together what cannot be switched alone.
    """

    def named(host: str, path: str) -> bool:
        return any(
            (not one.hosts or host in one.hosts) and (not one.paths or path in one.paths)
            for one in entries
            if str(one) == str(route)
        )

    there = _hosts_there(route, thing)
    if absent := [host for host in route.hosts if host not in there]:
        return [f"{route}: has no host {', '.join(absent)} with a Service; it has {', '.join(there)}"]
    chosen = [path for rule in _rule_paths(route, thing) for path in rule if not route.paths or path in route.paths]
    if route.kind == HTTP_ROUTE and (others := [host for host in there if not all(named(host, one) for one in chosen)]):
        told = ", ".join(others)
        return [
            f"{route}: is also for {told}, and its hostnames share all its rules; name {told} too, or split the route"
        ]
    missing, paths = unmatched(route, thing)
    if missing:
        has = ", ".join(paths) or "none"
        on = f" on {', '.join(route.hosts)}" if route.hosts else ""
        return [f"{route}: has no path {', '.join(missing)} to a Service{on}; it has {has}"]
    found = [f"{route}: its annotation {note}; the page speaks plain HTTP" for note in _other_protocols(route, thing)]
    found += [f"{route}: its annotation {note}; visitors would get another page" for note in _own_errors(route, thing)]
    if bare := [host for host in route.hosts if host not in hosts_of(route, thing)]:
        found.append(f"{route}: has no path {', '.join(route.paths)} to a Service on {', '.join(bare)}")
    for rule in _rule_paths(route, thing):
        more = sorted({path for path in rule if not all(named(host, path) for host in route.hosts or there)})
        if route.paths and more and set(rule) & set(route.paths):
            told = ", ".join(more)
            found.append(
                f"{route}: the rule for {', '.join(sorted(set(rule)))} leads also {told} to the page; "
                f"name {told} too, or split the rule"
            )
    return found


def _other_protocols(route: Route, thing: Object) -> list[str]:
    """Annotations of an Ingress by which its controller would speak to the page's pods as they do not."""
    if route.kind != INGRESS:
        return []
    found = []
    for key, value in (thing["metadata"].get("annotations") or {}).items():
        controller, _, word = key.partition("/")
        plain = _PLAIN.get(word) if controller in _CONTROLLERS else None
        if plain is not None and value.strip().lower() not in ("", *plain):
            found.append(f"{key} is {value}")
    return found


def _own_errors(route: Route, thing: Object) -> list[str]:
    """Annotations of an Ingress by which ingress-nginx answers itself where the page says 503."""
    annotations = (thing["metadata"].get("annotations") or {}) if route.kind == INGRESS else {}
    key = "nginx.ingress.kubernetes.io/custom-http-errors"
    value = annotations.get(key, "")
    return [f"{key} is {value}"] if "503" in re.split(r"[,\s]+", value) else []


def beside(route: Route, thing: Object, other: Object, page: str) -> list[str]:
    """Where another Ingress leads visitors of what this one is switched for: ``hub.example /``."""
    mine = [place.at.split(" ")[:2] for place in places(route, thing) if place.at != "default"]
    metadata = other["metadata"]
    found = []
    for place in places(Route(INGRESS, metadata["namespace"], metadata["name"]), other):
        if place.at != "default" and not shows_page(place, page):
            host, path = place.at.split(" ")[:2]
            if any(host == each and f"{path}/".startswith(f"{root.rstrip('/')}/") for each, root in mine):
                found.append(f"{host} {path}")
    return list(dict.fromkeys(found))


def hosts_of(route: Route, thing: Object) -> list[str]:
    """The hosts whose visitors get the page; ``*``: those of rules without one."""
    if route.kind == HTTP_ROUTE:
        return _hosts_there(route, thing)
    return list(dict.fromkeys(place.at.split(" ")[0] for place in places(route, thing) if place.at != "default"))


def require_free(route: Route, thing: Object, product: str) -> None:
    """:raises BalikError: another product's rollback has switched what the plan would: whoever ended first would give
    visitors the application, or put the other's page back for good."""
    others = held_by_others(thing, product)
    if held := [place.at for place in places(route, thing) if place.at in others]:
        holders = ", ".join(sorted({others[at] or "an unnamed product" for at in held}))
        raise BalikError(
            f"{route}, {', '.join(held)}",
            f"shows the page of {holders}'s rollback already",
            do="Let that end first, or take its page down; or leave this out of maintenance_page_kubernetes_routes.",
        )


def saved(thing: Object) -> dict[str, Any]:
    """What a switch replaced, by place; empty where there was none.

    :raises BalikError: the annotation cannot be read.
    """
    return _note(thing)["was"]


def held_by_others(thing: Object, product: str) -> dict[str, str]:
    """The places that another product's rollback has switched to the page, and whose."""
    return {at: holder for at, holder in _note(thing)["of"].items() if holder != product}


def _note(thing: Object) -> dict[str, Any]:
    text = (thing["metadata"].get("annotations") or {}).get(NOTE)
    if text is None:
        return {"was": {}, "of": {}}
    try:
        note = json.loads(text)
        return {**note, "was": dict(note["was"]), "of": dict(note.get("of") or {})}
    except (TypeError, ValueError, KeyError):
        raise BalikError(
            f"{thing.get('kind', 'route')} {thing['metadata']['namespace']}/{thing['metadata']['name']}",
            f"its annotation {NOTE} cannot be read",
            "what the switch wrote",
            "Put its backends back by hand, and remove the annotation.",
        ) from None


def shows_page(place: Place, page: str) -> bool:
    """:param page: the maintenance Service's name."""
    return place.upstream.service == page


def originals(route: Route, thing: Object, page: str) -> list[Place]:
    """The places with the backends that they have while the page is off.

    :raises BalikError: one leads to the page, and nobody knows where it led before.
    """
    was = saved(thing)
    found = []
    for place in places(route, thing):
        if not shows_page(place, page):
            found.append(place)
            continue
        if place.at not in was:
            raise BalikError(
                f"{route}, {place.at}",
                f"leads to {page}, and its annotation {NOTE} does not say where it led before",
                do="Give it its backend by hand.",
            )
        backend = was[place.at]
        read = _ingress_upstream if route.kind == INGRESS else _route_upstream
        upstream = read(backend, route.namespace)
        assert upstream is not None
        found.append(Place(place.pointer, place.at, backend, upstream))
    return found


def patch_on(
    route: Route, thing: Object, page: str, run: str, product: str, port_of: Callable[[Upstream], int]
) -> list[dict[str, Any]]:
    """The JSON patch that leads the route's places to the page; empty where they do already.

    :param product: whose switch it is; only the same one's switch leads them back.
    :param port_of: the page's port that stands for a Service; its bypass leads there.
    :raises BalikError: another product's rollback holds one.
    """
    require_free(route, thing, product)
    moving = [place for place in places(route, thing) if not shows_page(place, page)]
    if not moving:
        return []
    old = _note(thing)
    was = {**old["was"], **{place.at: place.backend for place in moving}}
    of = {**old["of"], **{place.at: product for place in moving}}
    note = json.dumps({"run": run, "was": was, "of": of}, sort_keys=True)
    ops = _begin(thing)
    if not thing["metadata"].get("annotations"):
        ops.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    ops.append({"op": "add", "path": _pointer("metadata", "annotations", NOTE), "value": note})
    for place in moving:
        port = port_of(place.upstream)
        value: Any = (
            {"service": {"name": page, "port": {"number": port}}}
            if route.kind == INGRESS
            else [{"group": "", "kind": "Service", "name": page, "port": port, "weight": 1}]
        )
        ops.append({"op": "replace", "path": place.pointer, "value": value})
    return ops


def patch_off(route: Route, thing: Object, page: str, product: str) -> list[dict[str, Any]]:
    """The JSON patch that gives every place that this product's switch led to the page its backend again; empty where
    there is none to do.

    A place that somebody has given another backend meanwhile keeps that. Places that the plan no longer names go back
    too. What another product has switched stays, with what the annotation says of it.
    """
    note, others = _note(thing), held_by_others(thing, product)
    every = Route(route.kind, route.namespace, route.name)
    ops = _begin(thing)
    now = {place.at: place for place in places(every, thing)}
    for place in originals(every, thing, page):
        if shows_page(now[place.at], page) and place.at not in others:
            ops.append({"op": "replace", "path": place.pointer, "value": place.backend})
    at_note, was = _pointer("metadata", "annotations", NOTE), note["was"]
    if others and was.keys() - others.keys():
        left = {**note, "was": {at: was[at] for at in was if at in others}, "of": others}
        ops.append({"op": "replace", "path": at_note, "value": json.dumps(left, sort_keys=True)})
    elif not others and NOTE in (thing["metadata"].get("annotations") or {}):
        ops.append({"op": "remove", "path": at_note})
    return ops if len(ops) > 1 else []


def _begin(thing: Object) -> list[dict[str, Any]]:
    """Refused (409) when the route has changed since it was read."""
    version = thing["metadata"]["resourceVersion"]
    return [{"op": "replace", "path": "/metadata/resourceVersion", "value": version}]


Found = Iterator[tuple[str, str, Any, Upstream]]


def _ingress(route: Route, thing: Object) -> Found:
    spec = thing.get("spec") or {}
    default = _ingress_upstream(spec.get("defaultBackend"), route.namespace)
    if default and not route.paths and not route.hosts:
        yield "/spec/defaultBackend", "default", spec["defaultBackend"], default
    for i, rule in enumerate(spec.get("rules") or []):
        if route.hosts and rule.get("host", "*") not in route.hosts:
            continue
        for j, path in enumerate((rule.get("http") or {}).get("paths") or []):
            upstream = _ingress_upstream(path.get("backend"), route.namespace)
            if upstream and (not route.paths or path.get("path", "/") in route.paths):
                at = f"{rule.get('host', '*')} {path.get('path', '/')} {path.get('pathType', '')}".strip()
                yield _pointer("spec", "rules", i, "http", "paths", j, "backend"), at, path["backend"], upstream


def _http_route(route: Route, thing: Object) -> Found:
    for i, rule in enumerate((thing.get("spec") or {}).get("rules") or []):
        upstream = _route_upstream(rule.get("backendRefs"), route.namespace)
        matches = rule.get("matches") or [{}]
        paths = [(match.get("path") or {}).get("value", "/") for match in matches]
        if upstream and (not route.paths or set(paths) & set(route.paths)):
            at = rule.get("name") or json.dumps(rule.get("matches") or [], sort_keys=True)
            yield _pointer("spec", "rules", i, "backendRefs"), at, rule["backendRefs"], upstream


def _rule_paths(route: Route, thing: Object) -> Iterator[list[str]]:
    """The paths of each rule that leads to a Service, on the plan's hosts."""
    for rule in (thing.get("spec") or {}).get("rules") or []:
        if route.kind == HTTP_ROUTE:
            if _route_upstream(rule.get("backendRefs"), ""):
                yield [(match.get("path") or {}).get("value", "/") for match in rule.get("matches") or [{}]]
        elif not route.hosts or rule.get("host", "*") in route.hosts:
            for path in (rule.get("http") or {}).get("paths") or []:
                if _ingress_upstream(path.get("backend"), ""):
                    yield [path.get("path", "/")]


def _hosts_there(route: Route, thing: Object) -> list[str]:
    if route.kind == HTTP_ROUTE:
        return list((thing.get("spec") or {}).get("hostnames") or ["*"])
    return hosts_of(Route(route.kind, route.namespace, route.name), thing)


def _ingress_upstream(backend: Any, namespace: str) -> Upstream | None:
    service = (backend or {}).get("service")
    if not service:
        return None  # a bucket or the like, which no page stands for
    port = service.get("port") or {}
    return Upstream(namespace, service["name"], str(port.get("number") or port.get("name") or ""))


def _route_upstream(backends: Any, namespace: str) -> Upstream | None:
    """The heaviest Service among a rule's backends: where most visitors go."""
    services = [each for each in backends or [] if each.get("kind", "Service") == "Service" and not each.get("group")]
    if not services:
        return None
    heaviest = max(services, key=lambda each: each.get("weight", 1))
    return Upstream(heaviest.get("namespace") or namespace, heaviest["name"], str(heaviest.get("port", "")))


def _pointer(*parts: str | int) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def recorded_routes(names: Sequence[str]) -> tuple[Route, ...]:
    """The routes that a record names (``Ingress shop/hub``), each once and whole."""
    parts = (name.replace("/", " ").split(" ") for name in dict.fromkeys(names))
    return tuple(Route(kind, namespace, name) for kind, namespace, name in parts)


def check_routes(given: Sequence[Mapping[str, Any]]) -> tuple[Route, ...]:
    """The plan's ``maintenance_page_kubernetes_routes``.

    :raises BalikError: there is none, or one has an empty value.
    """
    variable = "maintenance_page_kubernetes_routes"
    if not given:
        raise BalikError(variable, "names no route", "at least one {kind, namespace, name}")
    routes = []
    for number, each in enumerate(given, 1):
        route = Route(
            *(each["kind"], each["namespace"], each["name"]),
            tuple(each.get("paths") or ()),
            tuple(each.get("hosts") or ()),
        )
        values = {"namespace": [route.namespace], "name": [route.name], "paths": route.paths, "hosts": route.hosts}
        if empty := [key for key, texts in values.items() if not all(texts)]:
            raise BalikError(f"{variable}, entry {number}", f"{' and '.join(empty)}: empty", "each by its name")
        if route in routes:
            raise BalikError(
                f"{variable}, entry {number}",
                f"{route}{route.choice} is named twice",
                do="Name it once, or correct the one that was meant otherwise.",
            )
        routes.append(route)
    return tuple(routes)
