"""scale-freeze and scale-thaw against a real API server with real controllers, and against moto's AWS."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster as Client
from ansible_collections.balik.rollback.plugins.module_utils.scale.freeze import Freezer
from ansible_collections.balik.rollback.plugins.module_utils.scale.kinds import NOTE

from tests.integration.roles_in_a_play import play
from tests.servers.kubernetes import Cluster, ControlPlane, control_plane
from tests.servers.kubernetes_aggregation import autoscaling_v2
from tests.servers.kubernetes_nodes import Nodes, nodes

ROOT = Path(__file__).parents[2]
RBAC = ROOT / "roles/scale-freeze/files/rbac-kubernetes.yml"
IMAGE = "lawyers-hub:2.0.0"
HPA = "HorizontalPodAutoscaler"
BEHAVIOR = {
    "scaleUp": {
        "stabilizationWindowSeconds": 3,
        "selectPolicy": "Min",
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 60,
        "selectPolicy": "Max",
        "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
    },
}


def custom(plural: str, kind: str, group: str, version: str) -> dict[str, Any]:
    """A CustomResourceDefinition that takes anything: only its objects matter here."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # As the real one has it: groups under k8s.io are protected.
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/kubernetes/pull/63797"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


def autoscaling(cluster: Cluster) -> str:
    """The newest version of the API that it has."""
    return cluster.offered("autoscaling/v2", "autoscaling/v2beta2", "autoscaling/v1")


def hpa(cluster: Cluster, name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    version = autoscaling(cluster)
    metrics = [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}
    ]
    return {
        "apiVersion": version,
        "kind": HPA,
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}, "annotations": {"team": "hub"}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 2,
            "maxReplicas": 6,
            **({"metrics": metrics} if version != "autoscaling/v1" else {"targetCPUUtilizationPercentage": 50}),
            **spec,
        },
    }


