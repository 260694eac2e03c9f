"""maintenance-page in a cluster: real routes in a real API server, and the nginx that the page's pods would run."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster as Client
from ansible_collections.balik.rollback.plugins.module_utils.traffic import kubernetes_page
from ansible_collections.balik.rollback.plugins.module_utils.traffic.door import Door
from ansible_collections.balik.rollback.plugins.module_utils.traffic.kubernetes import KubernetesMaintenance, Routes
from ansible_collections.balik.rollback.plugins.module_utils.traffic.kubernetes_routes import NOTE, Route
from ansible_collections.balik.rollback.plugins.module_utils.traffic.page import BYPASS, COOKIE, MARKER, Page

from tests.integration.roles_in_a_play import play
from tests.servers.kubernetes import Cluster, control_plane
from tests.servers.kubernetes_nodes import Nodes, nodes
from tests.servers.loopback import free_port, wait_for_port
from tests.servers.upstream import upstream

ROOT = Path(__file__).parents[2]
RBAC = ROOT / "roles/maintenance-page/files/rbac-kubernetes.yml"
SECRET = "0123456789abcdef-bypass"
PAGE = Page("<p>Mohon maaf \u2013 sedang dipulihkan</p>\n", "Sedang dipulihkan", 600, ("/healthz",))
IMAGE, APP = "nginx-unprivileged:1.27", "lawyers-hub:2.0.0"
GATEWAY = "gateway.networking.k8s.io/v1"


def http_routes() -> dict[str, Any]:
    """Gateway API's CustomResourceDefinition, as far as only the API's objects matter."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "httproutes.gateway.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/891"},
        },
        "spec": {
            "group": "gateway.networking.k8s.io",
            "scope": "Namespaced",
            "names": {"plural": "httproutes", "singular": "httproute", "kind": "HTTPRoute"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def app(name: str, namespace: str, port: int = 80) -> list[dict[str, Any]]:
    labels = {"app": name}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "app", "image": APP}]},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": labels,
                "ports": [{"name": "http", "port": port, "targetPort": 8080, "protocol": "TCP"}],
            },
        },
    ]


def ingress(namespace: str) -> dict[str, Any]:
    def path(path: str, service: str, **port: Any) -> dict[str, Any]:
        return {"path": path, "pathType": "Prefix", "backend": {"service": {"name": service, "port": port}}}

    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": "hub",
            "namespace": namespace,
            "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "8m"},
        },
        "spec": {
            "ingressClassName": "nginx",
            "tls": [{"hosts": ["hub.example"], "secretName": "hub-tls"}],
            "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}},
            "rules": [
                {
                    "host": "hub.example",
                    "http": {
                        "paths": [
                            path("/api", "api", name="http"),
                            path("/", "web", number=80),
                            {
                                "path": "/files",
                                "pathType": "Prefix",
                                "backend": {
                                    "resource": {"apiGroup": "storage.example", "kind": "Bucket", "name": "files"}
                                },
                            },
                        ]
                    },
                },
                {"host": "blog.example", "http": {"paths": [path("/", "web", number=80)]}},
            ],
        },
    }


def http_route(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": GATEWAY,
        "kind": "HTTPRoute",
        "metadata": {"name": "gate", "namespace": namespace},
        "spec": {
            "parentRefs": [{"name": "public"}],
            "hostnames": ["hub.example"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/api"}}],
                    "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["X-Internal"]}}],
                    "backendRefs": [
                        {"name": "api", "port": 80, "weight": 90},
                        {"name": "web", "port": 80, "weight": 10},
                    ],
                },
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"name": "web", "port": 80}],
                    "timeouts": {"request": "10s"},
                },
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/old"}}],
                    "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 301}}],
                },
            ],
        },
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        started.apply(http_routes())
        yield started


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Nodes]:
    with nodes(cluster, {IMAGE: "", APP: ""}) as started:
        yield started


@pytest.fixture
def namespace(cluster: Cluster, lab: Nodes, request: pytest.FixtureRequest) -> Iterator[str]:
    """One with two applications, an Ingress and an HTTPRoute."""
    name = f"page-{abs(hash(request.node.name)) % 10**8}"
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.apply(made)
    cluster.apply([*app("web", name), *app("api", name, 80), ingress(name), http_route(name)])

    def answers(service: str) -> bool:
        subsets = cluster.get("v1", "Endpoints", service, name).get("subsets") or []
        return any(subset.get("addresses") for subset in subsets)

    cluster.eventually(lambda: answers("web") and answers("api"), says="both applications answer")
    yield name
    cluster.delete(made)


