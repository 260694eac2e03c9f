"""The thinking of image-revert on Kubernetes, without a cluster."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils import units
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster, name_of, path_of
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.permissions import Permission
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert import guards, pods, rollout, selection
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.images import (
    Image,
    digest_of,
    same,
    short,
)
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.rollout import Account, Partial
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.workloads import KINDS, Workload, awaits
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.module_utils.test_kubernetes_client import kubeconfig

Json = dict[str, Any]
ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


def workload(kind: str = "Deployment", status: Json | None = None, **spec: Any) -> Workload:
    labels = {"app": "web"}
    pod = {
        "initContainers": [{"name": "migrate", "image": "hub:2"}],
        "containers": [{"name": "app", "image": "hub:2", "env": [{"name": "DSN", "value": "secret"}]}],
        "volumes": [{"name": "x"}],
    }
    raw = {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "generation": 2},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            **spec,
        },
        "status": {"observedGeneration": 2, **(status or {})},
    }
    if kind == "CronJob":
        raw["spec"] = {"jobTemplate": {"spec": raw["spec"]}, **spec}
    return Workload(KINDS[kind], "apps/v1", raw)


def change(new: str = f"hub@{ONE}", **more: Any) -> selection.Change:
    made = workload(**more)
    (one,) = selection.wanted_of([{"kind": made.kind.name, "namespace": "shop", "name": "web", "image": new}], (), 9)
    return selection._change(made, one.images, {}, one.limit, "revert")


def pod(image: str, image_id: str, ready: bool = True, **state: Any) -> pods.Pod:
    told = {"name": "app", "imageID": image_id, "state": state or {"running": {}}, "ready": ready}
    return pods.reduced(
        {
            "metadata": {
                "name": "web-5d9-x2",
                "namespace": "shop",
                "uid": "p1",
                "labels": {"pod-template-hash": "5d9"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d9", "controller": True}],
            },
            "spec": {
                "initContainers": [{"name": "migrate", "image": image}],
                "containers": [{"name": "app", "image": image}],
            },
            "status": {
                "containerStatuses": [told],
                "initContainerStatuses": [
                    {"name": "migrate", "imageID": image_id, "state": {"terminated": {"exitCode": 0}}}
                ],
                "conditions": [{"type": "Ready", "status": str(ready)}],
            },
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("nginx", "docker.io/library/nginx:latest", True),
        ("balik/hub:1", "index.docker.io/balik/hub:1", True),
        ("localhost:5000/hub:1", "hub:1", False),
        ("localhost/hub:1", "docker.io/localhost/hub:1", False),
        (f"hub:2@{ONE}", f"hub@{ONE}", True),
        (f"hub:2@{ONE}", "hub:2", False),
        (f"hub@{ONE}", f"hub@{TWO}", False),
        ("${IMAGE}", "${IMAGE}", True),
    ],
)
def test_when_two_names_mean_the_same(one: str, other: str, expected: bool) -> None:
    assert same(one, other) is same(other, one) is expected


@pytest.mark.parametrize(
    "reference", ["", "Hub:1", "hub:", "hub@sha256:0f1e", f"hub@{ONE.upper()}", "hub 1", "-x", "a//b"]
)
def test_no_image(reference: str) -> None:
    with pytest.raises(BalikError, match="is no name of an image"):
        Image.of(reference)


def test_parts_of_a_reference() -> None:
    assert Image.of(f"r.example:5000/a/b:1.9@{ONE}") == ("r.example:5000/a/b", "1.9", ONE)
    assert short(f"hub@{ONE}") == "hub@sha256:111111111111…"
    assert digest_of(f"docker-pullable://r.example/hub@{ONE}") == ONE and digest_of(ONE) == ""


@pytest.mark.parametrize(
    ("kind", "spec", "status", "expected"),
    [
        ("Deployment", {"replicas": 2}, {"observedGeneration": 1}, "the controller has not seen the change yet"),
        ("Deployment", {"replicas": 2}, {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, ""),
        (
            "Deployment",
            {"replicas": 2},
            {"replicas": 3, "updatedReplicas": 2, "availableReplicas": 3},
            "2 of 2 updated, 3 available, 1 of the old ones still there",
        ),
        ("Deployment", {"replicas": 2}, {"replicas": 2, "updatedReplicas": 2}, "2 of 2 updated, 0 available"),
        ("Deployment", {"replicas": 0}, {}, ""),
        ("StatefulSet", {"replicas": 0}, {}, ""),
        (
            "StatefulSet",
            {"replicas": 2},
            {"replicas": 2, "readyReplicas": 2, "currentRevision": "b", "updateRevision": "b"},
            "",
        ),
        (
            "StatefulSet",
            {"replicas": 2},
            {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 1, "currentRevision": "a", "updateRevision": "b"},
            "1 of 2 updated, 2 available, 1 of the old ones still there",
        ),
        (
            "StatefulSet",
            {"replicas": 2, "minReadySeconds": 10},
            {"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "currentRevision": "b", "updateRevision": "b"},
            "2 of 2 updated, 1 available",
        ),
        (
            "DaemonSet",
            {},
            {"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3},
            "",
        ),
        (
            "DaemonSet",
            {},
            {"desiredNumberScheduled": 3, "updatedNumberScheduled": 1, "numberAvailable": 2},
            "1 of 3 updated, 2 available",
        ),
        ("CronJob", {}, {}, ""),
    ],
)
def test_when_a_rollout_is_complete(kind: str, spec: Json, status: Json, expected: str) -> None:
    assert awaits(workload(kind, status, **spec)) == expected


def test_nothing_secret_is_kept_of_a_workload() -> None:
    kept = workload()
    assert "secret" not in repr(kept.raw) and [one.name for one in kept.containers()] == ["migrate", "app"]


def test_the_patch_names_only_the_image_and_only_while_it_is_what_was_read() -> None:
    steps = change().patch()
    assert steps[0] == {"op": "test", "path": "/metadata/uid", "value": "u1"}
    root = "/spec/template/spec/containers/0"
    assert steps[-3:] == [
        {"op": "test", "path": f"{root}/name", "value": "app"},
        {"op": "test", "path": f"{root}/image", "value": "hub:2"},
        {"op": "replace", "path": f"{root}/image", "value": f"hub@{ONE}"},
    ]
    cron = selection._change(workload("CronJob"), ("hub:1",), {}, 9, "revert")
    assert cron.patch()[-1]["path"] == "/spec/jobTemplate/spec/template/spec/containers/0/image"
    assert selection._change(workload("CronJob"), ("hub:1",), {}, 9, "suspend").patch()[-1] == {
        "op": "add",
        "path": "/spec/suspend",
        "value": True,
    }


def test_a_change_for_what_stands_there_now() -> None:
    now = workload()
    now.pod_spec["containers"].insert(0, {"name": "sidecar", "image": "x:1"})
    assert selection.renewed(change(), now).replaced[1].path.endswith("/containers/1")
    now.pod_spec["containers"].pop()
    with pytest.raises(
        BalikError, match="Deployment shop/web: has no container app; expected one of: migrate, sidecar"
    ):
        selection.renewed(change(), now)


@pytest.mark.parametrize(
    ("target", "running", "expected"),
    [
        (f"hub@{ONE}", [pod(f"hub@{ONE}", f"docker-pullable://hub@{ONE}")], ""),
        # A node that gives no registry's digest tells nothing against it.
        (f"hub@{ONE}", [pod(f"hub@{ONE}", TWO)], ""),
        (f"hub@{ONE}", [pod(f"hub@{ONE}", f"hub@{TWO}")], "runs sha256:222222222222…, and not sha256:111111111111…"),
        (f"hub@{ONE}", [pod("hub:2", f"hub@{TWO}")], "pod web-5d9-x2 runs hub:2 in migrate"),
        ("hub:1", [pod("hub:1", f"hub@{ONE}"), pod("hub:1", f"hub@{ONE}")], ""),
        ("hub:1", [pod("hub:1", f"hub@{ONE}"), pod("hub:1", f"hub@{TWO}")], "the tag has moved"),
        (
            "hub:1",
            [pod("hub:1", "", waiting={"reason": "ImagePullBackOff", "message": "Back-off"})],
            "does not run yet (pod web-5d9-x2: app ImagePullBackOff (Back-off))",
        ),
        ("hub:1", [], ""),
    ],
)
def test_what_runs_is_held_against_what_was_asked_for(target: str, running: list[pods.Pod], expected: str) -> None:
    said = pods.wrong(change(target), running)
    assert (expected in said) if expected else said == ""


def test_pods_belong_to_the_deployment_that_made_their_replica_set() -> None:
    assert pod("hub:1", "").owner == "Deployment shop/web"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}, "app CrashLoopBackOff (back-off 10s)"),
        ({"waiting": {"reason": "PostStartHookError", "message": "DSN=secret"}}, "app PostStartHookError"),
        ({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "DSN=secret"}}, "app OOMKilled with 137"),
        ({"running": {}}, "app runs, but is not ready"),
    ],
)
def test_a_pods_trouble_in_words_without_the_programs_own(state: Json, expected: str) -> None:
    (said,) = pods.troubles([pod("hub:1", "", ready=False, **state)])
    assert said == f"pod web-5d9-x2: {expected}"


def test_what_a_probes_command_printed_is_not_told() -> None:
    assert pods.event({"reason": "Unhealthy", "message": "Readiness probe failed: DSN=secret"}) == (
        "Unhealthy: Readiness probe failed"
    )
    assert pods.event(
        {"reason": "Unhealthy", "message": "Readiness probe failed: HTTP probe failed with statuscode: 503"}
    ) == ("Unhealthy: Readiness probe failed: statuscode: 503")
    redirected = 'Readiness probe warning: Probe terminated redirects, Response body: <a href="/login?state=secret">'
    assert pods.event({"reason": "ProbeWarning", "message": redirected}) == "ProbeWarning: Readiness probe warning"


@pytest.mark.parametrize("reason", ["FailedPostStartHook", "FailedPreStopHook"])
def test_neither_is_a_lifecycle_hook_nor_what_it_printed(reason: str) -> None:
    message = (
        'Exec lifecycle hook ([sh -c migrate secret]) for Container "app" in Pod "web_shop(1)" failed - error: command '
        "'sh -c migrate secret' exited with 3: DSN=secret, message: \"DSN=secret\\n\""
    )
    assert pods.event({"reason": reason, "message": message}) == f'{reason}: failed, Container "app", exited with 3'
    assert pods.event({"reason": reason, "message": "secret"}) == f"{reason}: failed"


@pytest.mark.parametrize(
    ("selector", "named"),
    [
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "api"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "api"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, False),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}, False),
        ({}, False),
    ],
)
def test_a_budget_without_room_is_named_by_its_whole_selector(selector: Json, named: bool) -> None:
    said = list(guards.budget(workload(), [{"metadata": {"name": "pdb"}, "spec": {"selector": selector}}]))
    assert bool(said) is named


@pytest.mark.parametrize(("selector", "empty_takes_all", "named"), [({}, True, 1), ({}, False, 0), (None, True, 0)])
def test_a_budget_with_an_empty_selector_is_for_all_pods_in_policy_v1(
    selector: Json | None, empty_takes_all: bool, named: int
) -> None:
    budgets = [{"metadata": {"name": "pdb"}, "spec": {"selector": selector}}]
    assert len(list(guards.budget(workload(), budgets, empty_takes_all))) == named


@pytest.mark.parametrize(
    ("labels", "takes"),
    [
        ({"app": "hub"}, ["app!=hub"]),
        ({"app": ""}, ["!app"]),
        ({"app": "hub", "tier": "", "on": True}, ["app!=hub", "app=hub,!tier", "app=hub,tier,on!=true"]),
    ],
)
def test_what_stands_beside_those_with_the_labels(labels: Json, takes: list[str]) -> None:
    assert selection.all_but(units.label_terms(labels)) == takes


def test_selectors_that_take_each_others_pods() -> None:
    one, other = workload(), workload()
    other.name, other.key = "other", "Deployment shop/other"
    assert guards.shared_selectors([one], [one]) == []
    (said,) = guards.shared_selectors([one], [one, other])
    assert "Deployment shop/web selects pods by app=web, which those of Deployment shop/other match too" in said
    elsewhere = copy.deepcopy(other)
    elsewhere.namespace = "prod"
    canary = copy.deepcopy(other)
    canary.template["metadata"]["labels"] = {"app": "canary"}
    assert guards.shared_selectors([one], [one, elsewhere, canary]) == []


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ([{"key": "app", "operator": "In", "values": ["web", "api"]}], "app in (web, api)"),
        ([{"key": "app", "operator": "In", "values": ["api"]}], ""),
        ([{"key": "app", "operator": "NotIn", "values": ["api"]}], "app notin (api)"),
        ([{"key": "app", "operator": "NotIn", "values": ["web"]}], ""),
        ([{"key": "tier", "operator": "NotIn", "values": ["front"]}], "tier notin (front)"),  # also without the label
        ([{"key": "app", "operator": "Exists"}], "app"),
        ([{"key": "tier", "operator": "Exists"}], ""),
        ([{"key": "tier", "operator": "DoesNotExist"}], "!tier"),
        ([{"key": "app", "operator": "DoesNotExist"}], ""),
        ([{"key": "app", "operator": "Exists"}, {"key": "tier", "operator": "Exists"}], ""),
    ],
)
@pytest.mark.parametrize("labels", [{}, {"app": "web"}, {"app": "api"}])
def test_selectors_with_expressions_that_take_each_others_pods(labels: Json, selector: list[Json], said: str) -> None:
    other = workload()
    other.name, other.key = "other", "Deployment shop/other"
    one = workload(selector={**({"matchLabels": labels} if labels else {}), "matchExpressions": selector})
    found = guards.shared_selectors([one], [one, other])
    if not said or labels.get("app") == "api":
        assert found == []
    else:
        chosen = ", ".join([*(f"{label}={value}" for label, value in labels.items()), said])
        assert found[0].startswith(
            f"Deployment shop/web selects pods by {chosen}, which those of Deployment shop/other match too"
        )


def test_what_is_in_neither_kind_of_pods_is_not_shared() -> None:
    """Kinds that have no pods of their own all the time do not claim those of others."""
    one = workload(selector={"matchExpressions": [{"key": "app", "operator": "Exists"}]})
    job = workload("CronJob")
    job.key = "CronJob shop/nightly"
    assert guards.shared_selectors([one], [one, job]) == []


def quota(hard: Json, used: Json, **spec: Any) -> Json:
    return {"metadata": {"name": "q", "namespace": "shop"}, "spec": spec, "status": {"hard": hard, "used": used}}


def test_a_quota_that_cannot_take_one_more_pod() -> None:
    complete = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    one = workload(status=complete, replicas=1)
    one.pod_spec["containers"][0]["resources"] = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1"}}
    tight, wide = {"requests.cpu": "2", "pods": "5"}, {"requests.cpu": "1600m", "pods": "1"}
    (said,) = guards.quota([one], [quota(tight, wide)]).refusals
    assert "ResourceQuota shop/q has requests.cpu 400m left of 2 where a pod takes 500m" in said
    assert guards.quota([one], [quota(tight, {"requests.cpu": "1500m", "pods": "4"})]) == ([], [])
    # A quota for some pods only cannot be judged; and broken pods make room by themselves.
    assert guards.quota([one], [quota(tight, wide, scopes=["BestEffort"])]) == ([], [])
    assert guards.quota([workload(replicas=1)], [quota({"pods": "1"}, {"pods": "1"})]).refusals == []
    # With maxUnavailable it goes on, one after the other.
    slow = workload(status={"replicas": 4, "updatedReplicas": 4, "availableReplicas": 4}, replicas=4)
    findings = guards.quota([slow], [quota({"pods": "4"}, {"pods": "4"})])
    assert not findings.refusals and "more slowly" in findings.notes[0]


def test_a_quota_that_counts_what_the_containers_do_not_say() -> None:
    one = workload(replicas=1)
    app, migrate = one.pod_spec["containers"][0], one.pod_spec["initContainers"][0]
    app["resources"] = {"requests": {"memory": "1Gi"}, "limits": {"cpu": "1"}}
    counts = [quota({"pods": "9", "requests.cpu": "9", "limits.cpu": "9", "limits.memory": "9Gi", "memory": "9Gi"}, {})]
    (said,) = guards.undeclared([one], counts)
    assert "Deployment shop/web does not say what ResourceQuota shop/q counts" in said
    assert (
        "requests.cpu for migrate; limits.cpu for migrate; limits.memory for app, migrate; memory for migrate." in said
    )
    migrate["resources"] = {"limits": {"cpu": "1", "memory": "1Gi"}}
    assert (
        "counts, so that the API would refuse its new pods: limits.memory for app."
        in (guards.undeclared([one], counts)[0])
    )
    ranges = [{"spec": {"limits": [{"type": "Pod"}, {"type": "Container", "default": {"memory": "1Gi"}}]}}]
    assert guards.undeclared([one], counts, guards.defaults_of(ranges)) == []
    # Where no pod is made, or it is not known which ones count, nothing is refused.
    assert guards.undeclared([workload(replicas=0)], counts) == []
    assert guards.undeclared([workload()], [quota({"cpu": "1"}, {}, scopes=["Terminating"])]) == []
    assert guards.undeclared([workload()], [quota({"pods": "9", "requests.storage": "9Gi"}, {})]) == []
    assert len(guards.undeclared([workload("DaemonSet")], counts)) == 1


def test_a_limit_range_s_defaults_count_in_a_quota() -> None:
    one = workload(status={"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}, replicas=1)
    ranges = [{"spec": {"limits": [{"type": "Container", "defaultRequest": {"cpu": "600m"}}]}}]
    full = [quota({"requests.cpu": "1"}, {"requests.cpu": "600m"})]
    (said,) = guards.quota([one], full, guards.defaults_of(ranges)).refusals
    assert "requests.cpu 400m left of 1 where a pod takes 600m" in said


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({}, (1, 1)),
        ({"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}, (2, 0)),
        ({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}}, (0, 4)),
        ({"type": "Recreate"}, (0, 4)),
    ],
)
def test_how_many_pods_more_and_less(strategy: Json, expected: tuple[int, int]) -> None:
    assert guards.surge_of(workload(replicas=4, strategy=strategy)) == expected


@given(st.integers(min_value=0, max_value=10**6))
def test_quantities(number: int) -> None:
    assert guards.amount(f"{number}m") * 1000 == guards.amount(str(number)) == Fraction(number)
    assert guards.amount(f"{number}Mi") == number * 1024**2 and guards.amount(f"{number}M") == number * 10**6


def test_partial_success_is_said_exactly() -> None:
    account = Account(
        good={"Deployment shop/a": "app hub:1 on 1 pod"},
        bad={"Deployment shop/b": "Deployment shop/b: was deleted meanwhile"},
        unsure=["Deployment shop/c"],
        untouched=["Deployment shop/d"],
        silence="The API: does not answer",
    )
    with pytest.raises(Partial) as caught:
        account.refuse()
    assert str(caught.value).splitlines() == [
        "3 of 4 workloads: The API: does not answer",
        "Deployment shop/b: was deleted meanwhile",
        "Asked for, and not known whether it was done: Deployment shop/c",
        "Not touched: Deployment shop/d",
        "As asked for: Deployment shop/a",
    ]
    assert caught.value.evidence["untouched"] == ["Deployment shop/d"]
    Account(good={"Deployment shop/a": ""}).refuse()


def test_an_api_that_went_away_leaves_what_needed_no_change_unchanged(tmp_path: Path) -> None:
    cluster = Cluster.connect(kubeconfig(tmp_path, {}))
    other = workload()
    other.key = "Deployment shop/api"
    there = selection.Change(other, (), 9)
    account = rollout.carry_out(cluster, [change(), there])
    assert account.unsure == ["Deployment shop/web"]
    assert account.good == {"Deployment shop/api": "as asked for before; its rollout was not waited for"}


def test_paths_and_their_names() -> None:
    assert path_of("apps/v1", "deployments", "shop", "web") == "/apis/apps/v1/namespaces/shop/deployments/web"
    assert path_of("v1", "pods") == "/api/v1/pods"
    assert name_of("/apis/apps/v1/namespaces/shop/deployments/web") == "deployments web in namespace shop"
    assert name_of("/api/v1/namespaces/shop") == "namespaces shop" and name_of("/version") == "/version"
    assert str(Permission("delete", "", "pods", "shop")) == "delete pods in namespace shop"
