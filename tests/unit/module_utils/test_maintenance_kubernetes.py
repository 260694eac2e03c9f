"""Routes and the page in a cluster: objects in, patches and objects out."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.traffic import kubernetes_page as page
from ansible_collections.balik.rollback.plugins.module_utils.traffic import kubernetes_routes as routes
from ansible_collections.balik.rollback.plugins.module_utils.traffic.kubernetes_routes import NOTE, Route, Upstream
from ansible_collections.balik.rollback.plugins.module_utils.traffic.page import Page
from ansible_collections.balik.rollback.plugins.modules.maintenance_page import OPTIONS, maintenance

from tests.unit.module_utils.test_kubernetes_client import kubeconfig

PAGE = Page("<p>page</p>", "message", 600, ("/healthz",))
INGRESS = Route("Ingress", "hub", "web")
GATE = Route("HTTPRoute", "hub", "gate")


def service(name: str, /, **port: Any) -> dict[str, Any]:
    return {"service": {"name": name, "port": port}}


def ingress(*rules: tuple[str, str, dict[str, Any]], **annotations: str) -> dict[str, Any]:
    """(host, path, backend) each in a rule of its own."""
    made = [
        {"host": host, "http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}}
        for host, path, backend in rules
    ]
    metadata = {"name": "web", "namespace": "hub", "resourceVersion": "7"}
    notes = {"annotations": {key.replace("__", "/"): value for key, value in annotations.items()}}
    return {"kind": "Ingress", "metadata": {**metadata, **(notes if annotations else {})}, "spec": {"rules": made}}


def gate(*rules: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "gate", "namespace": "hub", "resourceVersion": "7"}
    return {"kind": "HTTPRoute", "metadata": metadata, "spec": {"rules": list(rules)}}


def test_places_of_an_ingress_are_told_by_host_path_and_order() -> None:
    found = routes.places(
        INGRESS,
        ingress(("a", "/", service("web", number=80)), ("a", "/", service("old", name="http")), ("b", "/", {})),
    )
    assert [(place.at, place.pointer, str(place.upstream)) for place in found] == [
        ("a / Prefix", "/spec/rules/0/http/paths/0/backend", "hub/web:80"),
        ("a / Prefix #2", "/spec/rules/1/http/paths/0/backend", "hub/old:http"),
    ]


def test_the_heaviest_service_of_a_rule_is_behind_the_bypass() -> None:
    backends = [
        {"name": "canary", "port": 80, "weight": 1},
        {"name": "web", "namespace": "apps", "port": 8080, "weight": 9},
        {"kind": "ServiceImport", "group": "multicluster", "name": "far", "port": 80, "weight": 90},
    ]
    (place,) = routes.places(GATE, gate({"backendRefs": backends}, {"filters": []}))
    assert place.upstream == Upstream("apps", "web", "8080")
    assert place.backend == backends


def test_there_and_back_leaves_nothing() -> None:
    before = ingress(("a", "/x~y", service("web", number=80)))
    ops = routes.patch_on(INGRESS, before, "page", "r1", "hub", lambda _upstream: 8001)
    assert [op["path"] for op in ops] == [
        "/metadata/resourceVersion",
        "/metadata/annotations",
        "/metadata/annotations/balik.dev~1maintenance",
        "/spec/rules/0/http/paths/0/backend",
    ]
    on = ingress(("a", "/x~y", ops[3]["value"]), **{NOTE: ops[2]["value"]})
    assert routes.patch_on(INGRESS, on, "page", "r1", "hub", lambda _upstream: 8001) == []
    assert [(op["op"], op["path"], op.get("value")) for op in routes.patch_off(INGRESS, on, "page", "hub")][1:] == [
        ("replace", "/spec/rules/0/http/paths/0/backend", service("web", number=80)),
        ("remove", "/metadata/annotations/balik.dev~1maintenance", None),
    ]
    assert routes.patch_off(INGRESS, before, "page", "hub") == []


def test_each_product_takes_down_its_own_page_only() -> None:
    now = ingress(("a", "/", service("web", number=80)), ("a", "/api", service("api", number=80)))

    def patched(ops: list[dict[str, Any]]) -> None:
        for op in ops[1:]:
            *path, last = [part.replace("~1", "/") for part in op["path"].split("/")[1:]]
            at: Any = now
            for part in path:
                at = at[int(part) if isinstance(at, list) else part]
            if op["op"] == "remove":
                del at[last]
            else:
                at[last] = op["value"]

    def shown() -> list[bool]:
        return [routes.shows_page(place, "page") for place in routes.places(INGRESS, now)]

    for product, path in (("desk", "/api"), ("hub", "/")):
        own = Route("Ingress", "hub", "web", (path,))
        patched(routes.patch_on(own, now, "page", "r1", product, lambda _upstream: 8001))
    assert shown() == [True, True]
    patched(routes.patch_off(INGRESS, now, "page", "hub"))
    assert shown() == [False, True]
    assert routes.held_by_others(now, "hub") == {"a /api Prefix": "desk"}
    assert routes.patch_off(INGRESS, now, "page", "hub") == []
    patched(routes.patch_off(INGRESS, now, "page", "desk"))
    assert shown() == [False, False]
    assert not now["metadata"]["annotations"]


def test_paths_that_a_route_does_not_have_are_found() -> None:
    made = ingress(("a", "/", service("web", number=80)), ("a", "/api", service("web", number=80)), ("b", "/no", {}))
    assert routes.unmatched(Route("Ingress", "hub", "web", ("/api", "/ap", "/no")), made) == (
        ["/ap", "/no"],
        ["/", "/api"],
    )
    rule = {"matches": [{"path": {"value": "/x"}}, {}], "backendRefs": [{"name": "web", "port": 80}]}
    assert routes.unmatched(Route("HTTPRoute", "hub", "gate", ("/y", "/")), gate(rule)) == (["/y"], ["/", "/x"])


def test_only_the_chosen_hosts_are_switched() -> None:
    made = ingress(("a", "/", service("web", number=80)), ("b", "/", service("web", number=80)))
    made["spec"]["defaultBackend"] = service("web", number=80)
    chosen = Route("Ingress", "hub", "web", ("/",), ("b",))
    assert [place.at for place in routes.places(chosen, made)] == ["b / Prefix"]
    assert [place.at for place in routes.places(Route("Ingress", "hub", "web", (), ("b",)), made)] == ["b / Prefix"]
    assert routes.misfits(chosen, made, [chosen]) == []
    assert routes.hosts_of(Route("Ingress", "hub", "web", ("/",)), made) == ["a", "b"]


@pytest.mark.parametrize(
    ("paths", "hosts", "message"),
    [
        ((), ("c",), "has no host c with a Service; it has a, b"),
        (("/no",), (), "has no path /no to a Service; it has /, /api"),
        (("/api",), ("b",), "has no path /api to a Service on b; it has /"),
        (("/api",), ("a", "b"), "has no path /api to a Service on b"),
    ],
)
def test_hosts_and_paths_that_an_ingress_does_not_have_are_named(
    paths: tuple[str, ...], hosts: tuple[str, ...], message: str
) -> None:
    web = service("web", number=80)
    made = ingress(("a", "/", web), ("a", "/api", web), ("b", "/", web))
    route = Route("Ingress", "hub", "web", paths, hosts)
    assert routes.misfits(route, made, [route]) == [f"Ingress hub/web: {message}"]


@pytest.mark.parametrize(
    ("paths", "hosts", "message"),
    [
        (("/api",), (), "the rule for /api, /pay leads also /pay to the page; name /pay too, or split the rule"),
        ((), ("a",), "is also for b, and its hostnames share all its rules; name b too, or split the route"),
        ((), ("a", "b", "c"), "has no host c with a Service; it has a, b"),
        (("/pay", "/api"), ("b", "a"), ""),
        ((), (), ""),
    ],
)
def test_what_shares_a_rule_or_a_route_is_named(paths: tuple[str, ...], hosts: tuple[str, ...], message: str) -> None:
    matches = [{"path": {"value": "/api"}}, {"path": {"value": "/pay"}}]
    made = gate({"matches": matches, "backendRefs": [{"name": "web", "port": 80}]})
    made["spec"]["hostnames"] = ["a", "b"]
    route = Route("HTTPRoute", "hub", "gate", paths, hosts)
    assert routes.misfits(route, made, [route]) == ([f"HTTPRoute hub/gate: {message}"] if message else [])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([((), ()), (("/api",), ())], ""),
        ([((), ()), ((), ("a",))], ""),
        ([((), ("a",)), ((), ("b",))], ""),
        ([(("/api",), ("a",)), (("/pay",), ())], "is also for b, and its hostnames share all its rules"),
        ([(("/api",), ("a",)), (("/pay",), ("b",))], "is also for b, and its hostnames share all its rules"),
    ],
)
def test_what_shares_a_rule_or_a_route_may_be_named_by_several_entries(
    entries: list[tuple[tuple[str, ...], tuple[str, ...]]], message: str
) -> None:
    matches = [{"path": {"value": "/api"}}, {"path": {"value": "/pay"}}]
    made = gate({"matches": matches, "backendRefs": [{"name": "web", "port": 80}]})
    made["spec"]["hostnames"] = ["a", "b"]
    named = [Route("HTTPRoute", "hub", "gate", *each) for each in entries]
    found = [line for route in named for line in routes.misfits(route, made, named)]
    assert message in "; ".join(found) if message else found == []


@pytest.mark.parametrize(
    ("annotation", "value", "refused"),
    [
        ("nginx.ingress.kubernetes.io/backend-protocol", "HTTPS", True),
        ("nginx.ingress.kubernetes.io/backend-protocol", "HTTP", False),
        ("nginx.ingress.kubernetes.io/ssl-passthrough", "true", True),
        ("nginx.ingress.kubernetes.io/proxy-body-size", "8m", False),
        ("nginx.ingress.kubernetes.io/backend-protocol", "", False),
        ("note.example/ssl-passthrough", "true", False),
        ("haproxy.org/server-ssl", "true", True),
        ("nginx.org/ssl-services", "web", True),
        ("nginx.org/grpc-services", "web", True),
        ("ingress.kubernetes.io/secure-backends", "true", True),
        ("alb.ingress.kubernetes.io/backend-protocol-version", "GRPC", True),
        ("alb.ingress.kubernetes.io/backend-protocol-version", "HTTP1", False),
    ],
)
def test_a_controller_that_would_not_speak_http_to_the_page_is_named(
    annotation: str, value: str, refused: bool
) -> None:
    made = ingress(("a", "/", service("web", number=80)), **{annotation: value})
    told = f"Ingress hub/web: its annotation {annotation} is {value}; the page speaks plain HTTP"
    assert routes.misfits(INGRESS, made, [INGRESS]) == ([told] if refused else [])


@pytest.mark.parametrize(
    ("value", "refused"), [("502,503", True), ("503", True), ("404, 503", True), ("404,5030", False)]
)
def test_a_controller_that_answers_503_itself_is_named(value: str, refused: bool) -> None:
    key = "nginx.ingress.kubernetes.io/custom-http-errors"
    made = ingress(("a", "/", service("web", number=80)), **{key: value})
    told = f"Ingress hub/web: its annotation {key} is {value}; visitors would get another page"
    assert routes.misfits(INGRESS, made, [INGRESS]) == ([told] if refused else [])


def test_where_another_ingress_leads_past_the_page() -> None:
    web = service("web", number=80)
    made = ingress(("a", "/app", web), ("b", "/", web))
    other = ingress(("a", "/app", web), ("a", "/app/old", web), ("a", "/application", web), ("b", "/x", web))
    other["spec"]["rules"].append({"http": {"paths": [{"path": "/", "backend": web}]}})
    assert routes.beside(INGRESS, made, other, "page") == ["a /app", "a /app/old", "b /x"]
    assert routes.beside(INGRESS, made, ingress(("b", "/", service("page", number=1))), "page") == []


def test_an_entry_that_is_there_twice_is_named() -> None:
    entry = {"kind": "HTTPRoute", "namespace": "hub", "name": "gate", "paths": ["/api"]}
    with pytest.raises(BalikError, match=r"routes, entry 3: HTTPRoute hub/gate for /api is named twice\. Name it once"):
        routes.check_routes([entry, {**entry, "paths": []}, entry])


@pytest.mark.parametrize("key", ["namespace", "name", "paths", "hosts"])
def test_an_empty_value_of_a_route_is_named(key: str) -> None:
    entry = {"kind": "Ingress", "namespace": "hub", "name": "web", key: [""] if key.endswith("s") else ""}
    with pytest.raises(BalikError, match=rf"maintenance_page_kubernetes_routes, entry 1: {key}: empty"):
        routes.check_routes([entry])


def test_a_rule_that_was_put_before_moves_no_backend() -> None:
    note = json.dumps({"run": "r1", "was": {"a / Prefix": service("web", number=80)}})
    now = ingress(("new", "/", service("new", number=80)), ("a", "/", service("page", number=8001)), **{NOTE: note})
    (replaced,) = [op for op in routes.patch_off(INGRESS, now, "page", "hub") if op["path"].startswith("/spec")]
    assert replaced == {
        "op": "replace",
        "path": "/spec/rules/1/http/paths/0/backend",
        "value": service("web", number=80),
    }


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({}, r"Ingress hub/web, a / Prefix: leads to page, and .* does not say where it led before"),
        ({NOTE: "?"}, r"annotation balik\.dev/maintenance cannot be read"),
        ({NOTE: '{"run": "r1"}'}, r"annotation balik\.dev/maintenance cannot be read"),
    ],
)
def test_a_place_whose_backend_nobody_knows_is_named(annotations: dict[str, str], message: str) -> None:
    now = ingress(("a", "/", service("page", number=8001)), **annotations)
    with pytest.raises(BalikError, match=message):
        routes.patch_off(INGRESS, now, "page", "hub")


def test_ports_once_given_stay() -> None:
    first = page.assign({}, [Upstream("hub", "web", "80"), Upstream("hub", "api", "80")])
    assert first == {"hub/api:80": 8001, "hub/web:80": 8002}
    second = page.assign(first, [Upstream("hub", "aaa", "80"), Upstream("hub", "web", "80")])
    assert second == {**first, "hub/aaa:80": 8003}


def test_the_bypass_stands_in_the_secret_only_and_a_new_page_is_a_new_revision() -> None:
    def made(page_: Page) -> list[dict[str, Any]]:
        ports = {"hub/web:80": 8001}
        return page.objects(
            "page", "hub", "nginx:1", 2, page_, "0123456789abcdef", ports, {"hub/web:80": "10.0.0.1:80"}
        )

    config, secret, deployment, service_ = made(PAGE)
    texts = {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}
    assert "0123456789abcdef" in texts["switch.conf"]
    assert "proxy_pass http://10.0.0.1:80;" in texts["nginx.conf"]
    assert "0123456789abcdef" not in json.dumps([config, secret, deployment, service_])
    revisions = {each["metadata"]["annotations"][page.REVISION] for each in (config, secret, deployment, service_)}
    assert len(revisions) == 1
    assert deployment["spec"]["template"]["metadata"]["annotations"][page.REVISION] in revisions
    other = made(Page("<p>other</p>", "message", 600, ("/healthz",)))[0]
    assert other["metadata"]["annotations"][page.REVISION] not in revisions


def test_a_plan_without_routes_is_refused() -> None:
    with pytest.raises(BalikError, match=r"maintenance_page_kubernetes_routes: names no route"):
        routes.check_routes([])


def test_an_empty_namespace_of_argo_cd_is_refused_by_its_variable(tmp_path: Path) -> None:
    known = {
        "kubeconfig": kubeconfig(tmp_path, {}),
        "routes": [{"namespace": "hub", "name": "web"}],
        "argocd_namespaces": [""],
    }
    given = {
        "state": "ready",
        "backend": "kubernetes",
        "dir": "/etc/maintenance",
        "url": "",
        "bypass": "0123456789abcdef-bypass",
        "kubernetes": known,
    }
    options = ArgumentSpecValidator(OPTIONS).validate(given).validated_parameters
    with pytest.raises(BalikError, match="maintenance_page_kubernetes_argocd_namespaces: one is empty"):
        maintenance(options, dry=False)