def deployment(name: str, namespace: str, replicas: int = 2) -> dict[str, Any]:
    container = {"name": "app", "image": IMAGE, "resources": {"requests": {"cpu": "100m"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        started.apply(
            [
                custom("scaledobjects", "ScaledObject", "keda.sh", "v1alpha1"),
                custom("verticalpodautoscalers", "VerticalPodAutoscaler", "autoscaling.k8s.io", "v1"),
            ]
        )
        yield started


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"scale-{abs(hash(request.node.name)) % 10**8}"
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.apply(made)
    yield name
    cluster.delete(made)


def freezer(cluster: Cluster, *namespaces: str, run: str = "r1", user: Path | None = None, **options: Any) -> Freezer:
    client = Client.connect(str(user or cluster.kubeconfig))
    return Freezer(client, options.pop("product", "lawyers-hub"), run, namespaces, **options)


def settings(cluster: Cluster, namespace: str) -> dict[tuple[str, str], Any]:
    """Everything that users have written on the autoscalers of a namespace."""
    found = {}
    for version, kind in (
        (autoscaling(cluster), HPA),
        ("keda.sh/v1alpha1", "ScaledObject"),
        ("autoscaling.k8s.io/v1", "VerticalPodAutoscaler"),
    ):
        for one in cluster.get(version, kind, namespace=namespace)["items"]:
            meta = one["metadata"]
            found[kind, meta["name"]] = (one.get("spec"), meta.get("annotations"), meta.get("labels"))
    return found


def replicas(cluster: Cluster, name: str, namespace: str) -> int:
    return int(cluster.get("apps/v1", "Deployment", name, namespace)["spec"]["replicas"])


def every_kind(cluster: Cluster, namespace: str) -> None:
    cluster.apply(
        [
            hpa(cluster, "plain", namespace),
            hpa(cluster, "behaved", namespace, behavior=BEHAVIOR),
            {
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "ScaledObject",
                "metadata": {"name": "queue", "namespace": namespace},
                "spec": {"scaleTargetRef": {"name": "worker"}, "triggers": []},
            },
            {
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "ScaledObject",
                "metadata": {
                    "name": "resting",
                    "namespace": namespace,
                    "annotations": {"autoscaling.keda.sh/paused": "true"},
                },
                "spec": {"scaleTargetRef": {"name": "idle"}, "triggers": []},
            },
            {
                "apiVersion": "autoscaling.k8s.io/v1",
                "kind": "VerticalPodAutoscaler",
                "metadata": {"name": "sized", "namespace": namespace},
                "spec": {"targetRef": {"name": "web"}, "updatePolicy": {"updateMode": "Auto", "minReplicas": 2}},
            },
            {
                "apiVersion": "autoscaling.k8s.io/v1",
                "kind": "VerticalPodAutoscaler",
                "metadata": {"name": "silent", "namespace": namespace},
                "spec": {"targetRef": {"name": "web"}},
            },
        ]
    )


def bound_to_the_manifest(namespace: str) -> list[dict[str, Any]]:
    """An account with the rights of the manifest, and no more."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "balik", "namespace": namespace}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "balik-scale-freeze", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "balik-scale-freeze"},
        "subjects": [{"kind": "ServiceAccount", "name": "balik", "namespace": namespace}],
    }
    return [account, *yaml.safe_load_all(RBAC.read_text()), binding]


def bound_in_the_whole_cluster(namespace: str) -> dict[str, Any]:
    """The manifest's right to know which namespaces there are, for the account of :func:`bound_to_the_manifest`."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"balik-namespaces-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "balik-namespaces"},
        "subjects": [{"kind": "ServiceAccount", "name": "balik", "namespace": namespace}],
    }


def test_every_kind_stands_still_and_gets_exactly_its_settings_back(cluster: Cluster, namespace: str) -> None:
    every_kind(cluster, namespace)
    before = settings(cluster, namespace)
    it = freezer(cluster, namespace)

    ready = it.ready()
    assert ready["before"]["autoscalers"][f"{HPA} {namespace}/behaved"] == {"/spec/behavior": BEHAVIOR}
    assert settings(cluster, namespace) == before
    with pytest.raises(BalikError, match="not frozen; expected to stand still"):
        it.verify_frozen()

    assert freezer(cluster, namespace, dry=True).freeze()["changed"] is True
    assert settings(cluster, namespace) == before

    assert it.freeze()["evidence"] == {"frozen": 6, "patched": 6}
    it.verify_frozen()
    frozen = settings(cluster, namespace)
    behavior = frozen[HPA, "behaved"][0]["behavior"]
    assert {way: each["selectPolicy"] for way, each in behavior.items()} == dict.fromkeys(BEHAVIOR, "Disabled")
    assert behavior["scaleUp"]["policies"] == BEHAVIOR["scaleUp"]["policies"]
    assert frozen["ScaledObject", "queue"][1]["autoscaling.keda.sh/paused"] == "true"
    vpa = frozen["VerticalPodAutoscaler", "sized"][0]["updatePolicy"]
    assert vpa == {"updateMode": "Off", "minReplicas": 2}

    assert it.freeze()["changed"] is False
    # A second run finds what the first has left, and takes none of it for what stood there.
    later = freezer(cluster, namespace, run="r2")
    assert later.ready()["before"] == ready["before"]
    assert later.freeze()["changed"] is False

    assert len(it.ready_to_thaw()["before"]["frozen"]) == 6
    assert later.thaw()["evidence"]["thawed"] == 6
    later.verify_thawed()
    assert settings(cluster, namespace) == before
    assert it.thaw()["changed"] is False

    # The undo of a thaw freezes what it let go.
    only = [f"{HPA} {namespace}/plain", f"{HPA} {namespace}/gone"]
    assert it.freeze(only)["evidence"] == {"frozen": 1, "patched": 1}
    assert it.thaw()["evidence"]["thawed"] == 1
    assert settings(cluster, namespace) == before


@pytest.fixture(params=["as the cluster has it", "autoscaling/v2"])
def version(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """That of ``autoscaling`` which the roles then take: ``v2beta2`` or ``v2``."""
    with autoscaling_v2(cluster) if request.param == "autoscaling/v2" else nullcontext():
        yield autoscaling(cluster).partition("/")[2]


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Nodes]:
    with nodes(cluster, {IMAGE: ""}, metrics=True) as started:
        yield started


def test_replicas_stand_still_under_load_while_frozen_and_move_after(
    cluster: Cluster, lab: Nodes, namespace: str, version: str
) -> None:
    """A real HPA controller looks every second at a metrics API that says 200 % of what is wanted."""
    cluster.apply(
        [deployment("web", namespace), hpa(cluster, "web", namespace, behavior={"scaleUp": BEHAVIOR["scaleUp"]})]
    )
    before = settings(cluster, namespace)[HPA, "web"]

    def looks() -> bool:
        status = cluster.get(autoscaling(cluster), HPA, "web", namespace).get("status", {})
        return status.get("currentReplicas") == 2 and bool(status.get("currentMetrics"))

    lab.load({"app": "web"}, cpu=40)  # of 100 requested, 50 wanted: nothing to do
    cluster.eventually(looks, says="the autoscaler sees its two replicas")
    it = freezer(cluster, namespace)
    assert re.search(rf"{HPA} {version}\b", it.ready()["says"])
    it.freeze()

    lab.load({"app": "web"}, cpu=100)

    def sees() -> bool:
        return '"averageUtilization": 100' in json.dumps(cluster.get(autoscaling(cluster), HPA, "web", namespace))

    cluster.eventually(sees, says="the autoscaler sees the load")
    seen, end = set(), time.monotonic() + 5
    while time.monotonic() < end:
        seen.add(replicas(cluster, "web", namespace))
        time.sleep(0.2)
    assert seen == {2}

    freezer(cluster, namespace).thaw()
    cluster.eventually(lambda: replicas(cluster, "web", namespace) > 2, says="the autoscaler scales up")
    assert settings(cluster, namespace)[HPA, "web"][0] == before[0]


def test_what_was_changed_meanwhile_stays(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace, behavior=BEHAVIOR), hpa(cluster, "api", namespace)])
    it = freezer(cluster, namespace)
    it.freeze()
    path = cluster.api.path(autoscaling(cluster), HPA, namespace, "web")
    owners = {"spec": {"behavior": {"scaleUp": {"selectPolicy": "Max"}}}}
    cluster.api.request("PATCH", path, owners, "application/merge-patch+json")
    with pytest.raises(BalikError, match=rf"{HPA} {namespace}/web: not frozen"):
        it.verify_frozen()

    done = it.thaw()
    assert done["evidence"] == {"thawed": 2, "changed_meanwhile": [f"{HPA} {namespace}/web"]}
    web = cluster.get(autoscaling(cluster), HPA, "web", namespace)
    assert web["spec"]["behavior"]["scaleUp"]["selectPolicy"] == "Max"
    assert NOTE not in web["metadata"]["annotations"]
    assert "behavior" not in cluster.get(autoscaling(cluster), HPA, "api", namespace)["spec"]


