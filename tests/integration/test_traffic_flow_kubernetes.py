"""The page in a cluster in the flow of ``rollback.yml``, where plan or routes are changed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.flow.product import BREAK_GLASS, Product
from tests.servers.kubernetes import Cluster, control_plane
from tests.servers.kubernetes_nodes import nodes

RBAC = Path(__file__).parents[2] / "roles/maintenance-page/files/rbac-kubernetes.yml"
APP, PAGE = "registry.example/hub:2.0.0", "registry.example/nginx-unprivileged:1.27"
NAMESPACE = "hub"
APPLICATION_LEADS, PAGE_LEADS = ["web", "web"], ["balik-maintenance", "balik-maintenance"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        if not started.own:
            pytest.skip("a cluster named by the user has nodes and images of its own")
        with nodes(started, {APP: "", PAGE: ""}):
            started.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
            started.apply(application())
            yield started


def application() -> list[dict[str, Any]]:
    labels = {"app": "web"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": APP}]}}
    named = {"metadata": {"name": "web", "namespace": NAMESPACE}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", **named, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", **named, "spec": {"selector": labels, "ports": ports}},
    ]


def ingress(name: str, **metadata: Any) -> dict[str, Any]:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    rule = {"host": f"{name}.example", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": NAMESPACE, **metadata},
        "spec": {"rules": [rule]},
    }


def leads_to(cluster: Cluster, *names: str) -> list[str]:
    """The Service behind each of these Ingresses, by default of both."""
    found = (cluster.get("networking.k8s.io/v1", "Ingress", name, NAMESPACE) for name in names or ("hub", "front"))
    return [one["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] for one in found]


def routes(*names: str) -> list[dict[str, str]]:
    return [{"namespace": NAMESPACE, "name": name} for name in names]


@pytest.fixture
def product(cluster: Cluster, tmp_path: Path) -> Product:
    """Two Ingresses, and the page that stands ready for them."""
    cluster.apply([ingress("hub"), ingress("front")])
    made = Product(
        tmp_path,
        web=False,
        rollback_hold=["maintenance-page"],
        rollback_restore=["traffic-restore"],
        maintenance_page_backend="kubernetes",
        maintenance_page_url="",
        maintenance_page_bypass="0123456789abcdef-bypass",
        maintenance_page_kubernetes_kubeconfig=str(cluster.kubeconfig),
        maintenance_page_kubernetes_image=PAGE,
        maintenance_page_kubernetes_routes=routes("hub", "front"),
    )
    tasks = [{"ansible.builtin.include_role": {"name": "maintenance-page", "tasks_from": "prepare"}}]
    prepare = tmp_path / "prepare.yml"
    prepare.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    prepared = made.play(playbook=str(prepare))
    assert prepared.returncode == 0, prepared.stdout
    return made


def broken(product: Product) -> None:
    """A first call, whose revert fails with the page up."""
    (product.folder / "revert-it" / "break-localhost").touch()
    assert product.play(*BREAK_GLASS).returncode != 0
    (product.folder / "revert-it" / "break-localhost").unlink()


def test_a_route_that_left_the_plan_meanwhile_gets_its_application_back(cluster: Cluster, product: Product) -> None:
    broken(product)
    assert leads_to(cluster) == PAGE_LEADS
    product.write(maintenance_page_kubernetes_routes=routes("hub"))
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert leads_to(cluster) == APPLICATION_LEADS
    told = f"Ingress {NAMESPACE}/front has the page by the record, and not by the plan: it goes down, too"
    assert told in again.stdout
    for name in ("hub", "front"):
        assert not cluster.get("networking.k8s.io/v1", "Ingress", name, NAMESPACE)["metadata"].get("annotations")


def test_a_later_call_in_another_cluster_leaves_the_page_up_and_is_refused(
    cluster: Cluster, product: Product, tmp_path: Path
) -> None:
    broken(product)
    with control_plane(tmp_path / "other") as other, nodes(other, {APP: "", PAGE: ""}):
        other.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        other.apply([*application(), ingress("hub"), ingress("front")])
        product.write(maintenance_page_kubernetes_kubeconfig=str(other.kubeconfig))
        prepared = product.play(playbook=str(tmp_path / "prepare.yml"))
        assert prepared.returncode == 0, prepared.stdout
        refused = product.play()
        assert refused.returncode != 0, refused.stdout
        assert "this run began in another cluster, at https://" in product.outcome()["reason"]
        assert leads_to(other) == APPLICATION_LEADS
    assert leads_to(cluster) == PAGE_LEADS
    product.write(maintenance_page_kubernetes_kubeconfig=str(cluster.kubeconfig))
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert leads_to(cluster) == APPLICATION_LEADS


def bound(role: str, kind: str = "RoleBinding") -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": role, **({"namespace": NAMESPACE} if kind == "RoleBinding" else {})},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": "keeper"}],
    }


def test_a_route_that_was_deleted_meanwhile_stops_nothing(cluster: Cluster, product: Product) -> None:
    """Nor one whose namespace is gone, and with it the right to read there; where only the right is gone, it does."""
    side = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "side"}}
    there = [
        {**each, "metadata": {**each["metadata"], "namespace": "side"}} for each in (*application(), ingress("hub"))
    ]
    cluster.apply([side, *there])
    product.write(
        maintenance_page_kubernetes_routes=[*routes("hub", "front"), {"namespace": "side", "name": "hub"}],
    )
    prepared = product.play(playbook=str(product.folder / "prepare.yml"))
    assert prepared.returncode == 0, prepared.stdout
    broken(product)
    cluster.apply([*yaml.safe_load_all(RBAC.read_text()), bound("balik-maintenance-page")])
    cluster.apply(bound("balik-namespaces", "ClusterRoleBinding"))
    cluster.delete(ingress("front"))
    product.write(
        maintenance_page_kubernetes_routes=routes("hub"),
        maintenance_page_kubernetes_kubeconfig=str(cluster.kubeconfig_for("keeper")),
    )
    assert product.play().returncode != 0
    assert "ingresses hub in namespace side: not permitted" in product.outcome()["reason"]
    assert product.outcome()["page"] != "off"

    cluster.delete(side)
    cluster.eventually(lambda: not cluster.get("v1", "Namespace", "side"), says="the namespace is gone")
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert "Ingress side/hub had the page by the record, and its namespace does not exist any more" in again.stdout
    assert leads_to(cluster, "hub") == ["web"]


def test_a_page_that_something_took_down_is_noticed_before_the_next_step(cluster: Cluster, product: Product) -> None:
    """As a GitOps controller does that owns the route: it puts the backends back while a step is at work."""
    (product.folder / "revert-it" / "slow").write_text("5")
    with product.started(*BREAK_GLASS) as rollback:
        rollback.until(lambda: product.line("revert-it") == "half")
        assert leads_to(cluster) == PAGE_LEADS
        cluster.apply(ingress("hub"))
        assert rollback.wait() != 0
    outcome = product.outcome()
    said = (
        f"maintenance-page failed on localhost: Ingress {NAMESPACE}/hub, hub.example / Prefix: leads to the application"
    )
    assert said in outcome["reason"], rollback.stdout()
    assert outcome["page"] == "unknown"
    assert (product.line("revert-it"), product.times("verify-it")) == ("on", 0)
    assert leads_to(cluster) == ["web", "balik-maintenance"]

    again = product.play()
    assert again.returncode == 0, again.stdout
    assert product.times("verify-it") == 1
    assert leads_to(cluster) == APPLICATION_LEADS


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
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "argocd"}})


def managed(self_heal: bool) -> dict[str, Any]:
    """The Application of the Ingress ``hub``."""
    resource = {"group": "networking.k8s.io", "kind": "Ingress", "namespace": NAMESPACE, "name": "hub"}
    destination = {"server": "https://kubernetes.default.svc"}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": "hub", "namespace": "argocd"},
        "spec": {"destination": destination, "syncPolicy": {"automated": {"selfHeal": self_heal}}},
        "status": {"resources": [resource]},
    }


def test_a_route_that_argo_cd_would_put_back_is_refused_before_anything(cluster: Cluster, product: Product) -> None:
    argo_cd(cluster)
    cluster.apply(managed(self_heal=True))
    belongs = f"Ingress {NAMESPACE}/hub belongs to Argo CD's Application argocd/hub, which "
    assert product.play(*BREAK_GLASS).returncode != 0
    assert f"{belongs}puts its backends back and takes the page down" in product.outcome()["reason"]
    assert product.outcome()["page"] is None
    assert leads_to(cluster) == APPLICATION_LEADS

    # It is accepted, or held off, or acts only when Git has something new.
    product.write(maintenance_page_kubernetes_owners="accept")
    accepted = product.play(*BREAK_GLASS)
    assert accepted.returncode == 0, accepted.stdout
    assert f"{belongs}puts its backends back" in accepted.stdout
    product.write(maintenance_page_kubernetes_owners=None)
    cluster.apply(managed(self_heal=False))
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    assert f"{belongs}may put its backends back" in done.stdout
