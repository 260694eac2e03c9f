"""image-revert on a real API server and its controllers; only the nodes are simulated."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster as Client
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.entry import Revert, run
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.rollout import Partial

from tests.servers.certificates import Authority
from tests.servers.kubernetes import Cluster, ControlPlane, control_plane
from tests.servers.kubernetes_admission import mirror
from tests.servers.kubernetes_nodes import Nodes, nodes

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "roles" / "image-revert" / "files" / "rbac-kubernetes.yml"
REPOSITORY = "registry.example/hub"
BAD, GOOD, ABSENT = f"{REPOSITORY}:2.0.0", f"{REPOSITORY}:1.9.4", f"{REPOSITORY}:0.0.1"
ARGO, FLUX = "argoproj.io/v1alpha1", "kustomize.toolkit.fluxcd.io/v1"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        if not started.own:
            pytest.skip("a cluster named by the user has nodes and images of its own")
        yield started


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Nodes]:
    with nodes(cluster, {BAD: "", GOOD: "", "redis:7": ""}) as started:
        yield started


class Shop:
    """A namespace of its own, and the step on what is in it."""

    def __init__(self, cluster: Cluster, lab: Nodes) -> None:
        self.cluster, self.name = cluster, f"shop-{next(_numbers)}"
        self.digest = lab.push(GOOD)
        self.good = f"{REPOSITORY}@{self.digest}"
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}})

    def run(
        self, name: str = "web", kind: str = "Deployment", image: str = BAD, wait: bool = True, **spec: Any
    ) -> Json:
        """Create a workload, and wait until it has rolled out."""
        made = manifest(self.name, name, kind, image, **spec) | {"apiVersion": self._api(kind)}
        self.cluster.apply(made)
        if wait:
            self.cluster.eventually(lambda: rolled_out(self.get(name, kind)), says=f"{kind} {name}")
        return made

    def get(self, name: str = "web", kind: str = "Deployment") -> Json:
        return self.cluster.get(self._api(kind), kind, name, self.name)

    def _api(self, kind: str) -> str:
        return self.cluster.offered(API[kind], "batch/v1") if kind == "CronJob" else API[kind]

    def image(self, name: str = "web", kind: str = "Deployment") -> str:
        return str(template(self.get(name, kind))["spec"]["containers"][0]["image"])

    def step(self, entry: str, *names: str, check_mode: bool = False, **more: Any) -> Json:
        """:param names: of Deployments; ``StatefulSet/db`` for other kinds."""
        workloads = []
        for one in names:
            kind, _, name = one.rpartition("/")
            workloads.append({"namespace": self.name, "kind": kind or "Deployment", "name": name})
        given = {
            "entry": entry,
            "workloads": workloads,
            "namespaces": [self.name],
            "kinds": ["Deployment", "StatefulSet", "DaemonSet", "CronJob"],
            "image": self.good,
            "already": "refuse",
            "cronjobs": "revert",
            "owners": "refuse",
            "argocd_namespaces": ["argocd"],
            "flux_namespaces": [self.name],
            "product": self.name,
            "resume": "in_sync",
            "limit": "20s",
            "kubeconfig": str(self.cluster.kubeconfig),
            **more,
        }
        return run(given, check_mode)


API = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "CronJob": "batch/v1beta1",
    "Job": "batch/v1",
}


@pytest.fixture(name="shop")
def _shop(cluster: Cluster, lab: Nodes) -> Shop:
    return Shop(cluster, lab)


def manifest(namespace: str, name: str, kind: str, image: str, metadata: Json | None = None, **spec: Any) -> Json:
    labels = {"app": name}
    pod: Json = {
        "initContainers": [{"name": "migrate", "image": image}],
        "containers": [
            {"name": "app", "image": image, "env": [{"name": "DSN", "value": "secret"}]},
            {"name": "cache", "image": "redis:7"},
        ],
    }
    made: Json = {"template": {"metadata": {"labels": labels}, "spec": pod}, "selector": {"matchLabels": labels}}
    if kind == "StatefulSet":
        made["serviceName"] = name
    if kind in ("CronJob", "Job"):
        pod["restartPolicy"] = "Never"
        made = {"template": {"spec": pod}}
    if kind == "CronJob":
        made = {"schedule": "0 3 * * *", "jobTemplate": {"spec": made}}
    return {
        "apiVersion": API[kind],
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {"product": "hub"}, **(metadata or {})},
        "spec": {**made, **spec},
    }


def template(shown: Json) -> Json:
    spec = shown["spec"]
    return dict((spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"])


def rolled_out(shown: Json) -> bool:
    if shown["kind"] in ("CronJob", "Job"):
        return True
    status, wanted = shown.get("status", {}), shown["spec"].get("replicas", 1)
    if shown["kind"] == "DaemonSet":
        return bool(status.get("numberAvailable")) and status["numberAvailable"] == status["desiredNumberScheduled"]
    return bool(status.get("observedGeneration")) and status.get("readyReplicas", 0) == wanted


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(BalikError) as caught:
        act()
    return str(caught.value)


def test_check_main_verify_undo(shop: Shop, lab: Nodes) -> None:
    shop.run(metadata={"annotations": {"team": "legal", "kubectl.kubernetes.io/last-applied-configuration": "{}"}})
    was, key = shop.get(), f"Deployment {shop.name}/web"

    seen = shop.step("check", "web")
    saved = {"images": {"migrate": BAD, "app": BAD}, "ran": dict.fromkeys(("migrate", "app"), lab.push(BAD))}
    assert seen["before"]["workloads"] == {key: saved}
    assert seen["before"]["uids"] == {key: was["metadata"]["uid"]}
    assert "secret" not in json.dumps(seen) and not seen["changed"]
    would = shop.step("main", "web", check_mode=True)
    assert would["changed"] and f"app: {BAD}" in would["diff"]["before"] and shop.good in would["diff"]["after"]
    assert shop.get()["metadata"]["resourceVersion"] == was["metadata"]["resourceVersion"]
    assert BAD in refused(lambda: shop.step("verify", "web"))

    done = shop.step("main", "web")
    assert done["changed"] and "on 1 pod" in done["evidence"]["workloads"][key]
    now = shop.get()
    expected = copy.deepcopy(was)
    for part in ("initContainers", "containers"):
        expected["spec"]["template"]["spec"][part][0]["image"] = shop.good
    assert now["spec"] == expected["spec"]
    assert now["metadata"]["labels"] == was["metadata"]["labels"]
    # The controller counts revisions in an annotation of its own.
    assert {**now["metadata"]["annotations"], "deployment.kubernetes.io/revision": "1"} == was["metadata"][
        "annotations"
    ]
    ours = next(one for one in now["metadata"]["managedFields"] if one["manager"] == "balik")
    assert json.dumps(ours["fieldsV1"]).count("f:image") == 2 and "env" not in json.dumps(ours)
    pods = shop.cluster.get("v1", "Pod", namespace=shop.name)["items"]
    running = [one["status"] for one in pods if "deletionTimestamp" not in one["metadata"]]
    assert [one["containerStatuses"][0]["imageID"].rpartition("@")[2] for one in running] == [shop.digest]

    assert not shop.step("verify", "web")["changed"]
    again = shop.step("main", "web")
    assert not again["changed"] and shop.get()["metadata"]["generation"] == now["metadata"]["generation"]

    assert shop.step("undo", "web", saved=seen["before"], check_mode=True)["changed"]
    assert shop.step("undo", "web", saved=seen["before"])["changed"]
    assert shop.get()["spec"] == was["spec"]
    assert not shop.step("undo", "web", saved=seen["before"])["changed"]


def test_all_kinds_of_all_namespaces_by_label(shop: Shop, cluster: Cluster, lab: Nodes) -> None:
    other = Shop(cluster, lab)
    kinds = {"web": "Deployment", "db": "StatefulSet", "agent": "DaemonSet", "nightly": "CronJob"}
    for name, kind in kinds.items():
        spec: Json = {"replicas": 2} if kind in ("Deployment", "StatefulSet") else {}
        shop.run(name, kind, **spec)
    other.run("web")
    other.run("queue", image="redis:7")
    label: Json = {"labels": {"product": "hub"}, "namespaces": [shop.name, other.name]}
    seen = shop.step("check", **label)
    assert f"Deployment {other.name}/queue runs none of the images" in seen["says"]
    assert len(seen["before"]["workloads"]) == 5
    assert f"Deployment {other.name}/queue runs none of" in shop.step("main", **label, check_mode=True)["says"]
    done = shop.step("main", **label)
    assert f"; Deployment {other.name}/queue runs none of the images" in done["says"]
    assert [shop.image(name, kind) for name, kind in kinds.items()] == [shop.good] * 4
    assert other.image() == shop.good and other.image("queue") == "redis:7"
    assert "on 3 pods" in done["evidence"]["workloads"][f"DaemonSet {shop.name}/agent"]
    assert "from its next Job on" in done["evidence"]["workloads"][f"CronJob {shop.name}/nightly"]
    shop.step("verify", **label)
    shop.step("undo", **label, saved=seen["before"])
    assert [shop.image(name, kind) for name, kind in kinds.items()] == [BAD] * 4 and other.image() == BAD

    nowhere = refused(lambda: shop.step("check", labels={"product": "hub"}, image="other/app:1"))
    assert "there is none in namespace" in nowhere and "redis" not in nowhere


def test_by_label_what_is_named_and_stands_for_nothing_is_told(shop: Shop, cluster: Cluster, lab: Nodes) -> None:
    other = Shop(cluster, lab)
    shop.run()
    label: Json = {"labels": {"product": "hub"}}
    seen = shop.step("check", **label, namespaces=[shop.name, other.name])
    assert f"namespace {other.name} has no workload labelled product=hub" in seen["says"]
    says = refused(lambda: shop.step("check", **label, namespaces=[shop.name, "nowhere"], images=["other/app:1"]))
    assert "namespace nowhere does not exist" in says
    assert "no workload labelled product=hub runs any version of other/app:1" in says
    says = refused(lambda: shop.step("check", **label, namespaces=[shop.name, ""]))
    assert "image_revert_namespaces: one is empty; expected names" in says


def test_a_workload_of_another_kind_that_selects_the_same_pods_is_named(shop: Shop) -> None:
    for kind in ("Deployment", "StatefulSet"):
        shop.run(kind=kind, wait=False)
    says = refused(lambda: shop.step("check", "web"))
    assert (
        f"Deployment {shop.name}/web selects pods by app=web, which those of StatefulSet {shop.name}/web match" in says
    )


def test_workloads_that_select_the_same_pods_by_expressions_are_named(shop: Shop) -> None:
    wide = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["wide", "narrow"]}]}
    for name, selector in (("wide", wide), ("narrow", {"matchLabels": {"app": "narrow"}})):
        shop.run(name, selector=selector, wait=False)
    says = refused(lambda: shop.step("check", "wide", "narrow"))
    assert f"Deployment {shop.name}/wide selects pods by app in (wide, narrow), which those of Deployment" in says
    assert f"Deployment {shop.name}/narrow selects" not in says


def test_by_label_one_without_the_label_that_selects_the_same_pods_is_named(shop: Shop) -> None:
    label: Json = {"labels": {"product": "hub"}}
    shop.run("web")
    beside = manifest(shop.name, "web", "Deployment", BAD)
    beside["metadata"] = {"name": "beside", "namespace": shop.name, "labels": {"product": "other"}}
    shop.cluster.apply(beside)
    says = refused(lambda: shop.step("check", **label))
    assert f"Deployment {shop.name}/web selects pods by app=web" in says and f"Deployment {shop.name}/beside" in says


def test_a_rollout_that_cannot_finish_says_why_and_touches_nothing_else(shop: Shop, lab: Nodes) -> None:
    lab.push(f"{REPOSITORY}:1.9.3")
    lab.behave(f"{REPOSITORY}:1.9.3", "unready")
    for name in ("web", "missing", "unready", "outside"):
        shop.run(name)
    outside = shop.get("outside")
    workloads = [
        {"namespace": shop.name, "name": "web"},
        {"namespace": shop.name, "name": "missing", "image": ABSENT, "limit": "5s"},
        {"namespace": shop.name, "name": "unready", "containers": {"app": f"{REPOSITORY}:1.9.3"}, "limit": "5s"},
    ]
    begun = time.monotonic()
    with pytest.raises(Partial) as caught:
        shop.step("main", workloads=workloads)
    assert time.monotonic() - begun < 20
    says, evidence = str(caught.value), caught.value.evidence
    assert says.startswith("2 of 3 workloads")
    assert f"Deployment {shop.name}/missing: not rolled out within 5s: 1 of 1 updated" in says
    assert "ImagePullBackOff" in says and "event Failed: Failed to pull image" in says, says
    assert "runs, but is not ready" in says and "statuscode: 503" in says
    assert f"As asked for: Deployment {shop.name}/web" in says and list(evidence["workloads"]) == [
        f"Deployment {shop.name}/web"
    ]
    assert shop.image() == shop.good and shop.get("outside") == outside
    assert "ImagePullBackOff" in refused(lambda: shop.step("verify", workloads=workloads))
    # Mended, and called again: what was done stays done.
    lab.push(ABSENT)
    lab.behave(f"{REPOSITORY}:1.9.3", "ok")
    assert not shop.step("main", workloads=workloads)["changed"]
    lab.remove(ABSENT)


def test_of_the_clusters_warnings_only_those_of_the_rollout_are_told(shop: Shop) -> None:
    shop.run()
    uid = shop.get()["metadata"]["uid"]
    now = datetime.now(timezone.utc)

    def warn(message: str, kind: str, uid: str, minutes: int = 0) -> None:
        time = f"{now + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}"
        about = {"kind": kind, "name": "web", "namespace": shop.name, "uid": uid}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "web.", "namespace": shop.name},
            **{"involvedObject": about, "reason": "Told", "message": message, "type": "Warning", "count": 1},
            **{"firstTimestamp": time, "lastTimestamp": time},
        }
        shop.cluster.api.request("POST", f"/api/v1/namespaces/{shop.name}/events", event)

    warn("could not update the endpoints", "Endpoints", "another")
    warn("a Deployment of that name, deleted since", "Deployment", "earlier", 5)
    warn("an hour ago", "Deployment", uid, -60)
    warn("of the rollout", "Deployment", uid, 5)
    says = refused(lambda: shop.step("main", "web", image=ABSENT, limit="4s"))
    assert "event Told: of the rollout" in says
    for other in ("endpoints", "deleted since", "an hour ago"):
        assert other not in says
    places = [says.index(each) for each in ("ImagePullBackOff", "event Failed: Failed to pull image", "event Told")]
    assert places == sorted(places)


def test_it_is_done_when_the_last_pod_of_before_has_ended(shop: Shop, lab: Nodes) -> None:
    shop.run(replicas=2)

    def running() -> set[str]:
        pods = shop.cluster.get("v1", "Pod", namespace=shop.name)["items"]
        return {one["spec"]["containers"][0]["image"] for one in pods}

    lab.delays(stop=20)
    try:
        says = refused(lambda: shop.step("main", "web", limit="10s"))
        assert (
            f"which runs {BAD} in migrate, has been told to end and has not yet. If its node is lost: kubectl -n"
            in says
        )
        assert BAD in running() and "has been told to end" in refused(lambda: shop.step("verify", "web"))
        assert shop.step("main", "web")["says"].partition(" after ")[0].endswith("on 2 pods")
        assert running() == {shop.good}
        shop.step("verify", "web")
        says = shop.step("check", "web", image=BAD, limit="29s")["says"]
        assert f"Deployment {shop.name}/web gives its pods 30s to end, and the step waits 29s" in says
    finally:
        lab.delays(stop=0)


def test_what_was_set_after_the_check_and_holds_a_rollout_up_is_told(shop: Shop) -> None:
    shop.run()
    shop.run("db", "StatefulSet")
    shop.step("check", "web", "StatefulSet/db")
    for kind, name, spec in (
        ("Deployment", "web", {"paused": True}),
        ("StatefulSet", "db", {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}),
    ):
        path = shop.cluster.api.path("apps/v1", kind, shop.name, name)
        shop.cluster.api.request("PATCH", path, {"spec": spec}, "application/merge-patch+json")
    for entry in ("main", "verify"):
        says = refused(functools.partial(shop.step, entry, "web", "StatefulSet/db", limit="3s"))
        assert "1 of the old ones still there; is paused (spec.paused: true): a change would not be" in says
        assert "1 of the old ones still there; has the updateStrategy OnDelete: its pods keep the image" in says


def test_a_release_that_changed_one_container_of_two_goes_back(shop: Shop) -> None:
    shop.run(image=GOOD)
    path = shop.cluster.api.path("apps/v1", "Deployment", shop.name, "web")
    bad = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": BAD}]
    shop.cluster.api.request("PATCH", path, bad, "application/json-patch+json")
    shop.cluster.eventually(lambda: rolled_out(shop.get()))
    assert f"migrate already {GOOD}, app {BAD} -> {GOOD}" in shop.step("check", "web", image=GOOD)["says"]
    shop.step("main", "web", image=GOOD)
    says = refused(lambda: shop.step("check", "web", image=GOOD))
    assert f"app is set to {GOOD} already, and a tag that has moved is not seen as a change" in says


def test_a_tag_that_brings_what_ran_before_is_no_success(tmp_path: Path) -> None:
    stable, worker = f"{REPOSITORY}:stable", "registry.example/worker"
    same = "sha256:" + "b" * 64
    images = {BAD: same, stable: same, f"{worker}:2.0": "", f"{worker}:1.9": "", "redis:7": ""}
    with control_plane(tmp_path) as cluster, nodes(cluster, images, count=1, cache=True) as lab:
        shop = Shop(cluster, lab)
        shop.run("earlier", image=stable)
        lab.push(stable, "sha256:" + "c" * 64)  # mended in the registry; the node keeps what it has
        shop.run()
        seen = shop.step("check", "web", image=stable)
        assert seen["before"]["workloads"][f"Deployment {shop.name}/web"]["ran"]["app"] == same
        for _ in range(2):
            says = refused(lambda: shop.step("main", "web", image=stable, saved=seen["before"]))
            assert f"migrate runs the same content as before (sha256:bbbbbbbbbbbb…): {stable} is another name" in says
        assert "the same content" in refused(lambda: shop.step("verify", "web", image=stable, saved=seen["before"]))
        shop.step("main", "web", image=stable, already="accept", saved=seen["before"])
        shop.step("undo", saved=seen["before"])
        assert "the same content" in refused(lambda: shop.step("main", "web", image=stable))

        # The one container goes to another image, the other one's tag has moved: the node does not ask again.
        mixed: Json = {"image": stable, "images": [f"{worker}:1.9"]}
        pod = {"containers": [{"name": "app", "image": stable}, {"name": "worker", "image": f"{worker}:2.0"}]}
        shop.run("mixed", template={"metadata": {"labels": {"app": "mixed"}}, "spec": pod})
        assert "nodes may go on with what they keep" in refused(lambda: shop.step("check", "mixed", **mixed))


def test_without_pods_nothing_shows_the_image_and_that_is_told(shop: Shop) -> None:
    shop.run(replicas=0)
    key = f"Deployment {shop.name}/web"
    says = shop.step("check", "web", image=ABSENT)["says"]
    assert f"no pod will show whether the image can be pulled and runs (replicas: 0): {key}" in says
    told = f"{key}: migrate {ABSENT}, app {ABSENT} on no pod, so that nothing has shown whether it can be pulled"
    for entry in ("main", "verify"):
        assert shop.step(entry, "web", image=ABSENT)["says"].startswith(told)


def test_a_limit_of_nothing_is_refused(shop: Shop) -> None:
    shop.run()
    assert "limit: found '0s'; expected a duration above zero" in refused(lambda: shop.step("check", "web", limit="0s"))
    named = [{"namespace": shop.name, "name": "web", "limit": "0s"}]
    assert "limit of web: found '0s'" in refused(lambda: shop.step("check", workloads=named))


def test_undo_gives_a_workload_its_own_time(shop: Shop, lab: Nodes) -> None:
    shop.run("slow")
    workloads = [{"namespace": shop.name, "name": "slow", "limit": "30s"}]
    seen = shop.step("check", workloads=workloads)
    shop.step("main", workloads=workloads)
    lab.delays(ready=4)
    try:
        assert shop.step("undo", workloads=workloads, limit="2s", saved=seen["before"])["changed"]
    finally:
        lab.delays(ready=0)
    assert shop.image("slow") == BAD


def test_a_stateful_set_whose_pod_never_became_ready_goes_back(shop: Shop, lab: Nodes) -> None:
    bad = f"{REPOSITORY}:2.1.0"
    lab.push(bad)
    lab.behave(bad, "unready")
    shop.run("db", "StatefulSet", image=bad, wait=False, replicas=2)
    shop.cluster.eventually(lambda: shop.get("db", "StatefulSet")["status"].get("replicas") == 1)
    done = shop.step("main", "StatefulSet/db")
    assert done["evidence"]["deleted_pods"] == [f"{shop.name}/db-0"]
    assert shop.get("db", "StatefulSet")["status"]["readyReplicas"] == 2


def test_a_target_that_is_what_runs_is_refused(shop: Shop, lab: Nodes) -> None:
    shop.run("web", image=GOOD)
    # Under another name, but the same content.
    says = refused(lambda: shop.step("check", "web"))
    assert "is what runs already" in says and f"Deployment {shop.name}/web" in says
    # A tag is the same name and may be another content: no rollout would come of it.
    says = refused(lambda: shop.step("check", "web", image=GOOD))
    assert "a tag that has moved is not seen as a change" in says
    assert not shop.step("check", "web", already="accept")["changed"]
    # In the middle of a run it is no mistake.
    saved = {"workloads": {f"Deployment {shop.name}/web": {"images": {"app": BAD}}}}
    shop.step("check", "web", saved=saved)
    # Nor is it one that something has come since with what is asked for.
    shop.run("late", image=GOOD)
    seen = shop.step("check", labels={"product": "hub"}, image=GOOD, saved=saved)
    assert f"Deployment {shop.name}/late was no part of this run when it began" in seen["says"]


def test_what_ran_when_the_run_began_is_refused_by_the_record(shop: Shop, lab: Nodes) -> None:
    shop.run()
    bad, absent = f"{REPOSITORY}@{lab.push(BAD)}", f"{REPOSITORY}@sha256:{'0' * 64}"
    before = shop.step("check", "web", image=absent)["before"]
    with pytest.raises(Partial):
        shop.step("main", "web", image=absent, saved=before, limit="2s")
    # The pods of before go on serving: what they run is no release to go back to.
    since = "already when this run began"
    says = refused(lambda: shop.step("check", "web", image=bad, saved=before))
    assert f"{REPOSITORY}@{lab.push(BAD)[:19]}… is what ran {since}: Deployment {shop.name}/web. Name the image" in says
    assert f"migrate was set to {BAD} {since}" in refused(lambda: shop.step("check", "web", image=BAD, saved=before))
    assert not shop.step("check", "web", image=bad, saved=before, already="accept")["changed"]
    assert not shop.step("check", "web", saved=before)["changed"]


def test_one_workload_of_two_that_has_what_is_asked_for_is_told(shop: Shop, lab: Nodes) -> None:
    shop.run("web")
    shop.run("worker", image=GOOD)
    key = f"Deployment {shop.name}/worker"
    seen = shop.step("check", "web", "worker")
    assert f"{key}: migrate, app has what is asked for already, under another name" in seen["evidence"]["notes"]
    assert not any("web: migrate" in note for note in seen["evidence"]["notes"])
    told = f"{key}: migrate {REPOSITORY}@{shop.digest[:19]}… (as before), app"
    assert told in shop.step("main", "web", "worker", saved=seen["before"])["says"]
    assert told in shop.step("verify", "web", "worker", saved=seen["before"])["says"]
    assert "app had what is asked for already" in shop.step("check", "web", "worker", saved=seen["before"])["says"]


def test_a_tag_that_means_two_things_is_told(shop: Shop, lab: Nodes) -> None:
    tag = f"{REPOSITORY}:stable-last-known"
    lab.push(tag, f"sha256:{'1' * 64}")
    shop.run("web", image=tag)
    lab.push(tag, f"sha256:{'2' * 64}")
    shop.cluster.apply(
        {
            **manifest(shop.name, "web", "Deployment", tag),
            "spec": {**manifest(shop.name, "web", "Deployment", tag)["spec"], "replicas": 2},
        }
    )
    shop.cluster.eventually(lambda: shop.get()["status"].get("readyReplicas") == 2)
    says = refused(lambda: shop.step("verify", "web", image=tag))
    assert "different images under the name" in says and "1111" in says and "2222" in says


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"image": "hub@sha256:0f1e"}, "image 'hub@sha256:0f1e': is no name of an image"),
        ({"image": ""}, "has no image to go back to"),
        ({"image": "other/app:1"}, f"no container runs other/app:1 in any version; it has migrate ({BAD})"),
        ({"images": [GOOD]}, "has two targets"),
        ({"image": REPOSITORY}, f"image '{REPOSITORY}': it names neither a tag nor a digest"),
        (
            {"workloads": [{"name": "web", "containers": {"app": REPOSITORY}}]},
            f"image '{REPOSITORY}': it names neither a tag nor a digest",
        ),
        ({"limit": "soon"}, "found 'soon'"),
        ({"labels": {"a": "b"}}, "both workloads and labels are given"),
        ({"workloads": []}, "nothing is named"),
        ({"workloads": [{"name": "web"}, {"name": "web"}]}, "is named twice"),
        ({"workloads": [{"name": ""}]}, "image_revert_workloads, entry 1: name: empty"),
        (
            {"workloads": [], "labels": {"a": "b"}, "kinds": []},
            "image_revert_kinds: names no kind; expected some of Dep",
        ),
        (
            {"workloads": [], "labels": {"a": "b\u00f6"}},
            "image_revert_labels: 'a=b\u00f6' can be no label in Kubernetes",
        ),
        (
            {"workloads": [{"name": "web", "image": GOOD, "containers": {"cache": "redis:6"}}]},
            "/web: image and containers are both given; expected one of them. Name every container",
        ),
        (
            {"workloads": [{"name": "x" * 5000}]},
            f"entry 1, name: {'x' * 40}… has 5000 characters; expected at most 253",
        ),
        ({"workloads": [{"name": "wbe"}]}, "does not exist (context balik-test"),
        (
            {"workloads": [{"name": "web", "containers": {"apps": GOOD}}]},
            "has no container apps; expected one of: migrate, app",
        ),
        ({"argocd_namespaces": [""]}, "image_revert_argocd_namespaces: one is empty; expected names"),
        ({"flux_namespaces": ["", "flux-system"]}, "image_revert_flux_namespaces: one is empty; expected names"),
        ({"context": "prod"}, "context prod: does not stand in"),
        ({"kubeconfig": "/nowhere/config"}, "kubeconfig /nowhere/config: cannot be used"),
        ({"kubeconfig": str(MANIFEST)}, "cannot be used"),
    ],
)
def test_bad_input(shop: Shop, arguments: Json, expected: str) -> None:
    shop.run(wait=False)
    arguments = copy.deepcopy(arguments)
    for one in arguments.get("workloads", []):
        one["namespace"] = shop.name
    says = refused(lambda: shop.step("check", **{"workloads": [{"namespace": shop.name, "name": "web"}], **arguments}))
    assert expected in says and "Traceback" not in says
    assert shop.image() == BAD


def test_what_the_workloads_themselves_forbid_is_named_all_at_once(shop: Shop) -> None:
    shop.run("paused", paused=True, wait=False)
    shop.run("agent", "DaemonSet", updateStrategy={"type": "OnDelete"})
    shop.run("db", "StatefulSet", updateStrategy={"rollingUpdate": {"partition": 1}})
    for name in ("one", "other"):
        made = manifest(shop.name, name, "Deployment", BAD)
        made["spec"]["selector"]["matchLabels"] = made["spec"]["template"]["metadata"]["labels"] = {"app": "twice"}
        shop.cluster.apply(made)
    shop.run("fine", strategy={"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}})
    shop.cluster.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "tight", "namespace": shop.name},
                "spec": {"hard": {"pods": "7"}},
            },
            {
                "apiVersion": shop.cluster.offered("policy/v1", "policy/v1beta1"),
                "kind": "PodDisruptionBudget",
                "metadata": {"name": "all", "namespace": shop.name},
                "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "fine"}}},
            },
        ]
    )
    names = ("paused", "DaemonSet/agent", "StatefulSet/db", "one", "fine")

    def full() -> bool:
        shown = shop.cluster.get("v1", "ResourceQuota", "tight", shop.name)
        return bool(shown.get("status", {}).get("used", {}).get("pods") == "7")

    shop.cluster.eventually(full, says="a full quota")
    says = refused(lambda: shop.step("check", *names))
    assert "paused is paused" in says and "OnDelete" in says and "partition 1" in says
    assert f"one selects pods by app=twice, which those of Deployment {shop.name}/other match too" in says
    assert "fine must start a pod before it may stop one" in says and "tight has pods 0 left of 7" in says
    assert "The check touched no workload" in says and shop.image("one") == BAD
    shop.cluster.delete(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight", "namespace": shop.name}}
    )
    assert "PodDisruptionBudget all allows no disruption now" in shop.step("check", "fine")["says"]


def test_a_quota_for_what_the_pods_do_not_say_is_named(shop: Shop, lab: Nodes) -> None:
    shop.run()
    made = {"metadata": {"name": "each", "namespace": shop.name}, "apiVersion": "v1"}
    shop.cluster.apply(
        {**made, "kind": "ResourceQuota", "spec": {"hard": {"requests.cpu": "9", "limits.memory": "9Gi"}}}
    )
    shop.cluster.eventually(
        lambda: shop.cluster.get("v1", "ResourceQuota", "each", shop.name).get("status", {}).get("hard")
    )
    says = refused(lambda: shop.step("check", "web"))
    assert f"Deployment {shop.name}/web does not say what ResourceQuota {shop.name}/each counts" in says
    assert (
        "requests.cpu for app, cache, migrate; limits.memory for app, cache, migrate. Give the containers resources"
        in says
    )
    assert "The check touched no workload" in says
    limits = [{"type": "Container", "default": {"memory": "64Mi"}, "defaultRequest": {"cpu": "10m"}}]
    shop.cluster.apply({**made, "kind": "LimitRange", "spec": {"limits": limits}})
    shop.step("check", "web")
    assert shop.step("main", "web")["changed"] and shop.image() != BAD


def test_an_admission_rule_is_found_before(shop: Shop) -> None:
    shop.run()
    label = {"metadata": {"labels": {"guarded": shop.name}}}
    shop.cluster.api.request("PATCH", f"/api/v1/namespaces/{shop.name}", label, "application/merge-patch+json")
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"policy-of-{shop.name}"},
        "webhooks": [
            {
                "name": "images.policy.example",
                # Nobody listens there: the commonest way in which a policy stops a rollback at night.
                "clientConfig": {"url": "https://127.0.0.1:1/"},
                "rules": [
                    {
                        "apiGroups": ["apps"],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["deployments"],
                    }
                ],
                "namespaceSelector": {"matchLabels": {"guarded": shop.name}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail",
            }
        ],
    }
    shop.cluster.apply(policy)
    try:

        def found() -> str:
            try:
                shop.step("check", "web")
            except BalikError as error:
                return str(error)
            return ""

        says = shop.cluster.eventually(found, says="the policy in force")
        assert 'failed calling webhook "images.policy.example"' in says and "The check touched no workload" in says
    finally:
        shop.cluster.delete(policy)
    assert shop.image() == BAD


@pytest.mark.parametrize("rehearses", [True, False])
def test_an_admission_rule_that_sets_another_image_is_told_with_it(shop: Shop, lab: Nodes, rehearses: bool) -> None:
    shop.run()
    mirrored = shop.good.replace("registry", "mirror")
    lab.push(GOOD.replace("registry", "mirror"), shop.digest)
    with mirror(shop.cluster, shop.name, "deployments", "registry.example", "mirror.example", rehearses):
        path = f"/apis/apps/v1/namespaces/{shop.name}/deployments?dryRun=All"
        other = manifest(shop.name, "other", "Deployment", BAD)

        def in_force() -> bool:
            made = shop.cluster.api.request("POST", path, other)
            return bool(template(made)["spec"]["containers"][0]["image"].startswith("mirror")) or not rehearses

        shop.cluster.eventually(in_force)
        if rehearses:
            says = refused(lambda: shop.step("check", "web"))
            assert "The check touched no workload" in says and shop.image() == BAD
        else:

            def seen() -> bool:
                shop.cluster.apply(other)
                return shop.image("other") != BAD

            shop.cluster.eventually(seen)
            shop.step("check", "web")
            says = refused(lambda: shop.step("main", "web"))
            assert shop.image() == mirrored
        told = shop.digest[:19]
        sets = f"migrate to mirror.example/hub@{told}…, app to mirror.example/hub@{told}…"
        expected = f"expected registry.example/hub@{told}…. Name in the plan what it sets"
        assert f"Deployment {shop.name}/web: an admission rule of the cluster: sets {sets}; {expected}" in says
        named = [{"namespace": shop.name, "name": "web", "containers": {"migrate": mirrored, "app": mirrored}}]
        for entry in ("check", "main", "verify"):
            shop.step(entry, workloads=named, already="accept")


def test_pods_may_run_the_digest_by_a_mirror_s_name_and_nothing_else(shop: Shop, lab: Nodes) -> None:
    lab.push(GOOD.replace("registry", "mirror"), shop.digest)
    lab.push(BAD.replace("registry", "mirror"))
    with mirror(shop.cluster, shop.name, "pods", "registry.example", "mirror.example"):

        def given() -> bool:
            path = f"/api/v1/namespaces/{shop.name}/pods?dryRun=All"
            pod = {"metadata": {"name": "pod"}, "spec": {"containers": [{"name": "app", "image": BAD}]}}
            made = shop.cluster.api.request("POST", path, pod)
            return bool(made["spec"]["containers"][0]["image"].startswith("mirror"))

        shop.cluster.eventually(given)
        shop.run()
        shop.step("check", "web")
        shop.step("main", "web")
        shop.step("verify", "web")
        tagged: Json = {"image": GOOD, "limit": "4s", "already": "accept"}
        for entry in ("main", "verify"):
            says = refused(functools.partial(shop.step, entry, "web", **tagged))
            assert (
                f"runs mirror.example/hub:1.9.4 in migrate, where Deployment {shop.name}/web says {GOOD}. If it is no "
                "pod of before, an admission rule of the cluster gives it another image: name the image by its digest"
            ) in says


@pytest.fixture(name="gitops", scope="module")
def _gitops(cluster: Cluster) -> None:
    """The API of Argo CD and Flux, without their controllers."""
    for group, version, kind, plural in (
        ("argoproj.io", "v1alpha1", "Application", "applications"),
        ("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "kustomizations"),
    ):
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
        cluster.apply(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "names": {"kind": kind, "plural": plural},
                    "scope": "Namespaced",
                    "versions": [served],
                },
            }
        )
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "argocd"}})


@contextlib.contextmanager
def argo_cd(cluster: Cluster, name: str, root: str) -> Iterator[None]:
    """As Argo CD's controller does, take the wish for a comparison off these Applications once it is done.

    :param root: the Application in whose Git ``name`` stands, with its ``automated``.
    """
    over = threading.Event()

    def compare() -> None:
        while not over.wait(0.2):
            acts = "automated" in cluster.get(ARGO, "Application", name, "argocd")["spec"]["syncPolicy"]
            for each in (name, root):
                path = cluster.api.path(ARGO, "Application", "argocd", each)
                body: Json = {"metadata": {"annotations": {"argocd.argoproj.io/refresh": None}}}
                if each == root:
                    body["status"] = {"sync": {"status": "Synced" if acts else "OutOfSync"}}
                cluster.api.request("PATCH", path, body, "application/merge-patch+json")

    thread = threading.Thread(target=compare)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def test_argo_cd_is_held_off_by_the_plans_wish_and_acts_again_after(shop: Shop, gitops: None) -> None:
    shop.run()
    name = f"app-of-{shop.name}"

    def application(name: str, manages: Json, automated: Json | None) -> Json:
        policy = {"syncOptions": ["CreateNamespace=true"], **({"automated": automated} if automated else {})}
        return {
            "apiVersion": ARGO,
            "kind": "Application",
            "metadata": {"name": name, "namespace": "argocd", "annotations": {"team": "legal"}},
            "spec": {"syncPolicy": policy, "destination": {"server": "https://kubernetes.default.svc"}},
            "status": {"resources": [manages], "sync": {"status": "OutOfSync"}},
        }

    app = application(
        name, {"group": "apps", "kind": "Deployment", "namespace": shop.name, "name": "web"}, {"selfHeal": True}
    )
    root = application(
        f"root-{name}",
        {"group": "argoproj.io", "kind": "Application", "namespace": "argocd", "name": name},
        {"prune": True},
    )
    shop.cluster.apply([app, root])

    def spec(name: str) -> Json:
        return dict(shop.cluster.get(ARGO, "Application", name, "argocd")["spec"])

    says = refused(lambda: shop.step("check", "web"))
    assert f"belongs to Argo CD's Application argocd/{name}, which would put the version back" in says
    assert "image_revert_owners: suspend" in says
    assert "(accepted by the plan)" in shop.step("check", "web", owners="accept")["says"]

    before = shop.step("check", "web", owners="suspend")["before"]
    assert len(before["held"]) == 2 and spec(name) == app["spec"]
    assert "held off until resumed" in shop.step("main", "web", owners="suspend")["says"]
    assert "automated" not in spec(name)["syncPolicy"] and "automated" not in spec(f"root-{name}")["syncPolicy"]
    assert spec(name)["syncPolicy"]["syncOptions"] == ["CreateNamespace=true"]
    assert not shop.step("main", "web", owners="suspend")["changed"]
    assert "is held off already" in shop.step("check", "web", owners="suspend", saved=before)["says"]

    # Git still wants the bad version: auto-sync would put it back at once. No reason to keep the visitors out.
    assert "stays held off (it is OutOfSync" in shop.step("check_resume")["says"]
    with argo_cd(shop.cluster, name, f"root-{name}"):
        assert not shop.step("resume")["changed"] and "stays held off" in shop.step("verify_resume")["says"]
    assert "nothing is held off" in shop.step("check_resume", product="another")["says"]
    for one in (app, root):
        synced = {**one, "status": {**one["status"], "sync": {"status": "Synced"}}}
        path = shop.cluster.api.path(ARGO, "Application", "argocd", one["metadata"]["name"])
        body = {"status": synced["status"]}
        shop.cluster.api.request("PATCH", path, body, "application/merge-patch+json")
    held = shop.step("check_resume")["before"]
    assert "is still held off" in refused(lambda: shop.step("verify_resume"))
    assert shop.step("resume", check_mode=True)["changed"] and "automated" not in spec(name)["syncPolicy"]
    # Nobody has compared since: what is Synced may be of before the revert.
    said = shop.step("resume", limit="2s")
    assert not said["changed"] and "automated" not in spec(name)["syncPolicy"]
    unknown = "stays held off (Argo CD has not compared it with Git since it was asked to"
    assert unknown in said["says"] and unknown in shop.step("verify_resume")["says"]
    with argo_cd(shop.cluster, name, f"root-{name}"):
        assert shop.step("resume")["changed"] and not shop.step("resume")["changed"]
        shop.step("verify_resume")
        assert spec(name) == app["spec"] and spec(f"root-{name}") == root["spec"]
        assert shop.step("undo_resume", saved=held)["changed"] and "automated" not in spec(name)["syncPolicy"]
        assert shop.step("resume")["changed"] and spec(name) == app["spec"]
    left = shop.cluster.get(ARGO, "Application", name, "argocd")["metadata"]["annotations"]
    assert left == {"team": "legal"}

    # Undo lets it act again too, whatever Git says: it is the release that it wants; also if a workload is gone.
    before["workloads"][f"Deployment {shop.name}/gone"] = {"images": {"app": BAD}}
    shop.step("main", "web", owners="suspend", image=f"{REPOSITORY}@{shop.digest}")
    assert shop.step("undo", "web", owners="suspend", saved=before)["changed"]
    assert spec(name) == app["spec"] and shop.image() == BAD
    shop.cluster.delete([app, root])


def test_what_was_switched_on_again_is_not_held_off_and_what_another_product_holds_is_refused(
    shop: Shop, gitops: None
) -> None:
    shop.run()
    name = f"app-of-{shop.name}"
    manages = {"group": "apps", "kind": "Deployment", "namespace": shop.name, "name": "web"}
    app = {
        "apiVersion": ARGO,
        "kind": "Application",
        "metadata": {"name": name, "namespace": "argocd"},
        "spec": {"syncPolicy": {"automated": {"prune": True}}},
        "status": {"resources": [manages], "sync": {"status": "OutOfSync"}},
    }
    shop.cluster.apply(app)

    def switch_on() -> None:
        path = shop.cluster.api.path(ARGO, "Application", "argocd", name)
        body = {"spec": {"syncPolicy": {"automated": {"selfHeal": True}}}}
        shop.cluster.api.request("PATCH", path, body, "application/merge-patch+json")

    def seen() -> tuple[Json, bool]:
        found = shop.cluster.get(ARGO, "Application", name, "argocd")
        return found["spec"], "balik.dev/held" in found["metadata"].get("annotations", {})

    held = shop.step("check", "web", owners="suspend")["before"]
    shop.step("main", "web", owners="suspend")
    switch_on()
    assert "which would put the version back" in refused(lambda: shop.step("check", "web", already="accept"))
    assert "will be held off" in shop.step("check", "web", owners="suspend", already="accept")["says"]
    assert shop.step("main", "web", owners="suspend")["changed"]
    assert seen() == ({"syncPolicy": {}}, True)

    for policy in ("refuse", "suspend"):
        other: Json = {"product": "another", "owners": policy, "already": "accept"}
        says = refused(functools.partial(shop.step, "check", "web", **other))
        assert f"is held off by the rollback of {shop.name}" in says
    assert f"held off by the rollback of {shop.name}" in refused(
        lambda: shop.step("main", "web", owners="suspend", product="another")
    )
    assert "(accepted by the plan)" in shop.step("check", "web", **{**other, "owners": "accept"})["says"]

    # It gets what stood there when it was held off the second time; switched on by hand, only the note goes.
    assert shop.step("resume", resume="always")["changed"]
    assert seen() == ({"syncPolicy": {"automated": {"selfHeal": True}}}, False)
    assert shop.step("undo_resume", saved=held)["changed"]
    switch_on()
    assert shop.step("undo_resume", saved=held)["changed"] and seen() == ({"syncPolicy": {}}, True)
    switch_on()
    assert "acting again" in shop.step("resume")["says"]
    assert seen() == ({"syncPolicy": {"automated": {"selfHeal": True}}}, False)
    shop.cluster.delete(app)


def test_flux_helm_and_operators_are_recognised(shop: Shop, gitops: None) -> None:
    flux = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": shop.name}
    helm = {"meta.helm.sh/release-name": "hub", "meta.helm.sh/release-namespace": shop.name}
    maker = {"apiVersion": "example/v1", "kind": "Website", "name": "main", "uid": "1", "controller": True}
    tracked = {"argocd.argoproj.io/tracking-id": f"elsewhere:apps/Deployment:{shop.name}/remote"}
    shop.run("flux", metadata={"labels": flux})
    shop.run("helm", metadata={"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": helm})
    shop.run("made", wait=False)
    shop.run("remote", metadata={"annotations": tracked})
    made = shop.cluster.api.path("apps/v1", "Deployment", shop.name, "made")
    # Refused by nobody, and collected as garbage only if its owner is looked for and not found.
    maker_of = {"metadata": {"ownerReferences": [{**maker, "blockOwnerDeletion": False}]}}
    shop.cluster.api.request("PATCH", made, maker_of, "application/merge-patch+json")
    kustomization = {
        "apiVersion": FLUX,
        "kind": "Kustomization",
        "metadata": {"name": "apps", "namespace": shop.name},
        "spec": {"path": "./apps"},
    }
    shop.cluster.apply(kustomization)
    says = refused(lambda: shop.step("check", "flux", "helm", "made", "remote"))
    assert f"flux belongs to Flux' Kustomization {shop.name}/apps, which would put the version back" in says
    assert "an operator makes this workload" in says
    assert "Argo CD's Application elsewhere" in says and "does not stand in this cluster" in says

    seen = shop.step("check", "flux", "helm", owners="suspend")
    assert f"belongs to Helm release {shop.name}/hub" in seen["says"]
    shop.step("main", "flux", "helm", owners="suspend")

    def spec() -> Json:
        return dict(shop.cluster.get(FLUX, "Kustomization", "apps", shop.name)["spec"])

    assert spec() == {"path": "./apps", "suspend": True}
    elsewhere = {"flux_namespaces": ["flux-system"], "recorded": seen["before"]["held"]}
    assert f"apps in namespace {shop.name}" in shop.step("check_resume", **elsewhere)["says"]
    assert shop.step("resume", resume="always", **elsewhere)["changed"] and spec() == {"path": "./apps"}
    shop.step("main", "flux", "helm", owners="suspend")
    assert spec() == {"path": "./apps", "suspend": True}
    assert "Flux does not tell what Git wants" in shop.step("resume")["says"]
    assert shop.step("resume", resume="always")["changed"] and spec() == {"path": "./apps"}
    shop.step("main", "flux", "helm", owners="suspend")
    assert shop.step("undo", owners="suspend", saved=seen["before"])["changed"]
    assert spec() == {"path": "./apps"}
    shop.cluster.delete(kustomization)
    gone = f"; kustomizations apps in namespace {shop.name} does not exist any more"
    assert shop.step("undo_resume", saved=seen["before"])["says"] == f"nothing was resumed{gone}"

    # What the record says and is not there was deleted, or this is another cluster.
    given = {"recorded": seen["before"]["held"], "recorded_in": seen["before"]}
    assert shop.step("check_resume", **given)["says"] == f"nothing is held off for {shop.name}{gone}"
    given["recorded_in"] = {**seen["before"], "cluster_uid": "another"}
    for entry in ("check_resume", "resume", "verify_resume"):
        says = refused(functools.partial(shop.step, entry, resume="always", **given))
        assert "this run began in another cluster" in says and "rollback_fresh" not in says


def test_a_sync_that_is_asked_for_or_under_way_is_waited_for(shop: Shop, gitops: None) -> None:
    shop.run()
    kustomized = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": shop.name}
    shop.run("flux", metadata={"labels": kustomized})
    name = f"app-of-{shop.name}"
    manages = {"group": "apps", "kind": "Deployment", "namespace": shop.name, "name": "web"}

    def application(automated: Json | None, asked: Json | None = None, phase: str = "Succeeded") -> Json:
        return {
            "apiVersion": ARGO,
            "kind": "Application",
            "metadata": {"name": name, "namespace": "argocd"},
            "spec": {"syncPolicy": {"automated": automated}},
            **({"operation": asked} if asked else {}),
            "status": {"resources": [manages], "operationState": {"phase": phase, "message": "attempt 2"}},
        }

    def kustomization(message: str) -> Json:
        progressing = {"type": "Reconciling", "status": "True", "reason": "Progressing", "message": message}
        return {
            "apiVersion": FLUX,
            "kind": "Kustomization",
            "metadata": {"name": "apps", "namespace": shop.name},
            "spec": {"path": "./apps"},
            "status": {"conditions": [progressing]},
        }

    no_sooner = "No image was touched; held off by now: "
    for made, do in (
        (application({"selfHeal": True}, {"sync": {"revision": "bad"}}), "a sync is asked for and has not begun"),
        (application(None, phase="Running"), "a sync is under way (attempt 2)"),
    ):
        shop.cluster.apply(made)
        if made["spec"]["syncPolicy"]["automated"] is None:
            says = refused(lambda: shop.step("check", "web"))
            assert f"acts by itself no more, but {do}" in says
        assert do in shop.step("check", "web", owners="suspend")["says"]
        says = refused(lambda: shop.step("main", "web", owners="suspend", limit="2s"))
        assert do in says and "argocd app terminate-op" in says and no_sooner in says, says
        assert shop.image() == BAD
        shop.cluster.delete(made)

    made = kustomization("Fetching manifests for revision main@sha1:1")
    shop.cluster.apply(made)
    says = refused(lambda: shop.step("main", "flux", owners="suspend", limit="2s"))
    assert "a reconciliation is under way (Fetching manifests for revision main@sha1:1)" in says
    assert f"{no_sooner}Flux' Kustomization {shop.name}/apps" in says and shop.image("flux") == BAD
    # What it wants has been applied by then, and it may wait long for the pods of a bad version.
    path = shop.cluster.api.path(FLUX, "Kustomization", shop.name, "apps")
    body = {"status": kustomization("Running health checks for revision main@sha1:1")["status"]}
    shop.cluster.api.request("PATCH", path, body, "application/merge-patch+json")
    assert shop.step("main", "flux", owners="suspend")["changed"]
    shop.cluster.delete(made)


@pytest.mark.parametrize(("namespace", "name"), [("applications", "apps"), ("flux-apps", "applications")])
def test_flux_is_not_taken_for_argo_cd_by_a_name(shop: Shop, gitops: None, namespace: str, name: str) -> None:
    flux = {"kustomize.toolkit.fluxcd.io/name": name, "kustomize.toolkit.fluxcd.io/namespace": namespace}
    shop.run(metadata={"labels": flux})
    metadata = {"name": name, "namespace": namespace}
    kustomization = {"apiVersion": FLUX, "kind": "Kustomization", "metadata": metadata, "spec": {"path": "./apps"}}
    shop.cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, kustomization])
    says = refused(lambda: shop.step("check", "web"))
    assert f"belongs to Flux' Kustomization {namespace}/{name}, which would put the version back" in says
    before = shop.step("check", "web", owners="suspend")["before"]
    shop.step("main", "web", owners="suspend")
    assert shop.cluster.get(FLUX, "Kustomization", name, namespace)["spec"] == {"path": "./apps", "suspend": True}
    shop.step("verify", "web", owners="suspend")
    assert shop.step("resume", resume="always", recorded=before["held"])["changed"]
    assert shop.cluster.get(FLUX, "Kustomization", name, namespace)["spec"] == {"path": "./apps"}
    shop.cluster.delete(kustomization)


def test_what_acts_again_before_the_end_is_found(shop: Shop, gitops: None) -> None:
    flux = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": shop.name}
    shop.run(metadata={"labels": flux})
    metadata = {"name": "apps", "namespace": shop.name}
    kustomization = {"apiVersion": FLUX, "kind": "Kustomization", "metadata": metadata, "spec": {"path": "./apps"}}
    shop.cluster.apply(kustomization)
    shop.step("main", "web", owners="suspend")
    shop.step("verify", "web", owners="suspend")
    shop.step("resume", resume="always")
    says = refused(lambda: shop.step("verify", "web", owners="suspend"))
    assert f"Flux' Kustomization {shop.name}/apps: acts again, and may put the version back. Run again" in says
    shop.step("verify", "web", owners="accept")
    shop.cluster.delete(kustomization)


def test_argo_cd_elsewhere_than_it_is_looked_for_is_told(shop: Shop, gitops: None) -> None:
    shop.run(metadata={"labels": {"app.kubernetes.io/instance": "hub"}})
    app = {
        "apiVersion": ARGO,
        "kind": "Application",
        "metadata": {"name": "hub", "namespace": shop.name},
        "spec": {"syncPolicy": {"automated": {"selfHeal": True}}},
        "status": {
            "resources": [{"group": "apps", "kind": "Deployment", "namespace": shop.name, "name": "web"}],
            "sync": {"status": "OutOfSync"},
        },
    }
    shop.cluster.apply(app)
    for owners in ("refuse", "suspend", "accept"):
        says = shop.step("check", "web", owners=owners)["says"]
        assert (
            f"Deployment {shop.name}/web carries Argo CD's label (app.kubernetes.io/instance: hub), and no Application "
            "hub was found in namespace argocd: if it stands elsewhere, add that to image_revert_argocd_namespaces"
        ) in says
    says = refused(lambda: shop.step("check", "web", owners="suspend", argocd_namespaces=["argocdd"]))
    assert "image_revert_argocd_namespaces: argocdd does not exist (context " in says
    says = refused(lambda: shop.step("check", "web", argocd_namespaces=[shop.name]))
    assert f"belongs to Argo CD's Application {shop.name}/hub, which would put the version back" in says
    shop.cluster.delete(app)

    # Many charts set the same label; Helm's own annotations say whose it is.
    labels = {"app.kubernetes.io/instance": "hub", "app.kubernetes.io/managed-by": "Helm"}
    helm = {"meta.helm.sh/release-name": "hub", "meta.helm.sh/release-namespace": shop.name}
    shop.run("chart", metadata={"labels": labels, "annotations": helm})
    assert "Argo CD" not in shop.step("check", "chart")["says"]


def test_an_application_counts_however_its_destination_names_this_cluster(shop: Shop, gitops: None) -> None:
    name = f"app-of-{shop.name}"
    shop.run(metadata={"labels": {"app.kubernetes.io/instance": name}})
    shop.run("bare")
    manages = [
        {"group": "apps", "kind": "Deployment", "namespace": shop.name, "name": workload}
        for workload in ("web", "bare")
    ]

    def application(destination: Json) -> Json:
        return {
            "apiVersion": ARGO,
            "kind": "Application",
            "metadata": {"name": name, "namespace": "argocd"},
            "spec": {"destination": destination, "syncPolicy": {"automated": {"selfHeal": True}}},
            "status": {"resources": manages, "sync": {"status": "Synced"}},
        }

    api = Client.connect(str(shop.cluster.kubeconfig)).host
    acts = f"belongs to Argo CD's Application argocd/{name}, which would put the version back"
    certain: list[Json] = [
        {"server": api},
        {"server": f"{api}/"},
        {"server": "https://kubernetes.default.svc/"},
        {"server": "https://kubernetes.default.svc:443"},
        {"name": "in-cluster"},
    ]
    unreadable = ["https://elsewhere.example:{{port}}", "https://[::1", "https://elsewhere.example:99999", 6443]
    others = ["https://elsewhere.example:6443", *unreadable]
    perhaps: list[Json] = [{"name": "prod"}, *({"server": one} for one in others)]
    for destination in certain + perhaps:
        shop.cluster.apply(application(destination))
        assert f"web {acts}" in refused(lambda: shop.step("check", "web")), destination
        assert len(shop.step("check", "web", owners="suspend")["before"]["held"]) == 1, destination
        if destination in certain:
            assert f"bare {acts}" in refused(lambda: shop.step("check", "bare")), destination
        else:
            # Nothing on the object says whose it is: of two clusters with the same names, this may be the other one.
            said = shop.step("check", "bare")["says"]
            assert f"stands in the list of Argo CD's Application argocd/{name}, whose destination" in said
        shop.cluster.delete(application(destination))

    manages.clear()
    shop.cluster.apply(application({}))
    says = shop.step("check", "web")["says"]
    assert f"Application argocd/{name} does not list it: see there whether it is its own" in says
    shop.cluster.delete(application({}))


def test_what_an_application_set_has_made_is_switched_off_by_hand(shop: Shop, gitops: None) -> None:
    shop.run()
    name = f"app-of-{shop.name}"
    maker = {"apiVersion": ARGO, "kind": "ApplicationSet", "name": "hubs", "uid": "1", "controller": True}
    manages = {"group": "apps", "kind": "Deployment", "namespace": shop.name, "name": "web"}
    app = {
        "apiVersion": ARGO,
        "kind": "Application",
        "metadata": {"name": name, "namespace": "argocd", "ownerReferences": [maker]},
        "spec": {"syncPolicy": {"automated": {"selfHeal": True}}},
        "status": {"resources": [manages], "sync": {"status": "Synced"}},
    }
    shop.cluster.apply(app)
    made = "ApplicationSet hubs made it and would switch auto-sync on again"
    advice = "(ignoreApplicationDifferences), switch auto-sync off by hand and run again, or set image_revert_owners"
    says = refused(lambda: shop.step("check", "web"))
    assert f"which would put the version back ({made}). Revert there" in says and advice in says
    says = refused(lambda: shop.step("check", "web", owners="suspend"))
    assert f"and cannot be held off from here: {made}. Revert there" in says and advice in says
    path = shop.cluster.api.path(ARGO, "Application", "argocd", name)
    off = {"spec": {"syncPolicy": {"automated": None}}}
    shop.cluster.api.request("PATCH", path, off, "application/merge-patch+json")
    for owners in ("refuse", "suspend"):
        says = shop.step("check", "web", owners=owners)["says"]
        assert f"which does not act by itself now; a sync by hand would. {made}, unless it leaves" in says
    assert shop.step("main", "web", owners="suspend")["changed"]
    shop.cluster.delete(app)


def test_somebody_who_puts_the_version_back_is_named(shop: Shop, lab: Nodes) -> None:
    lab.delays(ready=3)
    try:
        shop.run(wait=False)
        path = shop.cluster.api.path("apps/v1", "Deployment", shop.name, "web")

        def put_back() -> None:
            shop.cluster.eventually(lambda: shop.image() == shop.good)
            body = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": BAD}]}}}}
            kind = "application/strategic-merge-patch+json"
            shop.cluster.api.request("PATCH", f"{path}?fieldManager=argocd-controller", body, kind)

        other = threading.Thread(target=put_back)
        other.start()
        says = refused(lambda: shop.step("main", "web"))
        other.join(30)
        assert f"its container app was changed to {BAD} meanwhile by argocd-controller" in says
    finally:
        lab.delays(ready=0)


def test_deleted_meanwhile(shop: Shop, lab: Nodes) -> None:
    lab.delays(ready=3)
    try:
        made = shop.run("gone", wait=False)
        shop.run("web", wait=False)

        def delete() -> None:
            shop.cluster.eventually(lambda: shop.image("gone") == shop.good)
            shop.cluster.delete(made)

        other = threading.Thread(target=delete)
        other.start()
        says = refused(lambda: shop.step("main", "gone", "web"))
        other.join(30)
        assert f"1 of 2 workloads: Deployment {shop.name}/gone: was deleted meanwhile" in says
        assert "was deleted meanwhile; leave it out of the plan, or create it again" in says
        assert f"As asked for: Deployment {shop.name}/web" in says
    finally:
        lab.delays(ready=0)
    saved = {"workloads": {f"Deployment {shop.name}/{name}": {"images": {"app": BAD}} for name in ("gone", "web")}}
    undone = shop.step("undo", saved=saved)
    assert undone["changed"] and f"Deployment {shop.name}/gone does not exist any more" in undone["says"]
    assert shop.image() == BAD
    del saved["workloads"][f"Deployment {shop.name}/web"]
    # Nothing of the record is there: that is what another cluster looks like.
    says = refused(lambda: shop.step("undo", saved=saved))
    assert f"Deployment {shop.name}/gone: not one of these exists (context" in says and "See that kubeconfig" in says


def test_a_later_call_in_another_cluster_is_refused_though_it_has_the_same_names(
    shop: Shop, lab: Nodes, tmp_path: Path
) -> None:
    shop.run()
    seen = shop.step("check", "web")
    address = seen["before"]["cluster"]
    shop.step("main", "web", saved=seen["before"])
    with control_plane(tmp_path / "other") as other:
        other.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": shop.name}}])
        other.apply(manifest(shop.name, "web", "Deployment", GOOD))
        there = str(other.kubeconfig)
        for entry in ("check", "main", "verify", "undo"):
            says = refused(functools.partial(shop.step, entry, "web", kubeconfig=there, saved=seen["before"]))
            assert "image_revert_kubeconfig, image_revert_context: found context balik-test at https://" in says
            assert f"this run began in another cluster, at {address}; expected that cluster" in says
            assert "To leave that run (a page, a freeze or what is held off stays there), begin anew" in says
            assert "rollback.yml -e rollback_fresh=true" in says
        resumed = shop.step("check_resume")["before"]
        says = refused(lambda: shop.step("undo_resume", kubeconfig=there, saved=resumed))
        assert "this run began in another cluster" in says
        web = other.get("apps/v1", "Deployment", "web", shop.name)
        assert template(web)["spec"]["containers"][0]["image"] == GOOD

    # Its own cluster by another address, with an account that may not read which one that is.
    mine = Path(_bound(shop, {"namespace": shop.name, "name": "balik"}, "balik-image-revert", shop.name))
    by_name = tmp_path / "by-name.kubeconfig"
    by_name.write_text(mine.read_text().replace("127.0.0.1", "localhost"))
    given: Json = {"kubeconfig": str(by_name), "argocd_namespaces": []}
    shop.cluster.eventually(lambda: _seen(lambda: shop.step("check", "web", already="accept", **given)))
    assert shop.step("undo", "web", saved=seen["before"], **given)["changed"]
    assert shop.image() == BAD


def test_cron_jobs_and_jobs_are_suspended(shop: Shop, lab: Nodes) -> None:
    lab.delays(job=30)
    shop.run("nightly", "CronJob")
    shop.run("import", "Job")
    try:
        seen = shop.step("check", "CronJob/nightly", cronjobs="suspend")
        assert shop.step("main", "CronJob/nightly", cronjobs="suspend")["changed"]
        shown = shop.get("nightly", "CronJob")
        assert shown["spec"]["suspend"] is True and shop.image("nightly", "CronJob") == BAD
        assert shop.step("undo", saved=seen["before"])["changed"]
        assert not shop.get("nightly", "CronJob")["spec"]["suspend"]
        if shop.cluster.version >= (1, 24):
            assert shop.step("main", "Job/import")["changed"] and shop.get("import", "Job")["spec"]["suspend"]
        else:
            shop.run()
            for entry in ("check", "main"):
                assert "cannot suspend a Job" in refused(functools.partial(shop.step, entry, "Job/import"))
            assert f"Job {shop.name}/import: spec.suspend: is dropped" in refused(
                lambda: shop.step("check", "Deployment/web", "Job/import")
            )
            assert shop.image() == BAD
    finally:
        lab.delays(job=0)


def test_a_namespace_that_may_not_be_seen_is_not_taken_for_one(shop: Shop, gitops: None) -> None:
    shop.run()
    account = {"namespace": shop.name, "name": "balik"}
    mine = _bound(
        shop, account, "balik-image-revert", "", {"apiGroups": ["argoproj.io"], "resources": ["applications"]}
    )
    labelled: Json = {"kubeconfig": mine, "labels": {"product": "hub"}, "argocd_namespaces": []}
    nowhere = {**labelled, "namespaces": [shop.name, "nowhere"]}
    seen = shop.cluster.eventually(lambda: _granted(lambda: shop.step("check", **nowhere)))
    unknown = "nor may these credentials see whether that exists"
    assert f"namespace nowhere has no workload labelled product=hub, {unknown}" in seen["says"]

    def says() -> str:
        return refused(lambda: shop.step("check", "web", kubeconfig=mine, argocd_namespaces=["argocdd"]))

    shop.cluster.eventually(lambda: "Permissions" not in says())
    assert f"image_revert_argocd_namespaces: no Application is in argocdd, {unknown}" in says()
    _bound(shop, account, "balik-image-revert-gitops", "")
    shop.cluster.eventually(lambda: "argocdd does not exist" in says())


def test_alone_it_demands_of_the_namespaces_only_what_the_plan_names(shop: Shop, gitops: None) -> None:
    account = {"namespace": shop.name, "name": "balik"}
    shop.cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    mine = str(shop.cluster.kubeconfig_for(f"system:serviceaccount:{shop.name}:balik"))
    guessed: Json = {"kubeconfig": mine, "argocd_namespaces": None, "flux_namespaces": None}
    entries = ("check_resume", "resume", "verify_resume")
    for entry in entries:
        says = refused(functools.partial(shop.step, entry, **guessed))
        assert "kustomizations in namespace flux-system: not permitted" in says
    _bound(shop, account, "balik-image-revert-gitops", "argocd")
    shop.cluster.eventually(lambda: _seen(lambda: shop.step("check_resume", **guessed)))
    for entry in entries:
        assert shop.step(entry, **guessed)["says"] == (
            f"nothing is held off for {shop.name}; not looked for, since these credentials may not list them: "
            "kustomizations in namespace flux-system"
        )
        says = refused(functools.partial(shop.step, entry, flux_namespaces=["flux-sytem"]))
        assert says.startswith("image_revert_flux_namespaces: flux-sytem does not exist (context ")
    says = refused(lambda: shop.step("check_resume", **{**guessed, "flux_namespaces": ["flux-system"]}))
    assert "3 missing: get kustomizations.kustomize.toolkit.fluxcd.io in namespace flux-system" in says


def _bound(shop: Shop, account: Json, role: str, namespace: str, lists: Json | None = None) -> str:
    """The account's kubeconfig, bound to a role of the manifest (without a namespace: in the whole cluster).

    :param lists: what else it may list in the whole cluster: ``{apiGroups, resources}``.
    """
    api = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    shop.cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    shop.cluster.apply(MANIFEST)
    bindings = {role: namespace}
    if lists:
        own = {"name": f"{shop.name}-lists"}
        shop.cluster.apply({**api, "kind": "ClusterRole", "metadata": own, "rules": [{**lists, "verbs": ["list"]}]})
        bindings[own["name"]] = ""
    for bound, where in bindings.items():
        metadata = {"name": f"{shop.name}-{bound}", **({"namespace": where} if where else {})}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": bound}
        binding = {"metadata": metadata, "roleRef": reference, "subjects": [{"kind": "ServiceAccount", **account}]}
        shop.cluster.apply({**api, "kind": "RoleBinding" if where else "ClusterRoleBinding", **binding})
    return str(shop.cluster.kubeconfig_for(f"system:serviceaccount:{account['namespace']}:{account['name']}"))


def _seen(act: Callable[[], Json]) -> Json:
    """What it returns, or nothing while it is not permitted."""
    try:
        return act()
    except BalikError as error:
        if "not permitted" not in str(error):
            raise
        return {}


def test_the_manifest_is_the_least_that_is_needed(shop: Shop) -> None:
    shop.run()
    shop.run("db", "StatefulSet")
    account = {"namespace": shop.name, "name": "balik"}
    shop.cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    mine = shop.cluster.kubeconfig_for(f"system:serviceaccount:{shop.name}:balik")
    names = ("web", "StatefulSet/db")
    as_account: Json = {"kubeconfig": str(mine), "argocd_namespaces": []}
    says = refused(lambda: shop.step("check", *names, **as_account))
    for lacking in ("list deployments.apps", "patch statefulsets.apps", "list pods", "delete pods", "list events"):
        assert f"{lacking} in namespace {shop.name}" in says
    assert "12 missing" in says and "roles/image-revert/files/rbac-kubernetes.yml" in says

    manifests = [
        one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["metadata"]["name"] == "balik-image-revert"
    ]
    shop.cluster.apply(MANIFEST)
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "balik-image-revert"}
    shop.cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "balik", "namespace": shop.name},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **account}],
        }
    )
    seen = shop.cluster.eventually(lambda: _granted(lambda: shop.step("check", *names, **as_account)))
    shop.step("main", *names, **as_account)
    shop.step("verify", *names, **as_account)
    shop.step("undo", *names, **as_account, saved=seen["before"])
    assert shop.image() == BAD and shop.image("db", "StatefulSet") == BAD

    # One right less, and it is found before anything changes.
    less = copy.deepcopy(manifests)
    less[0]["rules"][0]["verbs"] = ["get", "list"]
    shop.cluster.apply(less)
    says = refused(
        lambda: (
            shop.cluster.eventually(lambda: not _granted(lambda: shop.step("check", *names, **as_account)))
            and shop.step("check", *names, **as_account)
        )
    )
    assert f"2 missing: patch deployments.apps in namespace {shop.name}" in says and shop.image() == BAD


def test_what_was_not_held_off_takes_no_rights_to_resume(shop: Shop, gitops: None) -> None:
    metadata = {"name": "apps", "namespace": shop.name}
    shop.cluster.apply({"apiVersion": FLUX, "kind": "Kustomization", "metadata": metadata, "spec": {"path": "./apps"}})
    account = {"namespace": shop.name, "name": "balik"}
    shop.cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    mine = str(shop.cluster.kubeconfig_for(f"system:serviceaccount:{shop.name}:balik"))
    nothing: Json = {"kubeconfig": mine, "recorded": []}
    for entry in ("check_resume", "resume", "verify_resume"):
        says = shop.step(entry, **nothing)["says"]
        assert says == (
            f"nothing is held off for {shop.name}; not looked for, since these credentials may not list them: "
            f"applications in namespace argocd, kustomizations in namespace {shop.name}"
        )
    path = shop.cluster.api.path(FLUX, "Kustomization", shop.name, "apps")
    says = refused(lambda: shop.step("check_resume", kubeconfig=mine, recorded=[path]))
    assert "2 missing: get kustomizations.kustomize.toolkit.fluxcd.io in namespace" in says
    # Alone, no record says that nothing is held off.
    says = refused(lambda: shop.step("check_resume", kubeconfig=mine))
    assert "6 missing: get applications.argoproj.io in namespace argocd" in says


def test_the_manifest_grants_what_is_asked_for_and_nothing_else(shop: Shop, gitops: None) -> None:
    given = {
        "product": "hub",
        "flux_namespaces": [],
        "kinds": list(API),
        "namespaces": [shop.name],
        "limit": "1m",
        "owners": "suspend",
        "argocd_namespaces": ["argocd"],
    }
    asked = Revert(Client.connect(str(shop.cluster.kubeconfig)), given).permissions()
    # Flux' objects are known once the workloads are read; they are listed to be resumed.
    # Namespaces are read where nothing is found in them.
    flux = itertools.product(
        [("kustomize.toolkit.fluxcd.io", "kustomizations"), ("helm.toolkit.fluxcd.io", "helmreleases")],
        ["get", "list", "patch"],
    )
    granted = {
        (group, resource, verb)
        for document in yaml.safe_load_all(MANIFEST.read_text())
        for rule in document["rules"]
        for group, resource, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }
    others = {*((*what, verb) for what, verb in flux), ("", "namespaces", "get")}
    assert granted == {(one.group, one.resource, one.verb) for one in asked} | others


def _granted(act: Callable[[], Json]) -> Json:
    """What it returns, or nothing while permissions are missing: the API server hears of a new role a moment later."""
    try:
        return act()
    except BalikError as error:
        if "Permissions" not in str(error):
            raise
        return {}


def test_expired_credentials(shop: Shop) -> None:
    shop.run(wait=False)
    expired = shop.cluster.kubeconfig_for("somebody", expired=True)
    says = refused(lambda: shop.step("check", "web", kubeconfig=str(expired)))
    assert "does not take these credentials (401" in says and "Log in to the cluster again" in says


def test_the_cluster_that_awx_names(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWX gives a job the cluster and a token in its environment, and no kubeconfig."""
    account = {"namespace": shop.name, "name": "awx"}
    shop.cluster.apply(
        [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": account,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "ServiceAccount", **account}],
            },
        ]
    )
    shown = yaml.safe_load(shop.cluster.kubeconfig_for(f"system:serviceaccount:{shop.name}:awx").read_text())
    authority = tmp_path / "ca.crt"
    authority.write_bytes(base64.b64decode(shown["clusters"][0]["cluster"]["certificate-authority-data"]))
    for name in ("KUBECONFIG", "K8S_AUTH_KUBECONFIG", "K8S_AUTH_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "no cluster is named" in refused(Client.connect)
    monkeypatch.setenv("K8S_AUTH_HOST", shown["clusters"][0]["cluster"]["server"])
    monkeypatch.setenv("K8S_AUTH_API_KEY", shown["users"][0]["user"]["token"])
    monkeypatch.setenv("K8S_AUTH_SSL_CA_CERT", str(authority))
    shop.run(wait=False)
    says = shop.cluster.eventually(
        lambda: _missing(lambda: shop.step("check", "web", kubeconfig="", argocd_namespaces=[]))
    )
    assert f"1 missing: patch deployments.apps in namespace {shop.name}" in says
    monkeypatch.setenv("K8S_AUTH_API_KEY", "another")
    assert "does not take these credentials" in refused(lambda: shop.step("check", "web", kubeconfig=""))


def _missing(act: Callable[[], Json]) -> str:
    """What is refused once the cluster has heard of the role."""
    says = refused(act)
    return says if ": 1 missing" in says else ""


def test_nobody_answers(shop: Shop, tmp_path: Path) -> None:
    nowhere = yaml.safe_load(shop.cluster.kubeconfig.read_text())
    nowhere["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(nowhere))
    with pytest.raises(Unreachable, match=r"at https://127.0.0.1:1\): does not answer .*[Cc]onnection refused"):
        shop.step("check", "web", kubeconfig=str(file))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("certificate-authority-data", b"no certificate"),
        ("certificate-authority-data", Authority().certificate),
        ("client-key-data", Authority().issue("somebody").key),
    ],
)
def test_certificates_that_are_not_the_cluster_s(shop: Shop, tmp_path: Path, part: str, wrong: bytes) -> None:
    shown = yaml.safe_load(shop.cluster.kubeconfig.read_text())
    whose = shown["users"][0]["user"] if part == "client-key-data" else shown["clusters"][0]["cluster"]
    assert part in whose
    whose[part] = base64.b64encode(wrong).decode()
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(shown))
    says = refused(lambda: shop.step("check", "web", kubeconfig=str(file)))
    assert f"certificate authority and client certificate are this cluster's (kubeconfig {file})" in says
    assert "TLS with it fails (" in says and "does not answer" not in says