def maintenance(
    cluster: Cluster, *routes: Route, user: Path | None = None, image: str = IMAGE, **options: Any
) -> KubernetesMaintenance:
    client = Client.connect(str(user or cluster.kubeconfig))
    name = options.pop("name", "balik-maintenance")
    balancer = Routes(client, name, "r1", routes, options.pop("product", "hub"))
    options = {"limit": 20.0, **options}
    return KubernetesMaintenance("hub", balancer, Door(""), SECRET, PAGE.health, image=image, **options)


def both(cluster: Cluster, namespace: str, **options: Any) -> KubernetesMaintenance:
    routes = Route("Ingress", namespace, "hub"), Route("HTTPRoute", namespace, "gate")
    return maintenance(cluster, *routes, **options)


def routes_of(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Everything that users have written on the two routes."""
    found = {}
    for version, kind, name in (("networking.k8s.io/v1", "Ingress", "hub"), (GATEWAY, "HTTPRoute", "gate")):
        one = cluster.get(version, kind, name, namespace)
        found[kind] = {"spec": one["spec"], "annotations": one["metadata"].get("annotations") or {}}
    return found


def services_of(ingress: dict[str, Any]) -> list[str]:
    spec = ingress["spec"]
    paths = [path for rule in spec["rules"] for path in rule["http"]["paths"]]
    backends = [spec["defaultBackend"], *(path["backend"] for path in paths)]
    return [backend.get("service", {}).get("name", "-") for backend in backends]


def test_the_routes_show_the_page_and_get_exactly_their_backends_back(cluster: Cluster, namespace: str) -> None:
    it = both(cluster, namespace)
    before = routes_of(cluster, namespace)
    with pytest.raises(BalikError, match=r"Service .*/balik-maintenance: has no port for .*/api:80, .*/api:http"):
        it.check(PAGE)

    assert both(cluster, namespace, dry=True).prepare(PAGE)["changed"]
    assert cluster.get("v1", "Service", "balik-maintenance", namespace) == {}
    assert it.prepare(PAGE)["changed"]
    assert not it.prepare(PAGE)["changed"]
    pod = cluster.get("apps/v1", "Deployment", "balik-maintenance", namespace)["spec"]["template"]["spec"]
    # What the Pod Security Standard "restricted" asks of a pod, and of each container.
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = pod["containers"][0]["securityContext"]
    assert (own["runAsNonRoot"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert it.check(PAGE)["before"]["page"] == "off"
    assert both(cluster, namespace, dry=True).on()["changed"]
    assert routes_of(cluster, namespace) == before
    it.verify_off()
    with pytest.raises(BalikError, match=r"default; .*leads to the application; expected the page"):
        it.verify_on()

    assert it.on()["changed"]
    it.verify_on()
    assert not it.on()["changed"]
    shown = routes_of(cluster, namespace)
    page = "balik-maintenance"
    assert services_of(shown["Ingress"]) == [page, page, page, "-", page]
    for key in ("tls", "ingressClassName"):
        assert shown["Ingress"]["spec"][key] == before["Ingress"]["spec"][key]
    assert shown["Ingress"]["annotations"].items() >= before["Ingress"]["annotations"].items()
    rules = shown["HTTPRoute"]["spec"]["rules"]
    assert [[one["name"] for one in rule.get("backendRefs", [])] for rule in rules] == [[page], [page], []]
    for rule, old in zip(rules, before["HTTPRoute"]["spec"]["rules"], strict=True):
        assert {**rule, "backendRefs": 0} == {**old, "backendRefs": 0}

    # A page that is on can be prepared again, with the same ports behind the bypass.
    assert it.check(PAGE)["before"]["page"] == "on"
    ports = it.balancer.ports(namespace)
    assert it.prepare(Page("<p>Another</p>", "Another", 60, PAGE.health))["changed"]
    assert it.balancer.ports(namespace) == ports

    assert it.off(app_must_answer=True)["changed"]
    it.verify_off()
    assert routes_of(cluster, namespace) == before
    assert not it.off(app_must_answer=False)["changed"]


def test_only_the_plans_paths_are_switched(cluster: Cluster, namespace: str) -> None:
    it = maintenance(
        cluster, Route("Ingress", namespace, "hub", ("/api",)), Route("HTTPRoute", namespace, "gate", ("/api",))
    )
    before = routes_of(cluster, namespace)
    it.prepare(PAGE)
    it.on()
    it.verify_on()
    shown = routes_of(cluster, namespace)
    assert services_of(shown["Ingress"]) == ["web", "balik-maintenance", "web", "-", "web"]
    assert shown["HTTPRoute"]["spec"]["rules"][1:] == before["HTTPRoute"]["spec"]["rules"][1:]
    it.off(app_must_answer=True)
    assert routes_of(cluster, namespace) == before


def test_a_rule_with_a_path_that_the_plan_does_not_name_is_refused(cluster: Cluster, namespace: str) -> None:
    shared = http_route(namespace)
    shared["spec"]["rules"][0]["matches"].append({"path": {"type": "PathPrefix", "value": "/pay"}})
    cluster.apply(shared)
    it = maintenance(cluster, Route("HTTPRoute", namespace, "gate", ("/api",)))
    before = routes_of(cluster, namespace)
    for act in (lambda: it.prepare(PAGE), lambda: it.check(PAGE), it.on):
        with pytest.raises(
            BalikError, match="the rule for /api, /pay leads also /pay to the page; name /pay too, or sp"
        ):
            act()
    assert routes_of(cluster, namespace) == before

    # Two entries name them together; what an earlier version has switched goes back also for the narrower plan.
    named = maintenance(
        cluster, Route("HTTPRoute", namespace, "gate", ("/api",)), Route("HTTPRoute", namespace, "gate", ("/pay",))
    )
    named.prepare(PAGE)
    named.on()
    named.verify_on()
    it.off(app_must_answer=True)
    assert routes_of(cluster, namespace) == before


def test_only_the_plans_hosts_are_switched(cluster: Cluster, namespace: str) -> None:
    before = routes_of(cluster, namespace)
    every = maintenance(cluster, Route("Ingress", namespace, "hub", ("/",)))
    every.prepare(PAGE)
    told = f"; Ingress {namespace}/hub for /: on hub.example, blog.example"
    assert every.check(PAGE)["says"].endswith(told)
    shown = every.on()["says"]
    assert shown.endswith(told)
    assert f"1 route (Ingress {namespace}/hub) leads to the page, within" in shown
    assert f"1 route (Ingress {namespace}/hub) leads to it" in every.verify_on()["says"]
    every.off(app_must_answer=True)

    it = maintenance(
        cluster,
        Route("Ingress", namespace, "hub", ("/",), ("blog.example",)),
        Route("Ingress", namespace, "hub", ("/api",), ("hub.example",)),
    )
    it.prepare(PAGE)
    assert "blog.example" not in it.check(PAGE)["says"]
    assert f"2 routes (Ingress {namespace}/hub, Ingress {namespace}/hub) lead to the page" in it.on()["says"]
    it.verify_on()
    page = "balik-maintenance"
    assert services_of(routes_of(cluster, namespace)["Ingress"]) == ["web", page, "web", "-", page]
    it.off(app_must_answer=True)
    assert routes_of(cluster, namespace) == before
    with pytest.raises(
        BalikError, match=r"hub: has no host blog\.exmaple with a Service; it has hub.example, blog.exam"
    ):
        maintenance(cluster, Route("Ingress", namespace, "hub", (), ("blog.exmaple",))).check(PAGE)
    gate = http_route(namespace)
    gate["spec"]["hostnames"].append("desk.example")
    cluster.apply(gate)
    with pytest.raises(BalikError, match=r"gate: is also for desk\.example, and its hostnames share all its rules"):
        maintenance(cluster, Route("HTTPRoute", namespace, "gate", (), ("hub.example",))).check(PAGE)


def test_a_mistyped_path_is_named_with_those_that_there_are(cluster: Cluster, namespace: str) -> None:
    it = maintenance(cluster, Route("Ingress", namespace, "hub", ("/api", "/admn")))
    for act in (lambda: it.prepare(PAGE), lambda: it.check(PAGE), it.on):
        with pytest.raises(BalikError, match=r"Ingress .*/hub: has no path /admn to a Service; it has /, /api"):
            act()


def test_a_shared_route_keeps_the_page_of_another_product(cluster: Cluster, namespace: str) -> None:
    before = routes_of(cluster, namespace)
    theirs = maintenance(cluster, Route("Ingress", namespace, "hub", ("/api",)), product="desk")
    ours = maintenance(cluster, Route("Ingress", namespace, "hub", ("/",)))
    every = maintenance(cluster, Route("Ingress", namespace, "hub"))
    every.prepare(PAGE)
    theirs.on()
    ours.on()
    told = ours.off(app_must_answer=False)["says"]
    assert "still on for others: Ingress" in told
    assert "(desk)" in told
    assert services_of(routes_of(cluster, namespace)["Ingress"]) == ["web", "balik-maintenance", "web", "-", "web"]
    assert "(desk)" in ours.verify_off()["says"]
    theirs.verify_on()
    assert not ours.off(app_must_answer=False)["changed"]
    theirs.off(app_must_answer=False)
    assert routes_of(cluster, namespace) == before


def test_what_another_product_has_switched_is_refused_by_its_name(cluster: Cluster, namespace: str) -> None:
    before = routes_of(cluster, namespace)
    theirs = maintenance(cluster, Route("Ingress", namespace, "hub", ("/api",)), product="desk")
    theirs.prepare(PAGE)
    ours = maintenance(cluster, Route("Ingress", namespace, "hub"), name="balik-hub")
    ours.prepare(PAGE)
    theirs.on()
    switched = routes_of(cluster, namespace)
    for name in ("balik-hub", "balik-maintenance"):
        ours = maintenance(cluster, Route("Ingress", namespace, "hub"), name=name)
        for act in (lambda it=ours: it.prepare(PAGE), lambda it=ours: it.check(PAGE), ours.on):
            with pytest.raises(BalikError, match=r"Ingress .*/hub, hub.example /api Prefix: shows the page of desk's"):
                act()
        assert routes_of(cluster, namespace) == switched
    theirs.off(app_must_answer=False)
    assert routes_of(cluster, namespace) == before


def test_a_route_named_whole_and_once_more_with_a_path_is_switched_whole(cluster: Cluster, namespace: str) -> None:
    shared = http_route(namespace)
    shared["spec"]["hostnames"].append("desk.example")
    shared["spec"]["rules"][0]["matches"].append({"path": {"type": "PathPrefix", "value": "/pay"}})
    cluster.apply(shared)
    before = routes_of(cluster, namespace)
    it = maintenance(
        cluster,
        Route("HTTPRoute", namespace, "gate", ("/api",), ("hub.example",)),
        Route("HTTPRoute", namespace, "gate"),
        Route("HTTPRoute", namespace, "gate", ("/pay",)),
    )
    it.prepare(PAGE)
    it.check(PAGE)
    it.on()
    it.verify_on()
    it.off(app_must_answer=False)
    assert routes_of(cluster, namespace) == before


def test_what_was_changed_meanwhile_stays(cluster: Cluster, namespace: str) -> None:
    it = maintenance(cluster, Route("Ingress", namespace, "hub"))
    it.prepare(PAGE)
    it.on()
    path = cluster.api.path("networking.k8s.io/v1", "Ingress", namespace, "hub")
    now = cluster.get("networking.k8s.io/v1", "Ingress", "hub", namespace)
    new = {"service": {"name": "canary", "port": {"number": 81}}}
    rule = {"path": "/new", "pathType": "Exact", "backend": {"service": {"name": "web", "port": {"number": 80}}}}
    ops = [
        {"op": "replace", "path": "/spec/rules/0/http/paths/0/backend", "value": new},
        {"op": "add", "path": "/spec/rules/0/http/paths/0", "value": rule},
    ]
    assert now["spec"]["rules"]
    cluster.api.request("PATCH", path, ops, "application/json-patch+json")
    with pytest.raises(BalikError, match=r"hub\.example /new Exact; .* /api Prefix: leads to the application; exp"):
        it.verify_on()
    it.off(app_must_answer=False)
    shown = cluster.get("networking.k8s.io/v1", "Ingress", "hub", namespace)
    assert services_of(shown) == ["web", "web", "canary", "web", "-", "web"]
    assert NOTE not in shown["metadata"]["annotations"]


def test_the_page_stays_while_the_application_does_not_answer(cluster: Cluster, lab: Nodes, namespace: str) -> None:
    it = both(cluster, namespace)
    it.prepare(PAGE)
    it.on()
    cluster.api.request(
        "PATCH",
        cluster.api.path("apps/v1", "Deployment", namespace, "api"),
        {"spec": {"replicas": 0}},
        "application/merge-patch+json",
    )
    cluster.eventually(lambda: not it.balancer.serving(namespace, "api"), says="the application is gone")
    with pytest.raises(BalikError, match=r"Service .*/api: no pod behind it is ready; .* The page stays"):
        it.off(app_must_answer=True)
    it.verify_on()
    it.off(app_must_answer=False)


def test_what_is_outside_of_the_cluster_does_not_keep_the_page_up(cluster: Cluster, namespace: str) -> None:
    outside = {"type": "ExternalName", "externalName": "files.example", "ports": [{"port": 80, "protocol": "TCP"}]}
    service = {"metadata": {"name": "files", "namespace": namespace}, "spec": outside}
    cluster.apply({"apiVersion": "v1", "kind": "Service", **service})
    shared = ingress(namespace)
    paths = shared["spec"]["rules"][1]["http"]["paths"]
    backend = {"service": {"name": "files", "port": {"number": 80}}}
    paths.append({"path": "/files", "pathType": "Prefix", "backend": backend})
    cluster.apply(shared)
    before = routes_of(cluster, namespace)
    it = both(cluster, namespace)
    it.prepare(PAGE)
    it.check(PAGE)
    it.on()
    says = it.off(app_must_answer=True)["says"]
    assert says.endswith(f"; Service {namespace}/files is outside of the cluster and was not looked at")
    assert routes_of(cluster, namespace) == before


def test_a_page_that_the_ingress_could_not_speak_to_is_refused(cluster: Cluster, namespace: str) -> None:
    it = maintenance(cluster, Route("Ingress", namespace, "hub"))
    it.prepare(PAGE)
    secure = ingress(namespace)
    secure["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] = "HTTPS"
    cluster.apply(secure)
    for act in (lambda: it.prepare(PAGE), lambda: it.check(PAGE), it.on):
        with pytest.raises(BalikError, match="backend-protocol is HTTPS; the page speaks plain HTTP"):
            act()


def test_an_ingress_that_leads_past_the_page_is_told(cluster: Cluster, namespace: str) -> None:
    it = both(cluster, namespace)
    it.prepare(PAGE)
    assert "also answers" not in it.check(PAGE)["says"]
    canary = ingress(namespace)
    canary["metadata"] = {
        "name": "hub-canary",
        "namespace": namespace,
        "annotations": {"nginx.ingress.kubernetes.io/canary": "true"},
    }
    cluster.apply(canary)
    told = f"Ingress {namespace}/hub-canary also answers hub.example /api, hub.example /, blog.example /, and is not in"
    assert told in it.check(PAGE)["says"]


def argo_cd(cluster: Cluster) -> None:
    """The API of Argo CD, without its controller."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    names = {"kind": "Application", "plural": "applications"}
    cluster.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "applications.argoproj.io"},
            "spec": {"group": "argoproj.io", "names": names, "scope": "Namespaced", "versions": [served]},
        }
    )


