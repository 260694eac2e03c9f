"""Pods that run, and the network they are reached by: what molecule/lawyers-hub-kubernetes stands on."""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers.docker_engine import Lab, docker, docker_lab
from tests.servers.kubernetes import Cluster, control_plane
from tests.servers.kubernetes_network import Entrance, network
from tests.servers.kubernetes_nodes import nodes
from tests.servers.loopback import free_port

pytestmark = pytest.mark.docker

Json = dict[str, Any]
SUBNET, CONTAINERS, SERVICES = "10.177.92.0/22", "10.177.92.0/24", "10.177.94.0/24"


@pytest.fixture(scope="module")
def engine() -> Iterator[Lab]:
    with docker_lab() as lab:
        docker("network", "create", "--subnet", SUBNET, "--ip-range", CONTAINERS, lab.name("net"))
        yield lab


@pytest.fixture(scope="module")
def label(engine: Lab) -> str:
    return f"balik.test={engine.prefix}"


@pytest.fixture(scope="module")
def cluster(engine: Lab, label: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with control_plane(folder, SERVICES) as started:
        if not started.own:
            pytest.skip("a cluster named by the user has nodes and a network of its own")
        with nodes(started, engine={"network": engine.name("net"), "folder": str(folder / "volumes"), "label": label}):
            yield started
            started.api.request("DELETE", "/apis/apps/v1/namespaces/default/deployments")
            started.eventually(lambda: not containers(label), says="the end of the pods' containers")


@pytest.fixture(scope="module")
def entrance(cluster: Cluster, engine: Lab, label: str) -> Iterator[Entrance]:
    with network(
        cluster,
        engine.name("net"),
        SERVICES,
        cluster.folder / "network",
        label=f"{label}-network",
        port=free_port(),
        container=engine.name("entrance"),
    ) as started:
        yield started


def containers(label: str) -> list[str]:
    return docker("ps", "--all", "--quiet", "--filter", f"label={label}").split()


def application(name: str, image: str, **container: Any) -> list[Json]:
    labels = {"app": name}
    probe = {"httpGet": {"path": "/", "port": "http"}}
    runs = {"name": "app", "image": image, "ports": [{"name": "http", "containerPort": 8000}], "readinessProbe": probe}
    meta = {"name": name, "namespace": "default"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{**runs, **container}]}}
    port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": labels, "ports": [port]}},
    ]