def test_an_api_that_is_silent_is_waited_for_as_long_as_the_limit_is_and_one_answer_may_take(tmp_path: Path) -> None:
    with control_plane(tmp_path) as cluster, nodes(cluster, {BAD: "", GOOD: "", "redis:7": ""}) as lab:
        assert isinstance(cluster, ControlPlane)
        shop = Shop(cluster, lab)
        shop.run()
        lab.delays(ready=60)
        with contextlib.ExitStack() as silence, ThreadPoolExecutor() as pool:
            main = pool.submit(shop.step, "main", "web", limit="5s")
            cluster.eventually(lambda: shop.image() == shop.good)
            silence.enter_context(cluster.silent_api())
            begun = time.monotonic()
            says = refused(main.result)
            assert time.monotonic() - begun < 20
        assert f"Deployment {shop.name}/web: changed, and not seen to be rolled out within 5s: " in says
        assert "does not answer" in says


def test_the_api_is_killed_during_the_revert_and_the_next_run_ends_right(shop: Shop) -> None:
    names = [f"web-{number}" for number in range(40)]
    for name in names:
        shop.run(name, wait=False)
    saved = shop.step("check", *names)["before"]
    assert len(saved["workloads"]) == 40

    def kill() -> None:
        shop.cluster.eventually(lambda: shop.image("web-0") == shop.good)
        shop.cluster.stop_api()

    other = threading.Thread(target=kill)
    other.start()
    with pytest.raises(BalikError) as caught:
        shop.step("main", *names, limit="3s")
    other.join(30)
    says = str(caught.value)
    assert "does not answer" in says and "Traceback" not in says and "0x" not in says
    shop.cluster.start_api()
    # Each of them is told of, once, as it is.
    assert isinstance(caught.value, Partial)
    evidence = caught.value.evidence
    told = {part: evidence.get(part, []) for part in ("workloads", "bad", "unsure", "untouched")}
    assert sorted(itertools.chain(*told.values())) == sorted(f"Deployment {shop.name}/{name}" for name in names)
    assert {shop.image(key.rpartition("/")[2]) for key in told["untouched"]} <= {BAD}
    assert {shop.image(key.rpartition("/")[2]) for key in told["workloads"]} <= {shop.good}
    shop.step("main", *names, limit="120s")
    shop.step("verify", *names)
    shop.step("undo", saved=saved, limit="120s")
    assert {shop.image(name) for name in names} == {BAD}