def test_who_makes_a_route_is_told_with_what_helps(cluster: Cluster, namespace: str) -> None:
    argo_cd(cluster)
    route = Route("Ingress", namespace, "hub")
    maker = {"apiVersion": "example/v1", "kind": "WebApp", "name": "hub", "uid": "1", "controller": True}
    path = cluster.api.path("networking.k8s.io/v1", "Ingress", namespace, "hub")
    owned = {"metadata": {"ownerReferences": [{**maker, "blockOwnerDeletion": False}]}}
    cluster.api.request("PATCH", path, owned, "application/merge-patch+json")
    maintenance(cluster, route).prepare(PAGE)
    says = maintenance(cluster, route).check(PAGE)["says"]
    assert f"Ingress {namespace}/hub belongs to WebApp {namespace}/hub, which may put its backends back" in says

    maker = {"apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "name": "hubs", "uid": "1"}
    metadata: dict[str, Any] = {"name": "hub", "namespace": namespace}
    metadata["ownerReferences"] = [{**maker, "controller": True}]
    app = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": metadata,
        "spec": {"syncPolicy": {"automated": {"selfHeal": True}}},
        "status": {
            "resources": [{"group": "networking.k8s.io", "kind": "Ingress", "namespace": namespace, "name": "hub"}]
        },
    }
    cluster.apply(app)
    with pytest.raises(
        BalikError, match=r"ApplicationSet hubs made it .* leave /spec/syncPolicy alone .* by hand and run again\)"
    ):
        maintenance(cluster, route, argocd=(namespace,)).check(PAGE)

    # Whatever they do is accepted, so that nothing of theirs keeps the page up.
    metadata["annotations"] = {"balik.dev/held": "yes"}
    cluster.apply(app)
    with pytest.raises(BalikError, match="which this project has not written"):
        maintenance(cluster, route, argocd=(namespace,)).check(PAGE)
    says = maintenance(cluster, route, argocd=(namespace,), accept_owners=True).check(PAGE)["says"]
    assert "not looked for: Argo CD and Flux, which may take the page down again (applications hub in" in says