def test_of_half_a_freeze_the_other_half_goes_back(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace)])
    it = freezer(cluster, namespace)
    it.freeze()
    path = cluster.api.path(autoscaling(cluster), HPA, namespace, "web")
    owners = {"spec": {"behavior": {"scaleUp": {"selectPolicy": "Min"}}}}
    cluster.api.request("PATCH", path, owners, "application/merge-patch+json")
    it.thaw()
    behavior = cluster.get(autoscaling(cluster), HPA, "web", namespace)["spec"]["behavior"]
    assert behavior["scaleUp"]["selectPolicy"] == "Min"
    assert behavior.get("scaleDown", {}).get("selectPolicy") != "Disabled"


def test_a_note_that_was_taken_away_is_made_up_for_by_the_record(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace, behavior=BEHAVIOR), hpa(cluster, "api", namespace)])
    before = settings(cluster, namespace)
    recorded = freezer(cluster, namespace).ready()["before"]["autoscalers"]
    it = freezer(cluster, namespace, recorded=recorded)

    def lose(name: str) -> None:
        path = cluster.api.path(autoscaling(cluster), HPA, namespace, name)
        cluster.api.request("PATCH", path, {"metadata": {"annotations": {NOTE: None}}}, "application/merge-patch+json")

    it.freeze()
    lose("web")
    with pytest.raises(BalikError, match=rf"{HPA} {namespace}/web: not frozen"):
        it.verify_frozen()
    with pytest.raises(BalikError, match=r"stands still already \(selectPolicy: Disabled both ways\) without the ann"):
        freezer(cluster, namespace).ready()
    assert it.ready()["before"]["autoscalers"] == recorded
    it.freeze()
    it.verify_frozen()
    # And with no freeze in between.
    lose("api")
    with pytest.raises(BalikError, match=f"{HPA} {namespace}/api: still frozen"):
        it.verify_thawed()
    assert it.thaw()["evidence"]["thawed"] == 2
    it.verify_thawed()
    after = settings(cluster, namespace)
    assert {name: spec for name, (spec, _, _) in after.items()} == {name: spec for name, (spec, _, _) in before.items()}