def test_a_short_absence_of_the_api_is_waited_for(shop: Shop, lab: Nodes) -> None:
    lab.delays(ready=4)
    try:
        shop.run(wait=False)

        def restart() -> None:
            shop.cluster.eventually(lambda: shop.image() == shop.good)
            shop.cluster.stop_api()
            shop.cluster.start_api()

        other = threading.Thread(target=restart)
        other.start()
        assert shop.step("main", "web", limit="120s")["changed"]
        other.join(30)
    finally:
        lab.delays(ready=0)


def test_from_a_playbook(shop: Shop, gitops: None, tmp_path: Path) -> None:
    shop.run()
    made = shop.cluster.api.path("apps/v1", "Deployment", shop.name, "web")
    label = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": shop.name}
    shop.cluster.api.request("PATCH", made, {"metadata": {"labels": label}}, "application/merge-patch+json")
    metadata = {"name": "apps", "namespace": shop.name}
    shop.cluster.apply({"apiVersion": FLUX, "kind": "Kustomization", "metadata": metadata, "spec": {"path": "./apps"}})

    def call(role: str, entry: str, **variables: Any) -> Json:
        return {"include_role": {"name": role, "tasks_from": entry}, "vars": variables}

    tasks = [
        call("image-revert", "check"),
        {"set_fact": {"before": "{{ rollback_step_check.before }}"}},
        call("image-revert", "main"),
        {"assert": {"that": "rollback_step_main is changed"}},
        call("image-revert", "verify"),
        call("image-revert", "main"),
        {"assert": {"that": "rollback_step_main is not changed"}},
        *[
            call("gitops-resume", entry, rollback_run_saved={"image-revert": "{{ before }}"})
            for entry in ("check", "main", "verify")
        ],
        {"assert": {"that": "rollback_step_main is changed"}},
        call("gitops-resume", "undo", rollback_step_saved="{{ rollback_step_check.before }}"),
        call("image-revert", "undo", rollback_step_saved="{{ before }}"),
    ]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "rollback_product": "lawyers-hub",
            "rollback_run_id": "20260110T130000Z-3f9a",
            "image_revert_backend": "kubernetes",
            "image_revert_image": shop.good,
            "image_revert_workloads": [{"namespace": shop.name, "name": "web"}],
            "image_revert_owners": "suspend",
            "image_revert_resume": "always",
            "image_revert_flux_namespaces": ["flux-system"],
            "image_revert_argocd_namespaces": [],
            "image_revert_kubeconfig": str(shop.cluster.kubeconfig),
        },
        "tasks": tasks,
    }
    file = tmp_path / "play.yml"
    file.write_text(yaml.safe_dump([play]))
    ran = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", file],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        timeout=180,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert "secret" not in ran.stdout and shop.image() == BAD
    assert shop.cluster.get(FLUX, "Kustomization", "apps", shop.name)["spec"] == {"path": "./apps"}