def test_a_page_that_cannot_start_says_why(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(BalikError, match=r"0 of 2 pods are ready, .* after 1 s .*Can the cluster pull missing:1"):
        both(cluster, namespace, image="missing:1", limit=1.0).prepare(PAGE)


def test_bad_input_names_the_object(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(BalikError, match=rf"Ingress {namespace}/hbu: is not there"):
        maintenance(cluster, Route("Ingress", namespace, "hbu")).prepare(PAGE)
    with pytest.raises(BalikError, match=rf"Ingress {namespace}/hub: has no path /nowhere to a Service"):
        maintenance(cluster, Route("Ingress", namespace, "hub", ("/nowhere",))).prepare(PAGE)
    with pytest.raises(BalikError, match="maintenance_page_kubernetes_image: names none"):
        both(cluster, namespace, image="").prepare(PAGE)
    with pytest.raises(BalikError, match="maintenance_page_kubernetes_image: 'nginx unpriv' is no name of an image"):
        both(cluster, namespace, image="nginx unpriv").prepare(PAGE)
    for replicas in (0, -1):
        it = both(cluster, namespace, replicas=replicas)
        for act in (it.prepare, it.check):
            with pytest.raises(BalikError, match=rf"kubernetes_replicas: is {replicas}; expected at least 1"):
                act(PAGE)
    cluster.delete({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": namespace}})
    with pytest.raises(BalikError, match=rf"Service {namespace}/api: is not there, but routes lead to it"):
        both(cluster, namespace).prepare(PAGE)
    headless = app("api", namespace)[1]
    headless["spec"]["clusterIP"] = "None"
    cluster.apply(headless)
    with pytest.raises(BalikError, match=rf"Service {namespace}/api: is headless"):
        both(cluster, namespace).prepare(PAGE)


def test_ports_of_the_page_that_cannot_be_read_are_named_with_the_way_on(cluster: Cluster, namespace: str) -> None:
    it = both(cluster, namespace)
    it.prepare(PAGE)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "balik-maintenance", "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/services/balik-maintenance"
    for spoiled in ("{", "[]", '{"a":"b"}', '{"a":null}', "null"):
        it.balancer.cluster.patch(path, {"metadata": {"annotations": {kubernetes_page.UPSTREAMS: spoiled}}})
        for act in (lambda: it.check(PAGE), it.on, lambda: it.prepare(PAGE)):
            with pytest.raises(
                BalikError, match=r"balik-maintenance: its annotation balik.dev/upstreams cannot be read"
            ):
                act()
    cluster.delete(service)
    it.prepare(PAGE)
    it.check(PAGE)


def test_what_is_somebody_elses_is_not_taken_for_the_page(cluster: Cluster, namespace: str) -> None:
    before = cluster.get("apps/v1", "Deployment", "web", namespace)["spec"]
    client = Client.connect(str(cluster.kubeconfig))
    balancer = Routes(client, "web", "r1", (Route("Ingress", namespace, "hub", ("/api",)),), "hub")
    it = KubernetesMaintenance("hub", balancer, Door(""), SECRET, PAGE.health, image=IMAGE, limit=5.0)
    with pytest.raises(
        BalikError, match=rf"Deployment {namespace}/web, Service .* is there, and not the page's; .* name"
    ):
        it.prepare(PAGE)
    assert cluster.get("apps/v1", "Deployment", "web", namespace)["spec"] == before
    assert cluster.get("v1", "ConfigMap", "web", namespace) == {}

    # A Secret is not read; the API itself refuses to share one.
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "balik-maintenance", "namespace": namespace}}
    cluster.apply({**secret, "data": {"nginx.conf": ""}})
    with pytest.raises(
        BalikError, match=r"Secret .*/balik-maintenance: somebody else has set .*nginx\.conf.* Take that"
    ):
        both(cluster, namespace).prepare(PAGE)


def test_another_page_than_the_plans_is_noticed(cluster: Cluster, namespace: str) -> None:
    it = both(cluster, namespace)
    it.prepare(PAGE)
    with pytest.raises(BalikError, match=r"serves revision .*; expected the plan's"):
        it.check(Page("<p>newer</p>", "newer", 600, PAGE.health))


def test_a_page_that_somebody_has_scaled_to_nothing_is_there_again_after_prepare(
    cluster: Cluster, namespace: str
) -> None:
    it = both(cluster, namespace)
    it.prepare(PAGE)
    path = cluster.api.path("apps/v1", "Deployment", namespace, "balik-maintenance")
    none = {"spec": {"replicas": 0}}
    cluster.api.request("PATCH", f"{path}?fieldManager=downscaler", none, "application/merge-patch+json")
    cluster.eventually(lambda: not it.balancer.serving(namespace, "balik-maintenance"), says="no pod is left")
    with pytest.raises(BalikError, match=r"no pod behind it is ready; .* Run maintenance-page's `prepare`"):
        it.check(PAGE)
    assert it.prepare(PAGE)["changed"]
    it.check(PAGE)
    assert not it.prepare(PAGE)["changed"]

    # Also where the plan's page is another one by now.
    cluster.api.request("PATCH", f"{path}?fieldManager=downscaler", none, "application/merge-patch+json")
    newer = Page("<p>newer</p>", "newer", 600, PAGE.health)
    more = replace(it, replicas=3)
    assert more.prepare(newer)["changed"]
    more.check(newer)
    assert cluster.get("apps/v1", "Deployment", "balik-maintenance", namespace)["status"]["availableReplicas"] == 3


def test_an_api_that_is_away_for_a_moment_is_waited_for_between_two_steps(cluster: Cluster, namespace: str) -> None:
    it = both(cluster, namespace, within=120.0)
    it.prepare(PAGE)
    it.on()
    cluster.stop_api()
    back = threading.Timer(4, cluster.start_api)
    back.start()
    try:
        assert it.see_on()["evidence"] == {"page": "on"}
    finally:
        back.join()
    it.off(app_must_answer=False)
    with pytest.raises(BalikError, match="leads to the application; expected the page"):
        it.see_on()


def test_the_manifest_is_enough_and_without_it_all_that_is_missing_is_named(cluster: Cluster, namespace: str) -> None:
    user = cluster.kubeconfig_for("page-keeper")
    with pytest.raises(BalikError) as refused:
        both(cluster, namespace, user=user).prepare(PAGE)
    for one in ("patch ingresses.networking.k8s.io", "patch httproutes", "create secrets", "patch deployments.apps"):
        assert one in str(refused.value)

    def bind(role: str) -> None:
        cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "name": "page-keeper"}],
            }
        )

    def told(act: Any) -> str:
        try:
            act()
        except BalikError as error:
            return str(error)
        return ""

    cluster.apply(list(yaml.safe_load_all(RBAC.read_text())))
    it = both(cluster, namespace, user=user)
    bind("balik-maintenance-page")
    cluster.eventually(lambda: "has no port for" in told(lambda: it.check(PAGE)), says="the first binding counts")
    bind("balik-maintenance-page-prepare")
    cluster.eventually(lambda: not told(lambda: it.prepare(PAGE)), says="the second binding counts")
    cluster.delete(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "balik-maintenance-page-prepare", "namespace": namespace},
        }
    )
    before = routes_of(cluster, namespace)
    cluster.eventually(lambda: "missing" in told(lambda: it.prepare(PAGE)), says="the second binding is gone")
    assert "not looked for" not in it.check(PAGE)["says"]
    it.on()
    it.verify_on()
    it.off(app_must_answer=True)
    it.verify_off()
    assert routes_of(cluster, namespace) == before