def test_frozen_again_after_a_change_it_is_the_change_that_comes_back(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace, behavior=BEHAVIOR)])
    it = freezer(cluster, namespace)
    it.freeze()
    path = cluster.api.path(autoscaling(cluster), HPA, namespace, "web")
    cluster.api.request("PATCH", path, {"spec": {"behavior": None}}, "application/merge-patch+json")
    it.freeze()
    it.verify_frozen()
    it.thaw()
    assert "behavior" not in cluster.get(autoscaling(cluster), HPA, "web", namespace)["spec"]


def test_a_hundred_at_once_while_others_write_to_them(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, f"web-{number}", namespace) for number in range(100)])
    before = settings(cluster, namespace)
    it = freezer(cluster, namespace)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for number in range(0, 100, 10):
                path = cluster.api.path(autoscaling(cluster), HPA, namespace, f"web-{number}")
                body = {"metadata": {"annotations": {"seen": str(time.monotonic())}}}
                cluster.api.request("PATCH", path, body, "application/merge-patch+json")

    noise = threading.Thread(target=disturb)
    noise.start()
    try:
        assert it.freeze()["evidence"] == {"frozen": 100, "patched": 100}
        it.verify_frozen()
        assert it.thaw()["evidence"]["thawed"] == 100
    finally:
        stop.set()
        noise.join(10)
    after = settings(cluster, namespace)
    for _spec, notes, _labels in after.values():
        notes.pop("seen", None)
    assert after == before


def test_the_api_killed_half_way_and_run_again_it_ends_right(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, f"web-{number}", namespace) for number in range(100)])
    before = settings(cluster, namespace)
    it = freezer(cluster, namespace)
    it.ready()

    class Killing:
        """The client, whose API server is killed at its twentieth patch."""

        def __init__(self) -> None:
            self.patches = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(it.cluster, name)

        def patch(self, *arguments: Any) -> Any:
            self.patches += 1
            if self.patches == 20:
                cluster.stop_api()
            return it.cluster.patch(*arguments)

    try:
        with pytest.raises(BalikError, match=r"\d+ of 100 autoscalers are frozen, not so .*does not answer"):
            replace(it, cluster=cast(Client, Killing())).freeze()
    finally:
        cluster.start_api()
    half = [NOTE in (notes or {}) for _spec, notes, _labels in settings(cluster, namespace).values()]
    assert 0 < sum(half) < 100
    again = freezer(cluster, namespace)
    assert again.freeze()["evidence"]["frozen"] == 100
    again.verify_frozen()
    again.thaw()
    assert settings(cluster, namespace) == before


# Which ones


def test_by_name_and_by_label(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace), hpa(cluster, "api", namespace), hpa(cluster, "cron", namespace)])
    freezer(cluster, namespace, names=["web"]).freeze()
    freezer(cluster, namespace, labels="app=api").freeze()
    still = {name: NOTE in annotations for (_kind, name), (_, annotations, _) in settings(cluster, namespace).items()}
    assert still == {"web": True, "api": True, "cron": False}
    # The thaw lets go whatever is frozen, even if the plan names something else by now.
    assert freezer(cluster, namespace, names=["cron"]).thaw()["evidence"]["thawed"] == 2