def test_the_readme_s_command_resumes_alone(shop: Shop, gitops: None, tmp_path: Path) -> None:
    shop.run()
    made = shop.cluster.api.path("apps/v1", "Deployment", shop.name, "web")
    label = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": shop.name}
    shop.cluster.api.request("PATCH", made, {"metadata": {"labels": label}}, "application/merge-patch+json")
    metadata = {"name": "apps", "namespace": shop.name}
    shop.cluster.apply({"apiVersion": FLUX, "kind": "Kustomization", "metadata": metadata, "spec": {"path": "./apps"}})
    shop.step("main", "web", owners="suspend", product="lawyers-hub")
    assert shop.cluster.get(FLUX, "Kustomization", "apps", shop.name)["spec"]["suspend"] is True
    text = (ROOT / "roles" / "gitops-resume" / "README.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("ansible ")).partition(" localhost ")[2]
    settings = {
        "ansible_python_interpreter": sys.executable,
        "rollback_product": "lawyers-hub",
        "image_revert_resume": "always",
        "image_revert_flux_namespaces": [shop.name],
        "image_revert_argocd_namespaces": [],
        "image_revert_kubeconfig": str(shop.cluster.kubeconfig),
    }
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(settings))
    ran = subprocess.run(
        [Path(sys.executable).parent / "ansible", "localhost", "-e", f"@{tmp_path / 'plan.yml'}", *command.split()],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert shop.cluster.get(FLUX, "Kustomization", "apps", shop.name)["spec"] == {"path": "./apps"}