# What the page's pods would run


@contextmanager
def pod(folder: Path, made: list[dict[str, Any]], ports: dict[str, int]) -> Iterator[dict[str, int]]:
    """nginx with the files of the ConfigMap and the Secret where the pod has them, on other ports of this machine."""
    config, secret = made[0]["data"], made[1]["data"]
    mounted = folder / "maintenance"
    (mounted / "page").mkdir(parents=True)
    for key in ("index.html", "index.json"):
        (mounted / "page" / key).write_text(config[key])
    (mounted / "on").write_text(config["on"])
    free = {port: free_port() for port in (kubernetes_page.READY, *ports.values())}
    for key in ("switch.conf", "nginx.conf"):
        text = base64.b64decode(secret[key]).decode().replace(kubernetes_page.FOLDER, str(mounted))
        for port, other in free.items():
            text = text.replace(f"listen {port};", f"listen 127.0.0.1:{other};")
        (mounted / key).write_text(text)
    command = made[2]["spec"]["template"]["spec"]["containers"][0]["command"]
    # A master that is root would give its workers to somebody who may not read pytest's folder.
    command = [*command[:-1], command[-1] + " user root;"] if os.geteuid() == 0 else command
    process = subprocess.Popen(
        [str(mounted / "nginx.conf") if part.endswith("/nginx.conf") else part for part in command],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("wb"),
    )
    try:
        wait_for_port(free[kubernetes_page.READY], process)
        yield {upstream: free[port] for upstream, port in ports.items()} | {"ready": free[kubernetes_page.READY]}
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_the_pods_nginx_serves_the_page_and_lets_bypass_and_health_through(tmp_path: Path) -> None:
    with upstream() as web, upstream() as api:
        ports = {"hub/web:80": 8001, "hub/api:80": 8002}
        addresses = {"hub/web:80": web.address, "hub/api:80": api.address}
        made = kubernetes_page.objects("balik-maintenance", "hub", IMAGE, 2, PAGE, SECRET, ports, addresses)
        assert SECRET not in json.dumps(made)

        def ask(port: int, path: str = "/any/path?q=1", method: str = "GET", **headers: str) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request(method, path, headers={"Host": "hub.example", **headers})
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read().decode()
            finally:
                connection.close()

        with pod(tmp_path, made, ports) as found:
            assert ask(found["ready"])[0] == 200
            for upstream_name, application in (("hub/web:80", web), ("hub/api:80", api)):
                port = found[upstream_name]
                for method in ("GET", "POST"):
                    status, headers, body = ask(port, method=method)
                    assert (status, headers[MARKER], headers["Retry-After"]) == (503, PAGE.revision, "600"), headers
                    assert headers["Cache-Control"] == "no-store"
                    assert body == PAGE.html
                assert json.loads(ask(port, Accept="application/json")[2])["message"] == PAGE.message
                for passing in ({BYPASS: SECRET}, {"Cookie": f"{COOKIE}={SECRET}"}):
                    status, headers, body = ask(port, **passing)
                    assert (status, body) == (200, "application")
                    assert MARKER not in headers
                assert ask(port, "/healthz")[0] == 200
                assert application is not None
                assert ask(port, **{BYPASS: "wrong"})[0] == 503


def test_the_role_from_a_playbook(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    before = routes_of(cluster, namespace)
    variables = {
        "rollback_product": "Lawyers Hub",
        "maintenance_page_backend": "kubernetes",
        "maintenance_page_url": "",
        "maintenance_page_bypass": SECRET,
        "maintenance_page_kubernetes_kubeconfig": str(cluster.kubeconfig),
        "maintenance_page_kubernetes_image": IMAGE,
        "maintenance_page_kubernetes_routes": [
            {"namespace": namespace, "name": "hub", "hosts": ["hub.example", "blog.example"]},
            {"kind": "HTTPRoute", "namespace": namespace, "name": "gate"},
        ],
    }
    steps = [("maintenance-page", entry) for entry in ("prepare", "check", "main", "verify", "undo")]
    results = play(tmp_path, steps, variables, {"page": "off"}, SECRET)
    assert [result["changed"] for result in results] == [True, False, True, False, True]
    assert results[1]["before"]["page"] == "off"
    assert "2 routes" in results[2]["says"]
    assert routes_of(cluster, namespace) == before