def test_the_record_says_what_to_thaw_wherever_the_plan_looks_by_now(cluster: Cluster, namespace: str) -> None:
    other = f"{namespace}-b"
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}])
    cluster.apply([hpa(cluster, "web", namespace), hpa(cluster, "web", other)])
    recorded = freezer(cluster, namespace, other).ready()["before"]["autoscalers"]
    freezer(cluster, namespace, other).freeze()
    edited = freezer(cluster, namespace, wanted=["ScaledObject"], recorded={**recorded, f"{HPA} {other}/gone": {}})
    seen = edited.ready_to_thaw()
    assert seen["before"]["frozen"] == [f"{HPA} {namespace}/web", f"{HPA} {other}/web"]
    assert f"{HPA} {other}/gone, which the record names, is not there" in seen["says"]
    with pytest.raises(BalikError, match=f"{HPA} {other}/web.*still frozen"):
        edited.verify_thawed()
    elsewhere = freezer(cluster, namespace, recorded={f"{HPA} {namespace}-c/web": {}, f"{HPA} {other}/gone": {}})
    assert "are not there" in elsewhere.ready_to_thaw()["says"]
    assert edited.thaw()["evidence"]["thawed"] == 2
    for act in (elsewhere.ready_to_thaw, elsewhere.thaw, elsewhere.verify_thawed):
        with pytest.raises(
            BalikError, match=r"the record names these, and not one exists \(context .* take scale-thaw"
        ):
            act()
    assert other in edited.verify_thawed()["says"]


def test_the_same_cluster_by_another_address_is_known_and_another_one_refused(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    cluster.apply([hpa(cluster, "web", namespace), *bound_to_the_manifest(namespace)])
    user = cluster.kubeconfig_for(f"system:serviceaccount:{namespace}:balik")
    by_name = tmp_path / "by-name.kubeconfig"
    by_name.write_text(user.read_text().replace("127.0.0.1", "localhost"))
    it = freezer(cluster, namespace, user=user)
    cluster.eventually(lambda: _is_ready(it), says="the binding counts")

    seen = it.ready()["before"]
    uid = cluster.get("autoscaling/v1", HPA, "web", namespace)["metadata"]["uid"]
    known = {"cluster": it.cluster.host, "cluster_uid": "", "uids": {f"{HPA} {namespace}/web": uid}}
    assert {name: seen[name] for name in known} == known
    it.freeze()
    freezer(cluster, namespace, user=by_name, began=known).verify_frozen()

    # A namespace of the record that may not be read is left out only where it is known that it was deleted.
    names = (f"{HPA} {namespace}/web", f"{HPA} {namespace}-gone/web")
    recorded = dict.fromkeys(names, seen["autoscalers"][names[0]])
    left = freezer(cluster, namespace, user=by_name, began=known, recorded=recorded)
    for act in (left.ready_to_thaw, left.thaw, left.verify_thawed, lambda: left.freeze([names[0]])):
        with pytest.raises(BalikError, match=f"nor may these credentials see whether namespace {namespace}-gone"):
            act()
    cluster.apply(bound_in_the_whole_cluster(namespace))
    cluster.eventually(lambda: left.cluster.has(namespace), says="the binding counts")
    there = freezer(cluster, namespace, user=by_name, began=known, recorded={**recorded, f"{HPA} default/web": {}})
    with pytest.raises(BalikError, match=r"namespace default: not permitted: .* Apply the role's RBAC manifest"):
        there.thaw()
    # No role can be given in one that is being deleted, which this API without its controllers goes on with for ever.
    ending = f"{namespace}-ending"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ending}})
    cluster.api.request("DELETE", f"/api/v1/namespaces/{ending}")
    there = freezer(cluster, namespace, user=by_name, began=known, recorded={**recorded, f"{HPA} {ending}/web": {}})
    with pytest.raises(BalikError, match=rf"namespace {ending} is being deleted, .* Wait until it is gone"):
        there.thaw()
    seen = left.ready_to_thaw()
    assert seen["before"] == {"frozen": [names[0]]}
    told = f"; {names[1]}, which the record names, is not there"
    assert seen["says"].endswith(told)
    assert left.thaw()["says"] == f"1 autoscaler ({names[0]}) let go{told}"
    assert left.verify_thawed()["says"].endswith(told)
    it.freeze()

    other = {**known, "uids": {f"{HPA} {namespace}/web": "another"}}
    freezer(cluster, namespace, user=user, began=other).verify_frozen()
    strange = freezer(cluster, namespace, user=by_name, began=other)
    acts = (strange.ready, strange.freeze, strange.verify_frozen)
    for act in (*acts, strange.ready_to_thaw, strange.thaw, strange.verify_thawed, lambda: strange.freeze(["x"])):
        with pytest.raises(
            BalikError, match=rf"scale_freeze_context: found context .*localhost.* at {it.cluster.host}"
        ):
            act()

    # Whoever may read the cluster's own uid is not deceived by an address that now leads elsewhere.
    whole = freezer(cluster, namespace).ready()["before"]
    assert whole["cluster_uid"] == cluster.get("v1", "Namespace", "kube-system")["metadata"]["uid"]
    with pytest.raises(BalikError, match="this run began in another cluster"):
        freezer(cluster, namespace, began={**whole, "cluster_uid": "another"}).thaw()
    assert freezer(cluster, namespace, began=whole).thaw()["changed"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["wbe"]}, "scale_freeze_names: wbe: not in .*, which has HorizontalPodAutoscaler .*/web. Correct"),
        ({"labels": "app=none"}, "scale-freeze: no autoscaler with labels app=none in .*; expected at least one"),
        ({"wanted": ["ScaledJob"]}, "the cluster has none of ScaledJob; expected some of HorizontalPodAutoscaler"),
        ({"product": "other"}, "frozen by the rollback of lawyers-hub. Let that end first"),
    ],
)
def test_bad_input_names_the_object(cluster: Cluster, namespace: str, options: dict[str, Any], message: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace)])
    freezer(cluster, namespace).freeze()
    with pytest.raises(BalikError, match=message):
        freezer(cluster, namespace, **options).ready()


