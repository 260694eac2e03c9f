"""The control plane and the simulated nodes behave as a cluster does, so that what is tested on them is tested."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import urllib3

from tests.servers.kubernetes import Api, ApiError, Cluster, control_plane, programs
from tests.servers.kubernetes_nodes import Nodes, nodes

Json = dict[str, Any]
HUB = "registry.example/hub"
TOOL = Path(__file__).parents[2] / "tools" / "control-plane"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        if not started.own:
            pytest.skip("a cluster named by the user has nodes of its own")
        yield started


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Nodes]:
    with nodes(cluster, {f"{HUB}:1.9.4": ""}, metrics=True, cache=True) as started:
        yield started


def workload(namespace: str, image: str, kind: str = "Deployment", **spec: object) -> list[Json]:
    """``hub`` in a namespace of its own."""
    container = {"name": "app", "image": image, "resources": {"requests": {"cpu": "100m"}}}
    template = {"metadata": {"labels": {"app": "hub"}}, "spec": {"containers": [container]}}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": "hub", "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"app": "hub"}}, "template": template, **spec},
        },
    ]


def with_image(manifests: list[Json], image: str) -> list[Json]:
    changed = copy.deepcopy(manifests)
    changed[-1]["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return changed


def status(cluster: Cluster, namespace: str, kind: str = "Deployment") -> Json:
    shown = cluster.get("apps/v1", kind, "hub", namespace)
    current = shown.get("status", {}).get("observedGeneration") == shown.get("metadata", {}).get("generation")
    return shown["status"] if current else {}


def pods(cluster: Cluster, namespace: str) -> list[Json]:
    return cluster.get("v1", "Pod", namespace=namespace)["items"]


def containers(cluster: Cluster, namespace: str, part: str = "containerStatuses") -> list[Json]:
    return [one for pod in pods(cluster, namespace) for one in pod["status"].get(part, [])]


def waits_for(cluster: Cluster, namespace: str, part: str = "containerStatuses") -> set[str]:
    """The reasons why containers wait."""
    return {
        one["state"]["waiting"]["reason"] for one in containers(cluster, namespace, part) if "waiting" in one["state"]
    }


def events(cluster: Cluster, namespace: str) -> dict[str, str]:
    return {item["message"]: item["reason"] for item in cluster.get("v1", "Event", namespace=namespace)["items"]}


def rolled_out(cluster: Cluster, namespace: str, replicas: int = 1) -> bool:
    shown = status(cluster, namespace)
    there = shown.get("updatedReplicas") == shown.get("availableReplicas") == shown.get("replicas") == replicas
    return there and len(pods(cluster, namespace)) == replicas


def test_a_deployment_becomes_available(cluster: Cluster, lab: Nodes) -> None:
    cluster.apply(workload("available", f"{HUB}:1.9.4", replicas=3))
    cluster.eventually(lambda: rolled_out(cluster, "available", 3))
    digest = lab.push(f"{HUB}:1.9.4")
    assert {one["imageID"] for one in containers(cluster, "available")} == {f"docker-pullable://{HUB}@{digest}"}
    assert len({pod["spec"]["nodeName"] for pod in pods(cluster, "available")}) == 3
    assert len({pod["status"]["podIP"] for pod in pods(cluster, "available")}) == 3


@pytest.mark.parametrize(
    ("kind", "spec", "ready"),
    [("StatefulSet", {"serviceName": "hub", "replicas": 3}, "readyReplicas"), ("DaemonSet", {}, "numberReady")],
)
def test_other_controllers_work(cluster: Cluster, lab: Nodes, kind: str, spec: Json, ready: str) -> None:
    namespace, newer = kind.lower(), f"{HUB}@{lab.push(f'{HUB}:2.0.1')}"
    manifests = workload(namespace, f"{HUB}:1.9.4", kind, **spec)
    cluster.apply(manifests)
    cluster.eventually(lambda: status(cluster, namespace, kind).get(ready) == 3)
    cluster.apply(with_image(manifests, newer))
    cluster.eventually(lambda: [one["image"] for one in containers(cluster, namespace)] == [newer] * 3)
    cluster.eventually(lambda: status(cluster, namespace, kind).get(ready) == 3)


def test_jobs_end(cluster: Cluster, lab: Nodes) -> None:
    lab.push(f"{HUB}:broken-job")
    lab.behave(f"{HUB}:broken-job", "crash")
    for name, tag in (("good", "1.9.4"), ("bad", "broken-job")):
        container = {"name": "app", "image": f"{HUB}:{tag}"}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        meta = {"name": name, "namespace": "default"}
        spec = {"backoffLimit": 0, "template": template}
        cluster.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
    cluster.eventually(lambda: cluster.get("batch/v1", "Job", "good", "default")["status"].get("succeeded") == 1)
    cluster.eventually(lambda: cluster.get("batch/v1", "Job", "bad", "default")["status"].get("failed") == 1)


def test_an_image_that_does_not_exist_is_waited_for(cluster: Cluster, lab: Nodes) -> None:
    wanted = f"{HUB}:not-yet"
    cluster.apply(workload("missing", wanted))
    cluster.eventually(lambda: waits_for(cluster, "missing") == {"ImagePullBackOff"})
    told = events(cluster, "missing")
    assert told[f'Back-off pulling image "{wanted}"'] == "BackOff"
    assert any("not found" in message for message, reason in told.items() if reason == "Failed")
    lab.push(wanted)
    cluster.eventually(lambda: rolled_out(cluster, "missing"))


def test_an_init_container_without_an_image_holds_the_pod_up(cluster: Cluster, lab: Nodes) -> None:
    manifests = workload("init", f"{HUB}:1.9.4")
    inits = [{"name": "migrate", "image": f"{HUB}:init"}]
    manifests[-1]["spec"]["template"]["spec"]["initContainers"] = inits
    cluster.apply(manifests)
    cluster.eventually(lambda: waits_for(cluster, "init", "initContainerStatuses") == {"ImagePullBackOff"})
    assert waits_for(cluster, "init") == {"PodInitializing"}
    lab.push(f"{HUB}:init")
    cluster.eventually(lambda: rolled_out(cluster, "init"))
    assert containers(cluster, "init", "initContainerStatuses")[0]["imageID"].startswith("docker-pullable://")


@pytest.mark.parametrize("how", ["unready", "crash"])
def test_a_bad_image_holds_the_rollout_up(cluster: Cluster, lab: Nodes, how: str) -> None:
    manifests, bad = workload(how, f"{HUB}:1.9.4"), f"{HUB}:{how}"
    cluster.apply(manifests)
    cluster.eventually(lambda: rolled_out(cluster, how))
    lab.push(bad)
    lab.behave(bad, how)
    cluster.apply(with_image(manifests, bad))
    said = {"unready": "Unhealthy", "crash": "BackOff"}[how]
    cluster.eventually(lambda: said in events(cluster, how).values())
    cluster.eventually(lambda: len(containers(cluster, how)) == 2)
    assert status(cluster, how)["readyReplicas"] == 1, "the old pod stays"
    if how == "crash":
        assert waits_for(cluster, how) == {"CrashLoopBackOff"}
        cluster.eventually(lambda: max(one["restartCount"] for one in containers(cluster, how)) >= 2)
    lab.behave(bad, "ok")
    cluster.eventually(lambda: rolled_out(cluster, how))


@pytest.mark.parametrize(("policy", "seen"), [("Always", "ab"), ("IfNotPresent", "a")])
def test_a_reused_tag_is_seen_by_new_pods_that_pull(cluster: Cluster, lab: Nodes, policy: str, seen: str) -> None:
    tag, digests = f"{HUB}:stable-{policy.lower()}", {letter: f"sha256:{letter * 64}" for letter in "ab"}
    namespace = f"tags-{policy.lower()}"
    manifests = workload(namespace, tag)
    pod = manifests[-1]["spec"]["template"]["spec"]
    pod["nodeName"] = "node-1"
    pod["containers"][0]["imagePullPolicy"] = policy
    lab.push(tag, digests["a"])
    cluster.apply(manifests)
    cluster.eventually(lambda: rolled_out(cluster, namespace))
    lab.push(tag, digests["b"])
    manifests[-1]["spec"]["replicas"] = 2
    cluster.apply(manifests)
    cluster.eventually(lambda: rolled_out(cluster, namespace, 2))
    found = {one["imageID"].partition("@")[2] for one in containers(cluster, namespace)}
    assert found == {digests[letter] for letter in seen}


def test_a_removed_image_can_no_longer_be_pulled(cluster: Cluster, lab: Nodes) -> None:
    pinned = f"{HUB}@{lab.push(f'{HUB}:gone')}"
    cluster.apply(workload("gone", pinned))
    cluster.eventually(lambda: rolled_out(cluster, "gone"))
    lab.remove(pinned)
    cluster.apply(workload("gone", pinned, replicas=2))
    cluster.eventually(lambda: waits_for(cluster, "gone") == {"ImagePullBackOff"})
    assert status(cluster, "gone")["readyReplicas"] == 1, "what runs goes on"


def test_delays_are_kept(cluster: Cluster, lab: Nodes) -> None:
    lab.delays(start=3, ready=3, stop=3)
    try:
        cluster.apply(workload("slow", f"{HUB}:1.9.4"))
        cluster.eventually(lambda: waits_for(cluster, "slow") == {"ContainerCreating"})
        running = lambda: [one for one in containers(cluster, "slow") if "running" in one["state"]]  # noqa: E731
        assert not cluster.eventually(running)[0]["ready"]
        cluster.eventually(lambda: rolled_out(cluster, "slow"))
        cluster.apply(workload("slow", f"{HUB}:1.9.4", replicas=0))
        cluster.eventually(lambda: "deletionTimestamp" in pods(cluster, "slow")[0]["metadata"])
        cluster.eventually(lambda: not pods(cluster, "slow"))
    finally:
        lab.delays(start=0, ready=0, stop=0)


def test_a_user_without_rights_is_refused(cluster: Cluster) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "rollback", "namespace": "default"}}
    cluster.apply(account)
    for user in ("bob", "system:serviceaccount:default:rollback"):
        with pytest.raises(ApiError, match="cannot list resource") as refused:
            Api(cluster.kubeconfig_for(user)).request("GET", "/api/v1/namespaces/default/pods")
        assert (refused.value.status, refused.value.reason) == (403, "Forbidden")
        subjects = [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]
        role = {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"}
        meta = {"name": user.replace(":", "-"), "namespace": "default"}
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
        cluster.apply({**kind, "metadata": meta, "subjects": subjects, "roleRef": role})
        cluster.eventually(functools.partial(_may_read, cluster.kubeconfig_for(user)), 5)


def _may_read(config: Path) -> bool:
    try:
        return "items" in Api(config).request("GET", "/api/v1/namespaces/default/pods")
    except ApiError as error:
        assert error.status == 403
        return False


def test_credentials_expire(cluster: Cluster) -> None:
    with pytest.raises(ApiError) as refused:
        Api(cluster.kubeconfig_for("bob", ["system:masters"], expired=True)).request("GET", "/api/v1/pods")
    assert refused.value.status == 401


def test_a_killed_api_server_comes_back_with_all_it_had(cluster: Cluster, lab: Nodes) -> None:
    cluster.apply(workload("killed", f"{HUB}:1.9.4"))
    cluster.eventually(lambda: rolled_out(cluster, "killed"))
    cluster.stop_api()
    with pytest.raises(urllib3.exceptions.HTTPError):
        cluster.get("v1", "Namespace")
    cluster.start_api()
    lab.push(f"{HUB}:2.0.0")
    cluster.apply(workload("killed", f"{HUB}:2.0.0", replicas=2))
    cluster.eventually(lambda: rolled_out(cluster, "killed", 2))


def test_an_autoscaler_follows_the_load(cluster: Cluster, lab: Nodes) -> None:
    manifests = workload("load", f"{HUB}:1.9.4")
    cluster.apply(manifests)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hub"}
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 4, "targetCPUUtilizationPercentage": 50}
    meta = {"name": "hub", "namespace": "load"}
    kind = {"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler"}
    cluster.apply({**kind, "metadata": meta, "spec": spec})
    scaler = lambda: cluster.get("autoscaling/v1", "HorizontalPodAutoscaler", "hub", "load")["status"]  # noqa: E731
    cluster.eventually(lambda: scaler().get("currentCPUUtilizationPercentage") == 1)
    assert scaler()["currentReplicas"] == 1
    lab.load({"app": "hub"}, cpu=200)
    cluster.eventually(lambda: rolled_out(cluster, "load", 4))
    assert scaler()["currentCPUUtilizationPercentage"] == 200
    lab.load({"app": "hub"}, cpu=1)
    cluster.eventually(lambda: rolled_out(cluster, "load", 1))


def test_the_official_client_works(cluster: Cluster, lab: Nodes) -> None:
    assert kubernetes.client.VersionApi(cluster.client()).get_code().minor
    assert len(kubernetes.client.CoreV1Api(cluster.client()).list_node().items) == 3


def test_an_api_of_its_own_can_be_used_as_soon_as_it_is_applied(cluster: Cluster) -> None:
    names = {"kind": "Rollout", "plural": "rollouts", "singular": "rollout"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "example.org", "scope": "Namespaced", "names": names, "versions": [version]}
    kind = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    one = {"apiVersion": "example.org/v1", "kind": "Rollout", "metadata": {"name": "one", "namespace": "default"}}
    cluster.apply([{**kind, "metadata": {"name": "rollouts.example.org"}, "spec": spec}, {**one, "spec": {"to": 1}}])
    assert cluster.get("example.org/v1", "Rollout", "one", "default")["spec"] == {"to": 1}
    cluster.delete([one])
    assert cluster.get("example.org/v1", "Rollout", "one", "default") == {}


def test_orders_that_make_no_sense_are_refused(lab: Nodes) -> None:
    with pytest.raises(ValueError, match="was not pushed"):
        lab.behave("nowhere:1", "crash")
    with pytest.raises(ValueError, match="no digest"):
        lab.push("hub:1", "latest")
    with pytest.raises(ValueError, match="unknown delays"):
        lab.delays(sart=1)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tools/control-plane"):
        programs()


def test_a_cluster_named_by_the_user_is_used_and_left_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BALIK_TEST_KUBECONFIG", str(cluster.kubeconfig))
    with control_plane(tmp_path) as named:
        assert not named.own
        assert named.version == cluster.version
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "named", "namespace": "default"}}
        named.apply(account)
        assert not _may_read(named.kubeconfig_for("system:serviceaccount:default:named"))
        with pytest.raises(RuntimeError, match="not ours"):
            named.stop_api()
        with pytest.raises(RuntimeError, match="nodes of its own"), nodes(named):
            pass
    assert cluster.get("v1", "ServiceAccount", "named", "default")


def tool(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``tools/control-plane`` with a cache of its own."""
    values = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(home), **environment}
    return subprocess.run([TOOL], env=values, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    folder = tmp_path / "balik" / "kubernetes-1.20.2"
    folder.mkdir(parents=True)
    for name in ("kube-apiserver", "kube-controller-manager", "etcd"):
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    return folder


def test_the_tool_prints_the_folder_of_what_was_built(stubs: Path, tmp_path: Path) -> None:
    done = tool(tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (f"{stubs}\n", "", 0)


def test_the_tool_prefers_the_folder_that_the_user_names(stubs: Path, tmp_path: Path) -> None:
    assert tool(tmp_path / "other", KUBEBUILDER_ASSETS=str(stubs)).stdout == f"{stubs}\n"
    (stubs / "etcd").unlink()
    done = tool(tmp_path, KUBEBUILDER_ASSETS=str(stubs))
    assert (done.stdout, done.returncode) == ("", 1)
    assert str(stubs) in done.stderr and "etcd" in done.stderr


def test_the_tool_begins_an_interrupted_build_again(tmp_path: Path) -> None:
    """As far as the first thing that needs the network: here, a mirror that cannot be reached."""
    (tmp_path / "balik" / "kubernetes-1.20.2.part" / "source").mkdir(parents=True)
    config = tmp_path / "apt.conf"
    config.write_text('Acquire { http::Proxy "http://127.0.0.1:9"; https::Proxy "http://127.0.0.1:9"; Retries "0"; };')
    done = tool(tmp_path, APT_CONFIG=str(config))
    assert (done.stdout, done.returncode) == ("", 1)
    reasons = ("apt-get update failed", "packages are missing", "only Debian 12")
    assert any(reason in done.stderr for reason in reasons), done.stderr
    assert not list((tmp_path / "balik").glob("*.part"))