def route(name: str, path: str, service: str) -> Json:
    backend = {"service": {"name": service, "port": {"name": "http"}}}
    rule = {"http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}}
    meta = {"name": name, "namespace": "default"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": {"rules": [rule]}}


def said(url: str) -> str:
    """What the entrance answers, with its status where that is not 200; empty when nobody does."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=5)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else str(answer.status)
    except OSError:
        return ""
    finally:
        connection.close()


def answers_with(url: str, version: str) -> bool:
    return said(url) == version


def has_endpoints(cluster: Cluster, service: str) -> bool:
    found = cluster.get("v1", "Endpoints", service, "default").get("subsets") or []
    return any(subset.get("addresses") for subset in found)


def states(cluster: Cluster, app: str) -> list[Json]:
    found = cluster.get("v1", "Pod", namespace="default")["items"]
    return [
        one
        for pod in found
        if pod["metadata"]["labels"].get("app") == app
        for one in pod["status"].get("containerStatuses", [])
    ]


def reasons(cluster: Cluster, app: str) -> set[str]:
    return {one["state"].get("waiting", {}).get("reason", "") for one in states(cluster, app)}


def test_pods_serve_through_the_entrance_and_by_the_services_address(
    cluster: Cluster, engine: Lab, entrance: Entrance
) -> None:
    image = engine.image("1.9.4", "unchecked")
    cluster.apply([*application("web", image), route("web", "/web", "web")])
    cluster.eventually(lambda: said(f"{entrance.url}/web") == "1.9.4", says="the entrance")
    assert {one["imageID"] for one in states(cluster, "web")} == {
        "docker://" + docker("image", "inspect", "--format", "{{.Id}}", image)
    }
    address = cluster.get("v1", "Service", "web", "default")["spec"]["clusterIP"]
    ask = f"import urllib.request as r; print(r.urlopen('http://{address}/', timeout=5).read().decode())"
    inside = docker("run", "--rm", "--network", engine.name("net"), image, "python3", "-c", ask)
    assert inside == "1.9.4"


def test_no_request_is_dropped_while_a_route_leads_elsewhere_and_back(
    cluster: Cluster, engine: Lab, entrance: Entrance
) -> None:
    for name, version in (("blue", "1.9.4"), ("green", "2.0.0")):
        cluster.apply(application(name, engine.image(version, "unchecked")))
    cluster.apply(route("moving", "/moving", "blue"))
    cluster.eventually(lambda: said(f"{entrance.url}/moving") == "1.9.4", says="the first way")
    cluster.eventually(lambda: has_endpoints(cluster, "green"), says="the second way")
    over, answers = threading.Event(), []

    def visit() -> None:
        while not over.is_set():
            answers.append(said(f"{entrance.url}/moving"))

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for one in visitors:
        one.start()
    for service, version in (("green", "2.0.0"), ("blue", "1.9.4")):
        cluster.apply(route("moving", "/moving", service))
        cluster.eventually(partial(answers_with, f"{entrance.url}/moving", version), says=service)
        time.sleep(0.3)
    over.set()
    for one in visitors:
        one.join(10)
    assert set(answers) == {"1.9.4", "2.0.0"}, set(answers)


def test_an_image_that_the_engine_has_not_is_waited_for(cluster: Cluster, engine: Lab) -> None:
    wanted = f"{engine.prefix}app:later"
    cluster.apply(application("later", wanted))
    cluster.eventually(lambda: reasons(cluster, "later") == {"ImagePullBackOff"}, says="ImagePullBackOff")
    docker("tag", engine.image("1.9.4", "unchecked"), wanted)
    cluster.eventually(lambda: [one["ready"] for one in states(cluster, "later")] == [True] * 2, says="ready")


def test_what_ends_is_started_again(cluster: Cluster, engine: Lab) -> None:
    cluster.apply(application("ending", engine.image("1.9.4", "exits")))
    cluster.eventually(lambda: reasons(cluster, "ending") == {"CrashLoopBackOff"}, says="CrashLoopBackOff")
    cluster.eventually(lambda: min(one["restartCount"] for one in states(cluster, "ending")) > 1, says="another start")


def test_configuration_and_secrets_reach_the_program(cluster: Cluster, engine: Lab, entrance: Entrance) -> None:
    meta = {"name": "settings", "namespace": "default"}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"APP_VERSION": "from-it"}})
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"note": "read me"}})
    manifests = application(
        "told",
        engine.image("1.9.4", "unchecked"),
        envFrom=[{"secretRef": {"name": "settings"}}],
        volumeMounts=[{"name": "notes", "mountPath": "/notes"}, {"name": "room", "mountPath": "/room"}],
        securityContext={"runAsUser": 65534, "readOnlyRootFilesystem": True},
    )
    notes = {"name": "notes", "configMap": {"name": "settings"}}
    manifests[0]["spec"]["template"]["spec"]["volumes"] = [notes, {"name": "room", "emptyDir": {}}]
    cluster.apply([*manifests, route("told", "/told", "told")])
    cluster.eventually(lambda: said(f"{entrance.url}/told") == "from-it", says="the entrance")
    pod = next(
        one["metadata"]["name"]
        for one in cluster.get("v1", "Pod", namespace="default")["items"]
        if one["metadata"]["labels"].get("app") == "told"
    )
    tried = "cat /notes/note && touch /room/mine && id -u && ! touch /srv/mine"
    done = subprocess.run(
        ["docker", "exec", f"default_{pod}_app", "sh", "-c", tried],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["read me65534", ""]), done.stderr


def test_prometheus_is_told_of_ready_pods(cluster: Cluster, engine: Lab, entrance: Entrance) -> None:
    manifests = application("seen", engine.image("1.9.4", "unchecked"))
    manifests[1]["metadata"] = {**manifests[1]["metadata"], "annotations": {"prometheus.io/scrape": "true"}}
    cluster.apply(manifests)
    cluster.eventually(lambda: Path(entrance.targets).read_text().count(":8000") == 2, says="two targets")