def test_a_namespace_without_an_autoscaler_is_named_and_one_that_is_not_there_refused(
    cluster: Cluster, namespace: str
) -> None:
    other = f"{namespace}-b"
    cluster.apply(
        [hpa(cluster, "web", namespace), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}]
    )
    assert freezer(cluster, namespace, other).ready()["says"].endswith(f"; none in namespace {other}")
    with pytest.raises(BalikError, match=r"scale_freeze_namespaces: nowhere does not exist \(.*\)\. Correct the name"):
        freezer(cluster, namespace, "nowhere").ready()
    with pytest.raises(BalikError, match="scale_freeze_kinds: names no kind; expected some of HorizontalPodAutoscaler"):
        freezer(cluster, namespace, wanted=()).ready()
    with pytest.raises(BalikError, match="scale_freeze_labels: 'team=b\u00f6' can be no label in Kubernetes"):
        freezer(cluster, namespace, labels="app,team=b\u00f6").ready()
    with pytest.raises(BalikError, match="scale_freeze_namespaces: one is empty"):
        freezer(cluster, namespace, "").ready()
    with pytest.raises(BalikError, match="scale_freeze_names: one is empty; expected each by its name"):
        freezer(cluster, namespace, names=["web", ""]).ready()
    for names in ([], ["web"]):
        with pytest.raises(BalikError, match="scale_freeze_namespaces: nowhere does not exist"):
            freezer(cluster, "nowhere", names=names).ready()


def test_another_products_freeze_is_not_thawed(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace)])
    freezer(cluster, namespace).freeze()
    other = freezer(cluster, namespace, product="other")
    assert other.thaw()["changed"] is False
    other.verify_thawed()
    with pytest.raises(BalikError, match="still frozen; expected to be let go"):
        freezer(cluster, namespace).verify_thawed()


def test_a_note_that_nobody_can_read_is_named(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace)])
    freezer(cluster, namespace).freeze()
    path = cluster.api.path(autoscaling(cluster), HPA, namespace, "web")
    broken = {"metadata": {"annotations": {NOTE: "?"}}}
    cluster.api.request("PATCH", path, broken, "application/merge-patch+json")
    with pytest.raises(BalikError, match=r"annotation balik\.dev/frozen cannot be read"):
        freezer(cluster, namespace).thaw()
    with pytest.raises(BalikError, match=r"annotation balik\.dev/frozen cannot be read"):
        freezer(cluster, namespace).freeze()


@pytest.mark.parametrize("was", [{"/spec/evil": 1, "/spec/maxReplicas": 1}, {}])
def test_a_note_of_other_settings_is_as_good_as_lost(cluster: Cluster, namespace: str, was: dict[str, Any]) -> None:
    made = hpa(cluster, "web", namespace)
    cluster.apply([made])
    it = freezer(cluster, namespace)
    before = it.ready()["before"]["autoscalers"]
    spec = cluster.get(autoscaling(cluster), HPA, "web", namespace)["spec"]
    it.freeze()
    path = cluster.api.path(autoscaling(cluster), HPA, namespace, "web")
    note = {"metadata": {"annotations": {NOTE: json.dumps({"product": it.product, "run": "r", "was": was})}}}
    cluster.api.request("PATCH", path, note, "application/merge-patch+json")
    for act in (it.thaw, it.freeze, it.verify_thawed):
        with pytest.raises(BalikError, match="does not hold the settings that this kind has"):
            act()
    # Another product's is not this one's to judge.
    assert freezer(cluster, namespace, product="other").thaw()["changed"] is False
    with pytest.raises(BalikError, match=f"frozen by the rollback of {it.product}"):
        freezer(cluster, namespace, product="other").ready()

    known = replace(it, recorded=before)
    assert known.freeze()["changed"]
    known.verify_frozen()
    cluster.api.request("PATCH", path, note, "application/merge-patch+json")
    assert known.thaw()["changed"]
    known.verify_thawed()
    now = cluster.get(autoscaling(cluster), HPA, "web", namespace)
    assert now["spec"] == spec and NOTE not in (now["metadata"].get("annotations") or {})


def test_an_autoscaler_that_keda_made_is_frozen_by_its_scaled_object(cluster: Cluster, namespace: str) -> None:
    keda: dict[str, Any] = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject"}
    cluster.apply({**keda, "metadata": {"name": "queue", "namespace": namespace}, "spec": {"scaleTargetRef": {}}})
    uid = cluster.get("keda.sh/v1alpha1", "ScaledObject", "queue", namespace)["metadata"]["uid"]
    owned = hpa(cluster, "keda-hpa-queue", namespace)
    owned["metadata"]["ownerReferences"] = [{**keda, "name": "queue", "uid": uid}]
    cluster.apply(owned)
    with pytest.raises(BalikError, match=f"made by ScaledObject {namespace}/queue, which would undo a freeze"):
        freezer(cluster, namespace, names=["keda-hpa-queue"]).ready()
    assert freezer(cluster, namespace).freeze()["evidence"] == {"frozen": 1, "patched": 1}
    assert settings(cluster, namespace)["ScaledObject", "queue"][1]["autoscaling.keda.sh/paused"] == "true"


# Permissions


def test_the_manifest_is_enough_and_without_it_all_that_is_missing_is_named(
    cluster: Cluster, namespace: str, version: str
) -> None:
    every_kind(cluster, namespace)
    account, *rights = bound_to_the_manifest(namespace)
    cluster.apply([account])
    user = cluster.kubeconfig_for(f"system:serviceaccount:{namespace}:balik")
    before = settings(cluster, namespace)
    with pytest.raises(BalikError) as refused:
        freezer(cluster, namespace, user=user).ready()
    message = str(refused.value)
    assert f"patch horizontalpodautoscalers.autoscaling in namespace {namespace}" in message
    assert f"list verticalpodautoscalers.autoscaling.k8s.io in namespace {namespace}" in message
    assert "9 missing" in message
    assert "roles/scale-freeze/files/rbac-kubernetes.yml" in message

    cluster.apply(rights)
    it = freezer(cluster, namespace, user=user)
    cluster.eventually(lambda: _is_ready(it), says="the binding counts")
    assert re.search(rf"{HPA} {version}\b", it.ready()["says"])
    it.freeze()
    it.verify_frozen()
    it.ready_to_thaw()
    it.thaw()
    it.verify_thawed()
    assert settings(cluster, namespace) == before


def _is_ready(it: Freezer) -> bool:
    try:
        return bool(it.ready())
    except BalikError:
        return False


def test_a_permission_that_goes_meanwhile_is_told_with_how_many_were_frozen(cluster: Cluster, namespace: str) -> None:
    cluster.apply([hpa(cluster, "web", namespace), hpa(cluster, "api", namespace)])
    user = cluster.kubeconfig_for("reader", ["system:nobody"])
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "reader", "namespace": namespace},
        "rules": [
            {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["get", "list"]},
            {
                "apiGroups": ["autoscaling"],
                "resources": ["horizontalpodautoscalers"],
                "verbs": ["patch"],
                "resourceNames": ["web"],
            },
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "reader", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "User", "name": "reader"}],
    }
    cluster.apply([role, binding])
    it = freezer(cluster, namespace, user=user, wanted=[HPA])
    with pytest.raises(BalikError, match=rf"1 of 2 autoscalers are frozen, not so {HPA} {namespace}/api: not perm"):
        cluster.eventually(lambda: _freezes(it), says="the binding counts")
    freezer(cluster, namespace, wanted=[HPA]).freeze()
    assert freezer(cluster, namespace).thaw()["evidence"]["thawed"] == 2


def _freezes(it: Freezer) -> bool:
    """Until RBAC has seen the binding, even the list is refused."""
    try:
        return bool(it.freeze())
    except BalikError as error:
        if "are frozen" in str(error):
            raise
        return False


# Older clusters


class OldControlPlane(ControlPlane):
    """One that serves autoscaling/v1 only, as clusters did before 1.12."""

    def _start(self, name: str, *options: str) -> None:
        if name == "kube-apiserver":
            since = {"v2beta1": range(8, 25), "v2beta2": range(12, 26), "v2": range(23, 1000)}
            without = [f"autoscaling/{version}=false" for version, minors in since.items() if self._minor in minors]
            options = (*options, f"--runtime-config={','.join(without)}")
        super()._start(name, *options)


def test_where_there_is_only_v1_it_has_as_few_and_as_many_as_there_are(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    old = OldControlPlane(tmp_path, data)
    try:
        old.start()
        old.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hub"}})
        old.apply([deployment("web", "hub", replicas=4), deployment("idle", "hub", replicas=0)])
        old.apply([hpa(old, "web", "hub"), hpa(old, "idle", "hub"), hpa(old, "orphan", "hub")])
        old.delete({"apiVersion": "autoscaling/v1", "kind": HPA, "metadata": {"name": "orphan", "namespace": "hub"}})
        before = {one["metadata"]["name"]: one["spec"] for one in old.get("autoscaling/v1", HPA)["items"]}
        it = freezer(old, "hub")
        assert "by min = max" in it.ready()["says"]
        it.freeze()
        it.verify_frozen()
        frozen = {one["metadata"]["name"]: one["spec"] for one in old.get("autoscaling/v1", HPA)["items"]}
        assert [frozen["web"][key] for key in ("minReplicas", "maxReplicas")] == [4, 4]
        assert [frozen["idle"][key] for key in ("minReplicas", "maxReplicas")] == [1, 1]
        it.thaw()
        assert {one["metadata"]["name"]: one["spec"] for one in old.get("autoscaling/v1", HPA)["items"]} == before

        old.apply(hpa(old, "orphan", "hub"))
        with pytest.raises(BalikError, match=r"2 of 3 autoscalers are ready, not so .*hub/orphan: its target"):
            it.ready()
    finally:
        old.stop()


# The roles


def test_both_roles_from_a_playbook(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    cluster.apply([hpa(cluster, "web", namespace, behavior=BEHAVIOR), hpa(cluster, "api", namespace)])
    before = settings(cluster, namespace)
    saved = {"frozen": [f"{HPA} {namespace}/web", f"{HPA} {namespace}/api"]}
    steps = [
        *(("scale-freeze", entry) for entry in ("check", "main", "verify")),
        *(("scale-thaw", entry) for entry in ("check", "main", "verify", "undo")),
        *(("scale-freeze", entry) for entry in ("main", "undo")),
    ]
    variables = {
        "rollback_product": "lawyers-hub",
        "scale_freeze_kubeconfig": str(cluster.kubeconfig),
        "scale_freeze_namespaces": [namespace],
    }
    results = play(tmp_path, steps, variables, saved)
    told = [(role, entry, result["changed"]) for (role, entry), result in zip(steps, results, strict=True)]
    changing = [one[:2] for one in told if one[2]]
    assert changing == [
        ("scale-freeze", "main"),
        ("scale-thaw", "main"),
        ("scale-thaw", "undo"),
        ("scale-freeze", "undo"),
    ]
    assert results[0]["before"]["autoscalers"][f"{HPA} {namespace}/web"] == {"/spec/behavior": BEHAVIOR}
    assert "2 autoscalers" in results[1]["says"]
    assert settings(cluster, namespace) == before
